"""Real PostgreSQL and real gRPC over a port for everybody; one server for most, a fresh tenant for each test."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp

import grpc
import pytest

from server import app
from server.repository import schema
from server.repository.session import Pooler
from server.settings import Settings
from server.vault import written
from tests import cluster as clusters
from tests import pgbouncer
from tests.cluster import Cluster
from tests.redis_server import RedisServer
from tests.tenancy import Tenancy

_numbers = count(1)

# The key-encryption key of every test's server that has none of its own.
KEYS = written("test", bytes(range(32)))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--postgres", choices=("18", "15"), default="18", help="which PostgreSQL the tests run on")
    parser.addoption(
        "--rounds", type=int, default=1, help="how often servers are killed, cut off or restarted under load; 20 for a long look"
    )
    parser.addoption("--corrupted", type=int, default=18, help="how many flows are corrupted in test_corruption.py")
    parser.addoption("--kills", type=int, default=2, help="how often each test kills that kills again and again")
    parser.addoption("--faults", type=int, default=1, help="how many faults each test of test_watch_guarantees.py has")
    parser.addoption("--hang", type=float, default=8.0, help="for how many seconds PostgreSQL stands still under load")
    parser.addoption("--pooler", action="store_true", help="servers and stores reach PostgreSQL through a PgBouncer in transaction mode")
    parser.addoption(
        "--redis", choices=("off", "on", "dying"), default="off", help="servers have a Redis; it is killed half-way and comes back"
    )


class DyingRedis:
    """Kills the tests' Redis when half of them are done, and starts it again when three quarters are."""

    def __init__(self, redis: RedisServer) -> None:
        self._redis, self._left, self._back = redis, 0, 0

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self._left, self._back = len(session.items) // 2, len(session.items) * 3 // 4

    def pytest_runtest_logfinish(self) -> None:
        self._left, self._back = self._left - 1, self._back - 1
        if self._left == 0:
            self._redis.kill()
        if self._back == 0:
            self._redis.start()


# What every server of the tests has at hand besides its database: `--redis`.
_redis: list[RedisServer] = []


def pytest_configure(config: pytest.Config) -> None:
    # 5:45 ahead of UTC: a naive time that slips in anywhere shows.
    os.environ["TZ"] = "Asia/Kathmandu"
    time.tzset()
    for name in [name for name in os.environ if name.startswith("FLOWLEDGER_")]:
        del os.environ[name]
    if config.getoption("--pooler"):
        if pgbouncer.EXECUTABLE is None:
            raise pytest.UsageError("--pooler needs PgBouncer: Debian's package pgbouncer")
        clusters.POOLER = Pooler.TRANSACTION
    if config.getoption("--redis") != "off":
        folder = Path(mkdtemp(prefix="flredis", dir="/tmp"))
        config.add_cleanup(partial(rmtree, folder, ignore_errors=True))
        _redis.append(RedisServer(folder))
        _redis[0].start()
        config.add_cleanup(_redis[0].kill)
        if config.getoption("--redis") == "dying":
            config.pluginmanager.register(DyingRedis(_redis[0]))


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

    @property
    def variables(self) -> dict[str, object]:
        """The settings, by field, of a server on this database: what the options `--pooler` and `--redis` say about it included."""
        found: dict[str, object] = {"database_url": clusters.entrance(self.service), "owner_database_url": self.owner, "keys": KEYS}
        if clusters.POOLER is Pooler.TRANSACTION:
            found |= {"pooler": clusters.POOLER.value, "listen_url": self.service}
        return found | ({"redis_url": _redis[0].url} if _redis else {})


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
    given = {"port": 0, **urls.variables, "sweep_seconds": 0, "drain_seconds": 1.0, "pool_max": 10, **more}
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
