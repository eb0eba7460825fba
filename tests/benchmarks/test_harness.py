"""The harness: ratios say what the samples say, records hold no machine's name, one command runs it all."""

from __future__ import annotations

import asyncio
import json
import math
import platform
import sys
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.__main__ import Plan, Stage
from benchmarks.documents import document
from benchmarks.ratios import judge
from benchmarks.report import Run, record
from benchmarks.requests import Rotation, tenants
from benchmarks.sample import Measure, Result, Sample, sample_of

ROOT = Path(__file__).parents[2]


def _result(name: str, callers: int, rate: float) -> Result:
    return Result(name, callers, (Sample(int(rate), 1.0, 1.0, 2.0),))


async def _never(seconds: float) -> Sample:
    raise AssertionError(f"not to be run for {seconds} s")


def test_a_sample_knows_its_quantiles_and_costs() -> None:
    sample = sample_of([number / 1_000 for number in range(1, 101)], 2.0, {"server": 0.5})
    assert (sample.rate, sample.p50_ms, sample.p99_ms) == (50.0, 51.0, 100.0)
    assert sample.cpu == (("server", 5_000.0),)


def test_a_ratio_is_reached_missed_or_not_measured() -> None:
    results = [_result("echo", 16, 10_000), _result("report_progress", 16, 4_000), _result("get_flow", 16, 5_999)]
    judged = {one.ratio.text: one.reached for one in judge(results)}
    assert judged["ReportProgress, 16 concurrent / echo RPC at 16"] is True
    assert judged["GetFlow SUMMARY, 16 concurrent / echo RPC at 16"] is False
    assert judged["TransitionPhase, 16 concurrent / echo RPC at 16"] is None


def test_a_record_holds_every_measure_and_not_the_machines_name(tmp_path: Path) -> None:
    results = [_result("echo", 16, 10_000), Result("stream_progress", 1, (Sample(9, 1.0, math.nan, math.nan),))]
    run = Run(datetime(2026, 11, 22, tzinfo=UTC), 5, 1.0, {"Python": "3.11"}, results, judge(results))
    written = record(run, tmp_path, "trial")
    assert written.name == "2026-11-22-trial.md"
    kept = json.loads((tmp_path / "2026-11-22-trial.json").read_text())
    assert [one["measure"] for one in kept["results"]] == ["echo", "stream_progress"]
    assert kept["results"][1]["p99_ms"] is None
    assert platform.node() not in written.read_text()


def test_no_two_callers_change_the_same_flow() -> None:
    owners = tenants(4, 64, 1)
    rotation = Rotation(owners, 16)
    taken = [{rotation.next(caller) for _ in range(10)} for caller in range(16)]
    assert sum(len(flows) for flows in taken) == len(set().union(*taken)) == 64
    assert all(flows <= set(owners[caller % 4].flow_ids) for caller, flows in enumerate(taken))


def test_a_document_has_exactly_the_size_asked_for() -> None:
    assert [len(document(size, 3)) for size in (100, 10_240, 100_000)] == [100, 10_240, 100_000]
    assert json.loads(document(10_240, 3)) != json.loads(document(10_240, 4))


def test_only_the_stages_that_are_needed_are_set_up() -> None:
    everything = (Stage.CEILINGS, Stage.LANGGRAPH, Stage.SERVICE)
    plan = Plan(everything, ("echo", "report_progress"), (16,), 1, 1.0, Path("python"), 1)
    assert plan.needed() == (Stage.CEILINGS, Stage.SERVICE)
    assert plan.wants(Measure("echo", 16, _never))
    assert not plan.wants(Measure("echo", 64, _never))
    assert Plan(everything, (), (), 1, 1.0, Path("python"), 1).needed() == everything


async def test_one_command_measures_the_service_against_its_ceiling() -> None:
    wanted = ("--only", "echo", "--only", "report_progress", "--only", "watch", "--concurrency", "16", "--concurrency", "1")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks", *wanted, "--rounds", "1", "--seconds", "0.2"),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output = (await asyncio.wait_for(process.communicate(), 110))[0].decode()
    assert process.returncode == 0, output
    assert "ReportProgress, 16 concurrent / echo RPC at 16" in output
    assert "WatchFlow: commit to subscriber" in output
    assert "not measured" not in output
