"""PostgreSQL dies, comes back, or hangs: calls are told so in time, and afterwards all is as if nothing had been."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import grpc
import pytest
from flowledger.v1 import flow_service_pb2 as pb
from grpc_health.v1 import health_pb2

from server import app
from tests.cluster import Cluster
from tests.conftest import Urls, settings
from tests.faults.audit import audit
from tests.faults.load import AGAIN, Commit, assert_each_is_there_once, send_until_acknowledged
from tests.faults.outage import WRITERS, Writers, assert_told_to_come_back, crash, hanging, health, start
from tests.faults.process import connection
from tests.tenancy import Refusal, Tenancy

STATEMENT_SECONDS = 1.0
# What a call may take while PostgreSQL does not answer: waiting for a connection, then for the statement, each with the driver's second.
TOLD_SECONDS = 2 * (STATEMENT_SECONDS + 1.0) + 1.0


@asynccontextmanager
async def _serving(urls: Urls) -> AsyncIterator[tuple[Tenancy, grpc.aio.Channel]]:
    patient = {"statement_timeout_seconds": STATEMENT_SECONDS, "watch_poll_seconds": 0.05}
    async with app.running(settings(urls, **patient)) as server, connection(server.address) as channel:
        yield Tenancy.fresh(channel), channel


async def test_postgresql_stopped_and_started_under_load_loses_no_acknowledged_commit(own: Cluster, own_urls: Urls) -> None:
    async with _serving(own_urls) as (tenancy, channel):
        async with Writers.at_work(tenancy) as writers:
            await writers.more(100)
            await crash(own)
            try:
                refusal = await tenancy.refusal("GetFlow", flow_id=str(uuid4()))
                await health(channel, health_pb2.HealthCheckResponse.NOT_SERVING)
            finally:
                await start(own)
            await writers.more(100)
            await health(channel, health_pb2.HealthCheckResponse.SERVING)
        assert_told_to_come_back([refusal, *writers.refusals])
        assert writers.longest < TOLD_SECONDS
        ledger = await audit(own.url("broken", "postgres"))
        assert_each_is_there_once(ledger, writers.acknowledged)
        mine = [ledger.hashes[one.flow_id] for one in {one.flow_id: one for one in writers.acknowledged}.values()]
        assert sum(map(len, mine)) == WRITERS + len(writers.acknowledged)


async def test_a_watch_outlives_a_restart_of_postgresql_or_is_resumed_without_a_gap(own: Cluster, own_urls: Urls) -> None:
    async with _serving(own_urls) as (tenancy, _):
        flow_id = (await tenancy.create()).flow_id
        seen: list[int] = []
        opened = asyncio.Event()

        async def watch() -> None:
            while True:
                try:
                    position = seen[-1] if seen else 0
                    async for message in tenancy.watch(flow_id, start=pb.WATCH_START_AFTER_REVISION, after_revision=position):
                        if message.WhichOneof("message") == "end":
                            return
                        if message.HasField("event"):
                            seen.append(message.revision)
                            opened.set()
                except grpc.aio.AioRpcError as error:
                    if Refusal.of(error).reason != "STORE_UNAVAILABLE":
                        raise
                    await asyncio.sleep(0.05)  # as a client would

        watching = asyncio.create_task(watch())
        await opened.wait()
        await crash(own)
        await start(own)
        for name in ("one", "two"):
            commit = Commit.of("UpdateFlow", flow_id=flow_id, update={"display_name": name})
            await send_until_acknowledged(tenancy, commit)
        await tenancy.call("CancelFlow", flow_id=flow_id)
        async with asyncio.timeout(20):
            await watching
        assert seen == [1, 2, 3, 4]


async def test_while_postgresql_hangs_calls_are_told_so_in_time_and_afterwards_all_heals(own: Cluster, own_urls: Urls) -> None:
    async with _serving(own_urls) as (tenancy, channel):
        flow_id = (await tenancy.create()).flow_id
        async with Writers.at_work(tenancy) as writers:
            await writers.more(100)
            with hanging(own):
                hurried = await _ended(lambda: tenancy.send("GetFlow", pb.GetFlowRequest(flow_id=flow_id), timeout=0.5))
                patient = await asyncio.gather(*(_ended(lambda: tenancy.call("GetFlow", flow_id=flow_id)) for _ in range(20)))
                await health(channel, health_pb2.HealthCheckResponse.NOT_SERVING)
            await writers.more(100)
            await health(channel, health_pb2.HealthCheckResponse.SERVING)
        assert hurried[0].code in AGAIN
        assert hurried[1] < 1.0
        assert_told_to_come_back([*(refusal for refusal, _ in patient), *writers.refusals])
        assert max(*(seconds for _, seconds in patient), writers.longest) < TOLD_SECONDS
        assert_each_is_there_once(await audit(own.url("broken", "postgres")), writers.acknowledged)


async def _ended(call: Callable[[], Awaitable[Any]]) -> tuple[Refusal, float]:
    """How the call was refused, and after how many seconds."""
    started = time.monotonic()
    with pytest.raises(grpc.aio.AioRpcError) as ended:
        await call()
    return Refusal.of(ended.value), time.monotonic() - started
