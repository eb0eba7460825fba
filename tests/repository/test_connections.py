"""A keeper's connection stays with it, and is there for whoever needs one when the pool has no other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress

import asyncpg
import pytest

from server.repository.connections import Connections, PoolConnection
from server.repository.database import PoolSettings, connected
from server.repository.session import Session
from tests import cluster as clusters
from tests.conftest import Urls

ONE, OTHER, THIRD = "one keeper", "another", "a third"
PATIENCE = 1.0


@asynccontextmanager
async def _pool(urls: Urls, size: int) -> AsyncIterator[Connections]:
    settings = PoolSettings(1, size, PATIENCE, Session(pooler=clusters.POOLER))
    async with connected(clusters.entrance(urls.service), settings) as database:
        yield database.connections


async def _sent(connections: Connections, keeper: object) -> PoolConnection:
    """The connection that the keeper sent something on, kept again."""
    connection = await connections.resume(keeper)
    assert await connection.fetchval("SELECT 1") == 1
    await connections.keep(keeper, connection)
    return connection


async def test_a_keeper_goes_on_with_its_own_connection(shared_urls: Urls) -> None:
    async with _pool(shared_urls, 3) as connections:
        mine, others = await _sent(connections, ONE), await _sent(connections, OTHER)
        assert mine is not others
        for _ in range(3):
            assert await _sent(connections, ONE) is mine
            assert await _sent(connections, OTHER) is others
        assert connections.use() == {"in_use": 0, "idle": 2, "most": 3}


async def test_without_another_the_longest_idle_keepers_connection_is_lent(shared_urls: Urls) -> None:
    async with _pool(shared_urls, 2) as connections:
        mine, others = await _sent(connections, ONE), await _sent(connections, OTHER)
        await _sent(connections, ONE)
        async with connections.lent() as connection:
            assert connection is others
            assert connections.use() == {"in_use": 1, "idle": 1, "most": 2}
            async with connections.lent() as second:
                assert second is mine
                assert connections.use() == {"in_use": 2, "idle": 0, "most": 2}
                with pytest.raises(TimeoutError):
                    await connections.resume(ONE)
        assert connections.use() == {"in_use": 0, "idle": 2, "most": 2}
        await _sent(connections, ONE)


@pytest.mark.parametrize("size", [1, 2, 3])
async def test_many_keepers_and_borrowers_share_a_pool_of_any_size(shared_urls: Urls, size: int) -> None:
    async def keeping(connections: Connections, keeper: str) -> None:
        for _ in range(20):
            await _sent(connections, keeper)

    async def borrowing(connections: Connections) -> None:
        for _ in range(20):
            async with connections.lent() as connection:
                assert await connection.fetchval("SELECT 1") == 1

    async with _pool(shared_urls, size) as connections, asyncio.timeout(60):
        keepers = [keeping(connections, keeper) for keeper in (ONE, OTHER, THIRD)]
        await asyncio.gather(*keepers, *(borrowing(connections) for _ in range(3)))
        assert connections.use()["in_use"] == 0
        async with AsyncExitStack() as stack:  # none was lost on the way
            for _ in range(size):
                await stack.enter_async_context(connections.lent())
            assert connections.use() == {"in_use": size, "idle": 0, "most": size}


async def test_who_waits_for_a_connection_gets_the_next_that_a_keeper_puts_aside(shared_urls: Urls) -> None:
    async with _pool(shared_urls, 1) as connections:
        held = await connections.resume(ONE)
        waiting = asyncio.create_task(connections.lend())
        await asyncio.sleep(PATIENCE / 20)
        assert not waiting.done()
        await connections.keep(ONE, held)
        lent = await asyncio.wait_for(waiting, PATIENCE / 2)
        await connections.take_back(lent)


async def test_whoever_gave_up_waiting_is_not_waited_for(shared_urls: Urls) -> None:
    async with _pool(shared_urls, 1) as connections:
        held = await connections.resume(ONE)
        waiting = asyncio.create_task(connections.lend())
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(TimeoutError):
            await connections.lend()
        await connections.keep(ONE, held)
        assert await _sent(connections, ONE) is held


@pytest.mark.parametrize("taker", ["its keeper", "somebody else"])
async def test_a_connection_that_broke_while_it_was_kept_is_replaced(shared_urls: Urls, truth: asyncpg.Connection, taker: str) -> None:
    # Straight to PostgreSQL: behind a pooler it is the pooler's connection that breaks.
    async with connected(shared_urls.service, PoolSettings(1, 1, PATIENCE)) as database:
        connections = database.connections
        kept = await _sent(connections, ONE)
        held = await connections.resume(ONE)
        process = await held.fetchval("SELECT pg_backend_pid()")
        await connections.keep(ONE, held)
        assert await truth.fetchval("SELECT pg_terminate_backend($1, 5000)", process)
        for _ in range(100):  # until the driver has noticed
            await asyncio.sleep(0.01)
        if taker == "its keeper":
            assert await _sent(connections, ONE) is not kept
        else:
            async with connections.lent() as connection:
                assert await connection.fetchval("SELECT 1") == 1
        assert connections.use() == {"in_use": 0, "idle": 1, "most": 1}


async def test_a_failed_transaction_does_not_stay_open_for_the_next(shared_urls: Urls) -> None:
    async with _pool(shared_urls, 1) as connections:
        await _sent(connections, ONE)
        with suppress(asyncpg.DivisionByZeroError):
            async with connections.lent() as connection:
                await connection.execute("BEGIN")
                await connection.execute("SELECT 1 / 0")
        await _sent(connections, ONE)
