"""Migrations: over data, back and forth, one at a time, all or nothing; and what may be served afterwards."""

from __future__ import annotations

import asyncio
import re
import shutil
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from types import MappingProxyType

import asyncpg
import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory

from server.repository import schema
from server.repository.database import PoolSettings, connected
from server.repository.schema import SchemaError
from server.repository.tables import SERVICE_ROLE, TENANT_TABLES
from server.statemachine.errors import StoreUnavailable
from tests.cluster import Cluster
from tests.conftest import Urls
from tests.contract.source_tree import ROOT
from tests.contract.test_schema import statements
from tests.repository import rows
from tests.repository.store import superuser

_numbers = count(1)

# What lies in the database before each migration, as its owner wrote it under the schema of that day. The first finds another
# application's table: the database need not be Flowledger's alone.
DATA_BEFORE: Mapping[str, str] = MappingProxyType(
    {
        "0001": "CREATE TABLE neighbour (id int PRIMARY KEY, name text); INSERT INTO neighbour VALUES (1, 'was here first')",
        "0002": """
            SELECT set_config('flowledger.tenants', '00000000-0000-0000-0000-00000000000a/00000000-0000-0000-0000-00000000000b', false);
            INSERT INTO flows VALUES ('00000000-0000-0000-0000-00000000000a', '00000000-0000-0000-0000-00000000000b',
                '00000000-0000-0000-0000-00000000000c', 1, 0, '2026-11-01Z', '2026-11-01Z', NULL, NULL, 'discovery', 'INITIALIZED',
                'NONE', '', 'Old flow', 'ann', 'ann', 'discovery', '{}', '{}', '{0,0,0,0,0,0,0}', decode(repeat('00', 32), 'hex'));
            INSERT INTO discovery_flows VALUES ('00000000-0000-0000-0000-00000000000a', '00000000-0000-0000-0000-00000000000b',
                '00000000-0000-0000-0000-00000000000c', '00000000-0000-0000-0000-00000000000d', 0, '2026-11-01Z', '2026-11-01Z', 1,
                'discovery', 'INITIALIZED', '[{"name": "data_import", "state": "NOT_STARTED"}]');
            INSERT INTO documents VALUES ('00000000-0000-0000-0000-00000000000a', '00000000-0000-0000-0000-00000000000b',
                '00000000-0000-0000-0000-00000000000c', 1, 2, 'state', '', decode(repeat('00', 32), 'hex'), '{}');
            INSERT INTO events VALUES ('00000000-0000-0000-0000-00000000000a', '00000000-0000-0000-0000-00000000000b',
                '00000000-0000-0000-0000-00000000000c', 1, '2026-11-01Z', 'ann', '{}', decode(repeat('00', 32), 'hex'));
        """,
        "0003": """
            SELECT set_config('flowledger.tenants', '00000000-0000-0000-0000-00000000000a/00000000-0000-0000-0000-00000000000b', false);
            INSERT INTO events VALUES ('00000000-0000-0000-0000-00000000000a', '00000000-0000-0000-0000-00000000000b',
                '00000000-0000-0000-0000-00000000000c', 2, '2026-11-02Z', 'ann', '{}', decode(repeat('00', 32), 'hex'), 2, NULL);
        """,
    }
)

NEXT = '''
"""A migration of tomorrow."""

from alembic import op

revision = "9001"
down_revision = "{before}"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("ALTER TABLE events ADD COLUMN tomorrow text NOT NULL DEFAULT 'x'")
    {more}


def downgrade() -> None:
    op.execute("ALTER TABLE events DROP COLUMN tomorrow")
'''


def revisions() -> list[str]:
    """Every migration, the oldest first."""
    config = Config()
    config.set_main_option("script_location", str(ROOT / "migrations"))
    return [script.revision for script in ScriptDirectory.from_config(config).walk_revisions()][::-1]


@pytest.fixture
def empty(postgres: Cluster) -> Iterator[Urls]:
    """A database with nothing in it."""
    name = f"migration_{next(_numbers)}"
    postgres.run(f"CREATE DATABASE {name} OWNER flowledger_owner")
    yield Urls(name, postgres.url(name, "flowledger_owner"), postgres.url(name, "flowledger"))
    postgres.run(f"DROP DATABASE {name} WITH (FORCE)")


