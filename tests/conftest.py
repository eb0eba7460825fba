"""Real PostgreSQL and real gRPC over a port for everybody; one server for most, a fresh tenant for each test."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from itertools import count

import grpc
import pytest

from server import app
from server.repository import schema
from server.settings import Settings
from server.vault import written
from tests import cluster as clusters
from tests.cluster import Cluster
from tests.tenancy import Tenancy

_numbers = count(1)

# The key-encryption key of every test's server that has none of its own.
KEYS = written("test", bytes(range(32)))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--postgres", choices=("18", "15"), default="18", help="which PostgreSQL the tests run on")
    parser.addoption("--corrupted", type=int, default=18, help="how many flows are corrupted in test_corruption.py")
    parser.addoption("--kills", type=int, default=3, help="how often a server is killed in each test that kills one again and again")
    parser.addoption("--rounds", type=int, default=1, help="how often tests/linearizability kills, cuts and restarts; 20 for a long look")


def pytest_configure(config: pytest.Config) -> None:
    # 5:45 ahead of UTC: a naive time that slips in anywhere shows.
    os.environ["TZ"] = "Asia/Kathmandu"
    time.tzset()
    for name in [name for name in os.environ if name.startswith("FLOWLEDGER_")]:
        del os.environ[name]


@pytest.fixture(scope="session")
def postgres(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """A running PostgreSQL."""
    with clusters.running(request.config.getoption("--postgres")) as cluster:
        yield cluster


@dataclass(frozen=True, slots=True)
class Urls:
    """One migrated database, as its owner and as the service see it."""

    name: str
    owner: str
    service: str


@pytest.fixture(scope="session")
async def template(postgres: Cluster) -> str:
    """The name of a migrated database that others are cloned from."""
    postgres.run("CREATE DATABASE template_flowledger OWNER flowledger_owner")
    await schema.migrate(postgres.url("template_flowledger", "flowledger_owner"))
    return "template_flowledger"


def cloned(postgres: Cluster, template: str) -> Iterator[Urls]:
    """A clone of the template, gone when the test that asked for it is."""
    name = f"test_{next(_numbers)}"
    postgres.run(f"CREATE DATABASE {name} TEMPLATE {template} OWNER flowledger_owner")
    yield Urls(name, postgres.url(name, "flowledger_owner"), postgres.url(name, "flowledger"))
    postgres.run(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def urls(postgres: Cluster, template: str) -> Iterator[Urls]:
    """A database of the test's own."""
    yield from cloned(postgres, template)


@pytest.fixture(scope="session")
def shared_urls(postgres: Cluster, template: str) -> Iterator[Urls]:
    """The database behind the shared server."""
    yield from cloned(postgres, template)


def settings(urls: Urls, **more: object) -> Settings:
    """Settings of a server on that database, on a port that the kernel chooses."""
    given = {
        "port": 0,
        "sweep_seconds": 0,
        "database_url": urls.service,
        "owner_database_url": urls.owner,
        "keys": KEYS,
        "drain_seconds": 1.0,
        "pool_max": 10,
        **more,
    }
    return Settings.model_validate(given)


@pytest.fixture(scope="session")
async def server(shared_urls: Urls) -> AsyncIterator[app.Server]:
    """One server in this process, for every test that does not harm it."""
    async with app.running(settings(shared_urls, watch_poll_seconds=0.05)) as running:
        yield running


@pytest.fixture(scope="session")
async def channel(server: app.Server) -> AsyncIterator[grpc.aio.Channel]:
    """A connection to the shared server."""
    async with grpc.aio.insecure_channel(server.address, options=[("grpc.max_receive_message_length", 32 * 1024 * 1024)]) as channel:
        yield channel


@pytest.fixture
def tenancy(channel: grpc.aio.Channel) -> Tenancy:
    """A fresh tenant's way to call the shared server."""
    return Tenancy.fresh(channel)
