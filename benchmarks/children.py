"""Child flows as separate tables or as LIST partitions of one: the same guarded statement on both.

DESIGN section 5 leaves the choice to a measure; this is it. Each mutation is a guarded UPDATE of the flow's row, an UPDATE of the child's
row and an INSERT of one event, one statement, durable.
"""

from __future__ import annotations

import itertools
import random
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg

from benchmarks.closed_loop import closed_loop
from benchmarks.pgbench import Load, pgbench
from benchmarks.postgres import Postgres
from benchmarks.sample import Measure, Sample

DOMAINS = ("discovery", "assessment", "planning", "execution")
STORED = 20_480  # flows in the tables
TOUCHED = 1_024  # flows that are changed, 256 of each domain
ACCOUNT, ENGAGEMENT = uuid.UUID(int=1), uuid.UUID(int=2)
BATCH = 16
_TENANT = {"account": str(ACCOUNT), "engagement": str(ENGAGEMENT)}

_KEY = "account uuid NOT NULL, engagement uuid NOT NULL, flow_id uuid NOT NULL"
_CHILD = (
    f"{_KEY}, type text NOT NULL, status smallint NOT NULL, progress real NOT NULL, phases jsonb NOT NULL, update_time timestamptz NOT NULL"
)

SCHEMA = (
    f"""
CREATE SCHEMA children;
SET search_path = children;
CREATE TABLE flows ({_KEY}, revision bigint NOT NULL, status smallint NOT NULL, progress real NOT NULL, update_time timestamptz NOT NULL,
    PRIMARY KEY (account, engagement, flow_id)) WITH (fillfactor = 70);
CREATE TABLE events ({_KEY}, revision bigint NOT NULL, change jsonb NOT NULL, PRIMARY KEY (account, engagement, flow_id, revision));
CREATE TABLE child_flows ({_CHILD}, PRIMARY KEY (account, engagement, flow_id, type)) PARTITION BY LIST (type);
"""
    + "".join(
        f"""
CREATE TABLE {domain}_flows ({_CHILD}, PRIMARY KEY (account, engagement, flow_id)) WITH (fillfactor = 70);
CREATE TABLE child_flows_{domain} PARTITION OF child_flows FOR VALUES IN ('{domain}') WITH (fillfactor = 70);
"""
        for domain in DOMAINS
    )
    + """
CREATE TABLE own_flows (LIKE discovery_flows INCLUDING ALL);
CREATE TABLE child_flows_own PARTITION OF child_flows DEFAULT WITH (fillfactor = 70);
"""
)

_FLOW_ID = "('00000000-0000-7000-8000-' || lpad(to_hex({number}), 12, '0'))::uuid"
_PHASE = '{{"name":"phase_{0}","state":2,"fraction":0.25,"retries":0,"begun":"2026-01-01T00:00:00Z","message":"{0:040d}"}}'
PHASES = f"[{','.join(_PHASE.format(number) for number in range(7))}]"
CHANGE = '{"phase":"phase_3","before":{"fraction":0.2},"after":{"fraction":0.25},"actor":"bench","progress":[31.0,33.5]}'

# One mutation. {child} is the table's name, {type} an extra condition on it.
ONE = """
WITH changed AS (
    UPDATE flows SET revision = revision + 1, status = 3, progress = 33.5, update_time = now()
    WHERE account = {account} AND engagement = {engagement} AND flow_id = {flow_id} AND revision > 0
    RETURNING account, engagement, flow_id, revision
), child AS (
    UPDATE {child} c SET status = 3, progress = 33.5, phases = {phases}::jsonb, update_time = now() FROM changed
    WHERE c.account = {account} AND c.engagement = {engagement} AND c.flow_id = {flow_id} {type}
)
INSERT INTO events SELECT account, engagement, flow_id, revision, {change}::jsonb FROM changed
"""

