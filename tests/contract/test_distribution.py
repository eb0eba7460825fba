"""`flowledger migrate --citus`: every table is told where to lie, and none is in the way of lying there.

Citus itself is not on these machines. What it documents of a table that it can distribute is looked up in the migrated schema; what it is
told is told to functions of its names and parameters, which note it and refuse what it refuses.
"""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from server import cli
from server.repository import distribution, schema
from server.repository.database import SchemaError
from server.repository.tables import TENANT_TABLES
from tests.cluster import Cluster
from tests.conftest import Urls
from tests.repository import rows
from tests.repository.store import opened, superuser

STAND_IN = """
CREATE TABLE pg_dist_partition (logicalrelid regclass PRIMARY KEY, kind text NOT NULL, beside text NOT NULL, place serial);

CREATE FUNCTION create_reference_table(table_name regclass) RETURNS void LANGUAGE sql AS $$
    INSERT INTO pg_dist_partition VALUES (table_name, 'n', '')
$$;

CREATE FUNCTION create_distributed_table(table_name regclass, distribution_column text, colocate_with text DEFAULT 'default')
RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (
        SELECT FROM pg_constraint WHERE conrelid = table_name AND contype = 'f'
        AND confrelid NOT IN (SELECT logicalrelid FROM pg_dist_partition UNION SELECT table_name)
    ) THEN
        RAISE EXCEPTION 'cannot create foreign key constraint';
    END IF;
    IF colocate_with <> 'none' AND NOT EXISTS (SELECT FROM pg_dist_partition WHERE logicalrelid = colocate_with::regclass) THEN
        RAISE EXCEPTION 'relation % is not distributed', colocate_with;
    END IF;
    INSERT INTO pg_dist_partition VALUES (table_name, distribution_column, colocate_with);
END
$$;

GRANT ALL ON ALL TABLES IN SCHEMA public TO flowledger_owner;
GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO flowledger_owner;
"""

# Unique indexes and foreign keys of tables that have the column, and whether they hold it, at the same place on both sides.
OUT_OF_PLACE = """
SELECT indexrelid::regclass::text FROM pg_index
JOIN pg_attribute ON attrelid = indrelid AND attname = $1
WHERE indisunique AND indrelid = ANY ($2::regclass[]) AND NOT attnum = indkey[0]
UNION ALL
SELECT conname::text FROM pg_constraint
JOIN pg_attribute one ON one.attrelid = conrelid AND one.attname = $1
JOIN pg_attribute other ON other.attrelid = confrelid AND other.attname = $1
WHERE contype = 'f' AND conrelid = ANY ($2::regclass[]) AND NOT (one.attnum = conkey[1] AND other.attnum = confkey[1])
"""


async def test_every_table_of_the_schema_is_distributed_or_on_every_node(urls: Urls) -> None:
    async with superuser(urls.service) as connection:
        found = await connection.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public' AND tablename <> 'alembic_version'")
    told = [*distribution.distributed(), *distribution.replicated()]
    assert sorted(table.name for table in told) == sorted(row["tablename"] for row in found)
    assert {table.name for table in TENANT_TABLES} <= {table.name for table in distribution.distributed()}


async def test_every_unique_index_and_foreign_key_begins_with_the_account(urls: Urls) -> None:
    names = [table.name for table in distribution.distributed()]
    async with superuser(urls.service) as connection:
        assert await connection.fetch(OUT_OF_PLACE, distribution.COLUMN, names) == []
        # What begins with something else would be found.
        await connection.execute("CREATE UNIQUE INDEX wrong ON flows (flow_id, client_account_id)")
        assert [row[0] for row in await connection.fetch(OUT_OF_PLACE, distribution.COLUMN, names)] == ["wrong"]
        # No number is drawn from a sequence, and no trigger writes elsewhere: this one notes for each tenant how far its own events went.
        assert await connection.fetchval("SELECT count(*) FROM pg_sequences WHERE schemaname = 'public'") == 0
        triggers = await connection.fetch("SELECT tgname, tgrelid::regclass::text FROM pg_trigger WHERE NOT tgisinternal")
        assert [tuple(row) for row in triggers] == [("events_removed", "events")]


async def test_the_tables_are_distributed_once_each_after_those_that_they_refer_to(postgres: Cluster, urls: Urls) -> None:
    postgres.run(STAND_IN, urls.name)
    assert await schema.distribute(urls.owner) == (schema.newest(), schema.newest())
    async with superuser(urls.service) as connection:
        found = await connection.fetch("SELECT logicalrelid::text AS name, kind, beside FROM pg_dist_partition ORDER BY place")
        assert [row["name"] for row in found if row["kind"] == "n"] == [table.name for table in distribution.replicated()]
        distributed = [(row["name"], row["beside"]) for row in found if row["kind"] == distribution.COLUMN]
        assert distributed[0] == ("flows", "none")
        assert {beside for _, beside in distributed[1:]} == {"flows"}
        assert {name for name, _ in distributed} == {table.name for table in distribution.distributed()}
        # A migration of tomorrow adds one: only that is told.
        await connection.execute("DELETE FROM pg_dist_partition WHERE logicalrelid = 'activity'::regclass")
        await schema.distribute(urls.owner)
        again = await connection.fetch("SELECT logicalrelid::text AS name FROM pg_dist_partition ORDER BY place")
    assert [row["name"] for row in again] == [*(row["name"] for row in found if row["name"] != "activity"), "activity"]


async def test_a_database_with_rows_is_left_as_it_is(postgres: Cluster, urls: Urls) -> None:
    async with opened(urls.service) as store:
        await store.create(rows.tenant())
    postgres.run(STAND_IN, urls.name)
    with pytest.raises(SchemaError, match=r"have, or had, rows and lie on one node: discovery_flows, .*flows.*pg_dump --data-only"):
        await schema.distribute(urls.owner)
    async with superuser(urls.service) as connection:
        assert await connection.fetchval("SELECT count(*) FROM pg_dist_partition") == 0


def test_without_citus_nothing_is_changed_and_the_error_says_what_to_do(postgres: Cluster, urls: Urls) -> None:
    postgres.run(f"CREATE DATABASE {urls.name}_empty OWNER flowledger_owner")
    try:
        owner = postgres.url(f"{urls.name}_empty", "flowledger_owner")
        ended = CliRunner().invoke(cli.app, ["migrate", "--citus"], env={"FLOWLEDGER_DATABASE_URL": owner})
        assert (ended.exit_code, ended.stdout) == (1, "")
        assert ended.stderr.startswith("flowledger: the database has no extension citus, nothing was changed: ")
        assert "CREATE TABLE" not in postgres.dump(f"{urls.name}_empty")
    finally:
        postgres.run(f"DROP DATABASE {urls.name}_empty WITH (FORCE)")


def test_what_citus_is_told_is_printed_without_any_database() -> None:
    ended = CliRunner().invoke(cli.app, ["migrate", "--citus", "--sql"])
    assert ended.exit_code == 0
    assert ended.stdout.splitlines() == [f"{statement};" for statement in distribution.statements()]
    refused = CliRunner().invoke(cli.app, ["migrate", "--sql"])
    assert refused.exit_code == 2
    assert "--citus" in refused.stderr
