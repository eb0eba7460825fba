"""Reading a flow's events: pages in order, and where history starts and ends."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import ARRAY, BigInteger, Integer, Text, bindparam, column, func, literal_column, or_, select
from sqlalchemy import UUID as UUIDType

from server.repository import event_codec
from server.repository.database import Database
from server.repository.gathered import Gathered, tenants_of, wanted, wanted_values
from server.repository.statement import Statement, gated, mine, same_flow
from server.repository.table_parts import TIME
from server.repository.tables import events, flows
from server.statemachine.errors import FlowNotFound, RevisionCompacted, RevisionInFuture
from server.statemachine.event import Event
from server.statemachine.event_filter import EventFilter
from server.statemachine.value import dataclass
from server.statemachine.values import FlowKey, Tenant


@dataclass(frozen=True, slots=True)
class StoredEvent:
    """An event and the hash that chains it to the one before it."""

    event: Event
    hash: bytes


@dataclass(frozen=True, slots=True)
class EventPage:
    """Events in order, and the history they are of: its oldest kept and its newest revision."""

    events: tuple[StoredEvent, ...]
    oldest: int
    head: int
    ended: bool
    delete_time: datetime | None


@dataclass(frozen=True, slots=True)
class Narrowing:
    """Which events somebody wants to see; None and empty ask nothing."""

    wanted: EventFilter = EventFilter()
    actor: str = ""
    start: datetime | None = None
    end: datetime | None = None


@dataclass(frozen=True, slots=True)
class NarrowedPage:
    """The events that match among those that were looked at, which end with revision ``reached``."""

    page: EventPage
    reached: int


# So many revisions are looked at for one page of events that match.
LOOKED_AT = 5000
_MOST = 2**63 - 1

_wanted = wanted("after", "size")
# What has no events at all, though it should, has lost them.
_oldest: Any = func.coalesce(
    select(func.min(events.c.revision)).where(*same_flow(events, flows)).correlate(flows).scalar_subquery(),
    flows.c.revision + literal_column("1"),
)
_page = (
    select(func.row(events.c.revision, events.c.time, events.c.actor, events.c.body, events.c.hash))
    .where(*same_flow(events, flows), events.c.revision > _wanted.c.after, events.c.revision <= flows.c.revision)
    .order_by(events.c.revision)
    .limit(_wanted.c.size)
    .correlate(flows, _wanted)
    .scalar_subquery()
)
# One snapshot for all of it: what a page holds and whether the flow had ended are of the same moment.
_PAGES = Statement(
    gated(
        select(_wanted.c.place, flows.c.revision, _oldest, flows.c.end_time, flows.c.delete_time, func.array(_page)).where(
            *same_flow(flows, _wanted)
        )
    )
)

_known = wanted("after")
_MOVED = Statement(gated(select(_known.c.place).where(*same_flow(flows, _known), flows.c.revision > _known.c.after)))
# Row level security compares each row with all the tenants that are named, so a statement must not name too many.
MOVED_AT_ONCE = 256

_AFTER: Any = bindparam("after", type_=BigInteger)


def _holds(name: str) -> Any:
    """Whether the event's body holds one of the texts, or none are asked for."""
    texts = bindparam(name, type_=ARRAY(Text))
    one = func.unnest(texts).table_valued(column("text", Text)).render_derived(name=name)
    found: Any = select(literal_column("1")).select_from(one).where(func.strpos(events.c.body, one.c.text) > literal_column("0"))
    return or_(func.cardinality(texts) == literal_column("0"), found.exists())


def _if_asked(name: str, condition: Any, kind: Any) -> Any:
    asked = bindparam(name, type_=kind)
    return or_(asked.is_(None), condition(asked))


