"""The schema that migrations make is the schema that the code is written for, and every tenant table is locked to its tenant."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator
from itertools import count

import asyncpg
import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from server.repository import schema
from server.repository.table_parts import TENANT_KEY, metadata
from server.repository.tables import SERVICE_ROLE, TENANT_TABLES, TENANTS_SETTING
from tests.cluster import Cluster
from tests.conftest import Urls
from tests.contract.source_tree import ROOT
from tests.repository import rows
from tests.repository.store import superuser

TABLES = {table.name for table in TENANT_TABLES}
OTHERS = {"installation", "tenants", "alembic_version"}
_numbers = count(1)

# What only the migration says: who may, what binds them, and how a column is kept. The tests below look at each by itself.
_ELSEWHERE = re.compile(
    r"ROW LEVEL SECURITY|CREATE POLICY|^GRANT|^REVOKE|OWNER TO|SET STORAGE|^SET |^SELECT pg_catalog|^\\|alembic_version"
    r"|^CREATE FUNCTION|^CREATE TRIGGER"
)


def statements(dump: str) -> list[str]:
    """The statements of `pg_dump -s` that make tables, constraints and indexes, in one order."""
    text = "\n".join(line for line in dump.splitlines() if not line.startswith(("--", "\\")))
    found = (" ".join(statement.split()) for statement in text.split(";\n"))
    return sorted(statement for statement in found if statement and not _ELSEWHERE.search(statement))


@pytest.fixture
def empty(postgres: Cluster) -> Iterator[Urls]:
    """A database with nothing in it."""
    name = f"schema_{next(_numbers)}"
    postgres.run(f"CREATE DATABASE {name} OWNER flowledger_owner")
    yield Urls(name, postgres.url(name, "flowledger_owner"), postgres.url(name, "flowledger"))
    postgres.run(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
async def truth(shared_urls: Urls) -> AsyncIterator[asyncpg.Connection]:
    """A superuser's connection to a migrated database."""
    async with superuser(shared_urls.service) as connection:
        yield connection


async def make_from_metadata(urls: Urls) -> None:
    engine = create_async_engine(urls.owner.replace("postgresql", "postgresql+asyncpg", 1), poolclass=NullPool)
    async with engine.begin() as connection:
        await connection.run_sync(metadata.create_all)
    await engine.dispose()


async def test_the_migrated_schema_is_the_tables_metadata(postgres: Cluster, template: str, empty: Urls) -> None:
    await make_from_metadata(empty)
    assert statements(postgres.dump(template)) == statements(postgres.dump(empty.name))


@pytest.mark.parametrize(
    "drift",
    [
        "ALTER TABLE flows ADD COLUMN seeded text",
        "ALTER TABLE flows ALTER COLUMN display_name DROP NOT NULL",
        "ALTER TABLE flows DROP CONSTRAINT flows_end_check",
        "ALTER TABLE flows RESET (fillfactor)",
        "DROP INDEX flows_create_time_idx",
        "ALTER TABLE documents DROP CONSTRAINT documents_flow_fkey",
        "CREATE INDEX seeded ON events (time)",
    ],
)
async def test_a_seeded_drift_shows(postgres: Cluster, template: str, urls: Urls, drift: str) -> None:
    postgres.run(drift, urls.name)
    assert statements(postgres.dump(template)) != statements(postgres.dump(urls.name))


def test_there_is_one_migration_head() -> None:
    config = Config()
    config.set_main_option("script_location", str(ROOT / "migrations"))
    scripts = ScriptDirectory.from_config(config)
    assert len(scripts.get_heads()) == 1
    assert scripts.get_heads()[0] == schema.newest()
    assert len(scripts.get_bases()) == 1


async def test_every_table_is_known(truth: asyncpg.Connection) -> None:
    """So that the tests below cannot overlook one."""
    found = await truth.fetch("SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p')")
    assert {row[0] for row in found} == TABLES | OTHERS
    with_tenant = await truth.fetch(
        "SELECT attrelid::regclass::text FROM pg_attribute WHERE attname = 'client_account_id' AND attrelid > 16384"
    )
    assert {row[0] for row in with_tenant} >= TABLES


async def test_every_tenant_table_has_its_security_forced_by_one_policy(truth: asyncpg.Connection) -> None:
    found = await truth.fetch("SELECT relname, relrowsecurity, relforcerowsecurity FROM pg_class WHERE relname = ANY($1)", sorted(TABLES))
    assert {tuple(row) for row in found} == {(table, True, True) for table in TABLES}
    policies = await truth.fetch("SELECT tablename, permissive, roles, cmd, qual, with_check FROM pg_policies")
    # Without a check of its own a policy checks new rows by the same condition.
    assert {(row["tablename"], row["permissive"], tuple(row["roles"]), row["cmd"], row["with_check"]) for row in policies} == {
        (table, "PERMISSIVE", ("public",), "ALL", None) for table in TABLES
    }
    assert len(policies) == len(TABLES)
    conditions = {row["qual"] for row in policies}
    assert len(conditions) == 1
    condition = conditions.pop()
    assert all(name in condition for name in (*TENANT_KEY, TENANTS_SETTING))