_WANTED = """
WITH wanted AS (
    SELECT * FROM unnest($1::uuid[], $2::uuid[], $3::uuid[], $4::text[], $5::bigint[], $6::text[], $7::text[])
        AS w (account, engagement, flow_id, type, revision, phases, change)
), changed AS (
    UPDATE flows f SET revision = f.revision + 1, status = 3, progress = 33.5, update_time = now() FROM wanted w
    WHERE f.account = w.account AND f.engagement = w.engagement AND f.flow_id = w.flow_id AND f.revision = w.revision
    RETURNING f.account, f.engagement, f.flow_id, f.revision, w.type, w.phases, w.change
)"""
_CHILD_BRANCH = """, child_{name} AS (
    UPDATE {child} c SET status = 3, progress = 33.5, phases = w.phases::jsonb, update_time = now() FROM changed w
    WHERE c.account = w.account AND c.engagement = w.engagement AND c.flow_id = w.flow_id {type}
)"""
_LOGGED = """
INSERT INTO events SELECT account, engagement, flow_id, revision, change::jsonb FROM changed RETURNING flow_id, revision
"""


def combined_over_tables(domains: tuple[str, ...]) -> str:
    """Many mutations as one statement, with one branch for each domain's table."""
    branches = [_CHILD_BRANCH.format(name=domain, child=f"{domain}_flows", type=f"AND w.type = '{domain}'") for domain in domains]
    return _WANTED + "".join(branches) + _LOGGED


COMBINED_OVER_PARTITIONS = _WANTED + _CHILD_BRANCH.format(name="any", child="child_flows", type="AND c.type = w.type") + _LOGGED
COMBINED_OVER_ONE_PARTITION = _WANTED + _CHILD_BRANCH.format(name="any", child="child_flows", type="AND c.type = $8") + _LOGGED

# One flow's children, of whatever domains: what a read in the BASIC view needs.
_COLUMNS = "type, status, progress, phases, update_time"
_OF_FLOW = "account = :account AND engagement = :engagement AND flow_id = {flow_id}"
READ = {
    "tables": " UNION ALL ".join(f"SELECT {_COLUMNS} FROM {domain}_flows WHERE {_OF_FLOW}" for domain in (*DOMAINS, "own")),
    "partitions": f"SELECT {_COLUMNS} FROM child_flows WHERE {_OF_FLOW}",
}


@asynccontextmanager
async def children(postgres: Postgres) -> AsyncIterator[list[Measure]]:
    """The measures ``children/...``: one statement per mutation at 1 and 8 clients, and 16 mutations in one statement."""
    await _fill(postgres)
    measures = [
        _single(f"children/{layout} {mode}", postgres, layout, clients, mode)
        for clients in (1, 8)
        for layout in ("tables", "partitions")
        for mode in ("auto", "force_generic_plan")
    ]
    measures += [
        _read(f"children/{layout}, read {mode}", postgres, layout, mode)
        for layout in ("tables", "partitions")
        for mode in ("auto", "force_generic_plan")
    ]
    for mode in ("auto", "force_generic_plan"):
        measures += [
            _combined(f"children/tables, 16 of all domains in one {mode}", postgres, mode, combined_over_tables(DOMAINS), DOMAINS),
            _combined(f"children/tables, 16 of one domain in one {mode}", postgres, mode, combined_over_tables(DOMAINS[:1]), DOMAINS[:1]),
            _combined(f"children/partitions, 16 of all domains in one {mode}", postgres, mode, COMBINED_OVER_PARTITIONS, DOMAINS),
            _combined(f"children/partitions, 16 of one domain in one {mode}", postgres, mode, COMBINED_OVER_ONE_PARTITION, DOMAINS[:1]),
        ]
    yield measures


async def _fill(postgres: Postgres) -> None:
    connection = await postgres.connect()
    try:
        await connection.execute(SCHEMA)
        key = f"'{ACCOUNT}'::uuid, '{ENGAGEMENT}'::uuid, {_FLOW_ID.format(number='n')}"
        await connection.execute(f"INSERT INTO flows SELECT {key}, 1, 1, 0, now() FROM generate_series(0, {STORED - 1}) n")
        for position, domain in enumerate(DOMAINS):
            rows = f"SELECT {key}, '{domain}', 1, 0, $1::text::jsonb, now() FROM generate_series(0, {STORED - 1}) n"
            rows += f" WHERE n / 8 % 4 = {position}"
            await connection.execute(f"INSERT INTO {domain}_flows {rows}", PHASES)
            await connection.execute(f"INSERT INTO child_flows {rows}", PHASES)
        tables = await connection.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'children'")
        await connection.execute("VACUUM ANALYZE " + ", ".join(row["tablename"] for row in tables))
    finally:
        await connection.close()