_narrowed = (
    select(func.row(events.c.revision, events.c.time, events.c.actor, events.c.body, events.c.hash))
    .where(
        *same_flow(events, flows),
        events.c.revision > _AFTER,
        events.c.revision <= func.least(flows.c.revision, bindparam("last", type_=BigInteger)),
        _holds("kinds"),
        _holds("phases"),
        _if_asked("actor", lambda asked: events.c.actor == asked, Text),
        _if_asked("start", lambda asked: events.c.time >= asked, TIME),
        _if_asked("end", lambda asked: events.c.time < asked, TIME),
    )
    .order_by(events.c.revision)
    .limit(bindparam("size", type_=Integer))
    .correlate(flows)
    .scalar_subquery()
)
_NARROWED = Statement(
    gated(
        select(literal_column("0"), flows.c.revision, _oldest, flows.c.end_time, flows.c.delete_time, func.array(_narrowed)).where(
            *mine(flows), flows.c.flow_id == bindparam("flow_id", type_=UUIDType())
        )
    )
)


class Events:
    """What can be read of a flow's history."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._pages = Gathered(database, _PAGES, _decoded, "after", "size")

    async def span(self, tenant: Tenant, flow_id: UUID) -> EventPage:
        """Where the flow's history starts and ends, without events. Raises FlowNotFound."""
        found = await self._pages.get(FlowKey(tenant, flow_id), 0, 0)
        if found is None:
            raise FlowNotFound(flow_id)
        return found

    async def page(self, tenant: Tenant, flow_id: UUID, after: int, size: int) -> EventPage:
        """At most ``size`` events after revision ``after``.

        Raises FlowNotFound; RevisionInFuture when the flow has not come to ``after``; RevisionCompacted when an event right after it is
        no longer kept.
        """
        found = await self._pages.get(FlowKey(tenant, flow_id), after, size)
        if found is None:
            raise FlowNotFound(flow_id)
        return _checked(found, after)

    async def narrowed(self, tenant: Tenant, flow_id: UUID, after: int, size: int, narrowing: Narrowing) -> NarrowedPage:
        """At most ``size`` events that match, of the next LOOKED_AT after revision ``after``. Raises as ``page`` does."""
        kinds, phases = event_codec.marks_of(narrowing.wanted)
        last = min(after + LOOKED_AT, _MOST)
        values = {
            "client_account_id": tenant.client_account_id,
            "engagement_id": tenant.engagement_id,
            "flow_id": flow_id,
            "after": after,
            "last": last,
            "size": size,
            "kinds": kinds,
            "phases": phases,
            "actor": narrowing.actor or None,
            "start": narrowing.start,
            "end": narrowing.end,
        }
        rows = await self._database.read([tenant], _NARROWED, values)
        if not rows:
            raise FlowNotFound(flow_id)
        found = _checked(_decoded(rows[0]), after)
        # What holds the texts need not be what was asked for.
        matching = tuple(stored for stored in found.events if narrowing.wanted.passes(stored.event))
        full = len(found.events) == size
        reached = found.events[-1].event.revision if full else min(last, found.head)
        return NarrowedPage(replace(found, events=matching), reached)

    async def moved(self, known: Mapping[FlowKey, int]) -> list[FlowKey]:
        """Which of the flows have come further than the revision that is known of them."""
        found = []
        keys = list(known)
        for first in range(0, len(keys), MOVED_AT_ONCE):
            some = keys[first : first + MOVED_AT_ONCE]
            values = wanted_values(some, {"after": [known[key] for key in some]})
            found += [some[row[0]] for row in await self._database.read(tenants_of(some), _MOVED, values)]
        return found


def _checked(found: EventPage, after: int) -> EventPage:
    if after > found.head:
        raise RevisionInFuture(after, found.head)
    if after + 1 < found.oldest:
        raise RevisionCompacted(after, found.oldest, found.head)
    return found


def _decoded(row: tuple[int, int, int, datetime | None, datetime | None, list[tuple[int, datetime, str, str, bytes]]]) -> EventPage:
    _, head, oldest, end_time, delete_time, found = row
    page = tuple(StoredEvent(event_codec.event_from_row(revision, time, actor, body), link) for revision, time, actor, body, link in found)
    return EventPage(page, oldest, head, end_time is not None, delete_time)
