"""WatchFlow: one flow's events, each revision once and in order, or its newest state."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace

from flowledger.v1 import flow_service_pb2 as pb

from server.repository.events import EventPage, Events, StoredEvent
from server.repository.flows import Flows
from server.services import event_messages, flow_messages, times
from server.services.boundary import Send
from server.services.resume_token import FlowPosition, ResumeTokens
from server.services.streams import Stream, Streams
from server.services.tail import PAGE, PAGE_BYTES, TOLD_BYTES, Room, Tail, Told, Wanted
from server.statemachine.derivation import flow_progress
from server.statemachine.errors import HistoryDamaged, RevisionCompacted, RevisionInFuture
from server.statemachine.values import Flow, FlowKey, Tenant


class FlowTold(Told):
    """One event of a flow."""

    __slots__ = ("event",)

    def __init__(self, flow_id: str, stored: StoredEvent) -> None:
        self.event = stored.event
        event = event_messages.event(flow_id, stored.event, stored.hash)
        super().__init__(pb.WatchFlowResponse(revision=stored.event.revision, event=event).SerializeToString())


class FlowWanted(Wanted):
    """Streams of one flow with the same delivery and filter, and so with the same tokens."""

    def __init__(self, tokens: ResumeTokens, tenant: Tenant, form: FlowPosition) -> None:
        """``form`` is any position of theirs."""
        self._tokens, self._tenant, self._form = tokens, tenant, form
        self._last = (-1, False), ""

    def written(self, told: Told) -> bytes | None:
        """The event with its token."""
        assert isinstance(told, FlowTold)
        if not self._form.wanted.passes(told.event):
            return None
        # Messages that are put one behind the other are read as one.
        return told.body + pb.WatchFlowResponse(resume_token=self.token(told.event.revision)).SerializeToString()

    def token(self, revision: int, snapshot_first: bool = False) -> str:
        """The token for a position; made once for all who are there."""
        if self._last[0] != (revision, snapshot_first):
            position = replace(self._form, revision=revision, snapshot_first=snapshot_first)
            self._last = (revision, snapshot_first), self._tokens.of_flow(self._tenant, position)
        return self._last[1]


class Picture:
    """The newest state of a flow that anybody asked for, converted once."""

    def __init__(self, flow: Flow) -> None:
        self.revision, self.progress = flow.revision, flow_progress(flow)
        self._flow = flow_messages.basic(flow)
        self._messages: dict[tuple[FlowWanted, int, bool], bytes] = {}

    def message(self, wanted: FlowWanted, skipped: int, regressed: bool) -> bytes:
        """The snapshot as it is sent to those who passed over as many revisions."""
        key = wanted, skipped, regressed
        found = self._messages.get(key)
        if found is None:
            snapshot = pb.FlowSnapshot(flow=self._flow, skipped=skipped, progress_regressed=regressed)
            token = wanted.token(self.revision)
            found = pb.WatchFlowResponse(revision=self.revision, snapshot=snapshot, resume_token=token).SerializeToString()
            self._messages[key] = found
        return found


def _unbroken(page: EventPage, after: int) -> Sequence[StoredEvent]:
    """The page's events up to a gap. Raises HistoryDamaged when it begins with one."""
    for at, stored in enumerate(page.events):
        if stored.event.revision != after + at + 1:
            found = page.events[:at]
            break
    else:
        found = page.events
    if not found and page.head > after:
        raise HistoryDamaged(after + 1)
    return found


class FlowTail(Tail):
    """What is new of one flow; numbers are revisions."""

    def __init__(self, key: FlowKey, flows: Flows, events: Events, room: Room, poll: float, last: Callable[[], bool]) -> None:
        super().__init__(poll, last)
        self.key, self.flows, self.events = key, flows, events
        self._flow_id, self._room = str(key.flow_id), room
        self.told: dict[int, FlowTold] = {}
        self.page: EventPage | None = None
        self.every = 0  # streams that want events and not just the newest state
        self._picture: Picture | None = None

    def meet(self, page: EventPage) -> None:
        """A stream has read the flow by itself."""
        if self.head < 0:
            self.head, self.page = page.head, page
        elif page.head > self.head:
            self.stir()

    def tell(self, stored: StoredEvent) -> FlowTold:
        """The event as it is told: written once, whoever reads it."""
        revision = stored.event.revision
        found = self.told.get(revision)
        if found is None:
            found = self.told[revision] = FlowTold(self._flow_id, stored)
            self._room.keep(len(found.body) + TOLD_BYTES, self, revision)
        return found

    def forget(self, number: int) -> None:
        """Drop what was kept of that revision."""
        self.told.pop(number, None)

    async def picture(self, least: int) -> Picture:
        """The flow as it is, at that revision or a later one."""
        if self._picture is None or self._picture.revision < least:
            flow = (await self.flows.flows(self.key.tenant, [self.key.flow_id]))[0]
            if self._picture is None or self._picture.revision < flow.revision:
                self._picture = Picture(flow)
        return self._picture

    async def _look(self) -> bool:
        tenant, flow_id = self.key.tenant, self.key.flow_id
        if not self.every:
            self.page = await self.events.span(tenant, flow_id)
            self.head = self.page.head
            return False
        try:
            page = await self.events.page(tenant, flow_id, self.head, PAGE)
        except RevisionCompacted as error:  # those who have not been told will find that out by themselves
            self.head = error.oldest - 1
            return True
        found = _unbroken(page, self.head)
        for stored in found:
            self.tell(stored)
        self.head, self.page = self.head + len(found), page
        return self.head < page.head


