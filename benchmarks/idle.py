"""``python -m benchmarks.idle``: what streams cost on which nothing happens, and how soon one of them hears when something does."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Annotated

import psutil
import typer
import uvloop

from benchmarks.machine import machine
from benchmarks.postgres import Postgres, private_postgres
from benchmarks.processor import others, spending
from benchmarks.requests import REPORTS, Tenant, Turns, tenants
from benchmarks.sample import Sample
from benchmarks.service import fill
from benchmarks.serving import Serving, serving
from benchmarks.watching import COMMITS_PER_SECOND, Topic, is_event, opening, paced, watching

# The service lets one tenant have 5,000 streams open.
TENANTS = 4
CALM_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Found:
    """What was measured; memory in bytes, times in seconds."""

    streams: int
    memory: int
    opened: float
    calm: dict[str, float]
    latency: Sample


async def _measure(postgres: Postgres, streams: int) -> Found:
    async with AsyncExitStack() as stack:
        started = await stack.enter_async_context(serving(postgres))
        owners = tenants(TENANTS, streams, 14)
        for owner in owners:
            await fill(started, owner)
        server = psutil.Process(started.pid)
        # One watch that comes and goes: what the first one costs is not what each costs.
        await _paced(started, owners[0], 1.0)
        before, begun = server.memory_info().rss, time.perf_counter()
        for owner in owners:
            await stack.enter_async_context(watching(_topic(started, owner, owner.flow_ids)))
        opened = time.perf_counter() - begun
        with spending({"server": started.pid, "postgres": postgres.pid}) as calm:
            await asyncio.sleep(CALM_SECONDS)
        memory = server.memory_info().rss - before
        latency = await _paced(started, owners[0], 10.0)
    return Found(streams, memory, opened, {name: used / calm.wall for name, used in calm.cpu.items()}, latency)


def _topic(started: Serving, owner: Tenant, flows: Sequence[str]) -> Topic:
    watches, reports = started.target("WatchFlow", (owner,)), started.target("ReportProgress", (owner,))
    return Topic(watches, [opening(flow) for flow in flows], reports, Turns((Tenant(owner.metadata, flows),), 1, REPORTS), is_event)


async def _paced(started: Serving, owner: Tenant, seconds: float) -> Sample:
    """One more watch of each of ten flows, and reports to them: each is heard by it, and by the one that is there already."""
    return await paced(_topic(started, owner, owner.flow_ids[:10]), COMMITS_PER_SECOND, seconds)


async def _run(streams: int) -> None:
    async with private_postgres() as postgres:
        with others({"harness": os.getpid(), "postgres": postgres.pid}) as found:
            result = await _measure(postgres, streams)
        facts = await machine(postgres, found)
    calm = ", ".join(f"{name} {used:.1%}" for name, used in result.calm.items())
    print(f"{result.streams:,} streams of as many flows, opened in {result.opened:.1f} s")
    print(f"memory: {result.memory / 2**20:.0f} MiB, {result.memory / result.streams / 1024:.1f} KiB each")
    print(f"nothing happens for {CALM_SECONDS:g} s, heartbeats after 15: of one processor {calm}")
    print(f"{COMMITS_PER_SECOND} commits a second: heard after {result.latency.p50_ms:.2f} ms (p50), {result.latency.p99_ms:.2f} ms (p99)")
    print(", ".join(f"{what} {value}" for what, value in facts.items()))


def main(streams: Annotated[int, typer.Option(min=TENANTS, help="How many, over four tenants.")] = 10_000) -> None:
    """Measures idle streams on one process."""
    uvloop.run(_run(streams))


if __name__ == "__main__":
    typer.run(main)
