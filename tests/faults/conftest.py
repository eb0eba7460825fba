"""A database and a server of this folder's own: the audit reads every row, and tests elsewhere leave broken ones."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import grpc
import pytest

from server import app
from server.repository import schema
from tests import cluster as clusters
from tests.cluster import Cluster
from tests.conftest import Urls, cloned, settings


@pytest.fixture(scope="session")
def shared_urls(postgres: Cluster, template: str) -> Iterator[Urls]:
    """The database behind this folder's server."""
    yield from cloned(postgres, template)


@pytest.fixture(scope="session")
async def server(shared_urls: Urls) -> AsyncIterator[app.Server]:
    """This folder's server in this process."""
    async with app.running(settings(shared_urls, watch_poll_seconds=0.05)) as running:
        yield running


@pytest.fixture(scope="session")
async def channel(server: app.Server) -> AsyncIterator[grpc.aio.Channel]:
    """A connection to it."""
    async with grpc.aio.insecure_channel(server.address) as channel:
        yield channel


@pytest.fixture(scope="module")
def own(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """A PostgreSQL that these tests may break."""
    with clusters.running(request.config.getoption("--postgres")) as cluster:
        yield cluster


@pytest.fixture(scope="module")
async def own_urls(own: Cluster) -> Urls:
    """The migrated database in it."""
    own.run("CREATE DATABASE broken OWNER flowledger_owner")
    found = Urls("broken", own.url("broken", "flowledger_owner"), own.url("broken", "flowledger"))
    await schema.migrate(found.owner)
    return found
