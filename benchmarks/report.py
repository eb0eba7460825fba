"""Prints a run for people and records it for the next one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import orjson
from rich.console import Console
from rich.table import Table

from benchmarks.ratios import Judged
from benchmarks.sample import Result

_COLUMNS = ("measure", "callers", "per second", "lowest", "highest", "p50 ms", "p99 ms", "CPU a call, us")
_RATIO_COLUMNS = ("ratio", "actual", "of the rounds", "required", "reached")


@dataclass(frozen=True, slots=True)
class Run:
    """One run of the harness."""

    time: datetime
    rounds: int
    seconds: float
    machine: Mapping[str, str]
    results: Sequence[Result]
    judged: Sequence[Judged]


def show(run: Run, console: Console) -> None:
    """Prints the measures and the ratios as tables."""
    measures = Table(*_COLUMNS, title=f"median of {run.rounds} alternating rounds of {run.seconds:g} s")
    for column in measures.columns[1:-1]:
        column.justify = "right"
    for row in _measure_rows(run):
        measures.add_row(*row)
    console.print(measures)
    console.print(", ".join(f"{what} {value}" for what, value in run.machine.items()), style="dim")
    if run.judged:
        ratios = Table(*_RATIO_COLUMNS)
        for row in _ratio_rows(run):
            ratios.add_row(*row, style={"yes": "green", "NO": "red"}.get(row[-1], "dim"))
        console.print(ratios)


def record(run: Run, directory: Path, name: str) -> Path:
    """Writes the run as ``DATE-name.json`` and ``.md`` into ``directory``; returns the path of the latter."""
    stem = f"{run.time:%Y-%m-%d}-{name}"
    directory.mkdir(parents=True, exist_ok=True)
    (directory / f"{stem}.json").write_bytes(orjson.dumps(_plain(run), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
    path = directory / f"{stem}.md"
    path.write_text(_markdown(run, name))
    return path


def _measure_rows(run: Run) -> list[tuple[str, ...]]:
    return [
        (
            result.name,
            str(result.concurrency),
            f"{result.rate:,.0f}",
            f"{result.lowest:,.0f}",
            f"{result.highest:,.0f}",
            _milliseconds(result.p50_ms),
            _milliseconds(result.p99_ms),
            ", ".join(f"{name} {spent:.0f}" for name, spent in result.cpu.items()),
        )
        for result in run.results
    ]


def _milliseconds(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.2f}"


def _ratio_rows(run: Run) -> list[tuple[str, ...]]:
    return [
        (
            judged.ratio.text,
            "not measured" if judged.actual is None else f"{judged.actual:.2f}{judged.ratio.unit}",
            f"{min(judged.rounds):.2f} to {max(judged.rounds):.2f}" if judged.rounds else "",
            f"{judged.ratio.bound} {judged.ratio.required:g}{judged.ratio.unit}",
            {True: "yes", False: "NO", None: ""}[judged.reached],
        )
        for judged in run.judged
    ]


def _plain(run: Run) -> dict[str, object]:
    return {
        "time": run.time.isoformat(),
        "rounds": run.rounds,
        "seconds": run.seconds,
        "machine": dict(run.machine),
        "results": [
            {
                "measure": result.name,
                "callers": result.concurrency,
                "per_second": {"median": round(result.rate, 1), "lowest": round(result.lowest, 1), "highest": round(result.highest, 1)},
                "p50_ms": round(result.p50_ms, 3),
                "p99_ms": round(result.p99_ms, 3),
                "cpu_us": {name: round(spent, 1) for name, spent in result.cpu.items()},
                "rounds_per_second": [round(sample.rate, 1) for sample in result.samples],
            }
            for result in run.results
        ],
        "ratios": [
            {
                "ratio": judged.ratio.text,
                "actual": None if judged.actual is None else round(judged.actual, 3),
                "rounds": [round(figure, 3) for figure in judged.rounds],
                "bound": judged.ratio.bound,
                "required": judged.ratio.required,
                "reached": judged.reached,
            }
            for judged in run.judged
        ],
    }


def _markdown(run: Run, name: str) -> str:
    lines = [f"# {run.time:%Y-%m-%d} {name}", ""]
    lines += [f"Median of {run.rounds} alternating rounds of {run.seconds:g} s; lowest and highest are the slowest and fastest round.", ""]
    lines += [", ".join(f"{what} {value}" for what, value in run.machine.items()) + ".", ""]
    lines += _table(_COLUMNS, _measure_rows(run), right=range(1, 7))
    if run.judged:
        lines += ["", *_table(_RATIO_COLUMNS, _ratio_rows(run), right=())]
    return "\n".join(lines) + "\n"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int]) -> list[str]:
    rule = ["---:" if position in right else "---" for position in range(len(columns))]
    return [f"| {' | '.join(row)} |" for row in (columns, rule, *rows)]
