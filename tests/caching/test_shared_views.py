"""The second level of the cache: sealed, fenced, bounded in time, and never in anybody's way."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any
from uuid import uuid4

import grpc
import pytest

from server import app
from server.breaker import Breaker
from server.cache import CachedView, RedisViews
from server.cache.redis_views import ASKING, TTL_SECONDS, VIEW_BYTES
from server.redis_link import linked
from server.statemachine.values import FlowKey, Tenant
from tests.conftest import Urls, settings
from tests.redis_server import RedisServer
from tests.services.checkpoints import Sealing
from tests.tenancy import PATIENCE, Tenancy
from tests.test_metrics import free_port, read, value
from tests.waiting import eventually, until

NAME = (1, 0)
SECRET = "open-sesame-4711"
CACHED = "READ_CONSISTENCY_CACHED"


async def _mark(tenant: Tenant, place: bytes, text: bytes) -> bytes:
    """No seal at all, but bound to tenant and place as one is."""
    return place + tenant.client_account_id.bytes + text


async def _unmark(tenant: Tenant, place: bytes, sealed: bytes) -> bytes | None:
    head = place + tenant.client_account_id.bytes
    return sealed[len(head) :] if sealed.startswith(head) else None


@dataclass(slots=True)
class Shared:
    """One process's views."""

    views: RedisViews

    async def put(self, key: FlowKey, view: CachedView) -> None:
        """Share the view, and return when that is done."""
        before = sum(self.views.counts().values())
        self.views.put(key, NAME, view)
        await until(lambda: sum(self.views.counts().values()) > before)


@asynccontextmanager
async def shared(redis: RedisServer, topic: str, clock: Callable[[], float] = time.monotonic) -> AsyncIterator[Shared]:
    async with linked(redis.url, PATIENCE) as link:
        views = RedisViews(link, topic, _mark, _unmark, Breaker(clock))
        sharing = asyncio.create_task(views.sharing())
        yield Shared(views)
        sharing.cancel()


@pytest.fixture
def topic() -> str:
    """An installation that nobody else is."""
    return f"test:{uuid4()}"


@pytest.fixture
def key() -> FlowKey:
    """A flow that nobody else has."""
    return FlowKey(Tenant(uuid4(), uuid4()), uuid4())


def view(revision: int, time: float = 1.0, size: int = 10) -> CachedView:
    return CachedView(revision, b"x" * size, time)


async def test_what_one_process_shares_another_one_finds_for_a_while(redis: RedisServer, topic: str, key: FlowKey) -> None:
    async with shared(redis, topic) as one, shared(redis, topic) as other:
        assert await other.views.get(key, NAME, 0) is None
        await one.put(key, view(3))
        assert await other.views.get(key, NAME, 3) == view(3)
        assert await other.views.get(key, NAME, 4) is None  # too old for whoever asks
        assert await other.views.get(key, (2, 0), 0) is None
        assert await other.views.get(FlowKey(Tenant(key.tenant.engagement_id, key.tenant.client_account_id), key.flow_id), NAME, 0) is None
        with redis.client() as client:
            (name,) = client.keys(f"{topic}:*")
            assert 0 < client.ttl(name) <= TTL_SECONDS
            assert key.hex().encode() in name  # the whole tenant


async def test_an_older_view_never_takes_the_place_of_a_newer_one(redis: RedisServer, topic: str, key: FlowKey) -> None:
    async with shared(redis, topic) as one, shared(redis, topic) as other:
        await one.put(key, view(3, 5.0))
        await other.put(key, view(2, 9.0))
        assert await one.views.get(key, NAME, 0) == view(3, 5.0)
        await other.put(key, view(3, 4.0))
        assert await one.views.get(key, NAME, 0) == view(3, 5.0)
        await other.put(key, view(3, 6.0))
        assert await one.views.get(key, NAME, 0) == view(3, 6.0)
        await other.put(key, view(2**40, 6.0))
        assert await one.views.get(key, NAME, 0) == view(2**40, 6.0)


