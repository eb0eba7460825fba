"""The service under test: `flowledger serve` in a process of its own on the same PostgreSQL, and the load on its unary methods."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.generator import Requests, Target, paced_load, unary_load
from benchmarks.postgres import Postgres
from benchmarks.requests import BEGIN, CREATIONS, FULL, REPORTS, SERVICE, SUMMARY, UPDATES, Each, Identified, Tenant, Toggles, Turns, tenants
from benchmarks.sample import Measure, Sample
from benchmarks.wire import connect

FLOWS = 1_024
CONCURRENCIES = (1, 16, 64)
START_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Service:
    """A running server, and the flows in it.

    The phase data_import of ``running`` flows is IN_PROGRESS and stays so; that of ``toggled`` flows goes to RETRY_NEEDED and back.
    """

    address: tuple[str, int]
    pid: int
    postgres: Postgres
    running: tuple[Tenant, ...]
    toggled: tuple[Tenant, ...]
    spread: tuple[Tenant, ...]

    def target(self, method: str, owners: tuple[Tenant, ...]) -> Target:
        """How to call ``method`` as ``owners``."""
        trees = {"server": self.pid, "postgres": self.postgres.pid}
        return Target(self.address, SERVICE + method, [owner.metadata for owner in owners], trees)


@asynccontextmanager
async def service(postgres: Postgres) -> AsyncIterator[Service]:
    """The service with its default settings, filled: 1,024 flows of one tenant to report to, as many to toggle, as many over 16 tenants."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryFile() as output:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "server", "serve"),
            env={**os.environ, "FLOWLEDGER_PORT": str(port), "FLOWLEDGER_DATA_DIR": str(postgres.data_dir)},
            cwd=Path(__file__).parents[1],
            stdout=output,
            stderr=output,
        )
        try:
            await _answering(("127.0.0.1", port), process, lambda: _tail(output.fileno()))
            running, toggled, spread = tenants(1, FLOWS, 11), tenants(1, FLOWS, 12), tenants(16, FLOWS, 13)
            started = Service(("127.0.0.1", port), process.pid, postgres, running, toggled, spread)
            for owners in (running, toggled, spread):
                await _fill(started, owners)
            yield started
        finally:
            if process.returncode is None:
                process.terminate()
            await process.wait()


async def _answering(address: tuple[str, int], process: asyncio.subprocess.Process, tail: Callable[[], str]) -> None:
    deadline = asyncio.get_running_loop().time() + START_SECONDS
    while process.returncode is None and asyncio.get_running_loop().time() < deadline:
        try:
            (await connect(address, "/grpc.health.v1.Health/Check", ())).close()
        except (ConnectionError, TimeoutError):
            await asyncio.sleep(0.1)
        else:
            return
    raise RuntimeError(f"`flowledger serve` did not answer within {START_SECONDS:g} s; the end of its output:\n{tail()}")


def _tail(descriptor: int) -> str:
    size = os.fstat(descriptor).st_size
    return os.pread(descriptor, 4_000, max(0, size - 4_000)).decode(errors="replace")


async def _fill(started: Service, owners: tuple[Tenant, ...]) -> None:
    for owner in owners:
        for method, rest in (("CreateFlow", CREATIONS), ("TransitionPhase", [BEGIN])):
            await unary_load(started.target(method, (owner,)), Each(owner, rest), 16, 3_600)


def unary_measures(started: Service) -> list[Measure]:
    """Each unary measure at 1, 16 and 64 callers, and at half of what 64 reached."""
    running, toggled, spread = started.running, started.toggled, started.spread
    in_progress: dict[str, bool] = {}

    operations: list[tuple[str, str, tuple[Tenant, ...], Callable[[int], Requests]]] = [
        ("get_flow", "GetFlow", running, lambda callers: Turns(running, callers, [SUMMARY])),
        ("report_progress", "ReportProgress", running, lambda callers: Turns(running, callers, REPORTS)),
        ("transition_phase", "TransitionPhase", toggled, lambda callers: Toggles(toggled, callers, in_progress)),
        ("update_flow", "UpdateFlow", running, lambda callers: Turns(running, callers, UPDATES)),
        ("get_flow_full", "GetFlow", running, lambda callers: Turns(running, callers, [FULL])),
    ]
    measures: list[Measure] = []
    for name, method, owners, requests in operations:
        measures += _operation(name, started.target(method, owners), requests)
    identified = _unary("report_progress, request_id", started.target("ReportProgress", running), 16, lambda n: Identified(Turns(running, n, REPORTS)))
    of_many = _unary("report_progress, 16 tenants", started.target("ReportProgress", spread), 64, lambda n: Turns(spread, n, REPORTS))
    return [*measures, identified, of_many]


def _unary(name: str, target: Target, callers: int, requests: Callable[[int], Requests]) -> Measure:
    async def run(seconds: float) -> Sample:
        return await unary_load(target, requests(callers), callers, seconds)

    return Measure(name, callers, run)


def _operation(name: str, target: Target, requests: Callable[[int], Requests]) -> list[Measure]:
    most = CONCURRENCIES[-1]
    reached: list[float] = []

    async def full(seconds: float) -> Sample:
        sample = await unary_load(target, requests(most), most, seconds)
        reached.append(sample.rate)
        return sample

    async def half(seconds: float) -> Sample:
        if not reached:
            await full(1.0)
        return await paced_load(target, requests(most), most, reached[-1] / 2, seconds)

    fewer = [_unary(name, target, callers, requests) for callers in CONCURRENCIES[:-1]]
    return [*fewer, Measure(name, most, full), Measure(f"{name}, half load", most, half)]
