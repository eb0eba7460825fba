"""``python -m benchmarks``: measures, prints, records."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
import uvloop
from rich.console import Console

from benchmarks.children import children
from benchmarks.echo import echo
from benchmarks.langgraph_saver import langgraph
from benchmarks.machine import machine
from benchmarks.mutation import mutation
from benchmarks.postgres import Postgres, private_postgres
from benchmarks.ratios import judge
from benchmarks.report import Run, record, show
from benchmarks.rounds import alternate
from benchmarks.sample import Measure, Sample
from benchmarks.service import service, unary_measures
from benchmarks.streams import stream_measure
from benchmarks.watching import watch_measures

RESULTS = Path(__file__).parent / "results"
CONCURRENCIES = (1, 16, 64)


class Stage(StrEnum):
    """A group of measures that share a set-up."""

    CEILINGS = "ceilings"
    LANGGRAPH = "langgraph"
    SERVICE = "service"
    CHILDREN = "children"


@asynccontextmanager
async def _open(stage: Stage, postgres: Postgres, langgraph_python: Path) -> AsyncIterator[list[Measure]]:
    async with AsyncExitStack() as stack:
        match stage:
            case Stage.CEILINGS:
                measures = await stack.enter_async_context(echo(CONCURRENCIES))
                measures += await stack.enter_async_context(mutation(postgres))
            case Stage.LANGGRAPH:
                measures = await stack.enter_async_context(langgraph(postgres, langgraph_python))
            case Stage.SERVICE:
                started = await stack.enter_async_context(service(postgres))
                measures = [*unary_measures(started), stream_measure(started), *watch_measures(started)]
            case Stage.CHILDREN:
                measures = await stack.enter_async_context(children(postgres))
        yield measures


async def _run(
    stages: list[Stage], only: list[str], concurrency: list[int], rounds: int, seconds: float, langgraph_python: Path, console: Console
) -> Run:
    def heard(number: int, measure: Measure, sample: Sample) -> None:
        console.print(f"[dim]round {number}: {measure.name} {measure.concurrency}: {sample.rate:,.0f}/s, p99 {sample.p99_ms:.2f} ms[/dim]")

    async with AsyncExitStack() as stack:
        postgres = await stack.enter_async_context(private_postgres())
        measures: list[Measure] = []
        for stage in stages:
            measures += await stack.enter_async_context(_open(stage, postgres, langgraph_python))
        wanted = [
            measure
            for measure in measures
            if (not only or measure.name in only) and (not concurrency or measure.concurrency in concurrency)
        ]
        if not wanted:
            known = ", ".join(dict.fromkeys(measure.name for measure in measures))
            raise typer.BadParameter(f"no measure is left; these exist: {known}")
        results = await alternate(wanted, rounds, seconds, heard)
        judged = [one for one in judge(results) if one.actual is not None or not (only or concurrency)]
        return Run(datetime.now(UTC), rounds, seconds, await machine(postgres), results, judged if Stage.CHILDREN not in stages else [])


def main(
    stage: Annotated[list[Stage] | None, typer.Option(help="Which groups to run; repeatable.")] = None,
    only: Annotated[list[str] | None, typer.Option(help="Only measures of this name; repeatable.")] = None,
    concurrency: Annotated[list[int] | None, typer.Option(help="Only at this many callers; repeatable.")] = None,
    rounds: Annotated[int, typer.Option(min=1)] = 5,
    seconds: Annotated[float, typer.Option(min=0.2, help="How long each measure runs in each round.")] = 3.0,
    langgraph_python: Annotated[Path, typer.Option(help="An interpreter that has langgraph-checkpoint-postgres and psycopg.")] = Path("python"),
    name: Annotated[str | None, typer.Option(help="Records the run as results/DATE-NAME; without it nothing is recorded.")] = None,
) -> None:
    """Measures the service and its ceilings on this machine, in alternating rounds."""
    console = Console(width=160)
    stages = stage or [Stage.CEILINGS, Stage.LANGGRAPH, Stage.SERVICE]
    run = uvloop.run(_run(stages, only or [], concurrency or [], rounds, seconds, langgraph_python, console))
    show(run, console)
    if name is not None:
        console.print(f"recorded in {record(run, RESULTS, name).relative_to(RESULTS.parent.parent)}")


if __name__ == "__main__":
    typer.run(main)
