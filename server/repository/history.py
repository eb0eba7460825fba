"""What flows were: any kept revision, from the nearest base before it, the events after that, and earlier versions of documents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import ARRAY, BigInteger, Text, bindparam, column, func, literal_column, select
from sqlalchemy import UUID as UUIDType
from zstandard import ZstdError

from server.repository import codec, event_codec
from server.repository.commit_statement import WHOLE_EVERY
from server.repository.database import Database
from server.repository.document_store import content_size, offloaded, unpack, unpack_delta
from server.repository.flows import Head, Record
from server.repository.history_tables import VersionKind, bases, document_versions
from server.repository.statement import Statement, gate, gated, mine, opened, same_flow
from server.repository.tables import documents, events, flows
from server.statemachine.document import sha256
from server.statemachine.errors import FlowNotFound, HistoryDamaged, RevisionCompacted, RevisionInFuture
from server.statemachine.graphs import BUILT_IN
from server.statemachine.history import Base, Unexplained, Version, Versions, rebuilt
from server.statemachine.values import DocumentPlace, FlowKey

_AT: Any = bindparam("at", type_=BigInteger)
_NEVER: Any = literal_column("0")
_ALWAYS: Any = literal_column(str(2**63 - 1))
# The COALESCE of a bound stands within its sub-query. Around it, PostgreSQL takes it for something that could tell of rows which row level
# security hides, does not go by it when it looks into the index, and reads the whole history.
_SINCE: Any = (
    select(func.coalesce(func.max(bases.c.revision), _NEVER))
    .where(*same_flow(bases, flows), bases.c.revision <= _AT)
    .correlate(flows)
    .scalar_subquery()
)
_base = select(func.row(bases.c.revision, bases.c.hash, bases.c.body)).where(*same_flow(bases, flows), bases.c.revision == _SINCE)
_told = (
    select(func.row(events.c.revision, events.c.time, events.c.actor, events.c.body, events.c.hash))
    .where(*same_flow(events, flows), events.c.revision > _SINCE, events.c.revision <= _AT)
    .order_by(events.c.revision)
)
_oldest = select(func.min(events.c.revision)).where(*same_flow(events, flows)).correlate(flows).scalar_subquery()
_REBUILD = Statement(
    gated(
        select(
            flows.c.revision,
            _oldest,
            func.array(_base.correlate(flows).scalar_subquery()),
            func.array(_told.correlate(flows).scalar_subquery()),
        ).where(*mine(flows), flows.c.flow_id == bindparam("flow_id", type_=UUIDType()))
    )
)

_KINDS = {"name": Text, "child_type": Text, "revision": BigInteger}
_wanted = (
    func.unnest(*(bindparam(f"wanted_{name}", type_=ARRAY(kind)) for name, kind in _KINDS.items()))
    .table_valued(*(column(name, kind) for name, kind in _KINDS.items()))
    .render_derived(name="wanted")
)
_FLOW = bindparam("flow_id", type_=UUIDType())


def _of_place(table: Any) -> list[Any]:
    """The conditions that pick a document's versions, from the wanted one on."""
    return [
        *mine(table),
        table.c.flow_id == _FLOW,
        table.c.name == _wanted.c.name,
        table.c.child_type == _wanted.c.child_type,
        table.c.revision >= _wanted.c.revision,
    ]


_opener = gate()
_later = document_versions.alias("later")
# Each version is made of the next one, up to one that is whole: an earlier version, or the present document. Beside the table and not in a
# condition on it, for the same reason as above.
_whole = (
    select(func.min(_later.c.revision).label("last"), func.coalesce(func.min(_later.c.revision), _ALWAYS).label("bound"))
    .where(opened(_opener), *_of_place(_later), _later.c.kind != literal_column(str(VersionKind.DELTA.value)))
    .correlate(_wanted)
    .lateral("whole")
)
# No chain is longer; said so, the versions are looked up one place after another, whatever the planner thinks of their number.
_chain = (
    select(*(document_versions.c[name] for name in ("revision", "kind", "body")))
    .where(opened(_opener), *_of_place(document_versions), document_versions.c.revision <= _whole.c.bound)
    .order_by(document_versions.c.revision)
    .limit(literal_column(str(2 * WHOLE_EVERY)))
    .correlate(_wanted, _whole)
    .lateral("chain")
)
_CHAINS = Statement(
    select(_wanted.c.name, _wanted.c.child_type, *_chain.c)
    .select_from(_wanted.join(_whole, literal_column("true")).join(_chain, literal_column("true")))
    .where(opened(_opener))
    .union_all(
        select(_wanted.c.name, _wanted.c.child_type, documents.c.revision, literal_column("0"), documents.c.body)
        .select_from(_wanted.join(_whole, literal_column("true")))
        .where(opened(_opener), *_of_place(documents), _whole.c.last.is_(None))
    )
)


