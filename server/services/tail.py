"""What is new, read once for all streams that follow it: a tail.

Streams that have been told everything wait at the tail. When a hint comes, or the sweep finds something, the tail reads what came after its
head and wakes them; each takes the same bytes. A stream that is slow leaves its place: what it has not taken may be gone from the tail's
memory by then, and it reads from the store until it is back at the head.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from typing import Protocol
from weakref import WeakValueDictionary

from server.statemachine.errors import StoreUnavailable

# How many events a tail, or a stream that catches up, reads at once; and how many bytes of them a stream that catches up holds on to.
PAGE = 100
PAGE_BYTES = 256 * 1024
# Memory for events as they are sent, of all tails of a process.
ROOM_BYTES = 32 * 1024 * 1024
# What an event costs in memory beside its bytes.
TOLD_BYTES = 2048
# So many streams are woken at a time, that other calls get their turn in between.
WOKEN = 100
# For so long streams wait for a store that is away; after that they are told so, and try elsewhere.
AWAY_SECONDS = 30.0


class Waiter(Protocol):
    """A stream that waits at a tail."""

    def wake(self) -> None:
        """There is something new, or may be."""

    def fail(self, error: Exception) -> None:
        """What comes next cannot be told."""


class Wanted(ABC):
    """What streams with the same filter have in common."""

    @abstractmethod
    def written(self, told: Told) -> bytes | None:
        """The message for those streams; None when their filter leaves it out."""


class Told:
    """One event, and how it is sent to those who want it: decided and written once for each filter."""

    __slots__ = ("_messages", "body")

    def __init__(self, body: bytes) -> None:
        """``body`` is the message but for its token."""
        self.body = body
        self._messages: dict[Wanted, bytes | None] = {}

    def message(self, wanted: Wanted) -> bytes | None:
        """The event as it is sent; None for those whose filter leaves it out."""
        try:
            return self._messages[wanted]
        except KeyError:
            found = self._messages[wanted] = wanted.written(self)
            return found


class Room:
    """Memory for what tails keep: when it is full, what was kept first goes first, whosever it is."""

    def __init__(self, max_bytes: int) -> None:
        self._left = max_bytes
        self._kept: deque[tuple[int, Tail, int]] = deque()

    def keep(self, size: int, tail: Tail, number: int) -> None:
        """The tail keeps so many bytes under that number, and forgets them when the room is needed."""
        self._kept.append((size, tail, number))
        self._left -= size
        while self._left < 0:
            size, tail, number = self._kept.popleft()
            self._left += size
            tail.forget(number)


class Tail(ABC):
    """What is new of one thing that is followed; ``head`` is the number of the newest event that was read."""

    def __init__(self, poll: float, last: Callable[[], bool]) -> None:
        """``poll`` is how long to wait for a store that is away; ``last`` says whether nobody will wait any longer."""
        self._poll, self._last = poll, last
        self.head = -1
        self.streams = 0
        # Whether there may be something after the head. Set by hints, cleared right before a read.
        self.stirred = False
        self.wanted: WeakValueDictionary[object, Wanted] = WeakValueDictionary()
        self._waiting: set[Waiter] = set()
        self._reading: asyncio.Task[None] | None = None
        self._again: asyncio.TimerHandle | None = None
        self._away_since = 0.0

    @abstractmethod
    async def _look(self) -> bool:
        """Read what came after the head and keep it; whether there is more right now."""

    @abstractmethod
    def forget(self, number: int) -> None:
        """Drop what was kept under that number."""

    @property
    def crowded(self) -> bool:
        """Whether somebody waits for news."""
        return bool(self._waiting)

    def stir(self) -> None:
        """There is something new, or may be."""
        self.stirred = True
        if self._reading is None and self._waiting:
            self._reading = asyncio.create_task(self._read(), name="tail")

    def wait(self, waiter: Waiter) -> None:
        """Wake the stream when there is something new."""
        self._waiting.add(waiter)
        if self.stirred:
            self.stir()

    def leave(self, waiter: Waiter) -> None:
        """The stream does not wait any more."""
        self._waiting.discard(waiter)

    def close(self) -> None:
        """Nobody follows any more."""
        if self._reading is not None:
            self._reading.cancel()
        if self._again is not None:
            self._again.cancel()

    async def _read(self) -> None:
        try:
            while self.stirred and self._waiting:
                self.stirred = False  # before the read: a hint that comes during it must not be lost
                try:
                    self.stirred = await self._look() or self.stirred
                except StoreUnavailable as error:
                    self._put_off(error)
                    return
                except Exception as error:  # noqa: BLE001 - those who wait for it are told, each by itself
                    self._fail(error)
                else:
                    self._away_since = 0.0
                    self._wake()
        finally:
            self._reading = None  # in the same step as the last look, so that no hint falls in between

    def _put_off(self, error: StoreUnavailable) -> None:
        """The store is away: look again in a while, and give up after some more."""
        loop = asyncio.get_running_loop()
        self._away_since = self._away_since or loop.time()
        if self._last():
            self._wake()
        elif loop.time() - self._away_since >= AWAY_SECONDS:
            self._away_since = 0.0
            self._fail(error)
        else:
            self.stirred = True
            self.look_again(self._poll)

    def look_again(self, seconds: float) -> None:
        """Stir in so many seconds, unless that is due already."""
        if self._again is None:
            self._again = asyncio.get_running_loop().call_later(seconds, self._due)

    def _due(self) -> None:
        self._again = None
        self.stir()

    def _fail(self, error: Exception) -> None:
        waiting, self._waiting = self._waiting, set()
        for waiter in waiting:
            waiter.fail(error)

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, set()
        if len(waiting) <= WOKEN:
            for waiter in waiting:
                waiter.wake()
        else:
            _wake_some(asyncio.get_running_loop(), deque(waiting))


def _wake_some(loop: asyncio.AbstractEventLoop, waiting: deque[Waiter]) -> None:
    for _ in range(min(WOKEN, len(waiting))):
        waiting.popleft().wake()
    if waiting:
        loop.call_soon(_wake_some, loop, waiting)
