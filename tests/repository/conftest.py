"""Stores on one database that these tests share, each test with tenants of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator

import asyncpg
import pytest

from server.statemachine.values import Tenant
from tests.conftest import Urls
from tests.repository import rows
from tests.repository.store import Store, opened, superuser


@pytest.fixture(scope="module")
async def store(shared_urls: Urls) -> AsyncIterator[Store]:
    """One process's repository."""
    async with opened(shared_urls.service) as store:
        yield store


@pytest.fixture(scope="module")
async def elsewhere(shared_urls: Urls) -> AsyncIterator[Store]:
    """Another process's repository, on the same database."""
    async with opened(shared_urls.service) as store:
        yield store


@pytest.fixture(scope="module")
async def truth(shared_urls: Urls) -> AsyncIterator[asyncpg.Connection]:
    """A superuser's connection to that database."""
    async with superuser(shared_urls.service) as connection:
        yield connection


@pytest.fixture
async def service(shared_urls: Urls) -> AsyncIterator[asyncpg.Connection]:
    """A fresh connection in the service's role, as bare as the driver makes it."""
    connection = await asyncpg.connect(shared_urls.service)
    try:
        yield connection
    finally:
        await connection.close()


@pytest.fixture
def tenant() -> Tenant:
    """A tenant that nobody else uses."""
    return rows.tenant()
