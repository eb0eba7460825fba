"""WatchFlow: subscribe to the hint first, then read, then wait. The cursor is a revision, so that nothing is lost with a hint."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from flowledger.v1 import flow_service_pb2 as pb

from server.repository.events import EventPage, Events, StoredEvent
from server.repository.flows import Flows
from server.services import convert
from server.services.caller import Caller
from server.services.fields import Fields
from server.statemachine.errors import RevisionInFuture
from server.statemachine.values import Flow, FlowKey, Tenant
from server.wakeups import LocalWakeups

PAGE = 100
TOLD = 1024  # events that are kept as they were sent, for other watchers of the same flow
HEARTBEAT_LEAST, HEARTBEAT_MOST = timedelta(seconds=1), timedelta(minutes=5)


@dataclass(frozen=True, slots=True)
class WatchSettings:
    """How watches behave; times in seconds. ``max_age`` varies by ``jitter`` (0 to 1) so that streams do not end all at once."""

    poll: float = 0.5
    heartbeat: float = 15.0
    max_age: float = 1800.0
    jitter: Callable[[], float] = lambda: 0.0


class Watches:
    """All watches of one process."""

    def __init__(self, flows: Flows, events: Events, wakeups: LocalWakeups, now: Callable[[], datetime], settings: WatchSettings) -> None:
        self._flows, self._events, self._wakeups, self._now, self._settings = flows, events, wakeups, now, settings
        self._draining = False
        self.open = 0  # streams
        self._told: dict[tuple[Tenant, UUID, int], bytes] = {}

    def drain(self) -> None:
        """End every watch, resumably."""
        self._draining = True
        self._wakeups.ring_all()

    async def watch(self, request: pb.WatchFlowRequest, caller: Caller, fields: Fields) -> AsyncIterator[pb.WatchFlowResponse | bytes]:
        """The flow's messages, in order, until it ends."""
        watch = self._watch(request, caller.tenant, fields)
        self.open += 1
        try:
            with self._wakeups.hear(FlowKey(caller.tenant, watch.flow_id)) as moved:
                async for message in watch.messages(moved):
                    yield message
        finally:
            self.open -= 1

    def told(self, tenant: Tenant, flow_id: UUID, stored: StoredEvent) -> bytes:
        """The event as it is sent: written once, however many watch the flow."""
        place = tenant, flow_id, stored.event.revision
        found = self._told.get(place)
        if found is None:
            event = convert.event(str(flow_id), stored.event, stored.hash)
            found = pb.WatchFlowResponse(revision=stored.event.revision, event=event).SerializeToString()
            self._told[place] = found
            if len(self._told) > TOLD:
                del self._told[next(iter(self._told))]
        return found

    def _watch(self, request: pb.WatchFlowRequest, tenant: Tenant, fields: Fields) -> _Watch:
        flow_id = fields.uuid("flow_id", request.flow_id)
        after = fields.revision("after_revision", request.after_revision)
        start, delivery = request.start or pb.WATCH_START_SNAPSHOT, request.delivery or pb.WATCH_DELIVERY_EVERY_REVISION
        if start not in pb.WatchStart.values():
            fields.wrong("start", f"{start} is unknown; one of SNAPSHOT, AFTER_REVISION, NOW")
        if delivery not in pb.WatchDelivery.values():
            fields.wrong("delivery", f"{delivery} is unknown; one of EVERY_REVISION, LATEST_ONLY")
        if after and start != pb.WATCH_START_AFTER_REVISION:
            fields.wrong("after_revision", "goes with start AFTER_REVISION only")
        heartbeat = self._settings.heartbeat
        if request.HasField("heartbeat_interval"):
            span = fields.span("heartbeat_interval", request.heartbeat_interval, HEARTBEAT_LEAST, HEARTBEAT_MOST)
            heartbeat = span.total_seconds()
        fields.check()
        return _Watch(self, tenant, flow_id, start, after, delivery, heartbeat)


