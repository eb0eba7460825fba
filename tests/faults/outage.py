"""PostgreSQL dies, hangs and comes back at a test's word; and callers that write meanwhile, and remember how each try ended."""

from __future__ import annotations

import asyncio
import os
import shlex
import signal
import subprocess
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import grpc
import psutil
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.cluster import Cluster
from tests.faults.load import Acknowledged, Commit, send
from tests.tenancy import PATIENCE, Refusal, Tenancy

HEALTH_SECONDS = 30.0
WRITERS = 20


def _pg_ctl(cluster: Cluster, *arguments: str) -> None:
    data = cluster.directory / "data"
    owner = data.stat()
    who: dict[str, Any] = {"user": owner.st_uid, "group": owner.st_gid, "extra_groups": []} if os.geteuid() == 0 else {}
    command = [str(cluster.bin / "pg_ctl"), *arguments, "-w", "-s", "-D", str(data)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd="/", **who)


async def crash(cluster: Cluster) -> None:
    """End it as a power failure would."""
    await asyncio.to_thread(_pg_ctl, cluster, "stop", "-m", "immediate")


async def start(cluster: Cluster) -> None:
    """Start it again."""
    # As it was started the first time: program, -D, directory, then the options.
    options = shlex.split((cluster.directory / "data" / "postmaster.opts").read_text())[3:]
    await asyncio.to_thread(_pg_ctl, cluster, "start", "-l", str(cluster.directory / "log"), "-o", shlex.join(options))


@contextmanager
def hanging(cluster: Cluster) -> Iterator[None]:
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


class Writers:
    """Callers that write one commit after another, each until it is acknowledged, and remember how each try ended."""

    def __init__(self, tenancy: Tenancy, flows: list[str], deadline: float) -> None:
        self._tenancy, self.flows, self._deadline = tenancy, flows, deadline
        self._written, self._stop = asyncio.Event(), False
        self.acknowledged: list[Acknowledged] = []
        self.refusals: list[Refusal] = []
        self.longest = 0.0

    @classmethod
    @asynccontextmanager
    async def at_work(cls, tenancy: Tenancy, deadline: float = PATIENCE) -> AsyncIterator[Writers]:
        """Writers that work while the block lasts; at its end each commit begun is acknowledged."""
        writers = cls(tenancy, [(await tenancy.create()).flow_id for _ in range(WRITERS)], deadline)
        tasks = [asyncio.create_task(writers._write(at)) for at in range(WRITERS)]
        try:
            yield writers
        finally:
            writers._stop = True
            async with asyncio.timeout(60):
                await asyncio.gather(*tasks)

    async def more(self, number: int = WRITERS) -> None:
        """Returns once ``number`` more commits were acknowledged."""
        goal = len(self.acknowledged) + number
        async with asyncio.timeout(60):
            while len(self.acknowledged) < goal:
                self._written.clear()
                await self._written.wait()

    async def until_acknowledged(self, rpc: str, flow_id: str) -> None:
        """One more commit, of another kind."""
        self.acknowledged.append(await self._until_acknowledged(Commit.of(rpc, flow_id=flow_id)))

    async def _write(self, at: int) -> None:
        sequence = 0
        while not self._stop:
            sequence += 1
            update = {"display_name": f"{at}.{sequence}"}
            commit = Commit.of("UpdateFlow", flow_id=self.flows[at], update=update)
            self.acknowledged.append(await self._until_acknowledged(commit))
            self._written.set()

    async def _until_acknowledged(self, commit: Commit) -> Acknowledged:
        while True:
            started = time.monotonic()
            try:
                return await send(self._tenancy, commit, self._deadline)
            except grpc.aio.AioRpcError as error:
                self.refusals.append(Refusal.of(error))
                await asyncio.sleep(0.05)  # as a client would
            finally:
                self.longest = max(self.longest, time.monotonic() - started)


def assert_told_to_come_back(refusals: list[Refusal]) -> None:
    """All were refused, and each was told by RetryInfo that it may try again."""
    told = Counter((one.code, one.reason, one.details) for one in refusals)
    assert told.keys() == {(grpc.StatusCode.UNAVAILABLE, "STORE_UNAVAILABLE", ("ErrorInfo", "RetryInfo"))}, told


async def health(channel: grpc.aio.Channel, wanted: int) -> None:
    """Returns once the server's health is as wanted; the stream of the standard service tells."""
    stub: Any = health_pb2_grpc.HealthStub(channel)
    stream = stub.Watch(health_pb2.HealthCheckRequest(service="flowledger.v1.FlowService"), timeout=HEALTH_SECONDS)
    async for response in stream:
        if response.status == wanted:
            stream.cancel()
            return
    raise AssertionError("the health stream ended")
