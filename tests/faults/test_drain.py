"""A server that is asked to stop finishes what it has begun, sends the rest elsewhere and ends in time."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import grpc
import pytest
from flowledger.v1 import flow_service_pb2 as pb

from server import app
from tests.cluster import Cluster
from tests.conftest import Urls, settings
from tests.faults.audit import audit
from tests.faults.load import Commit, send, send_until_acknowledged
from tests.faults.locks import blocked, held
from tests.faults.process import connection, database, serving
from tests.tenancy import Refusal, Tenancy

DRAIN_SECONDS = 3.0
BOUND_SECONDS = 2.0  # beyond the drain: for what ends with the process


@pytest.fixture
def ledger_url(postgres: Cluster, urls: Urls) -> str:
    """The test's database as the superuser sees it."""
    return postgres.url(urls.name, "postgres")


def _renaming(flow_id: str) -> Commit:
    return Commit.of("UpdateFlow", flow_id=flow_id, update={"display_name": "new"})


async def _collected(stream: Any) -> list[Any]:
    async with asyncio.timeout(20):
        return [message async for message in stream]


async def test_sigterm_lets_a_commit_under_way_finish_and_ends_with_exit_code_0(urls: Urls, ledger_url: str, tmp_path: Path) -> None:
    async with serving(tmp_path, **database(urls), drain_seconds=DRAIN_SECONDS) as server, connection(server.address) as channel:
        tenancy = Tenancy.fresh(channel)
        flow_id = (await tenancy.create()).flow_id
        async with held(ledger_url, flow_id):
            under_way = asyncio.ensure_future(send(tenancy, _renaming(flow_id)))
            await blocked(ledger_url, 1)
            server.terminate()
            while (refusal := await _refusal(tenancy, flow_id)) is None:  # until the signal has arrived
                pass
            assert (refusal.code, refusal.reason) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")
            assert "RetryInfo" in refusal.details
            assert not under_way.done()
        assert (await under_way).revision == 2
        started = time.monotonic()
        assert await server.exit_code() == 0
        assert time.monotonic() - started < DRAIN_SECONDS + BOUND_SECONDS
    assert (await audit(ledger_url)).events == 2


async def _refusal(tenancy: Tenancy, flow_id: str) -> Refusal | None:
    try:
        await tenancy.call("GetFlow", flow_id=flow_id)
    except grpc.aio.AioRpcError as error:
        return Refusal.of(error)
    return None


async def test_a_commit_that_does_not_finish_holds_the_stop_up_no_longer_than_the_drain(
    urls: Urls, ledger_url: str, tmp_path: Path
) -> None:
    variables = {**database(urls), "drain_seconds": DRAIN_SECONDS, "statement_timeout_seconds": 30}
    async with serving(tmp_path, **variables) as server, connection(server.address) as channel:
        tenancy = Tenancy.fresh(channel)
        flow_id = (await tenancy.create()).flow_id
        commit = _renaming(flow_id)
        async with held(ledger_url, flow_id):
            under_way = asyncio.ensure_future(send(tenancy, commit))
            await blocked(ledger_url, 1)
            started = time.monotonic()
            server.terminate()
            assert await server.exit_code() == 0
            assert time.monotonic() - started < DRAIN_SECONDS + BOUND_SECONDS
            with pytest.raises(grpc.aio.AioRpcError) as ended:
                await under_way
            assert ended.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
    async with serving(tmp_path, **variables) as server, connection(server.address) as channel:
        assert (await send_until_acknowledged(tenancy.on(channel), commit)).revision == 2
    assert (await audit(ledger_url)).events == 2


async def test_sigterm_under_load_breaks_no_commit(urls: Urls, ledger_url: str, tmp_path: Path) -> None:
    async with (
        serving(tmp_path, **database(urls), drain_seconds=DRAIN_SECONDS) as first,
        serving(tmp_path, **database(urls)) as second,
        connection(first.address) as channel,
        connection(second.address) as elsewhere,
    ):
        tenancy = Tenancy.fresh(channel)
        flows = [(await tenancy.create()).flow_id for _ in range(10)]
        commits = [_renaming(flows[at % 10]) for at in range(300)]
        told: list[int] = []

        async def write(commit: Commit) -> None:
            try:
                acknowledged = await send(tenancy, commit)
            except grpc.aio.AioRpcError as error:
                # Refused before it began: so says the code, and a server elsewhere takes it.
                if error.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise
                acknowledged = await send(tenancy.on(elsewhere), commit)
            told.append(acknowledged.revision)
            if len(told) == 20:
                first.terminate()

        await asyncio.gather(*(write(commit) for commit in commits))
        assert await first.exit_code() == 0
    assert sorted(told) == sorted([*range(2, 32)] * 10)
    assert (await audit(ledger_url)).events == 310


async def test_a_draining_server_refuses_new_calls_with_draining_and_retry_info(urls: Urls) -> None:
    async with app.running(settings(urls)) as server, connection(server.address) as channel:
        tenancy = Tenancy.fresh(channel)
        flow = await tenancy.create()
        server.drain()
        for name, fields in (("GetFlow", {}), ("UpdateFlow", {"update": {"display_name": "new"}})):
            refusal = await tenancy.refusal(name, flow_id=flow.flow_id, **fields)
            assert (refusal.code, refusal.reason) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")
            assert "RetryInfo" in refusal.details
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await _collected(tenancy.watch(flow.flow_id))
        assert Refusal.of(refused.value).reason == "DRAINING"


async def test_sigterm_ends_a_watch_with_draining_and_it_goes_on_elsewhere(urls: Urls, tmp_path: Path) -> None:
    async with (
        serving(tmp_path, **database(urls), drain_seconds=DRAIN_SECONDS) as first,
        serving(tmp_path, **database(urls)) as second,
        connection(first.address) as channel,
        connection(second.address) as elsewhere,
    ):
        tenancy = Tenancy.fresh(channel)
        flow_id = (await tenancy.create()).flow_id
        watch = aiter(tenancy.watch(flow_id))
        assert (await anext(watch)).opened.head_revision == 1
        assert (await anext(watch)).snapshot.flow.revision == 1
        first.terminate()
        (end,) = await _collected(watch)
        assert (end.revision, end.end.reason) == (1, pb.WATCH_END_REASON_DRAINING)
        tenancy = tenancy.on(elsewhere)
        await tenancy.call("CancelFlow", flow_id=flow_id)
        _, event, end = await _collected(tenancy.watch(flow_id, start=pb.WATCH_START_AFTER_REVISION, after_revision=end.revision))
        assert (event.event.revision, end.end.reason) == (2, pb.WATCH_END_REASON_FLOW_TERMINAL)
        assert await first.exit_code() == 0
