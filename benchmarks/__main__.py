"""``python -m benchmarks``: measures, prints, records."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
import uvloop
from rich.console import Console

from benchmarks.checkpoints import NAMES as CHECKPOINT_NAMES
from benchmarks.checkpoints import checkpoints
from benchmarks.children import children
from benchmarks.echo import NAMES as ECHO_NAMES
from benchmarks.echo import echo
from benchmarks.langgraph_saver import NAMES as LANGGRAPH_NAMES
from benchmarks.langgraph_saver import langgraph
from benchmarks.machine import machine
from benchmarks.mutation import NAMES as MUTATION_NAMES
from benchmarks.mutation import mutation
from benchmarks.postgres import Postgres, private_postgres
from benchmarks.processor import others
from benchmarks.ratios import judge
from benchmarks.report import Run, record, show
from benchmarks.rounds import alternate
from benchmarks.rows import rows
from benchmarks.sample import Measure, Sample
from benchmarks.service import CONCURRENCIES, service, unary_measures
from benchmarks.skeleton import NAMES as SKELETON_NAMES
from benchmarks.skeleton import skeleton
from benchmarks.streams import stream_measure
from benchmarks.watching import watch_measures

RESULTS = Path(__file__).parent / "results"


class Stage(StrEnum):
    """A group of measures that share a set-up."""

    CEILINGS = "ceilings"
    LANGGRAPH = "langgraph"
    SERVICE = "service"
    ROWS = "rows"
    CHILDREN = "children"
    CHECKPOINTS = "checkpoints"


DEFAULT = (Stage.CEILINGS, Stage.LANGGRAPH, Stage.SERVICE)


@dataclass(frozen=True, slots=True)
class Plan:
    """What to run and for how long."""

    stages: tuple[Stage, ...]
    only: tuple[str, ...]
    concurrencies: tuple[int, ...]
    rounds: int
    seconds: float
    langgraph_python: Path
    flows: int

    def needed(self) -> tuple[Stage, ...]:
        """The stages without those that have none of the wanted measures."""
        ceilings = {*ECHO_NAMES, *MUTATION_NAMES, *SKELETON_NAMES}
        elsewhere = {Stage.CEILINGS: ceilings, Stage.LANGGRAPH: set(LANGGRAPH_NAMES), Stage.CHECKPOINTS: set(CHECKPOINT_NAMES)}
        rest = set(self.only).difference(*elsewhere.values())
        return tuple(stage for stage in self.stages if not self.only or elsewhere.get(stage, rest) & set(self.only))

    def wants(self, measure: Measure) -> bool:
        """Whether the measure was not left out."""
        return (not self.only or measure.name in self.only) and (not self.concurrencies or measure.concurrency in self.concurrencies)


@asynccontextmanager
async def _opened(stage: Stage, postgres: Postgres, plan: Plan, trees: dict[str, int]) -> AsyncIterator[list[Measure]]:
    async with AsyncExitStack() as stack:
        match stage:
            case Stage.CEILINGS:
                measures = await stack.enter_async_context(echo(CONCURRENCIES))
                measures += await stack.enter_async_context(mutation(postgres))
                measures += await stack.enter_async_context(skeleton(postgres, CONCURRENCIES))
            case Stage.LANGGRAPH:
                measures = await stack.enter_async_context(langgraph(postgres, plan.langgraph_python))
            case Stage.SERVICE:
                started = await stack.enter_async_context(service(postgres))
                measures = [*unary_measures(started), stream_measure(started), *watch_measures(started)]
            case Stage.ROWS:
                measures = await stack.enter_async_context(rows(plan.flows, trees))
            case Stage.CHILDREN:
                measures = await stack.enter_async_context(children(postgres))
            case Stage.CHECKPOINTS:
                measures = await stack.enter_async_context(checkpoints(postgres))
        yield measures


async def _run(plan: Plan, console: Console) -> Run:
    def heard(number: int, measure: Measure, sample: Sample) -> None:
        console.print(f"[dim]round {number}: {measure.name}, {measure.concurrency} callers: {sample.rate:,.0f} a second[/dim]")

    this = asyncio.current_task()
    assert this is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, this.cancel)  # so that nothing is left running
    async with AsyncExitStack() as stack:
        postgres = await stack.enter_async_context(private_postgres())
        trees = {"harness": os.getpid(), "postgres": postgres.pid}
        measures: list[Measure] = []
        for stage in plan.needed():
            measures += await stack.enter_async_context(_opened(stage, postgres, plan, trees))
        wanted = [measure for measure in measures if plan.wants(measure)]
        if not wanted:
            known = ", ".join(dict.fromkeys(measure.name for measure in measures))
            raise typer.BadParameter(f"that leaves no measure; the stages {', '.join(plan.stages)} have: {known}")
        with others(trees) as found:
            results = await alternate(wanted, plan.rounds, plan.seconds, heard)
        everything = set(plan.stages) >= set(DEFAULT) and not (plan.only or plan.concurrencies)
        judged = [one for one in judge(results) if everything or one.actual is not None]
        return Run(datetime.now(UTC), plan.rounds, plan.seconds, await machine(postgres, found), results, judged)


def main(
    stage: Annotated[list[Stage] | None, typer.Option(help="Which group to run; repeatable; three by default.")] = None,
    only: Annotated[list[str] | None, typer.Option(help="Only measures of this name, for example report_progress; repeatable.")] = None,
    concurrency: Annotated[list[int] | None, typer.Option(help="Only at this many callers; repeatable.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; at least 5 for figures to keep.")] = 5,
    seconds: Annotated[float, typer.Option(min=0.2, help="How long each measure runs in each round.")] = 2.0,
    langgraph_python: Annotated[
        Path, typer.Option(help="An interpreter with langgraph-checkpoint-postgres and psycopg.", show_default="this one")
    ] = Path(sys.executable),
    flows: Annotated[int, typer.Option(min=1, help="Flows of stage rows; each has 20 events.")] = 1_000_000,
    name: Annotated[str | None, typer.Option(help="Record the run as benchmarks/results/DATE-NAME.")] = None,
) -> None:
    """Measures the service and its ceilings on this machine, in alternating rounds."""
    console = Console(width=160)
    plan = Plan(tuple(stage or DEFAULT), tuple(only or ()), tuple(concurrency or ()), rounds, seconds, langgraph_python, flows)
    load = os.getloadavg()[0]
    if load > 0.5:
        console.print(f"[yellow]something else is running: the load average is {load:.1f}; these figures will be noisy[/yellow]")
    try:
        run = uvloop.run(_run(plan, console))
    except asyncio.CancelledError:
        raise typer.Exit(143) from None
    show(run, console)
    if name is not None:
        console.print(f"recorded in {record(run, RESULTS, name).relative_to(RESULTS.parents[1])}")


if __name__ == "__main__":
    typer.run(main)
