"""Reading a flow's events: pages in order, and where history starts and ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from uuid import UUID

from sqlalchemy import UUID as UUIDType
from sqlalchemy import BigInteger, bindparam, func, select

from server.repository import codec
from server.repository.database import Database
from server.repository.statement import Statement, gated, mine, same_flow
from server.repository.tables import events, flows
from server.statemachine.errors import FlowNotFound, RevisionCompacted, RevisionInFuture
from server.statemachine.event import Event
from server.statemachine.values import Tenant


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


_ID = bindparam("flow_id", type_=UUIDType())
_oldest = select(func.min(events.c.revision)).where(*same_flow(events, flows)).correlate(flows).scalar_subquery()
_SPAN = Statement(
    gated(select(flows.c.revision, _oldest, flows.c.end_time, flows.c.delete_time).where(*mine(flows), flows.c.flow_id == _ID))
)
_PAGE = Statement(
    gated(
        select(events.c.revision, events.c.time, events.c.actor, events.c.body, events.c.hash)
        .where(
            *mine(events),
            events.c.flow_id == _ID,
            events.c.revision > bindparam("after", type_=BigInteger),
            events.c.revision <= bindparam("head", type_=BigInteger),
        )
        .order_by(events.c.revision)
        .limit(bindparam("size", type_=BigInteger))
    )
)


class Events:
    """What can be read of a flow's history."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def span(self, tenant: Tenant, flow_id: UUID) -> EventPage:
        """Where the flow's history starts and ends, without events. Raises FlowNotFound."""
        span = await self._database.read([tenant], _SPAN, _key(tenant, flow_id))
        if not span:
            raise FlowNotFound(flow_id)
        head, oldest, end_time, delete_time = span[0]
        return EventPage((), oldest, head, end_time is not None, delete_time)

    async def page(self, tenant: Tenant, flow_id: UUID, after: int, size: int) -> EventPage:
        """At most ``size`` events after revision ``after``.

        Raises FlowNotFound; RevisionInFuture when the flow has not come to ``after``; RevisionCompacted when an event right after it is
        no longer kept.
        """
        span = await self.span(tenant, flow_id)
        if after > span.head:
            raise RevisionInFuture(after, span.head)
        if after + 1 < span.oldest:
            raise RevisionCompacted(after, span.oldest, span.head)
        if after == span.head:
            return span
        # The head read before bounds the page, so that "ended" and the events tell of the same moment.
        rows = await self._database.read([tenant], _PAGE, {**_key(tenant, flow_id), "after": after, "head": span.head, "size": size})
        return replace(span, events=_decoded(rows))


def _key(tenant: Tenant, flow_id: UUID) -> dict[str, object]:
    return {"client_account_id": tenant.client_account_id, "engagement_id": tenant.engagement_id, "flow_id": flow_id}


def _decoded(rows: Sequence[tuple[int, datetime, str, str, bytes]]) -> tuple[StoredEvent, ...]:
    return tuple(StoredEvent(codec.event_from_row(revision, time, actor, body), hash_) for revision, time, actor, body, hash_ in rows)
