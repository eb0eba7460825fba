"""What the contract's tests need beyond the shared server."""

from __future__ import annotations

from collections.abc import AsyncIterator

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
