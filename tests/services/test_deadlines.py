"""A call that PostgreSQL does not let finish is answered while its caller still listens."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable

import grpc
import pytest

from server.services.deadlines import LEAST_SPARE, MOST_SPARE, SPARE_PART, TICK_SECONDS, Deadlines
from tests.cluster import Cluster
from tests.conftest import Urls
from tests.faults.load import Commit, send, send_until_acknowledged
from tests.faults.locks import blocked, held
from tests.tenancy import Refusal, Tenancy


async def _ended_after(work: Awaitable[object]) -> tuple[bool, float]:
    """Whether it ended by a cancellation, and after how many seconds."""
    started = time.monotonic()
    try:
        await work
    except asyncio.CancelledError:
        return True, time.monotonic() - started
    return False, time.monotonic() - started


async def _limited(deadlines: Deadlines, remaining: float | None, seconds: float, verdicts: list[bool]) -> None:
    task = deadlines.enter(remaining)
    try:
        await asyncio.sleep(seconds)
    except asyncio.CancelledError:
        verdicts.append(deadlines.ended(task))
        raise
    finally:
        deadlines.leave(task)


@pytest.mark.parametrize("remaining", [0.2, 0.5, 1.0, 4.0, None])
async def test_a_call_is_ended_before_its_callers_deadline(remaining: float | None) -> None:
    deadlines, verdicts = Deadlines(0.6), list[bool]()
    started = asyncio.get_running_loop().time()
    call = asyncio.create_task(_limited(deadlines, remaining, 30, verdicts))
    await asyncio.sleep(0)
    due = next(iter(deadlines._due.values())) * TICK_SECONDS - started
    cancelled, seconds = await _ended_after(call)
    assert cancelled
    assert verdicts == [True]
    least = 0.6 if remaining is None else remaining - min(LEAST_SPARE + SPARE_PART * remaining, MOST_SPARE)
    assert seconds >= least - 0.05
    if remaining is not None:
        assert due + TICK_SECONDS < remaining  # and not how long it took: a machine may be busy


async def test_a_call_that_ends_by_itself_is_left_alone() -> None:
    deadlines, verdicts = Deadlines(30), list[bool]()
    calls = [asyncio.create_task(_limited(deadlines, remaining, 0.05, verdicts)) for remaining in (0.5, 5.0, None) for _ in range(20)]
    await asyncio.gather(*calls)
    await asyncio.sleep(0.6)
    assert verdicts == []
    assert [deadlines._due, deadlines._ticks, deadlines._overdue, deadlines._looking] == [{}, {}, set(), None]


async def test_a_cancellation_by_somebody_else_is_not_taken_for_the_limits() -> None:
    deadlines, verdicts = Deadlines(30), list[bool]()
    call = asyncio.create_task(_limited(deadlines, None, 30, verdicts))
    await asyncio.sleep(0.05)
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)
    assert verdicts == [False]


async def test_calls_of_any_deadline_end_in_their_order_also_after_the_loop_stood_still() -> None:
    deadlines, ended = Deadlines(30), list[float]()

    async def call(remaining: float) -> None:
        try:
            await _limited(deadlines, remaining, 30, [])
        except asyncio.CancelledError:
            ended.append(remaining)

    calls = [asyncio.create_task(call(remaining)) for remaining in (0.9, 0.3, 0.6, 0.1)]
    await asyncio.sleep(0.02)
    time.sleep(0.7)  # noqa: ASYNC251 - nothing runs meanwhile, as when a collection or a large document takes its time
    await asyncio.gather(*calls)
    assert ended == [0.1, 0.3, 0.6, 0.9]


async def test_a_commit_that_waits_for_a_lock_is_told_before_its_deadline_and_can_be_repeated(
    tenancy: Tenancy, postgres: Cluster, shared_urls: Urls
) -> None:
    url = postgres.url(shared_urls.name, "postgres")
    flow_id = (await tenancy.create()).flow_id
    commit = Commit.of("UpdateFlow", flow_id=flow_id, update={"display_name": "new"})
    async with held(url, flow_id):
        under_way = asyncio.ensure_future(send(tenancy, commit, 3.0))
        await blocked(url, 1)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await under_way
    refusal = Refusal.of(refused.value)
    assert (refusal.code, refusal.reason, refusal.details) == (
        grpc.StatusCode.UNAVAILABLE,
        "STORE_UNAVAILABLE",
        ("ErrorInfo", "RetryInfo"),
    )
    # The first try went on, or did not: a repeat is told the same in either case.
    assert (await send_until_acknowledged(tenancy, commit)).revision == 2