class History:
    """What can be rebuilt of a flow's earlier revisions."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def record(self, key: FlowKey, revision: int) -> Record:
        """Everything about the flow at that revision. Raises as ``base`` and ``documents`` do."""
        base = await self.base(key, revision)
        try:
            documents = await self.documents(key, base.kept.versions)
        except RevisionCompacted:
            await self.base(key, revision)  # compacted between the two reads: that says so as it should be said
            raise
        return Record(Head(base.flow, base.hash), documents, base.kept.activity)

    async def base(self, key: FlowKey, revision: int) -> Base:
        """The flow at that revision, with what belongs to it but for its documents' texts.

        Raises FlowNotFound; RevisionInFuture; RevisionCompacted when it is no longer kept; HistoryDamaged when it cannot be rebuilt.
        """
        values = {**_of_flow(key), "at": revision}
        rows = await self._database.read([key.tenant], _REBUILD, values)
        if not rows:
            raise FlowNotFound(key.flow_id)
        head, oldest, stored, told = rows[0]
        if revision > head:
            raise RevisionInFuture(revision, head)
        since = stored[0][0] if stored else 0
        if len(told) != revision - since:
            if oldest is not None and revision < oldest:
                raise RevisionCompacted(revision, oldest - 1 if oldest > 1 else oldest, head)
            raise HistoryDamaged(revision)
        try:
            size = _size(stored, told)
        except ZstdError as error:
            raise HistoryDamaged(revision) from error
        return await offloaded(size, _rebuilt, key, revision, stored, told)

    async def documents(self, key: FlowKey, versions: Versions) -> Mapping[DocumentPlace, bytes]:
        """The texts of those versions. Raises RevisionCompacted for one that is not kept, HistoryDamaged for one that cannot be rebuilt."""
        if not versions:
            return {}
        places = list(versions)
        values = {
            **_of_flow(key),
            "wanted_name": [place.name for place in places],
            "wanted_child_type": [place.child_type for place in places],
            "wanted_revision": [versions[place].revision for place in places],
        }
        rows = await self._database.read([key.tenant], _CHAINS, values)
        chains: dict[DocumentPlace, list[tuple[int, int, bytes]]] = {place: [] for place in places}
        for name, child_type, *link in rows:
            chains[DocumentPlace(name, child_type)].append((link[0], link[1], link[2]))
        size = sum(version.size for version in versions.values())
        return await offloaded(size, _texts, versions, chains)


def _of_flow(key: FlowKey) -> dict[str, object]:
    tenant = key.tenant
    return {"client_account_id": tenant.client_account_id, "engagement_id": tenant.engagement_id, "flow_id": key.flow_id}


def _size(stored: Sequence[Any], told: Sequence[Any]) -> int:
    return sum(content_size(row[2]) for row in stored) + sum(len(row[3]) for row in told)


def _rebuilt(key: FlowKey, revision: int, stored: Sequence[Any], told: Sequence[Any]) -> Base:
    try:
        base = None
        if stored:
            _, link, body = stored[0]
            base = codec.base_from_bytes(unpack(body), key.tenant, key.flow_id, link, BUILT_IN)
        events_after = [(event_codec.event_from_row(at, time, actor, body), link) for at, time, actor, body, link in told]
        return rebuilt(base, key.tenant, key.flow_id, events_after)
    except (Unexplained, ZstdError, ValueError, KeyError, TypeError) as error:
        raise HistoryDamaged(revision) from error


def _texts(versions: Versions, chains: Mapping[DocumentPlace, list[tuple[int, int, bytes]]]) -> dict[DocumentPlace, bytes]:
    return {place: _text(version, sorted(chains[place])) for place, version in versions.items()}


def _text(version: Version, chain: Sequence[tuple[int, int, bytes]]) -> bytes:
    if not chain or chain[0][0] != version.revision:
        raise RevisionCompacted(version.revision, chain[0][0] if chain else version.revision + 1, 0)
    (_, _, body), *deltas = reversed(chain)
    try:
        text = unpack(body)
        for _, _, delta in deltas:
            text = unpack_delta(delta, text)
    except ZstdError as error:
        raise HistoryDamaged(version.revision) from error
    if sha256(text) != version.sha256:
        raise HistoryDamaged(version.revision)
    return text