class FlowWatch(Stream):
    """One caller's watch of one flow."""

    def __init__(
        self, streams: Streams, tail: FlowTail, wanted: FlowWanted, position: FlowPosition, now: bool, heartbeat: float, send: Send
    ) -> None:
        """``now``: to begin where the flow is, whatever the position says."""
        super().__init__(streams, tail, wanted, heartbeat, send)
        self._flow_tail, self._flow_wanted, self._now = tail, wanted, now
        self._position, self._snapshot_first, self._latest_only = position.revision, position.snapshot_first, position.latest_only
        self._page: deque[FlowTold] = deque()
        self._progress: float | None = None

    async def _open(self) -> None:
        tail = self._flow_tail
        events, tenant, flow_id = tail.events, tail.key.tenant, tail.key.flow_id
        if self._now or self._snapshot_first or self._latest_only:
            page = await events.span(tenant, flow_id)
            if self._now:
                self._position = page.head
            if self._position > page.head:
                raise RevisionInFuture(self._position, page.head)
        else:
            page = await events.page(tenant, flow_id, self._position, PAGE)
        tail.meet(page)
        opened = pb.WatchOpened(head_revision=page.head, oldest_revision=page.oldest)
        await self._say(self._message(opened=opened))
        if self._now:  # for those who do not know of ``opened``: even a stream that breaks at once can be resumed
            await self._say(self._beat())
        if self._latest_only and self._position:
            self._progress = await self._progress_at(self._position)
        if page.events:
            self._load(page)

    def _next(self) -> FlowTold | None:
        if self._latest_only or self._snapshot_first:
            return None
        told = self._page.popleft() if self._page else self._flow_tail.told.get(self._position + 1)
        if told is not None:
            self._position += 1
        return told

    def _behind(self) -> bool:
        return self._snapshot_first or self._position < self._flow_tail.head

    async def _catch_up(self) -> pb.WatchEnd | None:
        tail = self._flow_tail
        if self._latest_only or self._snapshot_first:
            await self._show(await tail.picture(tail.head))
            return None
        try:
            page = await tail.events.page(tail.key.tenant, tail.key.flow_id, self._position, PAGE)
        except RevisionCompacted as error:
            return pb.WatchEnd(reason=pb.WATCH_END_REASON_COMPACTED, message=str(error), oldest_revision=error.oldest)
        self._load(page)
        return None

    def _over(self) -> pb.WatchEnd | None:
        page = self._flow_tail.page
        if self._flow_tail.stirred or page is None or self._position < page.head:
            return None
        if page.delete_time is not None:
            return pb.WatchEnd(reason=pb.WATCH_END_REASON_FLOW_DELETED, message="the flow was deleted")
        if page.ended:
            text = "the flow has ended, and everything up to its end was delivered"
            return pb.WatchEnd(reason=pb.WATCH_END_REASON_FLOW_TERMINAL, message=text)
        return None

    def _beat(self) -> bytes:
        return self._message(heartbeat=pb.WatchHeartbeat(time=times.timestamp(self._streams.now())))

    def _end(self, end: pb.WatchEnd) -> bytes:
        if end.reason in (pb.WATCH_END_REASON_MAX_AGE, pb.WATCH_END_REASON_DRAINING):
            end.message += f", after revision {self._position}"
        return self._message(end=end)

    async def _show(self, picture: Picture) -> None:
        skipped = 0 if self._snapshot_first else picture.revision - self._position - 1
        regressed = self._progress is not None and picture.progress < self._progress
        await self._say(picture.message(self._flow_wanted, skipped, regressed))
        self._position, self._progress, self._snapshot_first = picture.revision, picture.progress, False

    def _load(self, page: EventPage) -> None:
        """Hold on to some events of a page that was read for this stream alone."""
        room = PAGE_BYTES
        for stored in _unbroken(page, self._position):
            told = self._flow_tail.tell(stored)
            self._page.append(told)
            room -= len(told.body)
            if room <= 0:
                break

    async def _progress_at(self, revision: int) -> float | None:
        """The flow's progress at a revision; None when its event is no longer kept."""
        key = self._flow_tail.key
        try:
            page = await self._flow_tail.events.page(key.tenant, key.flow_id, revision - 1, 1)
        except RevisionCompacted:
            return None
        return page.events[0].event.progress if page.events else None

    def _message(self, **part: object) -> bytes:
        token = self._flow_wanted.token(self._position, self._snapshot_first)
        return pb.WatchFlowResponse(revision=self._position, resume_token=token, **part).SerializeToString()  # type: ignore[arg-type]