async def test_the_service_may_do_exactly_what_it_needs(truth: asyncpg.Connection) -> None:
    found = await truth.fetch(
        "SELECT relname, coalesce(grantee::regrole::text, ''), privilege_type FROM pg_class, aclexplode(relacl) "
        "WHERE relnamespace = 'public'::regnamespace AND grantee <> relowner"
    )
    granted: dict[str, set[tuple[str, str]]] = {}
    for table, grantee, privilege in found:
        granted.setdefault(table, set()).add((grantee, privilege))
    changing = {(SERVICE_ROLE, privilege) for privilege in ("SELECT", "INSERT", "UPDATE", "DELETE")}
    tenants = {(SERVICE_ROLE, privilege) for privilege in ("SELECT", "INSERT", "DELETE")}
    others = {table: {(SERVICE_ROLE, "SELECT")} for table in OTHERS}
    assert granted == {**dict.fromkeys(TABLES, changing), **others, "tenants": tenants}
    by_column = "SELECT attrelid::regclass || '.' || attname, attacl::text FROM pg_attribute WHERE attacl IS NOT NULL AND attrelid > 16384"
    assert [tuple(row) for row in await truth.fetch(by_column)] == [("installation.kek_id", "{flowledger_service=w/flowledger_owner}")]


async def test_the_services_role_owns_nothing_and_is_bound(truth: asyncpg.Connection) -> None:
    flags = "SELECT rolsuper, rolbypassrls, rolcreaterole, rolcreatedb, rolcanlogin FROM pg_roles WHERE rolname = $1"
    row = await truth.fetchrow(flags, SERVICE_ROLE)
    assert row is not None
    assert tuple(row) == (False, False, False, False, False)
    owned = "SELECT count(*) FROM pg_class WHERE relowner IN ($1::regrole, 'flowledger'::regrole)"
    assert await truth.fetchval(owned, SERVICE_ROLE) == 0


async def test_keys_and_references_begin_with_the_tenant(truth: asyncpg.Connection) -> None:
    """DESIGN section 5: no unique index and no foreign key crosses tenants, so that tables can be distributed."""
    unique = await truth.fetch(
        "SELECT c.relname, ARRAY(SELECT a.attname::text FROM unnest(i.indkey::int2[]) WITH ORDINALITY AS k(n, at) "
        "JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = k.n ORDER BY k.at) AS columns "
        "FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid WHERE c.relname = ANY($1)",
        sorted(TABLES),
    )
    assert {row["relname"] for row in unique} == TABLES
    assert [row for row in unique if tuple(row["columns"][:2]) != TENANT_KEY] == []
    references = await truth.fetch(
        "SELECT conname, pg_get_constraintdef(oid) AS definition FROM pg_constraint "
        "WHERE contype = 'f' AND connamespace = 'public'::regnamespace"
    )
    assert len(references) == sum(len(table.foreign_key_constraints) for table in TENANT_TABLES)
    start = f"FOREIGN KEY ({', '.join(TENANT_KEY)}, "
    assert [row["conname"] for row in references if not row["definition"].startswith(start)] == []


async def test_no_sequence_is_on_the_write_path(truth: asyncpg.Connection) -> None:
    assert await truth.fetchval("SELECT count(*) FROM pg_class WHERE relkind = 'S' AND relnamespace = 'public'::regnamespace") == 0


async def test_columns_that_every_change_touches_have_no_index(truth: asyncpg.Connection) -> None:
    """What keeps updates HOT: nothing that moves is indexed."""
    indexed = await truth.fetch(
        "SELECT DISTINCT a.attname FROM pg_index i JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = ANY(i.indkey::int2[]) "
        "WHERE i.indrelid = 'flows'::regclass"
    )
    assert {row[0] for row in indexed} == {*TENANT_KEY, "flow_id", "create_time"}


async def test_documents_are_kept_as_they_come(truth: asyncpg.Connection) -> None:
    storage = "SELECT attstorage FROM pg_attribute WHERE attrelid = 'documents'::regclass AND attname = 'body'"
    assert await truth.fetchval(storage) == b"e"


async def test_every_database_has_a_key_of_its_own(postgres: Cluster, empty: Urls, shared_urls: Urls) -> None:
    await schema.migrate(empty.owner)
    keys = []
    for urls in (empty, shared_urls):
        async with superuser(urls.service) as connection:
            keys.append(await connection.fetchval("SELECT token_key FROM installation"))
    assert [len(key) for key in keys] == [32, 32]
    assert keys[0] != keys[1]


async def test_a_row_in_every_table_is_accepted(urls: Urls) -> None:
    async with superuser(urls.service) as connection:
        owner = rows.tenant()
        await rows.put_everywhere(connection, owner)
        for table in TABLES:
            assert await connection.fetchval(f"SELECT count(*) FROM {table}") == 1
