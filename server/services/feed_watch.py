"""WatchFlows: the events of all flows of a tenant that match, in one order, without a gap."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from datetime import datetime

from flowledger.v1 import flow_service_pb2 as pb

from server.repository.feed import Cursor, Feed, FeedEntry, FeedPage
from server.repository.filter import Filter
from server.repository.match import Sighting, matches
from server.services import event_messages, flow_messages, times
from server.services.boundary import Send
from server.services.resume_token import FeedPosition, ResumeTokens
from server.services.streams import Stream, Streams
from server.services.tail import PAGE, PAGE_BYTES, TOLD_BYTES, Room, Tail, Told, Wanted
from server.statemachine.errors import PositionCompacted, PositionInFuture
from server.statemachine.event import Event
from server.statemachine.event_filter import EventFilter, phases_of
from server.statemachine.values import Tenant

# How soon to look again for events that wait for a transaction to end.
HELD_SECONDS = 0.02


class FeedTold(Told):
    """One event of the feed."""

    __slots__ = ("cursor", "event", "seen")

    def __init__(self, entry: FeedEntry) -> None:
        self.cursor, self.event = entry.cursor, entry.stored.event
        flow_id, event = str(entry.flow.flow_id), entry.stored.event
        change = pb.FlowChange(
            flow_id=flow_id,
            revision=event.revision,
            event=event_messages.event(flow_id, event, entry.stored.hash),
            flow=flow_messages.summarized(entry.flow),
        )
        # Events from before there were positions do not tell the labels.
        labels = event.labels if entry.cursor.position else entry.flow.labels
        self.seen = Sighting(entry.flow.type, event.status.name, _phases(event), labels)
        super().__init__(pb.WatchFlowsResponse(change=change).SerializeToString())


def _phases(event: Event) -> frozenset[str]:
    return frozenset().union(*(phases_of(fact) for fact in event.facts))


class FeedWanted(Wanted):
    """Streams of one tenant with the same filter, and so with the same tokens."""

    def __init__(self, tokens: ResumeTokens, tenant: Tenant, query: bytes, filter: Filter, kinds: EventFilter, forgiven: int) -> None:
        """``query`` is all that picks the events, ``forgiven`` as in the streams' positions."""
        self._tokens, self._tenant, self._query = tokens, tenant, query
        self._filter, self._kinds, self._forgiven = filter, kinds, forgiven
        self._last = Cursor(-1), ""

    def written(self, told: Told) -> bytes | None:
        """The event with its token."""
        assert isinstance(told, FeedTold)
        if not self._kinds.passes(told.event) or not matches(self._filter, told.seen):
            return None
        # Messages that are put one behind the other are read as one.
        return told.body + pb.WatchFlowsResponse(resume_token=self.token(told.cursor)).SerializeToString()

    def token(self, cursor: Cursor) -> str:
        """The token for a position; made once for all who are there."""
        if self._last[0] != cursor:
            self._last = cursor, self._tokens.of_feed(self._tenant, self._query, FeedPosition(cursor, self._forgiven))
        return self._last[1]


class FeedTail(Tail):
    """What is new of one tenant's flows; events are numbered as they are read."""

    def __init__(self, tenant: Tenant, feed: Feed, room: Room, poll: float, last: Callable[[], bool]) -> None:
        super().__init__(poll, last)
        self.tenant, self.feed, self._room = tenant, feed, room
        self.told: dict[int, FeedTold] = {}
        self.head = 0
        # Where the next read begins, and after which place everything is in memory; None before the first stream came to the horizon.
        self.cursor: Cursor | None = None
        self._floor = Cursor(0)
        self.held_since: datetime | None = None
        self._removed = -1
        self._held = 0.0

    def meet(self, page: FeedPage) -> None:
        """A stream has come to the horizon by itself."""
        if self.cursor is None:
            self.cursor = self._floor = page.after
            self.held_since, self._removed = page.held_since, page.removed
        if page.after > self.cursor or page.held_since is not None:
            self.stir()

    def place(self, cursor: Cursor) -> int | None:
        """The number of the last event in memory that is not after the cursor; None when what follows it may be gone."""
        if self.cursor is None or cursor < self._floor:
            return None
        low, high = self.head - len(self.told), self.head
        while low < high:  # numbers in memory have no gaps
            middle = (low + high + 1) // 2
            if self.told[middle].cursor <= cursor:
                low = middle
            else:
                high = middle - 1
        return low

    def forget(self, number: int) -> None:
        """Drop the event with that number."""
        told = self.told.pop(number, None)
        if told is not None:
            self._floor = told.cursor

    async def _look(self) -> bool:
        assert self.cursor is not None, "streams wait here only when they have come to the horizon"
        page = await self.feed.page(self.tenant, self.cursor, PAGE)
        if page.removed > self._removed and page.removed >= self.cursor.position:
            # Something was removed that nobody here was told. Each stream looks by itself what that means for it.
            self.told.clear()
            self.head += 1
            self._floor = page.after
        else:
            for entry in page.entries:
                self.head += 1
                told = self.told[self.head] = FeedTold(entry)
                self._room.keep(len(told.body) + TOLD_BYTES, self, self.head)
        self.cursor, self.held_since, self._removed = page.after, page.held_since, page.removed
        complete = page.after == Cursor(page.horizon)
        if complete and page.held_since is not None:
            self._held = min(max(2 * self._held, HELD_SECONDS), self._poll)
            self.look_again(self._held)
        else:
            self._held = 0.0
        return not complete


