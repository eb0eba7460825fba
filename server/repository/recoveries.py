"""Carrying out a recovery: what is stored goes to the quarantine and what shall be takes its place, in one transaction.

Every column of the flow's row is written, its children and its activity are taken out and put in anew: whatever stood there, the codecs
and the constraints that could not live with it never meet it again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import field
from typing import Any
from uuid import UUID

import asyncpg
import orjson
import zstandard
from sqlalchemy import UUID as UUIDType
from sqlalchemy import (
    Text,
    and_,
    bindparam,
    cast,
    delete,
    exists,
    insert,
    literal_column,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.dialects.postgresql import insert as upsert

from server.repository import codec, event_codec
from server.repository.admin_tables import quarantine
from server.repository.commit_statement import child_table
from server.repository.database import COLLISIONS, Database, Transaction
from server.repository.document_store import offloaded, packed
from server.repository.examiner import Examined
from server.repository.history_tables import VersionKind, bases, document_versions
from server.repository.remains import Logged, Remains, Snapshot
from server.repository.statement import Columns, Statement, gate, given, given_values, mine, of_tenant, opened
from server.repository.table_parts import FLOW_KEY
from server.repository.tables import ACTIVITY_SLOTS, activity, children, documents, events, flows, requests
from server.statemachine.derivation import child_progress, child_status
from server.statemachine.document import sha256
from server.statemachine.event import Event
from server.statemachine.history import Base, Kept
from server.statemachine.recovered import Recovered
from server.statemachine.value import dataclass
from server.statemachine.values import ActivityEntry, ActivityKind, ChildFlow, DocumentPlace, FlowKey

# The next version of a document is then kept whole: nobody knows how long the chain of the versions before is.
NUMBER = 64
EVENTS_AT_ONCE = 5000
_LEVEL = 3

_FLOW = bindparam("flow_id", type_=UUIDType())


class Overtaken(Exception):
    """What is stored is not what was examined any more."""


@dataclass(frozen=True, slots=True)
class Reply:
    """A request that is remembered with its answer."""

    request_id: UUID
    payload_hash: bytes
    answer: bytes


@dataclass(frozen=True, slots=True)
class Recovery:
    """A recovery that is to be carried out; ``texts`` are those of the documents that are written."""

    key: FlowKey
    examined: Examined
    recovered: Recovered
    texts: Mapping[DocumentPlace, bytes] = field(hash=False)
    activity: tuple[ActivityEntry, ...]
    quarantine_id: UUID
    reason: str


def _theirs(table: Any) -> list[Any]:
    return [*mine(table), table.c.flow_id == _FLOW]


def _key() -> list[Any]:
    return [bindparam(name, type_=UUIDType()) for name in FLOW_KEY]


def _value(table: Any, name: str) -> Any:
    kind = table.c[name].type
    value = bindparam(f"to_{name}", type_=Text() if isinstance(kind, JSONB) else kind)
    return cast(value, JSONB) if isinstance(kind, JSONB) else value


def _own(table: Any) -> list[str]:
    return [column.name for column in table.c if column.name not in FLOW_KEY]


def _one(table: Any) -> Statement:
    """One new row with all its columns."""
    rows = select(*_key(), *(_value(table, name) for name in _own(table))).where(opened(gate()))
    return Statement(insert(table).from_select([*FLOW_KEY, *_own(table)], rows))


def _many(table: Any, columns: Columns, constants: Mapping[str, str] = {}) -> Statement:
    """Rows of one flow, in the place of those that are there; ``constants`` are the same in all of them."""
    rows = given("rows", columns)
    names = [*FLOW_KEY, *columns, *constants]
    values = [*_key(), *(rows.c[name] for name in columns), *map(literal_column, constants.values())]
    putting = upsert(table).from_select(names, select(*values).where(opened(gate())))
    key = [column.name for column in table.primary_key.columns]
    setting = {name: putting.excluded[name] for name in (*columns, *constants) if name not in key}
    return Statement(putting.on_conflict_do_update(index_elements=key, set_=setting))


def _types(table: Any, *names: str) -> Columns:
    return {name: table.c[name].type for name in names}


_LOCK = Statement(select(flows.c.flow_id).where(opened(gate()), *_theirs(flows)).with_for_update(of=flows))
_NEW_FLOW = _one(flows)
_FLOW_ROW = Statement(update(flows).values({name: _value(flows, name) for name in _own(flows)}).where(opened(gate()), *_theirs(flows)))
_CHILD_ROWS = {domain: _one(table) for domain, table in children.items()}
_WITHOUT = {table.name: Statement(delete(table).where(opened(gate()), *_theirs(table))) for table in (*children.values(), activity)}
_ENTRY = _types(activity, "sequence", "time", "kind", "slot", "actor", "body")
_ENTRIES = _many(activity, _ENTRY)
_EVENT = _types(events, "revision", "time", "actor", "body", "hash")
_told = given("rows", _EVENT)
_EVENTS = Statement(
    insert(events).from_select(
        [*FLOW_KEY, *_EVENT, "format"],
        select(*_key(), *(_told.c[name] for name in _EVENT), literal_column(str(event_codec.FORMAT))).where(opened(gate())),
    )
)
_spoilt = given("spoilt", _types(events, "revision"))
_UNTOLD = Statement(
    delete(events).where(
        opened(gate()), *_theirs(events), exists(select(_spoilt.c.revision).where(_spoilt.c.revision == events.c.revision))
    )
)
_BASE = _types(bases, "revision", "hash", "body")
_BASES = _many(bases, _BASE)
_DOCUMENT = _types(documents, "revision", "size", "name", "child_type", "sha256", "body")
_DOCUMENTS = _many(documents, _DOCUMENT, {"number": str(NUMBER)})
_ABSENT = _types(document_versions, "revision", "name", "child_type")
_ABSENCES = _many(
    document_versions,
    _ABSENT,
    {"size": "0", "kind": str(VersionKind.ABSENT.value), "sha256": "decode(repeat('00', 32), 'hex')", "body": "''::bytea"},
)


def _of_places() -> tuple[Any, Any]:
    """Places of documents as rows, and the condition that a document is one of them."""
    places = given("places", _types(documents, "name", "child_type"))
    return places, and_(documents.c.name == places.c.name, documents.c.child_type == places.c.child_type)


def _keeping() -> Statement:
    """The present versions of some documents, put with the earlier ones."""
    places, same = _of_places()
    own = [*FLOW_KEY, "revision", "size", "name", "child_type", "sha256", "body"]
    rows = select(*(documents.c[name] for name in own), literal_column(str(VersionKind.WHOLE.value)))
    rows = rows.where(opened(gate()), *_theirs(documents), exists(select(places.c.name).where(same)))
    return Statement(upsert(document_versions).from_select([*own, "kind"], rows).on_conflict_do_nothing())


def _leaving() -> Statement:
    """Without any document but these."""
    places, same = _of_places()
    return Statement(delete(documents).where(opened(gate()), *_theirs(documents), ~exists(select(places.c.name).where(same))))


_KEEP, _LEAVE = _keeping(), _leaving()
_fixed = given("fixed", _types(events, "revision", "hash"))
_HASHES = Statement(
    update(events).values(hash=_fixed.c.hash).where(opened(gate()), *_theirs(events), events.c.revision == _fixed.c.revision)
)
_QUARANTINED = ("quarantine_id", "create_time", "actor", "reason", "body")
_QUARANTINE = Statement(
    insert(quarantine).from_select(
        [*FLOW_KEY, *_QUARANTINED],
        select(*_key(), *(bindparam(f"to_{name}", type_=quarantine.c[name].type) for name in _QUARANTINED)).where(opened(gate())),
    )
)
_REQUESTED = ("request_id", "create_time", "payload_hash", "answer")
_REQUEST = Statement(
    insert(requests).from_select(
        [*FLOW_KEY, *_REQUESTED],
        select(*_key(), *(bindparam(f"to_{name}", type_=requests.c[name].type) for name in _REQUESTED)).where(opened(gate())),
    )
)


@dataclass(frozen=True, slots=True)
class _Rows:
    """Everything that is written, but for the quarantine."""

    flow: Mapping[str, object]
    children: list[tuple[str, Mapping[str, object]]]
    activity: list[tuple[object, ...]]
    # Documents: those whose present version goes to the earlier ones, those that there are then, those that are written, and those that
    # are no longer there.
    superseded: list[tuple[str, str]]
    places: list[tuple[str, str]]
    documents: Sequence[tuple[object, ...]]
    absences: Sequence[tuple[object, ...]]
    # Events: those that are taken out, and those that are put in.
    spoilt: Sequence[tuple[int]]
    events: Sequence[tuple[object, ...]]
    bases: Sequence[tuple[object, ...]]


@dataclass(frozen=True, slots=True)
class Prepared:
    """A recovery with everything that it writes."""

    recovery: Recovery
    rows: _Rows
    body: bytes

    @property
    def hash(self) -> bytes:
        """The hash of the event that tells of the recovery."""
        link = self.rows.events[-1][-1]
        assert isinstance(link, bytes)
        return link


class Recoveries:
    """Carries recoveries out."""

    def __init__(self, database: Database) -> None:
        self._database, self._remains = database, Remains(database)

    async def prepared(self, recovery: Recovery) -> Prepared:
        """The recovery with everything that is to be written."""
        damaged = await self._damaged(recovery)
        body = await offloaded(recovery.examined.snapshot.size, _quarantined, recovery, damaged)
        return Prepared(recovery, await _rows(recovery), body)

    async def carry_out(self, prepared: Prepared, reply: Reply | None) -> None:
        """Store the recovered flow, what was there in quarantine, and the reply: all of it or nothing.

        Raises Overtaken when what is stored was changed since it was examined, or the request was answered meanwhile; StoreUnavailable.
        """
        try:
            async with self._database.begin([prepared.recovery.key.tenant]) as transaction:
                await self._store(transaction, prepared.recovery, prepared.rows, prepared.body, reply)
        except (asyncpg.UniqueViolationError, *COLLISIONS) as error:
            raise Overtaken from error

    async def _damaged(self, recovery: Recovery) -> dict[str, list[Logged]]:
        """The rows of the log and of the bases that are written over."""
        told, key = recovery.examined.evidence.told, recovery.key
        spoilt = {gap.first for gap in told.gaps if gap.damaged} | told.hashes.keys()
        found: dict[str, list[Logged]] = {"events": [], "bases": []}
        for revision in sorted(spoilt):
            found["events"] += await self._remains.events(key, revision - 1, revision, 1)
        for revision in sorted(told.bases):
            found["bases"] += await self._remains.bases(key, revision - 1, revision, 1)
        return found

    async def _store(self, transaction: Transaction, recovery: Recovery, rows: _Rows, body: bytes, reply: Reply | None) -> None:
        key, recovered = recovery.key, recovery.recovered
        mine = {**of_tenant(key.tenant), "flow_id": key.flow_id}
        await transaction.rows(_LOCK, mine)
        if not _same(recovery.examined.snapshot, await self._remains.whole_within(transaction, key)):
            raise Overtaken
        event = recovered.event
        put_aside = (recovery.quarantine_id, event.time, event.actor, recovery.reason, body)
        await transaction.rows(_QUARANTINE, {**mine, **_to(_QUARANTINED, put_aside)})
        there = recovery.examined.evidence.stored.there
        await transaction.rows(_FLOW_ROW if there else _NEW_FLOW, {**mine, **rows.flow})
        for statement in _WITHOUT.values():
            await transaction.rows(statement, mine)
        for domain, child in rows.children:
            await transaction.rows(_CHILD_ROWS[domain], {**mine, **child})
        await self._put(transaction, _ENTRIES, mine, _ENTRY, rows.activity)
        if rows.superseded:
            await transaction.rows(_KEEP, {**mine, **given_values("places", ("name", "child_type"), rows.superseded)})
        await transaction.rows(_LEAVE, {**mine, **given_values("places", ("name", "child_type"), rows.places)})
        await self._put(transaction, _DOCUMENTS, mine, _DOCUMENT, rows.documents)
        await self._put(transaction, _ABSENCES, mine, _ABSENT, rows.absences)
        told = recovery.examined.evidence.told
        if told.hashes:
            await transaction.rows(_HASHES, {**mine, **given_values("fixed", ("revision", "hash"), sorted(told.hashes.items()))})
        if rows.spoilt:
            await transaction.rows(_UNTOLD, {**mine, **given_values("spoilt", ("revision",), rows.spoilt)})
        for some in _chunks(rows.events):
            await self._put(transaction, _EVENTS, mine, _EVENT, some)
        await self._put(transaction, _BASES, mine, _BASE, rows.bases)
        if reply is not None:
            remembered = (reply.request_id, event.time, reply.payload_hash, reply.answer)
            await transaction.rows(_REQUEST, {**mine, **_to(_REQUESTED, remembered)})

    async def _put(
        self, transaction: Transaction, statement: Statement, mine: Mapping[str, object], columns: Columns, rows: Sequence[Any]
    ) -> None:
        if rows:
            await transaction.rows(statement, {**mine, **given_values("rows", columns, rows)})


async def _rows(recovery: Recovery) -> _Rows:
    recovered, evidence = recovery.recovered, recovery.examined.evidence
    flow, said, revision = recovered.flow, recovered.summary, recovered.flow.revision
    log = await offloaded(64 * sum(gap.last - gap.first for gap in recovered.lost), _log, recovery)
    link = log[-1][-1]
    assert isinstance(link, bytes)
    base = Base(flow, Kept(recovery.activity, recovered.versions), link)
    kept = [(base.flow.revision, base.hash, await packed(codec.base_to_bytes(base))) for base in (*evidence.told.bases.values(), base)]
    written = []
    for place, version in recovered.written.items():
        text = recovery.texts[place]
        written.append((version.revision, version.size, place.name, place.child_type, version.sha256, await packed(text)))
    superseded = [
        (place.name, place.child_type)
        for place, present in evidence.texts.present.items()
        if present.right and present.version == evidence.versions.get(place) and recovered.versions.get(place) != present.version
    ]
    totals = [flow.totals.get(kind, 0) for kind in ActivityKind]
    row: dict[str, object] = {
        "revision": revision,
        "progress": said.progress,
        "create_time": flow.create_time,
        "update_time": flow.update_time,
        "end_time": flow.end_time,
        "delete_time": flow.delete_time,
        "type": flow.type,
        "status": said.status.name,
        "hold": flow.hold.name,
        "hold_reason": flow.hold_reason,
        "display_name": flow.display_name,
        "created_by": flow.created_by,
        "updated_by": flow.updated_by,
        "current_child": said.current_child,
        "current_phases": list(said.current_phases),
        "labels": orjson.dumps(dict(flow.labels)).decode(),
        "totals": totals,
        "head_hash": link,
        "origin_flow_id": None if flow.origin is None else flow.origin.flow_id,
        "origin_revision": None if flow.origin is None else flow.origin.revision,
    }
    return _Rows(
        _to(row, row.values()),
        [(child_table(child.type), _child(recovered, child)) for child in flow.children],
        [_entry(entry) for entry in recovery.activity],
        superseded,
        [(place.name, place.child_type) for place in recovered.versions],
        written,
        [(revision, place.name, place.child_type) for place in recovered.absent],
        [(gap.first,) for gap in evidence.told.gaps if gap.damaged],
        log,
        kept,
    )


def _to(names: Iterable[str], values: Iterable[object]) -> dict[str, object]:
    return {f"to_{name}": value for name, value in zip(names, values, strict=True)}


def _child(recovered: Recovered, child: ChildFlow) -> dict[str, object]:
    row: dict[str, object] = {
        "child_flow_id": child.child_flow_id,
        "progress": child_progress(child),
        "create_time": child.create_time,
        "update_time": child.update_time,
        "definition_version": child.definition.version,
        "type": child.type,
        "status": child_status(child, recovered.flow.hold).name,
        "phases": codec.phases_to_text(child.phases),
    }
    return _to(row, row.values())


def _entry(entry: ActivityEntry) -> tuple[object, ...]:
    slot = (entry.sequence - 1) % ACTIVITY_SLOTS
    return entry.sequence, entry.time, entry.kind.value, slot, entry.actor, codec.entry_to_text(entry)


def _log(recovery: Recovery) -> list[tuple[object, ...]]:
    """The events that are written: notes in the place of those that are lost, then the one that tells of the recovery."""
    recovered, told = recovery.recovered, recovery.examined.evidence.told
    rows: list[tuple[object, ...]] = []
    at, link = 0, event_codec.NO_HASH
    for gap in recovered.lost:
        if gap.first != at + 1 or not rows:
            link = gap.before or event_codec.NO_HASH
        for at in range(gap.first, gap.last + 1):
            link = _put_event(rows, recovery.key, recovered.note(at), link)
    if at != recovered.event.revision - 1:
        link = told.hash or event_codec.NO_HASH
    _put_event(rows, recovery.key, recovered.event, link)
    return rows


def _put_event(rows: list[tuple[object, ...]], key: FlowKey, event: Event, before: bytes) -> bytes:
    body = event_codec.event_to_text(event)
    link = event_codec.chained(before, key, event.revision, sha256(event_codec.content_of(event.time, event.actor, body)))
    rows.append((event.revision, event.time, event.actor, body, link))
    return link


def _quarantined(recovery: Recovery, damaged: Mapping[str, Sequence[Logged]]) -> bytes:
    """Everything that is written over, as zstd bytes of JSON: each table's rows as PostgreSQL tells them, bytes in hexadecimal digits."""
    tables: dict[str, list[object]] = {
        name: [orjson.Fragment(text) for text in texts] for name, texts in recovery.examined.snapshot.texts.items() if texts
    }
    tables |= {name: [orjson.Fragment(row.text) for row in rows] for name, rows in damaged.items() if rows}
    whole = {"format": 1, "flow_id": str(recovery.key.flow_id), "revision": recovery.recovered.flow.revision, "tables": tables}
    return zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True).compress(orjson.dumps(whole))


def _same(before: Snapshot, now: Snapshot) -> bool:
    """Whether nothing was changed: rows, and where the history begins and ends."""
    spans = ("events", "bases", "document_versions")
    return before.texts == now.texts and all(before.spans[name] == now.spans[name] for name in spans)


def _chunks(rows: Sequence[Any]) -> Iterator[Sequence[Any]]:
    for start in range(0, len(rows), EVENTS_AT_ONCE):
        yield rows[start : start + EVENTS_AT_ONCE]
