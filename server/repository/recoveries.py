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

from server.repository import codec, event_codec
from server.repository import recovery_statements as statements
from server.repository.commit_statement import child_table
from server.repository.database import COLLISIONS, Database, Transaction
from server.repository.document_store import offloaded, packed
from server.repository.examiner import Examined
from server.repository.remains import Logged, Remains, Snapshot
from server.repository.requests import Reply
from server.repository.statement import Columns, Statement, given_values, of_tenant
from server.repository.tables import ACTIVITY_SLOTS
from server.statemachine.derivation import child_progress, child_status
from server.statemachine.document import sha256
from server.statemachine.event import Event
from server.statemachine.history import Base, Kept
from server.statemachine.recovered import Recovered
from server.statemachine.value import dataclass
from server.statemachine.values import ActivityEntry, ActivityKind, ChildFlow, DocumentPlace, FlowKey

EVENTS_AT_ONCE = 5000
_LEVEL = 3


class Overtaken(Exception):
    """What is stored is not what was examined any more."""


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
        await transaction.rows(statements.LOCK, mine)
        if not _same(recovery.examined.snapshot, await self._remains.whole_within(transaction, key)):
            raise Overtaken
        event = recovered.event
        put_aside = (recovery.quarantine_id, event.time, event.actor, recovery.reason, body)
        await transaction.rows(statements.QUARANTINE, {**mine, **_to(statements.QUARANTINED, put_aside)})
        there = recovery.examined.evidence.stored.there
        await transaction.rows(statements.FLOW_ROW if there else statements.NEW_FLOW, {**mine, **rows.flow})
        for statement in statements.WITHOUT.values():
            await transaction.rows(statement, mine)
        for domain, child in rows.children:
            await transaction.rows(statements.CHILD_ROWS[domain], {**mine, **child})
        await self._put(transaction, statements.ENTRIES, mine, statements.ENTRY, rows.activity)
        if rows.superseded:
            await transaction.rows(statements.KEEP, {**mine, **given_values("places", ("name", "child_type"), rows.superseded)})
        await transaction.rows(statements.LEAVE, {**mine, **given_values("places", ("name", "child_type"), rows.places)})
        await self._put(transaction, statements.DOCUMENTS, mine, statements.DOCUMENT, rows.documents)
        await self._put(transaction, statements.ABSENCES, mine, statements.ABSENT, rows.absences)
        told = recovery.examined.evidence.told
        if told.hashes:
            await transaction.rows(statements.HASHES, {**mine, **given_values("fixed", ("revision", "hash"), sorted(told.hashes.items()))})
        if rows.spoilt:
            await transaction.rows(statements.UNTOLD, {**mine, **given_values("spoilt", ("revision",), rows.spoilt)})
        for some in _chunks(rows.events):
            await self._put(transaction, statements.EVENTS, mine, statements.EVENT, some)
        await self._put(transaction, statements.BASES, mine, statements.BASE, rows.bases)
        if reply is not None:
            remembered = (reply.request_id, event.time, reply.payload_hash, reply.answer)
            await transaction.rows(statements.REQUEST, {**mine, **_to(statements.REQUESTED, remembered)})

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
