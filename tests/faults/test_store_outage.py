"""PostgreSQL dies, comes back, or hangs: calls are told so in time, and afterwards all is as if nothing had been."""

from __future__ import annotations

import asyncio
import os
import shlex
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any
from uuid import uuid4

import grpc
import psutil
import pytest
from flowledger.v1 import flow_service_pb2 as pb
from grpc_health.v1 import health_pb2, health_pb2_grpc

from server import app
from server.repository import schema
from tests import cluster as clusters
from tests.cluster import Cluster
from tests.conftest import Urls, settings
from tests.faults.audit import audit
from tests.faults.load import AGAIN, Acknowledged, Commit, assert_each_is_there_once, send, send_until_acknowledged
from tests.faults.process import connection
from tests.tenancy import Refusal, Tenancy

STATEMENT_SECONDS = 1.0
# What a call may take while PostgreSQL does not answer: waiting for a connection, then for the statement, each with the driver's second.
TOLD_SECONDS = 2 * (STATEMENT_SECONDS + 1.0) + 1.0
HEALTH_SECONDS = 15.0
WRITERS = 20


@pytest.fixture(scope="module")
def own(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """A PostgreSQL that these tests may break."""
    with clusters.running(request.config.getoption("--postgres")) as cluster:
        yield cluster


@pytest.fixture(scope="module")
async def own_urls(own: Cluster) -> Urls:
    """The migrated database in it."""
    own.run("CREATE DATABASE broken OWNER flowledger_owner")
    found = Urls("broken", own.url("broken", "flowledger_owner"), own.url("broken", "flowledger"))
    await schema.migrate(found.owner)
    return found


@asynccontextmanager
async def _serving(urls: Urls) -> AsyncIterator[tuple[Tenancy, grpc.aio.Channel]]:
    patient = {"statement_timeout_seconds": STATEMENT_SECONDS, "watch_poll_seconds": 0.05}
    async with app.running(settings(urls, **patient)) as server, connection(server.address) as channel:
        yield Tenancy.fresh(channel), channel


def _pg_ctl(cluster: Cluster, *arguments: str) -> None:
    data = cluster.directory / "data"
    owner = data.stat()
    who: dict[str, Any] = {"user": owner.st_uid, "group": owner.st_gid, "extra_groups": []} if os.geteuid() == 0 else {}
    command = [str(cluster.bin / "pg_ctl"), *arguments, "-w", "-s", "-D", str(data)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd="/", **who)


async def _crash(cluster: Cluster) -> None:
    await asyncio.to_thread(_pg_ctl, cluster, "stop", "-m", "immediate")


async def _start(cluster: Cluster) -> None:
    # As it was started the first time: program, -D, directory, then the options.
    options = shlex.split((cluster.directory / "data" / "postmaster.opts").read_text())[3:]
    await asyncio.to_thread(_pg_ctl, cluster, "start", "-l", str(cluster.directory / "log"), "-o", shlex.join(options))


@contextmanager
def _hanging(cluster: Cluster) -> Iterator[None]:
    """While the block lasts every process of PostgreSQL stands still; its sockets take connections and say nothing."""
    pid = int((cluster.directory / "data" / "postmaster.pid").read_text().split()[0])
    postmaster = psutil.Process(pid)
    postmaster.send_signal(signal.SIGSTOP)  # first, so that it starts no more
    stopped = [postmaster, *postmaster.children(recursive=True)]
    for process in stopped[1:]:
        process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        for process in stopped:
            process.send_signal(signal.SIGCONT)


class _Writers:
    """Callers that write one commit after another, each until it is acknowledged, and remember how each try ended."""

    def __init__(self, tenancy: Tenancy, flows: list[str]) -> None:
        self._tenancy, self._flows = tenancy, flows
        self._written, self._stop = asyncio.Event(), False
        self.acknowledged: list[Acknowledged] = []
        self.refusals: list[Refusal] = []
        self.longest = 0.0

    @classmethod
    @asynccontextmanager
    async def at_work(cls, tenancy: Tenancy) -> AsyncIterator[_Writers]:
        """Writers that work while the block lasts; at its end each commit begun is acknowledged."""
        writers = cls(tenancy, [(await tenancy.create()).flow_id for _ in range(WRITERS)])
        tasks = [asyncio.create_task(writers._write(at)) for at in range(WRITERS)]
        try:
            yield writers
        finally:
            writers._stop = True
            async with asyncio.timeout(30):
                await asyncio.gather(*tasks)

    async def more(self, number: int = WRITERS) -> None:
        """Returns once ``number`` more commits were acknowledged."""
        goal = len(self.acknowledged) + number
        async with asyncio.timeout(20):
            while len(self.acknowledged) < goal:
                self._written.clear()
                await self._written.wait()

    async def _write(self, at: int) -> None:
        sequence = 0
        while not self._stop:
            sequence += 1
            update = {"display_name": f"{at}.{sequence}"}
            commit = Commit.of("UpdateFlow", flow_id=self._flows[at], update=update)
            self.acknowledged.append(await self._until_acknowledged(commit))
            self._written.set()

    async def _until_acknowledged(self, commit: Commit) -> Acknowledged:
        while True:
            started = time.monotonic()
            try:
                return await send(self._tenancy, commit)
            except grpc.aio.AioRpcError as error:
                self.refusals.append(Refusal.of(error))
                await asyncio.sleep(0.05)  # as a client would
            finally:
                self.longest = max(self.longest, time.monotonic() - started)


def _assert_told_to_come_back(refusals: list[Refusal]) -> None:
    told = {(one.code, one.reason, one.details) for one in refusals}
    assert told == {(grpc.StatusCode.UNAVAILABLE, "STORE_UNAVAILABLE", ("ErrorInfo", "RetryInfo"))}


async def _health(channel: grpc.aio.Channel, wanted: int) -> None:
    """Returns once the server's health is as wanted; the stream of the standard service tells."""
    stub: Any = health_pb2_grpc.HealthStub(channel)
    stream = stub.Watch(health_pb2.HealthCheckRequest(service="flowledger.v1.FlowService"), timeout=HEALTH_SECONDS)
    async for response in stream:
        if response.status == wanted:
            stream.cancel()
            return
    raise AssertionError("the health stream ended")


async def test_postgresql_stopped_and_started_under_load_loses_no_acknowledged_commit(own: Cluster, own_urls: Urls) -> None:
    async with _serving(own_urls) as (tenancy, channel):
        async with _Writers.at_work(tenancy) as writers:
            await writers.more(100)
            await _crash(own)
            try:
                refusal = await tenancy.refusal("GetFlow", flow_id=str(uuid4()))
                await _health(channel, health_pb2.HealthCheckResponse.NOT_SERVING)
            finally:
                await _start(own)
            await writers.more(100)
            await _health(channel, health_pb2.HealthCheckResponse.SERVING)
        _assert_told_to_come_back([refusal, *writers.refusals])
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
        await _crash(own)
        await _start(own)
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
        async with _Writers.at_work(tenancy) as writers:
            await writers.more(100)
            with _hanging(own):
                hurried = await _ended(lambda: tenancy.send("GetFlow", pb.GetFlowRequest(flow_id=flow_id), timeout=0.5))
                patient = await asyncio.gather(*(_ended(lambda: tenancy.call("GetFlow", flow_id=flow_id)) for _ in range(20)))
                await _health(channel, health_pb2.HealthCheckResponse.NOT_SERVING)
            await writers.more(100)
            await _health(channel, health_pb2.HealthCheckResponse.SERVING)
        assert hurried[0].code in AGAIN
        assert hurried[1] < 1.0
        _assert_told_to_come_back([*(refusal for refusal, _ in patient), *writers.refusals])
        assert max(*(seconds for _, seconds in patient), writers.longest) < TOLD_SECONDS
        assert_each_is_there_once(await audit(own.url("broken", "postgres")), writers.acknowledged)


async def _ended(call: Callable[[], Awaitable[Any]]) -> tuple[Refusal, float]:
    """How the call was refused, and after how many seconds."""
    started = time.monotonic()
    with pytest.raises(grpc.aio.AioRpcError) as ended:
        await call()
    return Refusal.of(ended.value), time.monotonic() - started
