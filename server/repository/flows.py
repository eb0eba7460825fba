"""Reading flows: one row for a summary, one statement for everything, keyset pages for lists."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from enum import Enum, unique
from typing import Any, TypeVar
from uuid import UUID

import orjson
from sqlalchemy import UUID as UUIDType
from sqlalchemy import (
    ColumnElement,
    Select,
    Text,
    bindparam,
    func,
    select,
    union_all,
)

from server.repository import codec
from server.repository.database import Database, Transaction
from server.repository.document_store import unpacked
from server.repository.filter import Filter, Order, after, condition, sorting
from server.repository.gathered import Gathered, tenants_of, wanted, wanted_values
from server.repository.statement import Statement, gated, mine, same_flow
from server.repository.tables import activity, children, documents, flows
from server.statemachine.errors import FlowNotFound
from server.statemachine.graphs import BUILT_IN, JOURNEYS
from server.statemachine.history import Kept, Version
from server.statemachine.states import FlowHold, FlowStatus
from server.statemachine.value import dataclass
from server.statemachine.values import ActivityEntry, ActivityKind, DocumentPlace, Flow, FlowKey, FlowSummary, Origin, Tenant

_STATUS = {status.name: status for status in FlowStatus}
_HOLD = {hold.name: hold for hold in FlowHold}

_SUMMARY = (
    "client_account_id",
    "engagement_id",
    "flow_id",
    "type",
    "display_name",
    "revision",
    "status",
    "progress",
    "current_child",
    "current_phases",
    "labels",
    "create_time",
    "created_by",
    "update_time",
    "updated_by",
    "end_time",
    "delete_time",
    "hold_reason",
    "origin_flow_id",
    "origin_revision",
)
SUMMARY_COLUMNS = [flows.c[name] for name in _SUMMARY]


@dataclass(frozen=True, slots=True)
class Head:
    """A flow as it is, and the hash of its last event."""

    flow: Flow
    hash: bytes


@dataclass(frozen=True, slots=True)
class Record:
    """Everything about a flow, of one moment."""

    head: Head
    documents: Mapping[DocumentPlace, bytes]
    activity: tuple[ActivityEntry, ...]


def _rows_of(statement: Any) -> ColumnElement[Any]:
    """The rows of a sub-select as one array of records."""
    return func.array(statement.scalar_subquery())


def _children() -> ColumnElement[Any]:
    names = ("type", "definition_version", "child_flow_id", "phases", "create_time", "update_time")
    parts = [select(func.row(*(table.c[name] for name in names))).where(*same_flow(table, flows)) for table in children.values()]
    return _rows_of(union_all(*(part.correlate(flows) for part in parts)))


def _documents() -> ColumnElement[Any]:
    names = ("name", "child_type", "body")
    return _rows_of(select(func.row(*(documents.c[name] for name in names))).where(*same_flow(documents, flows)).correlate(flows))


def _activity() -> ColumnElement[Any]:
    names = ("body", "time", "actor", "sequence")
    rows = select(func.row(*(activity.c[name] for name in names))).where(*same_flow(activity, flows)).correlate(flows)
    return _rows_of(rows)


def _versions() -> ColumnElement[Any]:
    names = ("name", "child_type", "revision", "size", "sha256")
    return _rows_of(select(func.row(*(documents.c[name] for name in names))).where(*same_flow(documents, flows)).correlate(flows))


_HEAD_COLUMNS = [*SUMMARY_COLUMNS, flows.c.hold, flows.c.totals, flows.c.head_hash, _children()]

_wanted = wanted()
_REVISIONS = Statement(gated(select(_wanted.c.place, flows.c.revision).where(*same_flow(flows, _wanted))))
_SUMMARIES = Statement(gated(select(_wanted.c.place, *SUMMARY_COLUMNS).where(*same_flow(flows, _wanted))))
_HEADS = Statement(gated(select(_wanted.c.place, *_HEAD_COLUMNS).where(*same_flow(flows, _wanted))))
_LOCKED = Statement(gated(select(flows.c.revision).where(*same_flow(flows, _wanted)).with_for_update(of=flows)))
_RECORDS = Statement(gated(select(_wanted.c.place, *_HEAD_COLUMNS, _documents(), _activity()).where(*same_flow(flows, _wanted))))
_KEPT = Statement(gated(select(_activity(), _versions()).where(*same_flow(flows, _wanted))))
_PLACES = Statement(
    gated(
        select(documents.c.revision, documents.c.body).where(
            *mine(documents),
            documents.c.flow_id == bindparam("flow_id", type_=UUIDType()),
            documents.c.name == bindparam("name", type_=Text),
            documents.c.child_type == bindparam("child_type", type_=Text),
        )
    )
)

_Found = TypeVar("_Found")


@unique
class DeletedFlows(Enum):
    """Whether a list shows soft-deleted flows."""

    HIDDEN = "hidden"
    SHOWN = "shown"


def summary_from_row(row: Sequence[Any]) -> FlowSummary:
    """What the values of ``SUMMARY_COLUMNS`` say."""
    account, engagement, flow_id, kind, name, revision, status, progress, child, phases, labels, *rest = row
    create_time, created_by, update_time, updated_by, end_time, delete_time, hold_reason, origin, origin_revision = rest
    return FlowSummary(
        Tenant(account, engagement),
        flow_id,
        kind,
        name,
        revision,
        _STATUS[status],
        progress,
        child,
        tuple(phases),
        orjson.loads(labels) if labels != "{}" else {},
        create_time,
        created_by,
        update_time,
        updated_by,
        end_time,
        delete_time,
        hold_reason,
        None if origin is None else Origin(origin, origin_revision),
    )


def _head(row: Sequence[Any]) -> Head:
    said = summary_from_row(row[: len(_SUMMARY)])
    hold, totals, head_hash, found = row[len(_SUMMARY) : len(_SUMMARY) + 4]
    journey = JOURNEYS[said.type]
    members = sorted(found, key=lambda child: journey.index(child[0]))
    flow = Flow(
        said.tenant,
        said.flow_id,
        said.type,
        said.revision,
        said.created_by,
        said.create_time,
        said.updated_by,
        said.update_time,
        said.display_name,
        said.labels,
        _HOLD[hold],
        said.hold_reason,
        tuple(codec.child_from_row(BUILT_IN[kind], child) for kind, _, *child in members),
        {kind: total for kind in ActivityKind if (total := totals[kind.value - 1])},
        said.end_time,
        said.delete_time,
        said.origin,
    )
    return Head(flow, head_hash)


@dataclass(frozen=True, slots=True)
class _Half:
    """A record whose documents are still packed: large ones are unpacked beside the event loop."""

    head: Head
    documents: Sequence[tuple[str, str, bytes]]
    activity: tuple[ActivityEntry, ...]


def _halfway(row: Sequence[Any]) -> _Half:
    return _Half(_head(row[1:]), row[-2], _entries(row[-1]))


class Flows:
    """What can be read of flows; soft-deleted ones included unless said otherwise."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._revisions: Gathered[int] = Gathered(database, _REVISIONS, lambda row: row[1])
        self._summaries = Gathered(database, _SUMMARIES, lambda row: summary_from_row(row[1:]))
        self._heads = Gathered(database, _HEADS, lambda row: _head(row[1:]))
        self._records = Gathered(database, _RECORDS, _halfway)

    async def revision(self, key: FlowKey) -> int | None:
        """The flow's revision; None when there is no such flow."""
        return await self._revisions.get(key)

    async def summary(self, tenant: Tenant, flow_id: UUID) -> FlowSummary:
        """The flow's hot row. Raises FlowNotFound."""
        found = await self._summaries.get(FlowKey(tenant, flow_id))
        if found is None:
            raise FlowNotFound(flow_id)
        return found

    async def summaries(self, tenant: Tenant, flow_ids: Sequence[UUID]) -> list[FlowSummary]:
        """The flows' hot rows in the order asked for. Raises FlowNotFound for the first that is missing."""
        return await _each(self._summaries, tenant, flow_ids)

    async def heads(self, keys: Sequence[FlowKey]) -> dict[FlowKey, Head]:
        """The flows with their children, those that there are."""
        rows = await self._database.read(tenants_of(keys), _HEADS, wanted_values(keys))
        return {keys[row[0]]: _head(row[1:]) for row in rows}

    async def head(self, key: FlowKey) -> Head | None:
        """The flow with its children; None when there is none."""
        return await self._heads.get(key)

    async def lock(self, transaction: Transaction, key: FlowKey) -> Head | None:
        """The flow with its children, its row locked until the transaction ends; None when there is none."""
        rows = await transaction.rows(_LOCKED, wanted_values([key]))
        # The lock may have been waited for, and the children were read before: read all of it again under the lock.
        found = await transaction.rows(_HEADS, wanted_values([key])) if rows else []
        return _head(found[0][1:]) if found else None

    async def flows(self, tenant: Tenant, flow_ids: Sequence[UUID]) -> list[Flow]:
        """The flows with their children in the order asked for. Raises FlowNotFound for the first that is missing."""
        return [head.flow for head in await _each(self._heads, tenant, flow_ids)]

    async def records(self, tenant: Tenant, flow_ids: Sequence[UUID]) -> list[Record]:
        """The flows with all that belongs to them in the order asked for. Raises FlowNotFound for the first that is missing."""
        return [await _unpacked(half) for half in await _each(self._records, tenant, flow_ids)]

    async def document(self, tenant: Tenant, flow_id: UUID, place: DocumentPlace) -> tuple[int, bytes] | None:
        """The stored document and the revision that it is of; None when there is none."""
        values = {
            "client_account_id": tenant.client_account_id,
            "engagement_id": tenant.engagement_id,
            "flow_id": flow_id,
            "name": place.name,
            "child_type": place.child_type,
        }
        rows = await self._database.read([tenant], _PLACES, values)
        return (rows[0][0], (await unpacked([rows[0][1]]))[0]) if rows else None

    async def kept(self, key: FlowKey) -> Kept:
        """What is kept of the flow besides itself: its activity, and which version each document is of; nothing for no flow."""
        return _kept(await self._database.read([key.tenant], _KEPT, wanted_values([key])))

    async def kept_within(self, transaction: Transaction, key: FlowKey) -> Kept:
        """The same within a transaction."""
        return _kept(await transaction.rows(_KEPT, wanted_values([key])))

    async def page(
        self, tenant: Tenant, narrowed: Filter, order: Order, start: tuple[str | datetime, UUID] | None, size: int, deleted: DeletedFlows
    ) -> list[FlowSummary]:
        """At most ``size`` flows that match, in order, after ``start`` (the order's column and the id of the last one seen)."""
        query: Select[Any] = select(*SUMMARY_COLUMNS).where(
            flows.c.client_account_id == tenant.client_account_id,
            flows.c.engagement_id == tenant.engagement_id,
            condition(narrowed, flows),
        )
        if deleted is DeletedFlows.HIDDEN:
            query = query.where(flows.c.delete_time.is_(None))
        if start is not None:
            query = query.where(after(order, flows, *start))
        query = query.order_by(*sorting(order, flows)).limit(size)
        rows = await self._database.read([tenant], Statement(gated(query)), {})
        return [summary_from_row(row) for row in rows]


