"""Jobs are done for every tenant, by one process at a time, and one that fails stops neither the others nor the sweeper."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest

from server.log import logging
from server.repository.database import Database, PoolSettings, connected
from server.statemachine.errors import StoreUnavailable
from server.statemachine.values import Tenant
from server.sweeper import Job, Sweeper
from tests.conftest import Urls
from tests.repository.store import superuser
from tests.waiting import eventually, until

NOON = datetime(2026, 11, 25, 12, tzinfo=UTC)
TENANTS = [Tenant(UUID(int=number), UUID(int=1)) for number in range(3)]


async def tenants() -> AsyncIterator[Tenant]:
    for tenant in TENANTS:
        yield tenant


@asynccontextmanager
async def always(_: str) -> AsyncIterator[bool]:
    yield True


class Clock:
    """Time that goes on when it is told to."""

    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> datetime:
        return self.now


class Work:
    """A job's part that notes for whom it was asked, and when the round before had begun."""

    def __init__(self, trouble: dict[Tenant, Exception] | None = None) -> None:
        self.done: list[tuple[Tenant, datetime | None]] = []
        self._trouble = trouble or {}

    async def __call__(self, tenant: Tenant, before: datetime | None) -> None:
        self.done.append((tenant, before))
        if tenant in self._trouble:
            raise self._trouble[tenant]


def sweeper(*jobs: Job, clock: Clock | None = None) -> Sweeper:
    return Sweeper(jobs, tenants, always, clock or Clock(), lambda: 0.0)


async def test_every_job_is_done_for_every_tenant_and_told_when_the_round_before_began() -> None:
    one, other, clock = Work(), Work(), Clock()
    sweeping = sweeper(Job("one", one), Job("other", other, timedelta(hours=1)), clock=clock)
    await sweeping.sweep()
    clock.now += timedelta(minutes=5)
    await sweeping.sweep()
    assert one.done == [(tenant, None) for tenant in TENANTS] + [(tenant, NOON) for tenant in TENANTS]
    assert other.done == [(tenant, None) for tenant in TENANTS]  # not due yet
    clock.now += timedelta(hours=1)
    await sweeping.sweep()
    assert other.done[3:] == [(tenant, NOON) for tenant in TENANTS]


async def test_what_fails_for_one_tenant_is_logged_and_goes_on_with_the_next(capsys: pytest.CaptureFixture[str]) -> None:
    work, other = Work({TENANTS[1]: ValueError("seeded")}), Work()
    with logging("info", "json"):
        await sweeper(Job("one", work), Job("other", other)).sweep()
    assert [tenant for tenant, _ in work.done] == TENANTS == [tenant for tenant, _ in other.done]
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "sweep_failed" in line]
    assert '"job":"one"' in line
    assert str(TENANTS[1].client_account_id) in line
    assert "seeded" in line


async def test_a_round_ends_when_the_store_is_away_and_is_not_counted() -> None:
    work, other = Work({TENANTS[0]: StoreUnavailable("seeded")}), Work()
    sweeping = sweeper(Job("one", work, timedelta(hours=1)), Job("other", other))
    with logging("error", "json"):
        await sweeping.sweep()
        await sweeping.sweep()
    assert work.done == [(TENANTS[0], None)] * 2
    assert len(other.done) == 6


async def test_it_sweeps_until_it_is_cancelled() -> None:
    work = Work()
    running = asyncio.create_task(sweeper(Job("one", work)).run())
    await until(lambda: len(work.done) >= 9)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


@asynccontextmanager
async def opened(urls: Urls) -> AsyncIterator[Database]:
    async with connected(urls.service, PoolSettings()) as database:
        yield database


async def test_of_several_processes_one_does_a_job_at_a_time(shared_urls: Urls) -> None:
    """Also when it is cancelled in the middle: the next one can go on."""
    async with opened(shared_urls) as here, opened(shared_urls) as there:
        begun, go_on, work, another = asyncio.Event(), asyncio.Event(), Work(), Work()

        async def slow(_: Tenant, __: datetime | None) -> None:
            begun.set()
            await go_on.wait()

        one = asyncio.create_task(Sweeper([Job("same", slow)], tenants, here.alone, Clock(), lambda: 0.0).sweep())
        await begun.wait()
        other = Sweeper([Job("same", work), Job("another", another)], tenants, there.alone, Clock(), lambda: 0.0)
        await other.sweep()
        assert (work.done, len(another.done)) == ([], 3)
        one.cancel()
        await asyncio.wait({one})

        async def done() -> bool:
            await other.sweep()
            return len(work.done) == 3

        await eventually(done)


_LOCKS = """
    SELECT pg_terminate_backend(pid) FROM pg_locks JOIN pg_database ON pg_database.oid = database
    WHERE locktype = 'advisory' AND granted AND datname = current_database()
"""


async def test_a_lock_whose_connection_was_cut_is_free(urls: Urls) -> None:
    """PostgreSQL ends the session of a process that was killed, and its lock with it."""
    async with opened(urls) as here, opened(urls) as there, here.alone("cut") as mine:
        assert mine
        async with there.alone("cut") as theirs, there.alone("something else") as other:
            assert (theirs, other) == (False, True)
        async with superuser(urls.service) as truth:
            await truth.execute(_LOCKS)

        async def free() -> bool:
            async with there.alone("cut") as theirs:
                return theirs

        await eventually(free)


async def test_each_run_is_counted_with_how_it_ended() -> None:
    @asynccontextmanager
    async def taken(name: str) -> AsyncIterator[bool]:
        yield name != "taken"

    counted: list[tuple[str, str]] = []
    away = Work({TENANTS[0]: StoreUnavailable("PostgreSQL is away")})
    jobs = [Job("done", Work()), Job("taken", Work()), Job("failing", away)]
    await Sweeper(jobs, tenants, taken, Clock(), lambda: 0.0, lambda job, outcome: counted.append((job, outcome))).sweep()
    assert counted == [("done", "done"), ("taken", "elsewhere"), ("failing", "failed")]
