"""Hints between processes: one suite for every channel, and what may go wrong with it."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from uuid import uuid4

import asyncpg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.breaker import Breaker
from server.redis_link import linked
from server.repository.database import PoolSettings, connected
from server.repository.notifications import CHANNEL, Notifications
from server.statemachine.values import FlowKey, Tenant
from server.wakeups import Channel, LocalWakeups, RedisChannel, Relay, relay, relayed
from server.wakeups.relay import BROKEN, decoded, encoded
from tests.conftest import Urls
from tests.redis_server import RedisServer
from tests.tenancy import PATIENCE
from tests.waiting import until

Opened = Callable[[], AbstractAsyncContextManager[Channel]]
NAME, OTHER = b"process1", b"process2"


@asynccontextmanager
async def over_redis(redis: RedisServer, urls: Urls) -> AsyncIterator[Channel]:
    async with linked(redis.url) as link:
        yield RedisChannel(link, "test", Breaker(time.monotonic))


@asynccontextmanager
async def over_postgres(redis: RedisServer, urls: Urls) -> AsyncIterator[Channel]:
    async with connected(urls.service, PoolSettings(1, 2)) as database:
        yield Notifications(database, urls.service)


CHANNELS = {"redis": over_redis, "postgres": over_postgres}


@pytest.fixture(params=CHANNELS)
def opened(request: pytest.FixtureRequest, redis: RedisServer, shared_urls: Urls) -> Opened:
    """Opens the channel once more, as another process would."""
    return lambda: CHANNELS[request.param](redis, shared_urls)


class Process:
    """What one process hears."""

    def __init__(self) -> None:
        self.local = LocalWakeups()
        self.heard: list[tuple[FlowKey, int]] = []
        self.some = asyncio.Event()
        self.local.tell(self._hear)
        self.relay: Relay

    def _hear(self, key: FlowKey, revision: int) -> None:
        self.heard.append((key, revision))
        self.some.set()

    async def until(self, hint: tuple[FlowKey, int]) -> None:
        async with asyncio.timeout(PATIENCE):
            while hint not in self.heard:
                self.some.clear()
                await self.some.wait()


@asynccontextmanager
async def processes(opened: Opened, count: int) -> AsyncIterator[list[Process]]:
    """Processes that know of each other."""
    async with AsyncExitStack() as stack:
        found = []
        for _ in range(count):
            process = Process()
            channel = await stack.enter_async_context(opened())
            process.relay = await stack.enter_async_context(relayed(process.local, channel, os.urandom(8)))
            found.append(process)
        await until(lambda: all(process.relay._company for process in found))
        yield found


def a_key() -> FlowKey:
    return FlowKey(Tenant(uuid4(), uuid4()), uuid4())


async def test_what_happens_in_one_process_is_heard_in_the_others(opened: Opened) -> None:
    async with processes(opened, 3) as (one, two, three):
        key = a_key()
        with two.local.hear(key) as moved:
            one.local.ring(key, 7)
            await two.until((key, 7))
            await three.until((key, 7))
            assert moved.is_set()
        assert one.heard == [(key, 7)]


async def test_many_hints_go_in_few_messages_and_of_one_flow_only_the_newest(opened: Opened) -> None:
    async with processes(opened, 2) as (one, two):
        keys = [a_key() for _ in range(300)]
        for revision in (1, 2, 3):
            for key in keys:
                one.local.ring(key, revision)
        for key in keys:
            await two.until((key, 3))
        assert len(two.heard) == len(keys)
        await until(lambda: one.relay.sent >= len(keys))  # counted once the last message is known to be out
        assert one.relay.sent == len(keys)


async def test_nonsense_on_the_channel_is_nobodys_error(opened: Opened) -> None:
    async with processes(opened, 2) as (one, two):
        key = a_key()
        for nonsense in (b"", b"x", b"y" * 9, os.urandom(8 + 55), os.urandom(2000)):
            await one.relay._channel.publish(nonsense)
        one.local.ring(key, 4)
        await two.until((key, 4))
        assert two.heard == [(key, 4)]


async def test_who_is_alone_keeps_its_hints_to_itself(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "HELLO_SECONDS", 0.05)
    monkeypatch.setattr(relay, "ALONE_SECONDS", 0.2)
    process = Process()
    async with opened() as channel, relayed(process.local, channel, os.urandom(8)) as alone:
        process.local.ring(a_key(), 1)
        await asyncio.sleep(0.1)
        assert alone.sent == 0
        other = Process()
        async with opened() as second, relayed(other.local, second, os.urandom(8)):
            await until(lambda: alone._company)
            key = a_key()
            process.local.ring(key, 2)
            await other.until((key, 2))
        await until(lambda: not alone._company)
        process.local.ring(a_key(), 3)
        assert not alone._waiting


async def test_a_notification_that_is_no_hint_is_passed_over(shared_urls: Urls) -> None:
    async with over_postgres(None, shared_urls) as channel:  # type: ignore[arg-type]
        found = list[bytes]()

        async def listen() -> None:
            async for message in channel.messages():
                found.append(message)

        listening = asyncio.create_task(listen())
        connection = await asyncpg.connect(shared_urls.service)
        try:
            async with asyncio.timeout(PATIENCE):
                while found.count(b"hello") < 3:
                    for payload in ("", "not base64!", "====", "\N{SNOWMAN}"):
                        await connection.execute("SELECT pg_notify($1, $2)", CHANNEL, payload)
                    await channel.publish(b"hello")
                    await asyncio.sleep(0.01)
            assert not listening.done()
        finally:
            listening.cancel()
            await connection.close()
        assert set(found) <= {b"hello", b""}


async def test_redis_may_go_and_come_back(own_redis: RedisServer, shared_urls: Urls) -> None:
    async with processes(lambda: over_redis(own_redis, shared_urls), 2) as (one, two):
        own_redis.kill()
        began = time.monotonic()
        for _ in range(20):
            one.local.ring(a_key(), 1)
            await asyncio.sleep(0.01)
        assert time.monotonic() - began < 2.0  # nobody waits for Redis
        own_redis.start()
        key = a_key()
        async with asyncio.timeout(PATIENCE):
            while (key, 5) not in two.heard:
                one.local.ring(key, 5)
                await asyncio.sleep(0.05)
        assert two.relay.broken >= 1


async def test_a_server_that_is_not_there_is_said_to_be_broken(tmp_path: object, shared_urls: Urls) -> None:
    async with linked("redis://127.0.0.1:1/0") as link:
        channel = RedisChannel(link, "test", Breaker(time.monotonic))
        for _ in range(5):
            with pytest.raises(BROKEN):
                await channel.publish(b"x")
        with pytest.raises(BROKEN):
            await anext(channel.messages())
    async with connected(shared_urls.service, PoolSettings(1, 2)) as database:
        with pytest.raises(BROKEN):
            await anext(Notifications(database, "postgresql://nobody@127.0.0.1:1/nowhere").messages())


keys = st.builds(lambda a, b, c: FlowKey(Tenant(a, b), c), st.uuids(), st.uuids(), st.uuids())
hints = st.lists(st.tuples(keys, st.integers(0, 2**63 - 1)), max_size=40)


@given(hints, st.integers(64, 600))
def test_hints_come_out_of_messages_as_they_went_in(given: list[tuple[FlowKey, int]], room: int) -> None:
    messages = list(encoded(NAME, given, room))
    assert all(len(message) <= room for message, _ in messages)
    assert [hint for message, _ in messages for hint in decoded(OTHER, message)] == given
    assert [hint for message, _ in messages for hint in decoded(NAME, message)] == []


@given(st.binary(max_size=300))
def test_no_message_is_an_error(message: bytes) -> None:
    list(decoded(NAME, message))
