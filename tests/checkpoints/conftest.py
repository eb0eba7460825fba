"""Benches on one database that these tests share, each test with tenants of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator

import asyncpg
import pytest

from server.statemachine.values import FlowKey, Tenant
from tests.checkpoints.bench import STATE, Bench, bench
from tests.conftest import Urls
from tests.repository import rows
from tests.repository.store import superuser


@pytest.fixture(scope="module")
async def here(shared_urls: Urls) -> AsyncIterator[Bench]:
    """One process's."""
    async with bench(shared_urls.service) as made:
        yield made


@pytest.fixture(scope="module")
async def elsewhere(shared_urls: Urls) -> AsyncIterator[Bench]:
    """Another process's, on the same database."""
    async with bench(shared_urls.service) as made:
        yield made


@pytest.fixture(scope="module")
async def truth(shared_urls: Urls) -> AsyncIterator[asyncpg.Connection]:
    """A superuser's connection to that database."""
    async with superuser(shared_urls.service) as connection:
        yield connection


@pytest.fixture
def tenant() -> Tenant:
    """A tenant that nobody else uses."""
    return rows.tenant()


@pytest.fixture
async def key(here: Bench, tenant: Tenant) -> FlowKey:
    """A flow with a state."""
    flow_id = await here.store.begun(tenant)
    await here.write(tenant, flow_id, b'{"a":1}', STATE)
    return FlowKey(tenant, flow_id)
