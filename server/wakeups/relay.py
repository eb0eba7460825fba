"""Hints between processes: what begins here is sent on, many in one message; what comes from elsewhere is told here."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Protocol
from uuid import UUID

import structlog

from server.redis_link import ended
from server.statemachine.errors import StoreUnavailable
from server.statemachine.values import FlowKey, Tenant
from server.wakeups.local import LocalWakeups

_log = structlog.get_logger()

# Hints are gathered for so long: a message for each commit would cost every process as much as the commits themselves.
GATHER_SECONDS = 0.005
# What waits to be sent at most; hints beyond that are dropped, since those who need them look by themselves after a while.
WAITING = 10_000
SEND_SECONDS = 1.0
RETRY_SECONDS, RETRY_MOST_SECONDS = 0.2, 5.0

# Every process says so often that it is there. Who has heard nobody else for a while keeps its hints to itself.
HELLO_SECONDS = 2.0
ALONE_SECONDS = 3 * HELLO_SECONDS

_NAME_BYTES, _KEY_BYTES, _REVISION_BYTES = 8, 48, 8
_HINT_BYTES = _KEY_BYTES + _REVISION_BYTES


class Channel(Protocol):
    """Carries short messages to every process that listens, itself included."""

    name: str
    # Bytes of one message at most.
    room: int

    async def publish(self, message: bytes) -> None:
        """Send the message. Raises one of BROKEN."""

    def messages(self) -> AsyncGenerator[bytes, None]:
        """Messages as they come. Raises one of BROKEN."""


class ChannelBroken(Exception):
    """The channel does not carry anything now."""


# PostgreSQL says it in the store's own words.
BROKEN = (ChannelBroken, StoreUnavailable)


class Relay:
    """Connects the hints of this process with those of others over a channel."""

    def __init__(self, local: LocalWakeups, channel: Channel, name: bytes) -> None:
        """``name`` is this process's, eight random bytes: it does not tell itself what it said."""
        assert len(name) == _NAME_BYTES
        self._local, self._channel, self._name = local, channel, name
        self._waiting: dict[FlowKey, int] = {}
        self._some = asyncio.Event()
        self._company = 0.0  # when another process was heard last
        self.sent = self.received = self.dropped = self.broken = 0

    def send(self, key: FlowKey, revision: int) -> None:
        """Tell other processes, if there are any, some milliseconds from now."""
        if not self._company:
            return
        if len(self._waiting) >= WAITING and key not in self._waiting:
            self.dropped += 1
            return
        self._waiting[key] = max(revision, self._waiting.get(key, 0))
        self._some.set()

    async def sending(self) -> None:
        """Send what waits, for ever. What cannot be sent is dropped."""
        while True:
            await self._some.wait()
            await asyncio.sleep(GATHER_SECONDS)
            self._some.clear()
            waiting, self._waiting = self._waiting, {}
            for message, count in encoded(self._name, list(waiting.items()), self._channel.room):
                if await self._published(message):
                    self.sent += count
                else:
                    self.dropped += count

    async def greeting(self) -> None:
        """Say that this process is there, for ever, and notice when there is no other any more."""
        loop = asyncio.get_running_loop()
        while True:
            await self._published(self._name)
            await asyncio.sleep(HELLO_SECONDS)
            if self._company and loop.time() - self._company > ALONE_SECONDS:
                self._company = 0.0

    async def _published(self, message: bytes) -> bool:
        try:
            async with asyncio.timeout(SEND_SECONDS):
                await self._channel.publish(message)
        except (*BROKEN, TimeoutError):
            return False
        return True

    async def receiving(self) -> None:
        """Tell here what others send, for ever."""
        pause = RETRY_SECONDS
        while True:
            try:
                async for message in self._channel.messages():
                    pause = RETRY_SECONDS
                    await self._met(message)
                    for key, revision in decoded(self._name, message):
                        self.received += 1
                        self._local.heard(key, revision)
            except BROKEN as error:
                self.broken += 1
                _log.warning("wakeups_broken", channel=self._channel.name, error=str(error), retry_seconds=round(pause, 1))
            await asyncio.sleep(pause * (0.5 + random.random()))
            pause = min(pause * 2, RETRY_MOST_SECONDS)

    async def _met(self, message: bytes) -> None:
        if len(message) >= _NAME_BYTES and message[:_NAME_BYTES] != self._name:
            new, self._company = not self._company, asyncio.get_running_loop().time()
            if new:  # it must not wait for our next greeting to know of us
                await self._published(self._name)


@asynccontextmanager
async def relayed(local: LocalWakeups, channel: Channel, name: bytes) -> AsyncIterator[Relay]:
    """The relay while the block lasts."""
    relay = Relay(local, channel, name)
    local.relay = relay.send
    ways = {"out": relay.sending(), "in": relay.receiving(), "greeting": relay.greeting()}
    loops = [asyncio.create_task(way, name=f"wakeups {name}") for name, way in ways.items()]
    try:
        yield relay
    finally:
        local.relay = None
        await ended(loops)


def encoded(name: bytes, hints: Sequence[tuple[FlowKey, int]], room: int) -> Iterator[tuple[bytes, int]]:
    """Messages that hold the hints, each with their number."""
    each = (room - _NAME_BYTES) // _HINT_BYTES
    for first in range(0, len(hints), each):
        some = hints[first : first + each]
        yield name + b"".join(key + revision.to_bytes(_REVISION_BYTES, "big") for key, revision in some), len(some)


def decoded(name: bytes, message: bytes) -> Iterator[tuple[FlowKey, int]]:
    """The hints of a message; none of one that is our own, or no such message: whoever can write to the channel may write nonsense."""
    body = message[_NAME_BYTES:]
    if message[:_NAME_BYTES] == name or not body or len(body) % _HINT_BYTES:
        return
    for at in range(0, len(body), _HINT_BYTES):
        account, engagement, flow = (UUID(bytes=body[at + part : at + part + 16]) for part in (0, 16, 32))
        yield FlowKey(Tenant(account, engagement), flow), int.from_bytes(body[at + _KEY_BYTES : at + _HINT_BYTES], "big")