class _Watch:
    """One subscriber's position and what it wants."""

    def __init__(
        self,
        watches: Watches,
        tenant: Tenant,
        flow_id: UUID,
        start: pb.WatchStart.ValueType,
        after: int,
        delivery: pb.WatchDelivery.ValueType,
        heartbeat: float,
    ) -> None:
        self._all, self._tenant, self.flow_id = watches, tenant, flow_id
        self._start, self._position = start, after
        self._latest_only = delivery == pb.WATCH_DELIVERY_LATEST_ONLY
        self._heartbeat = heartbeat

    async def messages(self, moved: asyncio.Event) -> AsyncIterator[pb.WatchFlowResponse | bytes]:
        """Reads after the position, sends, and waits for the next hint, the next poll or the next heartbeat."""
        settings = self._all._settings
        loop = asyncio.get_running_loop()
        oldest_end = loop.time() + settings.max_age * (1.0 - 0.2 * settings.jitter())
        async for message in self._opening():
            yield message
        spoken = loop.time()
        while True:
            moved.clear()  # before the read: a hint that comes during it must not be lost
            page = await self._next_page()
            async for message in self._told(page):
                yield message
                spoken = loop.time()
            if self._position < page.head:
                continue
            if (end := self._ending(page, loop.time() >= oldest_end)) is not None:
                yield end
                return
            if loop.time() - spoken >= self._heartbeat:
                yield self._beat()
                spoken = loop.time()
            due = min(settings.poll, spoken + self._heartbeat - loop.time(), oldest_end - loop.time())
            try:
                async with asyncio.timeout(max(due, 0.001)):
                    await moved.wait()
            except TimeoutError:
                pass  # the floor under lost hints: look anyway

    async def _opening(self) -> AsyncIterator[pb.WatchFlowResponse | bytes]:
        if self._start == pb.WATCH_START_SNAPSHOT:
            yield self._snapshot(await self._flow(), skipped=0)
        elif self._start == pb.WATCH_START_NOW:
            self._position = (await self._all._flows.summary(self._tenant, self.flow_id)).revision
            yield self._beat()  # tells where "now" is, so that even a stream that breaks at once can be resumed
        elif self._latest_only:
            flow = await self._flow()
            if self._position > flow.revision:
                raise RevisionInFuture(self._position, flow.revision)

    async def _next_page(self) -> EventPage:
        # LATEST_ONLY reads no events: it needs to know only how far the flow has come, and old history may be gone.
        if self._latest_only:
            return await self._all._events.span(self._tenant, self.flow_id)
        return await self._all._events.page(self._tenant, self.flow_id, self._position, PAGE)

    async def _told(self, page: EventPage) -> AsyncIterator[pb.WatchFlowResponse | bytes]:
        if self._latest_only:
            if page.head > self._position:
                flow = await self._flow()
                yield self._snapshot(flow, skipped=flow.revision - self._position - 1)
            return
        for stored in page.events:
            self._position = stored.event.revision
            yield self._all.told(self._tenant, self.flow_id, stored)

    async def _flow(self) -> Flow:
        return (await self._all._flows.flows(self._tenant, [self.flow_id]))[0]

    def _snapshot(self, flow: Flow, skipped: int) -> pb.WatchFlowResponse:
        self._position = flow.revision
        return pb.WatchFlowResponse(revision=flow.revision, snapshot=pb.FlowSnapshot(flow=convert.basic(flow), skipped=skipped))

    def _beat(self) -> pb.WatchFlowResponse:
        return pb.WatchFlowResponse(revision=self._position, heartbeat=pb.WatchHeartbeat(time=convert.timestamp(self._all._now())))

    def _ending(self, page: EventPage, old: bool) -> pb.WatchFlowResponse | None:
        if page.delete_time is not None:
            return self._end(pb.WATCH_END_REASON_FLOW_DELETED, "the flow was deleted")
        if page.ended:
            return self._end(pb.WATCH_END_REASON_FLOW_TERMINAL, "the flow has ended, and everything up to its end was delivered")
        if self._all._draining:
            return self._end(pb.WATCH_END_REASON_DRAINING, f"the server is stopping: resume after revision {self._position}")
        if old:
            return self._end(pb.WATCH_END_REASON_MAX_AGE, f"the stream is old: resume after revision {self._position}")
        return None

    def _end(self, reason: pb.WatchEndReason.ValueType, text: str) -> pb.WatchFlowResponse:
        return pb.WatchFlowResponse(revision=self._position, end=pb.WatchEnd(reason=reason, message=text))
