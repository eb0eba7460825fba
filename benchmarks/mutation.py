"""The bare mutation: what PostgreSQL and its driver allow without any service.

A guarded UPDATE of one row that holds a 2 KiB document and an INSERT of one event, one statement, durable: from asyncpg one by one, from
asyncpg with the callers of one moment combined into one statement, and from pgbench.
"""

from __future__ import annotations

import asyncio
import random
import string
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sized
from contextlib import AsyncExitStack, asynccontextmanager

from benchmarks.closed_loop import closed_loop
from benchmarks.pgbench import Load, pgbench
from benchmarks.postgres import Pool, Postgres
from benchmarks.sample import Measure, Sample

NAMES = ("asyncpg", "asyncpg combined", "pgbench")
ACCOUNT, ENGAGEMENT = uuid.UUID(int=1), uuid.UUID(int=2)
APART = uuid.UUID(int=3)  # whose flows a process of its own changes, which remembers their revisions
FLOWS = 1_024
DOCUMENT = "".join(random.Random(1).choices(string.ascii_letters + string.digits, k=2_048))  # does not compress: nothing is stored smaller
CHANGE = "".join(random.Random(2).choices(string.ascii_letters, k=200))
LANES = 2  # combined statements on their way at once

_KEY = "account uuid NOT NULL, engagement uuid NOT NULL, flow_id uuid NOT NULL, revision bigint NOT NULL"
# toast_tuple_target: the document stays in its row, which is the cheapest place that 2 KiB can be.
SCHEMA = f"""
CREATE SCHEMA bare;
SET search_path = bare;
CREATE TABLE flows ({_KEY}, document bytea STORAGE MAIN NOT NULL, PRIMARY KEY (account, engagement, flow_id))
    WITH (fillfactor = 70, toast_tuple_target = 8160);
CREATE TABLE events ({_KEY}, change text NOT NULL, PRIMARY KEY (account, engagement, flow_id, revision));
"""
FLOW_ID = "('00000000-0000-7000-8000-' || lpad(to_hex({number}), 12, '0'))::uuid"

ONE = """
WITH changed AS (
    UPDATE bare.flows SET revision = revision + 1, document = {document}
    WHERE account = {account} AND engagement = {engagement} AND flow_id = {flow_id} AND revision {guard}
    RETURNING account, engagement, flow_id, revision
)
INSERT INTO bare.events SELECT account, engagement, flow_id, revision, {change} FROM changed
"""
MANY = """
WITH changed AS (
    UPDATE bare.flows f SET revision = f.revision + 1, document = w.document
    FROM unnest($1::uuid[], $2::uuid[], $3::uuid[], $4::bigint[], $5::bytea[], $6::text[])
        AS w (account, engagement, flow_id, revision, document, change)
    WHERE f.account = w.account AND f.engagement = w.engagement AND f.flow_id = w.flow_id AND f.revision = w.revision
    RETURNING f.account, f.engagement, f.flow_id, f.revision, w.change
)
INSERT INTO bare.events SELECT account, engagement, flow_id, revision, change FROM changed RETURNING flow_id
"""


class Combining:
    """Mutations, those of one moment as one statement; at most ``lanes`` statements are out at once.

    ``gathering`` is awaited before each statement, with what waits for it, and may let more come.
    """

    def __init__(
        self, pool: Pool, account: uuid.UUID, revisions: list[int], lanes: int, gathering: Callable[[Sized], Awaitable[None]]
    ) -> None:
        self._pool, self._account, self._revisions, self._lanes, self._gathering = pool, account, revisions, lanes, gathering
        self._waiting: list[tuple[int, bytes, asyncio.Future[None]]] = []
        self._out = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def mutate(self, flow: int, document: bytes) -> None:
        """The flow's next revision, with this document. Raises RuntimeError when its guard fails, which nobody else can bring about."""
        answered: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((flow, document, answered))
        if self._out < self._lanes:
            self._out += 1
            lane = asyncio.create_task(self._lane())
            self._tasks.add(lane)
            lane.add_done_callback(self._tasks.discard)
        await answered

    async def _lane(self) -> None:
        async with self._pool.acquire() as connection:
            while self._waiting:
                await self._gathering(self._waiting)
                batch, self._waiting = self._waiting, []
                size = len(batch)
                rows = await connection.fetch(
                    MANY,
                    [self._account] * size,
                    [ENGAGEMENT] * size,
                    [_IDS[flow] for flow, _, _ in batch],
                    [self._revisions[flow] for flow, _, _ in batch],
                    [document for _, document, _ in batch],
                    [CHANGE] * size,
                )
                for flow, _, answered in batch:
                    self._revisions[flow] += 1
                    if len(rows) == size:
                        answered.set_result(None)
                    else:
                        answered.set_exception(RuntimeError(f"{size - len(rows)} mutations that nobody else could win were lost"))
            self._out -= 1  # in the same step as the last look at what waits, so that nothing falls in between