async def test_what_a_hint_says_is_behind_is_a_miss_until_somebody_shares_what_is_newer(
    redis: RedisServer, topic: str, key: FlowKey
) -> None:
    async with shared(redis, topic) as one, shared(redis, topic) as other:
        await one.put(key, view(3))
        other.views.heard(key, 4)
        other.views.heard(key, 2)  # late, or a lie: it takes nothing back
        assert await other.views.get(key, NAME, 0) is None
        assert await one.views.get(key, NAME, 0) == view(3)  # it was told nothing
        await one.put(key, view(4))
        assert await other.views.get(key, NAME, 0) == view(4)


async def test_what_is_damaged_moved_or_nonsense_is_a_miss_and_is_replaced(redis: RedisServer, topic: str, key: FlowKey) -> None:
    stranger = FlowKey(Tenant(uuid4(), uuid4()), key.flow_id)
    async with shared(redis, topic) as one:
        await one.put(key, view(3))
        with redis.client() as client:
            (name,) = client.keys(f"{topic}:*")
            good: Any = client.get(name)
            moved = name.replace(key.hex().encode(), stranger.hex().encode())
            client.set(moved, good)
            assert await one.views.get(stranger, NAME, 0) is None
            for bad in (b"", b"x", b"\xff" * 200, good[:-1][:16], bytes([*good[:7], good[7] ^ 1, *good[8:]]), good[:16] + b"z" * 50):
                client.set(name, bad)
                assert await one.views.get(key, NAME, 0) is None
            client.set(name, b"\xff" * 200)
        await one.put(key, view(4))
        assert await one.views.get(key, NAME, 0) == view(4)
        assert one.views.failures == 0


async def test_what_is_too_large_is_not_shared(redis: RedisServer, topic: str, key: FlowKey) -> None:
    async with shared(redis, topic) as one:
        one.views.put(key, NAME, view(3, size=VIEW_BYTES + 1))
        await one.put(key, view(2, size=VIEW_BYTES))
        assert await one.views.get(key, NAME, 0) == view(2, size=VIEW_BYTES)


async def test_more_callers_than_may_ask_wait_for_nobody(redis: RedisServer, topic: str, key: FlowKey) -> None:
    ticks = [0.0]
    async with shared(redis, topic, lambda: ticks[0]) as one:
        await one.put(key, view(3))
        found = await asyncio.gather(*(one.views.get(key, NAME, 0) for _ in range(200)))
        assert set(found) <= {None, view(3)}
        assert one.views.hits <= ASKING
        ticks[0] += 60.0  # on a slow machine one that was asked may have seemed to be away
        assert await one.views.get(key, NAME, 0) == view(3)


async def test_a_redis_that_is_away_is_asked_a_few_times_and_then_left_alone(own_redis: RedisServer, topic: str, key: FlowKey) -> None:
    ticks = [0.0]
    async with shared(own_redis, topic, lambda: ticks[0]) as one:
        await one.put(key, view(3))
        own_redis.kill()
        for _ in range(20):
            assert await one.views.get(key, NAME, 0) is None
        assert one.views.failures == 3
        one.views.put(key, NAME, view(4))  # is not even kept waiting
        own_redis.start()
        ticks[0] += 1.0
        assert await one.views.get(key, NAME, 0) is None  # the try that closes it again: what was there is gone
        await one.put(key, view(5))
        assert await one.views.get(key, NAME, 0) == view(5)


@dataclass(frozen=True, slots=True)
class Pair:
    """Two servers on one database and one Redis, which hint to each other over PostgreSQL."""

    one: Tenancy
    other: Tenancy
    ports: tuple[int, int]

    async def shared_flow(self, at: int = 1, outcome: str = "hit") -> Any:
        """A flow with a secret, read through one server and then through the other, until that led to the outcome at the server ``at``.

        A slow machine's Redis may seem to be away for a moment: then the next flow will do.
        """
        async with asyncio.timeout(PATIENCE):
            while True:
                flow = await self.one.create(state={"json": f'{{"word":"{SECRET}"}}'}, display_name=SECRET)
                seen = await cached(self.one, flow.flow_id)
                await asyncio.sleep(0.02)  # it is shared some time soon
                if outcome == "hit":
                    assert await cached(self.other, flow.flow_id) == seen
                if await self.metric(at, "shared_views_total", outcome=outcome):
                    return seen

    async def metric(self, at: int, name: str, **labels: str) -> float:
        """A number of one of them."""
        return value(await asyncio.to_thread(read, self.ports[at]), name, **labels)