def _single(name: str, postgres: Postgres, layout: str, clients: int, mode: str) -> Measure:
    scripts = []
    for position, domain in enumerate(DOMAINS):
        partitioned = layout == "partitions"
        statement = ONE.format(
            child="child_flows" if partitioned else f"{domain}_flows",
            type=f"AND c.type = :{domain}" if partitioned else "",
            account=":account",
            engagement=":engagement",
            flow_id=_FLOW_ID.format(number=":number::bigint"),
            phases=":phases",
            change=":change",
        )
        scripts.append(f"\\set number :client_id + 8 * (4 * random(0, {TOUCHED // 32 - 1}) + {position})\n{' '.join(statement.split())};\n")
    load = Load(
        scripts,
        clients,
        {**_TENANT, "phases": PHASES, "change": CHANGE, **{domain: domain for domain in DOMAINS}},
        {"plan_cache_mode": mode, "search_path": "children"},
    )

    async def run(seconds: float) -> Sample:
        return await pgbench(postgres, load, seconds)

    return Measure(name, clients, run)


def _read(name: str, postgres: Postgres, layout: str, mode: str) -> Measure:
    statement = READ[layout].format(flow_id=_FLOW_ID.format(number=":number::bigint"))
    load = Load(
        [f"\\set number random(0, {TOUCHED - 1})\n{statement};\n"],
        8,
        _TENANT,
        {"plan_cache_mode": mode, "search_path": "children"},
    )

    async def run(seconds: float) -> Sample:
        return await pgbench(postgres, load, seconds)

    return Measure(name, 8, run)


def _combined(name: str, postgres: Postgres, mode: str, statement: str, domains: tuple[str, ...]) -> Measure:
    """One caller that sends ``BATCH`` mutations at a time; a sample's call is one mutation of them."""

    async def run(seconds: float) -> Sample:
        connection = await postgres.connect({"plan_cache_mode": mode, "search_path": "children"})
        try:
            revisions = {row["flow_id"]: row["revision"] for row in await connection.fetch("SELECT flow_id, revision FROM flows")}
            prepared = await connection.prepare(statement)
            return await _send(prepared, revisions, domains, seconds, postgres, "$8" in statement)
        finally:
            await connection.close()

    return Measure(name, BATCH, run)


async def _send(
    prepared: asyncpg.prepared_stmt.PreparedStatement[asyncpg.Record],
    revisions: dict[uuid.UUID, int],
    domains: tuple[str, ...],
    seconds: float,
    postgres: Postgres,
    with_type: bool,
) -> Sample:
    numbers = [number for number in range(TOUCHED) if DOMAINS[number // 8 % 4] in domains]
    order = itertools.cycle(random.Random(7).sample(numbers, len(numbers)))
    accounts, engagements, phases, changes = [ACCOUNT] * BATCH, [ENGAGEMENT] * BATCH, [PHASES] * BATCH, [CHANGE] * BATCH

    async def call(_: int) -> None:
        batch = [next(order) for _ in range(BATCH)]
        ids = [uuid.UUID(f"00000000-0000-7000-8000-{number:012x}") for number in batch]
        types = [DOMAINS[number // 8 % 4] for number in batch]
        extra = domains[:1] if with_type else ()
        rows = await prepared.fetch(accounts, engagements, ids, types, [revisions[flow] for flow in ids], phases, changes, *extra)
        if len(rows) != BATCH:
            raise RuntimeError(f"{BATCH - len(rows)} of {BATCH} mutations lost a guard that nobody else could win")
        for row in rows:
            revisions[row["flow_id"]] = row["revision"]

    sample = await closed_loop(call, 1, seconds, {"postgres": postgres.pid})
    cpu = tuple((name, spent / BATCH) for name, spent in sample.cpu)
    return Sample(sample.calls * BATCH, sample.seconds, sample.p50_ms, sample.p99_ms, cpu)
