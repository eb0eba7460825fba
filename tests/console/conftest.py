"""A shell, a flow with a history, and somebody who does damage."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Iterator

import asyncpg
import pytest
import structlog

from server import app
from tests.cluster import Cluster
from tests.conftest import Urls
from tests.console.shell import Shell
from tests.tenancy import Tenancy


@pytest.fixture(scope="package", autouse=True)
def quiet() -> Iterator[None]:
    """The server of this process logs past the standard output that commands are given here."""
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.__stderr__))
    yield
    structlog.reset_defaults()


@pytest.fixture
def shell(server: app.Server, tenancy: Tenancy) -> Shell:
    """A fresh tenant's shell."""
    return Shell.at(server.address, tenancy)


@pytest.fixture
async def flow(tenancy: Tenancy) -> str:
    """The id of a flow at revision 4."""
    made = await tenancy.create(display_name="Data centre north", child_data={"json": '{"servers":371}'})
    await tenancy.move(made.flow_id, "data_import", "IN_PROGRESS", "COMPLETED")
    await tenancy.call("UpdateFlow", flow_id=made.flow_id, update={"state": {"json": '{"wave":3}'}})
    return made.flow_id


@pytest.fixture
async def hand(postgres: Cluster, shared_urls: Urls) -> AsyncIterator[asyncpg.Connection]:
    """A connection to the shared server's database that may do anything."""
    connection = await asyncpg.connect(postgres.url(shared_urls.name, "postgres"))
    yield connection
    await connection.close()
