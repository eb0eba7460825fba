"""What the contract's tests need beyond the shared server."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack

import asyncpg
import pytest

from tests.cluster import Cluster
from tests.conftest import Urls


@pytest.fixture
async def superuser(postgres: Cluster, shared_urls: Urls) -> AsyncIterator[asyncpg.Connection]:
    """A connection to the shared server's database that nothing is hidden from."""
    connection = await asyncpg.connect(postgres.url(shared_urls.name, "postgres"))
    yield connection
    await connection.close()


@pytest.fixture
async def superuser_of(postgres: Cluster) -> AsyncIterator[Callable[[Urls], Awaitable[asyncpg.Connection]]]:
    """Connections to databases of a test's own that nothing is hidden from."""
    async with AsyncExitStack() as stack:

        async def connect(urls: Urls) -> asyncpg.Connection:
            connection = await asyncpg.connect(postgres.url(urls.name, "postgres"))
            stack.push_async_callback(connection.close)
            return connection

        yield connect
