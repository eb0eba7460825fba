"""A database that was dumped and restored into another cluster, whose transactions are numbered from the beginning."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import asyncpg
import pytest

from server.repository import schema
from server.repository.database import PoolSettings, connected
from server.repository.feed import Cursor, Feed
from server.repository.schema import SchemaError
from server.statemachine.change import UpdateFlow
from tests import cluster as clusters
from tests.cluster import Cluster
from tests.conftest import Urls
from tests.repository import rows
from tests.repository.store import opened

NUMBERS = 3000  # so many transactions has the old cluster seen that a new one has not


@pytest.fixture
def new(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """A cluster that was just made."""
    with clusters.running(request.config.getoption("--postgres")) as cluster:
        yield cluster


def _restored(postgres: Cluster, new: Cluster, name: str) -> Urls:
    """A copy of the database in the new cluster, by `pg_dump` and `psql`."""
    dump = [str(postgres.bin / "pg_dump"), "-h", str(postgres.directory), "-U", "postgres", name]
    new.run(f"CREATE DATABASE {name} OWNER flowledger_owner")
    new.run(subprocess.run(dump, text=True, check=True, capture_output=True).stdout, name)
    return Urls(name, new.url(name, "flowledger_owner"), new.url(name, "flowledger"))


async def _check(url: str) -> None:
    async with connected(url, PoolSettings(1, 2)) as database:
        await schema.check(database)


async def test_who_follows_a_restored_database_misses_nothing(postgres: Cluster, urls: Urls, new: Cluster) -> None:
    tenant = rows.tenant()
    connection = await asyncpg.connect(urls.service)
    for _ in range(NUMBERS):
        await connection.fetchval("SELECT pg_current_xact_id()")
    await connection.close()
    async with opened(urls.service) as store:
        flow_id = await store.create(tenant)
        await store.commit(store.asked(tenant, flow_id, UpdateFlow(display_name="two")))
        before = await Feed(store.database).page(tenant, Cursor(0), 100)
        assert [entry.stored.event.revision for entry in before.entries] == [1, 2]
    there = _restored(postgres, new, urls.name)

    with pytest.raises(SchemaError, match=r"restored from another PostgreSQL.*run `flowledger migrate`"):
        await _check(there.service)
    assert await schema.migrate(there.owner) == (schema.newest(), schema.newest())
    await _check(there.service)

    async with opened(there.service) as store:
        feed = Feed(store.database)
        after = await feed.page(tenant, Cursor(0), 100)
        assert after.entries == before.entries
        assert after.after == Cursor(after.horizon)
        await store.commit(store.asked(tenant, flow_id, UpdateFlow(display_name="three")))
        for cursor in (before.entries[-1].cursor, before.after, after.after):
            found = (await feed.page(tenant, cursor, 100)).entries
            assert [entry.stored.event.revision for entry in found] == [3]
    await schema.migrate(there.owner)  # a second time changes nothing
    async with opened(there.service) as store:
        again = (await Feed(store.database).page(tenant, Cursor(0), 100)).entries
        assert [entry.cursor for entry in again] == [*(entry.cursor for entry in before.entries), found[-1].cursor]
        await store.commit(store.asked(tenant, flow_id, UpdateFlow(display_name="four")))
        found = (await Feed(store.database).page(tenant, found[-1].cursor, 100)).entries
        assert [(entry.stored.event.revision, entry.cursor.position >> 48) for entry in found] == [(4, 1)]


async def test_a_copy_within_the_cluster_goes_on_as_it_is(postgres: Cluster, urls: Urls) -> None:
    name = f"{urls.name}_copy"
    postgres.run(f"CREATE DATABASE {name} TEMPLATE {urls.name} OWNER flowledger_owner")
    try:
        await _check(postgres.url(name, "flowledger"))
    finally:
        postgres.run(f"DROP DATABASE {name} WITH (FORCE)")