@asynccontextmanager
async def pair(urls: Urls, redis: RedisServer) -> AsyncIterator[Pair]:
    async with AsyncExitStack() as stack:
        ports = free_port(), free_port()
        channels = []
        for port in ports:
            given = settings(urls, redis_url=redis.url, metrics_port=port, cache_seconds=60)
            server = await stack.enter_async_context(app.running(given))
            channels.append(await stack.enter_async_context(grpc.aio.insecure_channel(server.address)))
        tenancy = Tenancy.fresh(channels[0])
        yield Pair(tenancy, tenancy.on(channels[1]), ports)


async def cached(tenancy: Tenancy, flow_id: str, **more: object) -> Any:
    return (await tenancy.call("GetFlow", flow_id=flow_id, view="FLOW_VIEW_FULL", consistency=CACHED, **more)).flow


async def test_a_view_that_one_server_read_is_served_by_another_and_is_sealed_meanwhile(urls: Urls, own_redis: RedisServer) -> None:
    async with pair(urls, own_redis) as servers:
        flow = await servers.shared_flow()
        assert SECRET in flow.state.json
        with own_redis.client() as client:
            names = client.keys("*")
            dump = b"".join(names) + b"".join(client.get(name) or b"" for name in names if client.type(name) == b"string")
        assert f"{servers.one.account.hex}{servers.one.engagement.hex}".encode() in dump
        assert SECRET.encode() not in dump
        # Whoever changed it and says so never sees what was before.
        moved = await servers.one.move(flow.flow_id, "data_import", "IN_PROGRESS")
        assert (await cached(servers.other, flow.flow_id, min_revision=moved.flow.revision)).revision == moved.flow.revision


async def test_after_an_erasure_nothing_that_is_left_in_redis_opens(urls: Urls, own_redis: RedisServer) -> None:
    async with pair(urls, own_redis) as servers:
        flow = await servers.shared_flow(0, "shared")
        await Sealing(servers.one).admin("EraseTenant", confirm=f"{servers.one.account}/{servers.one.engagement}")
        with own_redis.client() as client:
            assert client.keys("*:view:*")
        assert (
            await servers.other.refusal("GetFlow", flow_id=flow.flow_id, view="FLOW_VIEW_FULL", consistency=CACHED)
        ).reason == "FLOW_NOT_FOUND"
        assert (await Sealing(servers.other).admin("GetKeyRotation")).key_version == 0  # no key was made for what is gone


async def test_a_redis_killed_and_started_again_under_load_fails_no_request(urls: Urls, own_redis: RedisServer) -> None:
    async with pair(urls, own_redis) as servers:
        flows = [(await servers.one.create()).flow_id for _ in range(8)]
        done, numbers, ended = [0], count(), asyncio.Event()

        async def caller(tenancy: Tenancy) -> None:
            while not ended.is_set():
                number = next(numbers)
                if number % 3:
                    await cached(tenancy, flows[number % len(flows)])
                else:
                    await tenancy.call("UpdateFlow", flow_id=flows[number % len(flows)], update={"display_name": f"name {number}"})
                done[0] += 1

        async def progressed(calls: int) -> None:
            target = done[0] + calls
            await until(lambda: done[0] >= target)

        async def down() -> bool:
            return not await servers.metric(0, "redis_reachable", use="views")

        async def up() -> bool:
            return bool(await servers.metric(0, "redis_reachable", use="views"))

        callers = [asyncio.create_task(caller(tenancy)) for tenancy in (servers.one, servers.other) for _ in range(4)]
        await progressed(100)
        own_redis.kill()
        await eventually(down)
        await progressed(100)
        own_redis.start()
        await eventually(up)
        await progressed(100)
        ended.set()
        await asyncio.gather(*callers)  # raises if any call failed
        assert await servers.metric(0, "shared_views_total", outcome="failure") > 0
