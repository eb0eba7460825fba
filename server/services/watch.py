"""WatchFlow and WatchFlows: what callers ask for, and who reads for them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import TypeVar, cast
from uuid import UUID

import structlog
from flowledger.v1 import flow_service_pb2 as pb

from server.repository.events import Events
from server.repository.feed import Cursor, Feed
from server.repository.filter import Filter, parse_events
from server.repository.flows import Flows
from server.services.boundary import Send
from server.services.feed_watch import FeedTail, FeedWanted, FeedWatch
from server.services.fields import Fields
from server.services.flow_watch import FlowTail, FlowWanted, FlowWatch
from server.services.resume_token import FIELD, PHASES_BYTES, FeedPosition, FlowPosition, ResumeTokens, query_of
from server.services.streams import Streams, WatchSettings
from server.services.tail import ROOM_BYTES, Room, Tail, Wanted
from server.statemachine.errors import StoreUnavailable
from server.statemachine.event_filter import EventFilter, EventKind
from server.statemachine.values import FlowKey, Tenant

__all__ = ["WatchSettings", "Watches"]

_log = structlog.get_logger()

HEARTBEAT_LEAST, HEARTBEAT_MOST = timedelta(seconds=1), timedelta(minutes=5)
KINDS, PHASES = 20, 20
PHASE_LENGTH = 100
_NIL = UUID(int=0)

_Key = TypeVar("_Key")
_Following = TypeVar("_Following", bound=Tail)
_Shared = TypeVar("_Shared", bound=Wanted)


class Watches:
    """All watches of one process."""

    def __init__(
        self, flows: Flows, events: Events, feed: Feed, now: Callable[[], datetime], settings: WatchSettings, token_key: bytes
    ) -> None:
        self._flows, self._events, self._feed = flows, events, feed
        self._tokens = ResumeTokens(token_key)
        self._streams = Streams(settings, now)
        self._room = Room(ROOM_BYTES)
        self._tails: dict[FlowKey, FlowTail] = {}
        self._feeds: dict[Tenant, FeedTail] = {}
        self._followers: set[FeedWatch] = set()
        self._sweeping: asyncio.Task[None] | None = None

    @property
    def open(self) -> int:
        """How many streams there are."""
        return self._streams.open

    @property
    def lag(self) -> float:
        """How far the slowest WatchFlows is behind, in seconds: the age of the oldest event that it was not told yet."""
        return max((follower.lag() for follower in self._followers), default=0.0)

    def heard(self, key: FlowKey, revision: int = 0) -> None:
        """A hint that the flow moved, to that revision if it is known."""
        tail = self._tails.get(key)
        if tail is not None and (revision == 0 or revision > tail.head):
            tail.stir()
        if self._feeds and (feed := self._feeds.get(key.tenant)) is not None:
            feed.stir()

    def drain(self) -> None:
        """End every watch, resumably, once it has been told what there is."""
        self._streams.draining = True
        for tail in (*self._tails.values(), *self._feeds.values()):
            tail.stir()

    async def watch_flow(self, request: pb.WatchFlowRequest, tenant: Tenant, fields: Fields, send: Send) -> None:
        """Sends the flow's messages, in order, until it ends."""
        form = self._flow_position(request, tenant, fields)
        heartbeat = self._heartbeat(fields, request)
        fields.check()
        request.flow_id = str(form.flow_id)  # for the log, when only the token named it
        key = FlowKey(tenant, form.flow_id)
        with self._streams.admitted(tenant), self._flow_tail(key, form.latest_only) as tail:
            wanted = _shared(tail, (form.latest_only, form.wanted), lambda: FlowWanted(self._tokens, tenant, form))
            now = not request.resume_token and request.start == pb.WATCH_START_NOW
            await FlowWatch(self._streams, tail, wanted, form, now, heartbeat, send).run()

    async def watch_flows(self, request: pb.WatchFlowsRequest, tenant: Tenant, fields: Fields, send: Send) -> None:
        """Sends the events of the tenant's flows that match, in order, without end."""
        filter = fields.parsed(parse_events, request.filter, Filter())
        kinds = EventFilter(_kinds(fields, request.kinds))
        query = query_of(request.filter, kinds.kinds)
        start = request.start
        position: FeedPosition | None = None
        if start not in pb.WatchFlowsStart.values():
            fields.wrong("start", f"{start} is unknown; one of NOW, BEGINNING")
        if request.resume_token:
            position = fields.parsed(lambda token: self._tokens.feed(tenant, query, token), request.resume_token, FeedPosition(Cursor(0)))
            if start:
                fields.wrong("start", f"does not go with {FIELD}")
        heartbeat = self._heartbeat(fields, request)
        fields.check()
        with self._streams.admitted(tenant), self._feed_tail(tenant) as tail:
            if position is None:
                page = await self._feed.page(tenant, Cursor(0), 0)
                from_beginning = start == pb.WATCH_FLOWS_START_BEGINNING
                position = FeedPosition(Cursor(0), page.removed) if from_beginning else FeedPosition(Cursor(page.horizon))
            forgiven = position.forgiven
            wanted = _shared(tail, (query, forgiven), lambda: FeedWanted(self._tokens, tenant, query, filter, kinds, forgiven))
            follower = FeedWatch(self._streams, tail, wanted, position, heartbeat, send)
            self._followers.add(follower)
            try:
                await follower.run()
            finally:
                self._followers.discard(follower)

    def _flow_position(self, request: pb.WatchFlowRequest, tenant: Tenant, fields: Fields) -> FlowPosition:
        named = fields.optional_uuid("flow_id", request.flow_id) if request.resume_token else fields.uuid("flow_id", request.flow_id)
        after = fields.revision("after_revision", request.after_revision)
        start, delivery = request.start, request.delivery
        if start not in pb.WatchStart.values():
            fields.wrong("start", f"{start} is unknown; one of SNAPSHOT, AFTER_REVISION, NOW")
        if delivery not in pb.WatchDelivery.values():
            fields.wrong("delivery", f"{delivery} is unknown; one of EVERY_REVISION, LATEST_ONLY")
        latest_only = delivery == pb.WATCH_DELIVERY_LATEST_ONLY
        wanted = EventFilter(_kinds(fields, request.kinds), _phases(fields, request.phases))
        if not request.resume_token:
            if after and start != pb.WATCH_START_AFTER_REVISION:
                fields.wrong("after_revision", "goes with start AFTER_REVISION only")
            for name, given in (("kinds", wanted.kinds), ("phases", wanted.phases)):
                if given and latest_only:
                    fields.wrong(name, "goes with EVERY_REVISION only: LATEST_ONLY delivers states and not events")
            snapshot_first = start in (pb.WATCH_START_UNSPECIFIED, pb.WATCH_START_SNAPSHOT)
            return FlowPosition(named or _NIL, after, snapshot_first, latest_only, wanted)
        unread = FlowPosition(named or _NIL, 0)
        resumed = fields.parsed(lambda token: self._tokens.flow(tenant, token), request.resume_token, unread)
        for name, given_at_all in (("start", bool(start)), ("after_revision", bool(after))):
            if given_at_all:
                fields.wrong(name, f"does not go with {FIELD}")
        if resumed is not unread:
            for name, differs in (
                ("flow_id", named is not None and named != resumed.flow_id),
                ("delivery", bool(delivery) and latest_only != resumed.latest_only),
                ("kinds", bool(wanted.kinds) and wanted.kinds != resumed.wanted.kinds),
                ("phases", bool(wanted.phases) and wanted.phases != resumed.wanted.phases),
            ):
                if differs:
                    fields.wrong(name, f"is not what {FIELD} was made for: leave it out, or give it as it was")
        return resumed

    def _heartbeat(self, fields: Fields, request: pb.WatchFlowRequest | pb.WatchFlowsRequest) -> float:
        if not request.HasField("heartbeat_interval"):
            return self._streams.settings.heartbeat
        span = fields.span("heartbeat_interval", request.heartbeat_interval, HEARTBEAT_LEAST, HEARTBEAT_MOST)
        return span.total_seconds()

    @contextmanager
    def _flow_tail(self, key: FlowKey, latest_only: bool) -> Iterator[FlowTail]:
        """The flow's tail, there as long as somebody follows it: it hears hints from here on, before anything is read."""
        tail = self._tails.get(key)
        if tail is None:
            tail = FlowTail(key, self._flows, self._events, self._room, self._streams.settings.poll, self._is_draining)
            self._tails[key] = tail
        tail.every += not latest_only
        with self._followed(self._tails, key, tail):
            try:
                yield tail
            finally:
                tail.every -= not latest_only

    @contextmanager
    def _feed_tail(self, tenant: Tenant) -> Iterator[FeedTail]:
        """The tenant's tail, likewise."""
        tail = self._feeds.get(tenant)
        if tail is None:
            tail = self._feeds[tenant] = FeedTail(tenant, self._feed, self._room, self._streams.settings.poll, self._is_draining)
        with self._followed(self._feeds, tenant, tail):
            yield tail

    @contextmanager
    def _followed(self, tails: dict[_Key, _Following], key: _Key, tail: _Following) -> Iterator[None]:
        tail.streams += 1
        if self._sweeping is None:
            self._sweeping = asyncio.create_task(self._sweep(), name="watch sweep")
        try:
            yield
        finally:
            tail.streams -= 1
            if not tail.streams:
                del tails[key]
                tail.close()
            if not self._tails and not self._feeds and self._sweeping is not None:
                self._sweeping.cancel()
                self._sweeping = None

    def _is_draining(self) -> bool:
        return self._streams.draining

    async def _sweep(self) -> None:
        """Looks for what moved without a hint: the floor under lost ones."""
        while True:
            await asyncio.sleep(self._streams.settings.poll)
            for feed in self._feeds.values():
                if feed.crowded:
                    feed.stir()
            known = {key: tail.head for key, tail in self._tails.items() if tail.crowded and not tail.stirred}
            try:
                moved = await self._events.moved(known)
            except StoreUnavailable:
                continue  # the tails that are read meanwhile know what to say of that
            except Exception as error:  # noqa: BLE001 - a supervised loop: what fails once may go well the next time
                _log.error("sweep_failed", exc_info=error)
                continue
            for key in moved:
                if (tail := self._tails.get(key)) is not None:
                    tail.stir()


def _shared(tail: Tail, key: object, make: Callable[[], _Shared]) -> _Shared:
    """What streams that want the same have in common: made for the first of them, gone with the last."""
    found = tail.wanted.get(key)
    if found is None:
        found = tail.wanted[key] = make()
    return cast(_Shared, found)


def _kinds(fields: Fields, given: Sequence[int]) -> frozenset[EventKind]:
    if len(given) > KINDS:
        fields.wrong("kinds", f"has {len(given)}, the limit is {KINDS}")
        return frozenset()
    return frozenset(fields.member(f"kinds[{at}]", number, EventKind) for at, number in enumerate(given))


def _phases(fields: Fields, given: Sequence[str]) -> frozenset[str]:
    if len(given) > PHASES:
        fields.wrong("phases", f"has {len(given)}, the limit is {PHASES}")
        return frozenset()
    if sum(len(name.encode()) + 1 for name in given) > PHASES_BYTES:
        fields.wrong("phases", f"has more than {PHASES_BYTES} bytes of names")
    return frozenset(fields.required(f"phases[{at}]", name, PHASE_LENGTH) for at, name in enumerate(given))