def tomorrow(monkeypatch: pytest.MonkeyPatch, folder: Path, more: str = "pass") -> None:
    """The code of tomorrow: one migration more."""
    shutil.copytree(ROOT / "migrations", folder / "migrations", ignore=shutil.ignore_patterns("__pycache__"))
    text = NEXT.format(before=schema.newest(), more=more)
    (folder / "migrations" / "versions" / "9001_tomorrow.py").write_text(text, "utf-8")
    monkeypatch.setattr(schema, "MIGRATIONS", folder / "migrations")


async def check(url: str, role: str | None = None) -> None:
    async with connected(url, PoolSettings(1, 2, role=role)) as database:
        await schema.check(database)


async def everything(urls: Urls) -> dict[str, list[str]]:
    """Every row of every tenant table."""
    async with superuser(urls.service) as connection:
        return {
            table.name: [row[0] for row in await connection.fetch(f"SELECT t::text FROM {table.name} t ORDER BY 1")]
            for table in TENANT_TABLES
        }


def test_every_migration_has_data_to_go_up_over() -> None:
    assert set(DATA_BEFORE) == set(revisions())


async def test_each_migration_goes_up_over_data(postgres: Cluster, template: str, empty: Urls) -> None:
    before: str | None = None
    for revision in revisions():
        postgres.run(f"SET ROLE flowledger_owner; {DATA_BEFORE[revision]}", empty.name)
        assert await schema.migrate(empty.owner, revision) == (before, revision)
        before = revision
    async with superuser(empty.service) as connection:
        assert await connection.fetchval("SELECT name FROM neighbour") == "was here first"
        assert await connection.fetchval("SELECT (client_account_id, create_time = '2026-11-01Z')::text FROM tenants") == (
            "(00000000-0000-0000-0000-00000000000a,t)"
        )
        found = await connection.fetch("SELECT (format, content_sha256, body, position)::text FROM events ORDER BY revision")
        assert [row[0] for row in found] == ["(1,,{},0)", "(2,,{},0)"]
        assert await connection.fetchval("SELECT number FROM documents") == 1
    postgres.run("DROP TABLE neighbour", empty.name)
    assert statements(postgres.dump(empty.name)) == statements(postgres.dump(template))


async def test_the_last_migration_goes_down_and_up(postgres: Cluster, template: str, urls: Urls) -> None:
    async with superuser(urls.service) as connection:
        await rows.put_everywhere(connection, rows.tenant())
    found = revisions()
    below = found[-2] if len(found) > 1 else None
    assert await schema.downgrade(urls.owner, "-1") == (found[-1], below)
    if below is None:
        left = set(re.findall(r"CREATE TABLE public\.(\w+)", postgres.dump(urls.name)))
        assert left == {"alembic_version"}
    assert await schema.migrate(urls.owner) == (below, found[-1])
    assert statements(postgres.dump(urls.name)) == statements(postgres.dump(template))
    await check(urls.service)


