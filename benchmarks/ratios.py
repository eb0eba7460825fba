"""What must be reached, as ratios between measures of one run: absolute figures say more about the machine than about the service."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Literal

from benchmarks.sample import Result

Results = dict[tuple[str, int], Result]


@dataclass(frozen=True, slots=True)
class Ratio:
    """One line of the table of PERFORMANCE: what is compared, and the bound that it must keep."""

    text: str
    needs: tuple[tuple[str, int], ...]
    figure: Callable[[Results], float]
    bound: Literal["at least", "at most"]
    required: float
    unit: str = ""


@dataclass(frozen=True, slots=True)
class Judged:
    """A ratio and what each round of this run says of it; there are no rounds when a measure that it needs did not run."""

    ratio: Ratio
    rounds: tuple[float, ...]

    @property
    def actual(self) -> float | None:
        """The median of the rounds, each compared within itself; None when it was not measured."""
        return median(self.rounds) if self.rounds else None

    @property
    def reached(self) -> bool | None:
        """Whether the bound is kept; None when it was not measured."""
        if self.actual is None:
            return None
        return self.actual >= self.ratio.required if self.ratio.bound == "at least" else self.actual <= self.ratio.required


def _rates(text: str, over: tuple[str, int], under: tuple[str, int], required: float) -> Ratio:
    return Ratio(text, (over, under), lambda found: found[over].rate / found[under].rate, "at least", required)


def _p99(text: str, key: tuple[str, int], required: float) -> Ratio:
    return Ratio(text, (key,), lambda found: found[key].p99_ms, "at most", required, " ms")


_LONE = (("transition_phase", 1), ("echo", 1), ("asyncpg", 1))
_FULL, _WARM = ("transition_phase, full", 16), ("transition_phase, warm", 16)
STATE_OPERATIONS = ("get_flow", "report_progress", "transition_phase", "update_flow", "get_flow_full")

CHECKPOINT_SIZES = ("10 KiB", "1 MiB", "64 MiB")

RATIOS: tuple[Ratio, ...] = (
    _rates("TransitionPhase, 16 concurrent / echo RPC at 16", ("transition_phase", 16), ("echo", 16), 0.40),
    _rates("ReportProgress, 16 concurrent / echo RPC at 16", ("report_progress", 16), ("echo", 16), 0.40),
    _rates("TransitionPhase, 64 concurrent / pgbench mutation at 8", ("transition_phase", 64), ("pgbench", 8), 0.45),
    _rates("ReportProgress, 64 concurrent / pgbench mutation at 8", ("report_progress", 64), ("pgbench", 8), 0.45),
    _rates("GetFlow SUMMARY, 16 concurrent / echo RPC at 16", ("get_flow", 16), ("echo", 16), 0.60),
    Ratio(
        "TransitionPhase, 1 caller: p50 / (echo p50 + bare asyncpg mutation p50)",
        _LONE,
        lambda found: found[_LONE[0]].p50_ms / (found[_LONE[1]].p50_ms + found[_LONE[2]].p50_ms),
        "at most",
        1.6,
    ),
    _rates("progress reports over one client stream / echo RPC at 16", ("stream_progress", 1), ("echo", 16), 2.0),
    _rates("UpdateFlow 10 KiB / LangGraph put 10 KiB, 16 concurrent", ("update_flow", 16), ("langgraph put", 16), 2.5),
    _rates("GetFlow FULL 10 KiB / LangGraph get_tuple, 16 concurrent", ("get_flow_full", 16), ("langgraph get", 16), 4.0),
    _rates("deliveries to 1,000 subscribers / bare fan-out of the same bytes", ("fan-out", 1_000), ("bare fan-out", 1_000), 0.8),
    _p99("WatchFlow: commit to subscriber, idle machine, p99", ("watch", 1), 20.0),
    _rates("mutations with 1 M flows and 20 M events / with a warm 10,000", _FULL, _WARM, 0.85),
    *(
        _rates(f"{call} {size} / bare AES-GCM + zstd + one INSERT", (f"{name}, {size}", 1), (f"bare seal, {size}", 1), required)
        for call, name, needed in (
            ("CreateCheckpoint", "create_checkpoint", (0.3, 0.3, 0.3)),
            ("RestoreCheckpoint", "restore_checkpoint", (0.1, 0.1, 0.1)),
        )
        for size, required in zip(CHECKPOINT_SIZES, needed, strict=True)
    ),
    *(_p99(f"{operation} at half load, p99", (f"{operation}, half load", 64), 50.0) for operation in STATE_OPERATIONS),
)


def judge(results: Sequence[Result], ratios: Sequence[Ratio] = RATIOS) -> list[Judged]:
    """What the results say of each ratio."""
    rounds = [
        {(result.name, result.concurrency): replace(result, samples=(sample,)) for result, sample in zip(results, samples, strict=True)}
        for samples in zip(*(result.samples for result in results), strict=True)
    ]
    return [Judged(ratio, tuple(ratio.figure(found) for found in rounds if all(key in found for key in ratio.needs))) for ratio in ratios]
