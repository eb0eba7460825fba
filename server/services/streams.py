"""What all watches of a process have in common: how many there may be, when each must say something, and why it ends."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime

from flowledger.v1 import flow_service_pb2 as pb

from server.services.boundary import Send
from server.services.tail import Tail, Told, Wanted
from server.statemachine.errors import QuotaExceeded, StreamStalled
from server.statemachine.values import Tenant

# Streams end before their age by up to this part of it, and beat before their time, so that they do not all at once.
AGE_JITTER, BEAT_JITTER = 0.2, 0.1
# For so long a stream that is too old may still deliver what there is; after that it ends wherever it is, resumably as ever.
LATE_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class WatchSettings:
    """How watches behave; times in seconds. ``jitter`` (0 to 1) keeps streams from doing things all at once; ``streams`` is per tenant."""

    poll: float = 0.5
    heartbeat: float = 15.0
    max_age: float = 1800.0
    jitter: Callable[[], float] = lambda: 0.0
    streams: int = 5000


class Streams:
    """All streams of one process."""

    def __init__(self, settings: WatchSettings, now: Callable[[], datetime]) -> None:
        self.settings, self.now = settings, now
        self.draining = False
        self._of: dict[Tenant, int] = {}

    @property
    def open(self) -> int:
        """How many there are."""
        return sum(self._of.values())

    @contextmanager
    def admitted(self, tenant: Tenant) -> Iterator[None]:
        """One stream more of the tenant while the block lasts. Raises QuotaExceeded."""
        count, most = self._of.get(tenant, 0), self.settings.streams
        if count >= most:
            raise QuotaExceeded("open watches of this tenant on this server", most, count + 1)
        self._of[tenant] = count + 1
        try:
            yield
        finally:
            self._of[tenant] -= 1
            if not self._of[tenant]:
                del self._of[tenant]


def _this_task() -> asyncio.Task[object]:
    task = asyncio.current_task()
    assert task is not None
    return task


class Stream(ABC):
    """One caller's watch: where it is, and what it says next."""

    def __init__(self, streams: Streams, tail: Tail, wanted: Wanted, heartbeat: float, send: Send) -> None:
        """``send`` returns when the caller's side has room for more: it is the only queue."""
        settings, loop = streams.settings, asyncio.get_running_loop()
        self._loop, self._streams, self._tail, self._wanted, self._send = loop, streams, tail, wanted, send
        self._task = _this_task()
        self._heartbeat = heartbeat * (1.0 - BEAT_JITTER * settings.jitter())
        self._spoken = loop.time()
        self._old = self._spoken + settings.max_age * (1.0 - AGE_JITTER * settings.jitter())
        self._stalled = False
        self._timer: asyncio.TimerHandle | None = None
        self._woken: asyncio.Future[None] | None = None

    async def run(self) -> None:
        """Everything there is to say, until the stream ends. Raises StreamStalled."""
        try:
            await self._open()
            await self._follow()
        except asyncio.CancelledError:
            if not self._stalled or self._task.uncancel():
                raise
            raise StreamStalled from None
        finally:
            self._tail.leave(self)
            if self._timer is not None:
                self._timer.cancel()

    # ---- what kinds of streams do differently ---------------------------------------------------------------------------------------

    @abstractmethod
    async def _open(self) -> None:
        """Say where the stream is and how far it could go."""

    @abstractmethod
    def _next(self) -> Told | None:
        """Move on to the next event, if it is in memory."""

    @abstractmethod
    def _behind(self) -> bool:
        """Whether something must be read from the store before the stream can go on."""

    @abstractmethod
    async def _catch_up(self) -> pb.WatchEnd | None:
        """Read it; an end when there is no going on."""

    @abstractmethod
    def _over(self) -> pb.WatchEnd | None:
        """Why the stream, which has delivered everything, has nothing to wait for; None when it has."""

    @abstractmethod
    def _beat(self) -> bytes:
        """The message that says where the stream is."""

    @abstractmethod
    def _end(self, end: pb.WatchEnd) -> bytes:
        """The last message."""

    # ---- what all streams do --------------------------------------------------------------------------------------------------------

    async def _follow(self) -> None:
        send, wanted, time = self._send, self._wanted, self._loop.time
        self._set_timer(time())
        while True:
            told = self._next()
            if told is not None:
                message = told.message(wanted)
                if message is not None:
                    await send(message)
                    self._spoken = time()
                elif time() - self._spoken >= self._heartbeat:
                    await self._say(self._beat())
                if self._spoken < self._old + LATE_SECONDS:
                    continue
                end: pb.WatchEnd | None = self._aged()
            elif self._behind():
                end = await self._catch_up()
            else:
                end = self._over() or self._leave()
                if end is None:
                    if time() - self._spoken >= self._heartbeat:
                        await self._say(self._beat())
                    await self._news()
            if end is not None:
                await send(self._end(end))
                return

    async def _say(self, message: bytes) -> None:
        await self._send(message)
        self._spoken = self._loop.time()

    def _leave(self) -> pb.WatchEnd | None:
        """Why a stream that has delivered everything is to go elsewhere; None while it may stay."""
        if self._streams.draining and not self._tail.stirred:
            return pb.WatchEnd(reason=pb.WATCH_END_REASON_DRAINING, message="the server is stopping: resume elsewhere")
        late = self._loop.time() - self._old
        return self._aged() if late >= (LATE_SECONDS if self._tail.stirred else 0.0) else None

    def _aged(self) -> pb.WatchEnd:
        return pb.WatchEnd(reason=pb.WATCH_END_REASON_MAX_AGE, message="the stream is old: resume")

    async def _news(self) -> None:
        """Returns when the tail has something, or may have, and when it is time to say something."""
        self._woken = self._loop.create_future()
        self._tail.wait(self)
        try:
            await self._woken
        finally:
            self._woken = None

    def wake(self) -> None:
        """There is something new, or may be."""
        if self._woken is not None and not self._woken.done():
            self._woken.set_result(None)

    def fail(self, error: Exception) -> None:
        """What comes next cannot be told."""
        if self._woken is not None and not self._woken.done():
            self._woken.set_exception(error)

    def _set_timer(self, now: float) -> None:
        """One timer for each stream, set once a heartbeat and not once a message."""
        due = self._spoken + self._heartbeat
        if due <= now:
            due = now + self._heartbeat
        for limit in (self._old, self._old + LATE_SECONDS):
            if now < limit < due:
                due = limit
        self._timer = self._loop.call_at(due, self._due)

    def _due(self) -> None:
        now = self._loop.time()
        if self._woken is None and now >= max(self._old, self._spoken) + LATE_SECONDS:
            self._stalled = True  # the caller has not taken a message for so long
            self._task.cancel()
            return
        if now >= self._spoken + self._heartbeat or now >= self._old:
            self.wake()
        self._set_timer(now)