class FeedWatch(Stream):
    """One caller's watch of a tenant's flows."""

    def __init__(self, streams: Streams, tail: FeedTail, wanted: FeedWanted, position: FeedPosition, heartbeat: float, send: Send) -> None:
        super().__init__(streams, tail, wanted, heartbeat, send)
        self._feed_tail, self._feed_wanted = tail, wanted
        self._cursor, self._forgiven = position.cursor, position.forgiven
        # The number of the last event that was delivered, while the stream follows the tail.
        self._number: int | None = None
        self._page: deque[FeedTold] = deque()
        self._page_end: Cursor | None = None

    async def _open(self) -> None:
        page = await self._feed_tail.feed.page(self._feed_tail.tenant, self._cursor, PAGE)
        if self._cursor.position > page.horizon:
            raise PositionInFuture
        if self._compacted(page):
            raise PositionCompacted
        self._load(page)
        await self._say(self._message(opened=pb.FlowsOpened(lag=times.seconds(self.lag()))))

    def _next(self) -> FeedTold | None:
        if self._page:
            told = self._page.popleft()
            self._cursor = told.cursor
            return told
        if self._page_end is not None:
            self._cursor, self._page_end = self._page_end, None
        tail = self._feed_tail
        while self._number is not None:
            found = tail.told.get(self._number + 1)
            if found is None:
                if self._number < tail.head:  # it was slow, or something was removed
                    self._number = None
                elif tail.cursor is not None and tail.cursor > self._cursor:
                    self._cursor = tail.cursor
                return None
            self._number += 1
            if found.cursor > self._cursor:  # the stream's own page may have had it
                self._cursor = found.cursor
                return found
        return None

    def _behind(self) -> bool:
        return self._number is None

    async def _catch_up(self) -> pb.WatchEnd | None:
        tail = self._feed_tail
        self._number = tail.place(self._cursor)
        if self._number is not None:
            return None
        page = await tail.feed.page(tail.tenant, self._cursor, PAGE)
        if self._compacted(page):
            return pb.WatchEnd(reason=pb.WATCH_END_REASON_COMPACTED, message=str(PositionCompacted()))
        self._load(page)
        return None

    def _over(self) -> pb.WatchEnd | None:
        return None

    def _beat(self) -> bytes:
        now = self._streams.now()
        return self._message(heartbeat=pb.FlowsHeartbeat(time=times.timestamp(now), lag=times.seconds(self.lag())))

    def _end(self, end: pb.WatchEnd) -> bytes:
        return self._message(end=end)

    def lag(self) -> float:
        """How old the oldest event is that is stored and was not delivered yet, in seconds; 0 when there is none."""
        tail = self._feed_tail
        if self._page:
            oldest: datetime | None = self._page[0].event.time
        elif self._number is not None and (found := tail.told.get(self._number + 1)) is not None:
            oldest = found.event.time
        else:
            oldest = tail.held_since
        return 0.0 if oldest is None else max(0.0, (self._streams.now() - oldest).total_seconds())

    def _compacted(self, page: FeedPage) -> bool:
        """Whether something was removed after the cursor that the stream should have delivered."""
        return page.removed >= self._cursor.position and page.removed > self._forgiven

    def _load(self, page: FeedPage) -> None:
        """Hold on to some events of a page that was read for this stream alone."""
        room = PAGE_BYTES
        for entry in page.entries:
            told = FeedTold(entry)
            self._page.append(told)
            room -= len(told.body)
            if room <= 0 and entry is not page.entries[-1]:
                return
        self._page_end = page.after
        if page.after == Cursor(page.horizon):
            self._feed_tail.meet(page)

    def _message(self, **part: object) -> bytes:
        token = self._feed_wanted.token(self._cursor)
        return pb.WatchFlowsResponse(resume_token=token, **part).SerializeToString()  # type: ignore[arg-type]
