"""A tenant's feed: the events of all its flows in one order that stays, read so that nothing is missed.

An event's position is the number of the transaction that wrote it, on top of what the installation adds (tables.installation). Transactions
end in another order than they begin in, so an event may come to lie before others that are there already. Hence a page ends at the horizon,
the oldest transaction that is under way: nothing can come to lie below that any more.

Of one flow, positions follow the revisions: a commit has read the revision that it builds on before its transaction is given a number,
which is when it first writes (or has got a row's lock), and whoever wrote that revision had a number by then. Whoever adds a way to commit
must keep to that: read, or lock, before anything is written in the same transaction.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import BigInteger, Text, cast, func, select, tuple_

from server.repository import event_codec
from server.repository.database import Database
from server.repository.events import StoredEvent
from server.repository.flows import SUMMARY_COLUMNS, summary_from_row
from server.repository.gathered import Gathered, wanted
from server.repository.statement import Statement, gated, mine_of, same_flow
from server.repository.tables import events, flows, installation, removals
from server.statemachine.errors import HistoryDamaged
from server.statemachine.event import Event, EventLost
from server.statemachine.value import dataclass
from server.statemachine.values import FlowKey, FlowSummary, Tenant

_NOWHERE = UUID(int=0)


@dataclass(frozen=True, slots=True, order=True)
class Cursor:
    """A place in a tenant's feed: after this event, or after everything below ``position`` when it names no event."""

    position: int
    flow_id: UUID = _NOWHERE
    revision: int = 0


@dataclass(frozen=True, slots=True)
class FeedEntry:
    """An event in the feed, and its flow as it was when this was read."""

    cursor: Cursor
    stored: StoredEvent
    flow: FlowSummary


@dataclass(frozen=True, slots=True)
class FeedPage:
    """Events in order, and how the feed was at the same moment.

    ``after`` is where the next page begins: after the last event, or at the horizon when there is none below it any more. ``horizon`` is
    where the feed ends for now. ``removed`` is the highest position of any event that is no longer kept, -1 when all are. ``held_since`` is
    when the oldest event at or above the horizon was committed; None when there is none.
    """

    entries: tuple[FeedEntry, ...]
    after: Cursor
    horizon: int
    removed: int
    held_since: datetime | None


_wanted = wanted("position", "revision", "size")
_horizon: Any = cast(cast(func.pg_snapshot_xmin(func.pg_current_snapshot()), Text), BigInteger) + installation.c.position_base
_place = (events.c.position, events.c.flow_id, events.c.revision)
_page = (
    select(func.row(*_place, events.c.time, events.c.actor, events.c.body, events.c.hash, *SUMMARY_COLUMNS))
    .where(
        *mine_of(events, _wanted),
        tuple_(*_place) > tuple_(_wanted.c.position, _wanted.c.flow_id, _wanted.c.revision),
        events.c.position < _horizon,
        events.c.content_sha256.is_(None),
        *same_flow(flows, events),
    )
    .order_by(*_place)
    .limit(_wanted.c.size)
    .correlate(_wanted, installation)
    .scalar_subquery()
)
_held = (
    select(events.c.time)
    .where(*mine_of(events, _wanted), events.c.position >= _horizon)
    .order_by(events.c.position)
    .limit(1)
    .correlate(_wanted, installation)
    .scalar_subquery()
)
_removed = select(removals.c.position).where(*mine_of(removals, _wanted)).correlate(_wanted).scalar_subquery()
# One snapshot for all of it: what is below the horizon, and where the horizon is.
_PAGES = Statement(
    gated(
        select(
            _wanted.c.place,
            _wanted.c.position,
            _wanted.c.flow_id,
            _wanted.c.revision,
            _wanted.c.size,
            _horizon,
            func.coalesce(_removed, -1),
            _held,
            func.array(_page),
        ).select_from(_wanted.join(installation, installation.c.singleton == 1))
    )
)


class Feed:
    """The feeds of all tenants."""

    def __init__(self, database: Database) -> None:
        self._pages: Gathered[FeedPage] = Gathered(database, _PAGES, _decoded, "position", "revision", "size")

    async def page(self, tenant: Tenant, after: Cursor, size: int) -> FeedPage:
        """At most ``size`` events after the cursor.

        Those that only fill a gap are left out. Raises HistoryDamaged when the first cannot be read (a page ends before a later one that
        cannot); StoreUnavailable.
        """
        # The cursor's flow travels in the place of a flow's key.
        found = await self._pages.get(FlowKey(tenant, after.flow_id), after.position, after.revision, size)
        assert found is not None, "there is an answer for every tenant"
        return found


def _decoded(row: tuple[int, int, UUID, int, int, int, int, datetime | None, Sequence[Any]]) -> FeedPage:
    _, position, flow_id, revision, size, horizon, removed, held_since, rows = row
    after, found = Cursor(position, flow_id, revision), list[FeedEntry]()
    complete = len(rows) < size
    for one in rows:
        try:
            entry = _entry(one)
        except HistoryDamaged:
            if after == Cursor(position, flow_id, revision):
                raise
            complete = False
            break
        after = entry.cursor
        if not _fills(entry.stored.event):
            found.append(entry)
    if complete:
        after = max(after, Cursor(horizon))
    return FeedPage(tuple(found), after, horizon, removed, held_since)


def _entry(row: Sequence[Any]) -> FeedEntry:
    position, flow_id, revision, time, actor, body, link, *flow = row
    try:
        event = event_codec.event_from_row(revision, time, actor, body)
    except (ValueError, KeyError, TypeError) as error:
        damaged = HistoryDamaged(revision)
        damaged.metadata["flow_id"] = str(flow_id)
        raise damaged from error
    return FeedEntry(Cursor(position, flow_id, revision), StoredEvent(event, link), summary_from_row(flow))


def _fills(event: Event) -> bool:
    """Whether the event only stands where another one was lost: it may be put before what was delivered long ago."""
    return bool(event.facts) and all(isinstance(fact, EventLost) for fact in event.facts)
