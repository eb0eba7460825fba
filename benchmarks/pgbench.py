"""Runs PostgreSQL's own load generator: the cheapest client there is for a statement."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.child_process import output_of
from benchmarks.postgres import Postgres
from benchmarks.processor import spending
from benchmarks.sample import Sample, sample_of


@dataclass(frozen=True, slots=True)
class Load:
    """What pgbench shall do: each transaction runs one of ``scripts``, prepared once per connection."""

    scripts: Sequence[str]
    clients: int
    variables: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, str] = field(default_factory=dict)


async def pgbench(postgres: Postgres, load: Load, seconds: float) -> Sample:
    """Runs ``load`` for ``seconds`` (whole ones, at least 1).

    Raises RuntimeError with pgbench's own words when it fails.
    """
    with tempfile.TemporaryDirectory(prefix="flpgbench-") as scratch:
        directory = Path(scratch)
        command = [postgres.program("pgbench"), "--no-vacuum", "--protocol=prepared", "--log", "--sampling-rate=0.2"]
        command += [f"--client={load.clients}", f"--jobs={min(2, load.clients)}", f"--time={max(1, round(seconds))}"]
        for number, script in enumerate(load.scripts):
            path = directory / f"{number}.sql"
            path.write_text(script)
            command.append(f"--file={path}")
        command += [f"--define={name}={value}" for name, value in load.variables.items()]
        command.append(postgres.url)
        options = " ".join(f"-c {name}={value}" for name, value in load.settings.items())
        with spending({"postgres": postgres.pid}) as spent:
            output = await output_of(command, cwd=directory, env={**os.environ, "PGOPTIONS": options})
        sampled = sample_of(_latencies(directory), spent.wall)
    calls, rate = _totals(output)
    return Sample(calls, calls / rate, sampled.p50_ms, sampled.p99_ms, (("postgres", spent.cpu["postgres"] / calls * 1e6),))


def _latencies(directory: Path) -> list[float]:
    """What pgbench logged of the transactions that it sampled; seconds."""
    lines = [line for path in directory.glob("pgbench_log.*") for line in path.read_text().splitlines()]
    return [int(line.split()[2]) / 1e6 for line in lines]


def _totals(output: str) -> tuple[int, float]:
    """The number of transactions and their rate without the time to connect."""
    calls = rate = None
    for line in output.splitlines():
        if line.startswith("number of transactions actually processed:"):
            calls = int(line.split(":")[1].split("/")[0])
        elif line.startswith("tps ="):
            rate = float(line.split()[2])
        elif line.startswith("number of failed transactions:") and not line.split(":")[1].strip().startswith("0 "):
            raise RuntimeError(f"pgbench: {line}")
    if calls is None or rate is None:
        raise RuntimeError(f"pgbench printed no totals:\n{output}")
    return calls, rate