async def combining_over(pool: Pool, account: uuid.UUID, lanes: int, gathering: Callable[[Sized], Awaitable[None]]) -> Combining:
    """A ``Combining`` over the account's flows that knows their present revisions."""
    return Combining(pool, account, await _revisions(pool, account), lanes, gathering)


@asynccontextmanager
async def mutation(postgres: Postgres) -> AsyncIterator[list[Measure]]:
    """The measures ``asyncpg``, ``asyncpg combined`` and ``pgbench``."""
    async with AsyncExitStack() as stack:
        pool = await stack.enter_async_context(postgres.pool(8))
        await pool.execute(SCHEMA)
        rows = f"SELECT $1::uuid, $2::uuid, {FLOW_ID.format(number='n')}, 1, $3::bytea FROM generate_series(0, {FLOWS - 1}) n"
        for account in (ACCOUNT, APART):
            await pool.execute(f"INSERT INTO bare.flows {rows}", account, ENGAGEMENT, DOCUMENT.encode())
        await pool.execute("VACUUM ANALYZE bare.flows")
        yield [
            *(Measure(NAMES[0], callers, _Single(postgres, pool, callers).run) for callers in (1, 8)),
            *(Measure(NAMES[1], callers, _Combined(postgres, pool, callers).run) for callers in (16, 64)),
            *(Measure(NAMES[2], clients, _Pgbench(postgres, clients).run) for clients in (1, 8)),
        ]


class _Flows:
    """Which flow each caller changes next: its own share of them in a shuffled order, so that no two callers meet."""

    def __init__(self, callers: int) -> None:
        shuffled = random.Random(3).sample(range(FLOWS), FLOWS)
        self._shares = [shuffled[caller::callers] for caller in range(callers)]
        self._at = [0] * callers

    def next(self, caller: int) -> int:
        share = self._shares[caller]
        self._at[caller] += 1
        return share[self._at[caller] % len(share)]


_IDS = [uuid.UUID(f"00000000-0000-7000-8000-{number:012x}") for number in range(FLOWS)]


async def _revisions(pool: Pool, account: uuid.UUID) -> list[int]:
    rows = await pool.fetch("SELECT revision FROM bare.flows WHERE account = $1 ORDER BY flow_id", account)
    return [row["revision"] for row in rows]


class _Single:
    """Each caller sends its own statement."""

    _STATEMENT = ONE.format(account="$1", engagement="$2", flow_id="$3", guard="= $4", document="$5", change="$6")

    def __init__(self, postgres: Postgres, pool: Pool, callers: int) -> None:
        self._postgres, self._pool, self._callers = postgres, pool, callers

    async def run(self, seconds: float) -> Sample:
        revisions, flows, document = await _revisions(self._pool, ACCOUNT), _Flows(self._callers), DOCUMENT.encode()

        async def call(caller: int) -> None:
            flow = flows.next(caller)
            async with self._pool.acquire() as connection:
                done = await connection.execute(self._STATEMENT, ACCOUNT, ENGAGEMENT, _IDS[flow], revisions[flow], document, CHANGE)
            if done != "INSERT 0 1":
                raise RuntimeError(f"a mutation that nobody else could win was lost: {done}")
            revisions[flow] += 1

        return await closed_loop(call, self._callers, seconds, {"postgres": self._postgres.pid})


class _Combined:
    """What arrives while ``LANES`` statements are out waits and goes together as the next one."""

    def __init__(self, postgres: Postgres, pool: Pool, callers: int) -> None:
        self._postgres, self._pool, self._callers = postgres, pool, callers

    async def run(self, seconds: float) -> Sample:
        combining, flows, document = await combining_over(self._pool, ACCOUNT, LANES, _at_once), _Flows(self._callers), DOCUMENT.encode()

        async def call(caller: int) -> None:
            await combining.mutate(flows.next(caller), document)

        return await closed_loop(call, self._callers, seconds, {"postgres": self._postgres.pid})


async def _at_once(_: Sized) -> None:
    """Whoever calls in this process has called already."""


class _Pgbench:
    """The single statement from PostgreSQL's own client; pgbench keeps no revision for each flow, so the guard always passes."""

    def __init__(self, postgres: Postgres, clients: int) -> None:
        statement = ONE.format(
            account=":account",
            engagement=":engagement",
            flow_id=FLOW_ID.format(number=":number::bigint"),
            guard="> 0",
            document=":document",
            change=":change",
        )
        script = f"\\set number :client_id + {clients} * random(0, {FLOWS // clients - 1})\n{' '.join(statement.split())};\n"
        self._postgres = postgres
        self._load = Load(
            [script], clients, {"account": str(ACCOUNT), "engagement": str(ENGAGEMENT), "document": DOCUMENT, "change": CHANGE}
        )

    async def run(self, seconds: float) -> Sample:
        return await pgbench(self._postgres, self._load, seconds)
