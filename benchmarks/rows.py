"""Mutations in a database with a million flows and twenty million events, against one with a warm ten thousand.

The rows are real ones: one flow is made through the service and multiplied inside the database.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from sqlalchemy import Table

from benchmarks.generator import unary_load
from benchmarks.postgres import Connection, Postgres, private_postgres
from benchmarks.requests import REPORTS, Tenant, Toggles, Turns, tenants
from benchmarks.sample import Measure
from benchmarks.service import fill, unary
from benchmarks.serving import Serving, serving
from server.repository import tables

WARM = 10_000
EVENTS = 20  # of each flow
CALLERS = 16


@dataclass(frozen=True, slots=True)
class _Times:
    """Multiplies the rows of one flow: flow number n gets the id md5('flow n')."""

    tenant: Tenant
    flows: int

    def flow_ids(self) -> str:
        return f"(SELECT md5('flow ' || n)::uuid AS new_id FROM generate_series(1, {self.flows}) n) AS wanted"

    def insert(self, table: Table) -> str:
        """Copies every row that the flow has in ``table``."""
        fresh = {"flow_id": "new_id", "child_flow_id": "gen_random_uuid()"}
        names = [column.name for column in table.columns]
        values = ", ".join(fresh.get(name, f"one.{name}") for name in names)
        return (
            f"INSERT INTO {table.name} ({', '.join(names)}) SELECT {values} "
            f"FROM {self.flow_ids()} CROSS JOIN (SELECT * FROM {table.name} WHERE flow_id = '{self.tenant.flow_ids[0]}') AS one"
        )


@asynccontextmanager
async def rows(flows: int, trees: dict[str, int]) -> AsyncIterator[list[Measure]]:
    """The measures ``transition_phase, full`` with ``flows`` flows of 20 events and ``transition_phase, warm`` with 10,000 of them.

    Each has a PostgreSQL and a server of its own; both change 10,000 flows, in the full one picked at random. The PostgreSQLs are entered
    in ``trees``, the processes whose work is the run's own.
    """
    async with AsyncExitStack() as stack:
        measures = []
        for name, stored in (("full", flows), ("warm", min(flows, WARM))):
            postgres = await stack.enter_async_context(private_postgres())
            trees[f"postgres, {name}"] = postgres.pid
            started = await stack.enter_async_context(serving(postgres))
            owner = tenants(1, 1, 14)[0]
            await _multiply(postgres, started, _Times(owner, stored))
            measures.append(_measure(f"transition_phase, {name}", started, Tenant(owner.metadata, await _picked(postgres, owner))))
        yield measures


def _measure(name: str, started: Serving, owner: Tenant) -> Measure:
    running: dict[str, bool] = {}
    return unary(name, started.target("TransitionPhase", (owner,)), CALLERS, lambda callers: Toggles((owner,), callers, running))


async def _multiply(postgres: Postgres, started: Serving, times: _Times) -> None:
    await fill(started, times.tenant)
    reports = Turns((times.tenant,), 1, REPORTS)
    revision = 2  # created, begun
    while revision < EVENTS:
        await unary_load(started.target("ReportProgress", (times.tenant,)), _Once(reports), 1, 60)
        revision += 1
    connection = await _as_tenant(postgres, times.tenant)
    try:
        for table in (tables.flows, tables.children["discovery"], tables.documents, tables.events):
            await connection.execute(times.insert(table), timeout=3_600)
            await connection.execute(f"VACUUM ANALYZE {table.name}", timeout=3_600)
    finally:
        await connection.close()


class _Once:
    """One request, then no more."""

    def __init__(self, requests: Turns) -> None:
        self._requests: Turns | None = requests

    def next(self, caller: int) -> bytes | None:
        """The request, the first time."""
        requests, self._requests = self._requests, None
        return None if requests is None else requests.next(caller)


async def _as_tenant(postgres: Postgres, tenant: Tenant) -> Connection:
    """A connection as the owner of the tables, who is held to row level security too."""
    identity = dict(tenant.metadata)
    return await postgres.connect({tables.TENANTS_SETTING: f"{identity['x-client-account-id']}/{identity['x-engagement-id']}"})


async def _picked(postgres: Postgres, tenant: Tenant) -> list[str]:
    connection = await _as_tenant(postgres, tenant)
    try:
        stored = [str(row["flow_id"]) for row in await connection.fetch("SELECT flow_id FROM flows ORDER BY flow_id", timeout=600)]
    finally:
        await connection.close()
    return random.Random(5).sample(stored, min(WARM, len(stored)))