async def test_a_migration_keeps_the_rows_that_are_there(urls: Urls, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    async with superuser(urls.service) as connection:
        await rows.put_everywhere(connection, rows.tenant())
    before = await everything(urls)
    tomorrow(monkeypatch, tmp_path)
    assert await schema.migrate(urls.owner) == (revisions()[-1], "9001")
    after = await everything(urls)
    assert [row.removesuffix(",x)") + ")" for row in after.pop("events")] == before.pop("events")
    assert after == before
    await schema.downgrade(urls.owner, "-1")
    assert {**await everything(urls), "events": []} == {**before, "events": []}


async def test_a_migration_that_fails_leaves_the_schema_as_it_was(
    postgres: Cluster, urls: Urls, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    before = postgres.dump(urls.name)
    tomorrow(monkeypatch, tmp_path, more='op.execute("SELECT 1 / 0")')
    with pytest.raises(Exception, match="division by zero"):
        await schema.migrate(urls.owner)
    assert statements(postgres.dump(urls.name)) == statements(before)
    with pytest.raises(SchemaError, match=r"flowledger migrate"):
        await check(urls.service)


async def test_migrating_what_is_migrated_changes_nothing(postgres: Cluster, urls: Urls) -> None:
    before = postgres.dump(urls.name)
    assert await schema.migrate(urls.owner) == (schema.newest(), schema.newest())
    assert statements(postgres.dump(urls.name)) == statements(before)


async def test_of_those_who_migrate_at_once_one_does_it(postgres: Cluster, template: str, empty: Urls) -> None:
    results = await asyncio.gather(*(schema.migrate(empty.owner) for _ in range(5)))
    done, found = (None, schema.newest()), (schema.newest(), schema.newest())
    assert sorted(results, key=str) == sorted([done, *[found] * 4], key=str)
    assert statements(postgres.dump(empty.name)) == statements(postgres.dump(template))


@asynccontextmanager
async def reading(urls: Urls) -> AsyncIterator[None]:
    """A transaction that has read flows and events, and is not over."""
    async with superuser(urls.service) as connection:
        transaction = connection.transaction()
        await transaction.start()
        await connection.fetch("SELECT FROM flows, events")
        yield
        await transaction.rollback()


async def test_a_migration_gives_up_rather_than_wait_for_a_lock(postgres: Cluster, urls: Urls, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everybody who wants the table would stand in line behind it."""
    before = postgres.dump(urls.name)
    monkeypatch.setattr(schema, "_LOCK_TIMEOUT", "50ms")
    async with reading(urls):
        with pytest.raises(StoreUnavailable):
            await schema.downgrade(urls.owner, "base")
    assert statements(postgres.dump(urls.name)) == statements(before)
    await schema.downgrade(urls.owner, "base")


async def test_a_database_that_is_away_is_said_to_be_away(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable):
        await schema.migrate(f"postgresql://flowledger_owner@/nowhere?host={tmp_path}&port=5432")


async def test_a_role_that_may_not_change_the_schema_is_told_what_it_needs(empty: Urls) -> None:
    with pytest.raises(SchemaError, match="FLOWLEDGER_OWNER_DATABASE_URL"):
        await schema.migrate(empty.service)


async def test_what_is_migrated_is_served(urls: Urls) -> None:
    await check(urls.service)


async def test_what_was_never_migrated_is_refused_with_the_command(empty: Urls) -> None:
    with pytest.raises(SchemaError, match=r"no Flowledger schema: run `flowledger migrate`"):
        await check(empty.service)


async def test_an_old_schema_is_refused_with_the_command(urls: Urls, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tomorrow(monkeypatch, tmp_path)
    with pytest.raises(SchemaError, match=rf"has schema {revisions()[-1]}, this server needs 9001: run `flowledger migrate`"):
        await check(urls.service)
    await schema.migrate(urls.owner)
    await check(urls.service)


async def test_a_newer_schema_is_refused_with_what_to_do(urls: Urls, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with monkeypatch.context() as patch:
        tomorrow(patch, tmp_path)
        await schema.migrate(urls.owner)
    with pytest.raises(SchemaError, match=r"has schema 9001, .* made by a newer Flowledger: serve with that one"):
        await check(urls.service)


async def test_whoever_is_beyond_row_level_security_is_refused_with_what_to_set(postgres: Cluster, urls: Urls) -> None:
    with pytest.raises(SchemaError, match=r"FLOWLEDGER_DATABASE_ROLE=flowledger_service"):
        await check(postgres.url(urls.name, "postgres"))
    await check(postgres.url(urls.name, "postgres"), role=SERVICE_ROLE)


async def test_a_role_with_bypassrls_is_refused_too(postgres: Cluster, urls: Urls) -> None:
    postgres.run("CREATE ROLE beyond LOGIN BYPASSRLS IN ROLE flowledger_service")
    try:
        with pytest.raises(SchemaError, match=r"row level security does not bind"):
            await check(postgres.url(urls.name, "beyond"))
    finally:
        postgres.run("DROP ROLE beyond")


async def test_the_owner_is_bound_by_row_level_security_as_well(urls: Urls) -> None:
    await check(urls.owner)
    async with superuser(urls.service) as connection:
        await rows.put_everywhere(connection, rows.tenant())
    connection = await asyncpg.connect(urls.owner)
    assert await connection.fetchval("SELECT count(*) FROM flows") == 0
    await connection.close()


async def test_a_stranger_to_the_database_is_told_what_it_lacks(postgres: Cluster, urls: Urls) -> None:
    postgres.run("CREATE ROLE stranger LOGIN")
    try:
        with pytest.raises(SchemaError, match=r"member of flowledger_service"):
            await check(postgres.url(urls.name, "stranger"))
    finally:
        postgres.run("DROP ROLE stranger")
