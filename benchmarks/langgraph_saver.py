"""The peer: LangGraph's AsyncPostgresSaver in process, on the same PostgreSQL, with the same 10 KiB document.

The part that measures runs as ``python -m benchmarks.langgraph_saver URL put|get CALLERS SECONDS`` under an interpreter that has
langgraph-checkpoint-postgres and psycopg; it imports nothing else that such an interpreter might lack.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.child_process import output_of, succeeds
from benchmarks.documents import document
from benchmarks.sample import Measure, Sample, sample_of

if TYPE_CHECKING:
    from benchmarks.postgres import Postgres

NAMES = ("langgraph put", "langgraph get")
CALLERS = 16
THREADS = 1_024
SIZE = 10 * 1_024
_PRESENT = "import langgraph.checkpoint.postgres.aio, psycopg_pool"


@asynccontextmanager
async def langgraph(postgres: Postgres, python: Path) -> AsyncIterator[list[Measure]]:
    """The measures ``langgraph put`` and ``langgraph get``; none at all when ``python`` has no LangGraph."""
    if not await succeeds([python, "-c", _PRESENT]):
        yield []
        return
    connection = await postgres.connect()
    await connection.execute("CREATE SCHEMA langgraph")
    await connection.close()
    url = f"{postgres.url}&options=-csearch_path%3Dlanggraph"
    await _measured(python, url, "fill", CALLERS, 0.0)

    def measure(name: str, operation: str) -> Measure:
        async def run(seconds: float) -> Sample:
            return await _measured(python, url, operation, CALLERS, seconds)

        return Measure(name, CALLERS, run)

    yield [measure(NAMES[0], "put"), measure(NAMES[1], "get")]


async def _measured(python: Path, url: str, operation: str, callers: int, seconds: float) -> Sample:
    sample = json.loads(await output_of([python, "-m", "benchmarks.langgraph_saver", url, operation, str(callers), str(seconds)]))
    return Sample(**{**sample, "cpu": tuple((name, spent) for name, spent in sample["cpu"])})


async def _measure(url: str, operation: str, callers: int, seconds: float) -> Sample:
    # Imported here: only this interpreter has them.
    from langgraph.checkpoint.base import empty_checkpoint  # type: ignore[import-not-found, unused-ignore]  # noqa: PLC0415
    from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver  # type: ignore[import-not-found, unused-ignore]  # noqa: PLC0415
    from psycopg.rows import dict_row  # type: ignore[import-not-found, unused-ignore]  # noqa: PLC0415
    from psycopg_pool import AsyncConnectionPool  # type: ignore[import-not-found, unused-ignore]  # noqa: PLC0415

    settings: dict[str, Any] = {"autocommit": True, "prepare_threshold": 0, "row_factory": dict_row}  # as its documentation asks
    async with AsyncConnectionPool(url, min_size=callers, max_size=callers, kwargs=settings, open=False) as pool:
        saver = AsyncPostgresSaver(pool)  # type: ignore[arg-type, unused-ignore]
        states = [json.loads(document(SIZE, seed)) for seed in range(callers)]
        latencies: list[float] = []
        version = time.time_ns()  # versions only rise, also from one round to the next

        async def put(thread: int, state: object) -> None:
            nonlocal version
            version += 1
            checkpoint = empty_checkpoint()
            checkpoint["channel_values"] = {"state": state}
            checkpoint["channel_versions"] = {"state": version}
            config = {"configurable": {"thread_id": f"thread-{thread}", "checkpoint_ns": ""}}
            await saver.aput(config, checkpoint, {"source": "loop", "step": 1, "parents": {}}, {"state": version})

        async def get(thread: int, _: object) -> None:
            found = await saver.aget_tuple({"configurable": {"thread_id": f"thread-{thread}"}})
            assert found is not None, "a thread that was filled has no checkpoint"
            assert found.checkpoint["channel_values"]["state"]

        async def caller(number: int) -> None:
            call = put if operation == "put" else get
            thread, begun = number, time.perf_counter()
            while begun < deadline:
                await call(thread, states[number])
                ended = time.perf_counter()
                latencies.append(ended - begun)
                thread, begun = (thread + callers) % THREADS, ended

        if operation == "fill":
            await saver.setup()
            for thread in range(THREADS):
                await put(thread, states[thread % callers])
            return Sample(THREADS, 1.0, 0.0, 0.0)
        start, spent = time.perf_counter(), time.process_time()
        deadline = start + seconds
        await asyncio.gather(*(caller(number) for number in range(callers)))
        return sample_of(latencies, time.perf_counter() - start, {"client": time.process_time() - spent})


if __name__ == "__main__":
    print(json.dumps(asdict(asyncio.run(_measure(sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4]))))))