def _kept(rows: Sequence[Any]) -> Kept:
    if not rows:
        return Kept()
    entries, versions = rows[0]
    return Kept(_entries(entries), {DocumentPlace(name, child): Version(*version) for name, child, *version in versions})


async def _each(reads: Gathered[_Found], tenant: Tenant, flow_ids: Sequence[UUID]) -> list[_Found]:
    if len(flow_ids) == 1:
        found = [await reads.get(FlowKey(tenant, flow_ids[0]))]
    else:
        found = await asyncio.gather(*(reads.get(FlowKey(tenant, flow_id)) for flow_id in flow_ids))
    for flow_id, one in zip(flow_ids, found, strict=True):
        if one is None:
            raise FlowNotFound(flow_id)
    return [one for one in found if one is not None]


async def _unpacked(half: _Half) -> Record:
    texts = await unpacked([body for _, _, body in half.documents])
    places = [DocumentPlace(name, child_type) for name, child_type, _ in half.documents]
    return Record(half.head, dict(zip(places, texts, strict=True)), half.activity)


def _entries(rows: Iterable[Sequence[Any]]) -> tuple[ActivityEntry, ...]:
    """By kind, the newest first."""
    found = [codec.entry_from_json(orjson.loads(body), time, actor, sequence) for body, time, actor, sequence in rows]
    return tuple(sorted(found, key=lambda entry: (entry.kind.value, -entry.sequence)))
