"""PostgreSQL stands still for seconds under load: every call is told so within its deadline, and nothing promised is missing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from itertools import cycle
from pathlib import Path

import grpc
import pytest
from flowledger.v1 import change_pb2
from flowledger.v1 import flow_service_pb2 as pb
from grpc_health.v1 import health_pb2

from tests.cluster import Cluster
from tests.conftest import Urls
from tests.faults.audit import audit
from tests.faults.load import assert_each_is_there_once
from tests.faults.outage import Writers, assert_told_to_come_back, hanging, health
from tests.faults.process import connection, database, serving
from tests.faults.watching import Place, Watcher
from tests.tenancy import Refusal, Tenancy

WRITE_SECONDS, READ_SECONDS = 3.0, 2.0  # deadlines of the calls: shorter than what the server gives PostgreSQL
# The server waits for a statement and for the driver; twice, when the first is somebody else's.
STREAM_SECONDS = 40.0


async def test_while_the_store_hangs_callers_are_told_in_time_and_afterwards_it_heals(
    request: pytest.FixtureRequest, own: Cluster, own_urls: Urls, tmp_path: Path
) -> None:
    seconds = request.config.getoption("--hang")
    async with serving(tmp_path, **database(own_urls), watch_poll_seconds=0.2) as server, connection(server.address) as channel:
        tenancy = Tenancy.fresh(channel)
        watched, reported = [(await tenancy.create()).flow_id for _ in range(2)]
        await tenancy.move(reported, "data_import", "IN_PROGRESS")
        place = Place()
        await place.moved_to(server.address)
        watcher = Watcher(tenancy, place, watched)
        watching = asyncio.create_task(watcher.run())
        async with Writers.at_work(tenancy, WRITE_SECONDS) as writers:
            await writers.more(200)
            with hanging(own):
                ended = asyncio.get_running_loop().time() + seconds
                stream = asyncio.create_task(_streamed(tenancy, reported, ended))
                noticed = asyncio.create_task(health(channel, health_pb2.HealthCheckResponse.NOT_SERVING))
                readers = [asyncio.create_task(_read(tenancy, watched, ended)) for _ in range(10)]
                refused = [found for reader in readers for found in await reader]
                told = await stream
                await noticed
            acknowledged = len(writers.acknowledged)
            await writers.more(200)
            await health(channel, health_pb2.HealthCheckResponse.SERVING)
        for name in ("one", "two"):
            await tenancy.call("UpdateFlow", flow_id=watched, update={"display_name": name})
        await tenancy.call("CancelFlow", flow_id=watched)
        async with asyncio.timeout(30):
            await watching
        await place.close()
    assert_told_to_come_back([told, *_heard([*writers.refusals, *refused])])
    assert [revision for revision, _ in watcher.seen] == [1, 2, 3, 4]
    assert acknowledged >= 200
    assert_each_is_there_once(await audit(own.url(own_urls.name, "postgres")), writers.acknowledged)


def _heard(refusals: list[Refusal]) -> list[Refusal]:
    """What was told in time. A machine that is busy may deliver some too late: then the caller's own deadline has ended the call."""
    heard = [one for one in refusals if not (one.code is grpc.StatusCode.DEADLINE_EXCEEDED and not one.reason)]
    assert len(heard) > len(refusals) / 2, (len(heard), len(refusals))
    return heard


async def _read(tenancy: Tenancy, flow_id: str, until: float) -> list[Refusal]:
    """How each read was refused: gathered reads, and those that go by themselves."""
    refused = []
    reads = cycle((("GetFlow", pb.GetFlowRequest(flow_id=flow_id)), ("ListFlows", pb.ListFlowsRequest())))
    while asyncio.get_running_loop().time() < until:
        try:
            await tenancy.send(*next(reads), READ_SECONDS)
        except grpc.aio.AioRpcError as error:
            refused.append(Refusal.of(error))
        await asyncio.sleep(0.05)  # as a client would
    return refused


async def _streamed(tenancy: Tenancy, flow_id: str, until: float) -> Refusal:
    """How a stream of reports was refused that began while PostgreSQL hung."""

    async def reports() -> AsyncIterator[pb.StreamProgressRequest]:
        at = 0
        while asyncio.get_running_loop().time() < until:
            at += 1
            yield pb.StreamProgressRequest(flow_id=flow_id, progress=change_pb2.ProgressReport(phase="data_import", fraction=at / 10_000))
            await asyncio.sleep(0.02)

    try:
        async with asyncio.timeout(STREAM_SECONDS):
            await tenancy.stub.StreamProgress(reports(), metadata=tenancy.metadata)
    except grpc.aio.AioRpcError as error:
        return Refusal.of(error)
    raise AssertionError("the stream was not refused")
