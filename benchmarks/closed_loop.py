"""Callers that each make their next call as soon as the last one is answered."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping

from benchmarks.processor import spending
from benchmarks.sample import Sample, sample_of


async def closed_loop(call: Callable[[int], Awaitable[object]], callers: int, seconds: float, trees: Mapping[str, int]) -> Sample:
    """Runs ``call(caller)`` from ``callers`` callers for ``seconds``; a call that raises ends the measure."""
    latencies: list[float] = []
    deadline = time.perf_counter() + seconds

    async def caller(number: int) -> None:
        begun = time.perf_counter()
        while begun < deadline:
            await call(number)
            ended = time.perf_counter()
            latencies.append(ended - begun)
            begun = ended

    with spending(trees) as spent:
        async with asyncio.TaskGroup() as group:
            for number in range(callers):
                group.create_task(caller(number))
    return sample_of(latencies, spent.wall, spent.cpu)
