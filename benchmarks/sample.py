"""What one round of one measure gave, and what all its rounds say together."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True, slots=True)
class Sample:
    """One round: how many calls in how many seconds, how long they took and what they cost.

    Latencies are nan where single calls have none. ``cpu`` is microseconds of processor time a call, by what spent it (for example
    ``server``, ``postgres``).
    """

    calls: int
    seconds: float
    p50_ms: float
    p99_ms: float
    cpu: tuple[tuple[str, float], ...] = ()

    @property
    def rate(self) -> float:
        """Calls a second."""
        return self.calls / self.seconds


@dataclass(frozen=True, slots=True)
class Measure:
    """Something that can be run for a number of seconds at one concurrency."""

    name: str
    concurrency: int
    run: Callable[[float], Awaitable[Sample]]

    @property
    def key(self) -> tuple[str, int]:
        """What ratios refer to it by."""
        return self.name, self.concurrency


@dataclass(frozen=True, slots=True)
class Result:
    """All rounds of one measure; every figure is the median over the rounds."""

    name: str
    concurrency: int
    samples: tuple[Sample, ...]

    @property
    def rate(self) -> float:
        """Calls a second."""
        return median(sample.rate for sample in self.samples)

    @property
    def lowest(self) -> float:
        """The rate of the slowest round."""
        return min(sample.rate for sample in self.samples)

    @property
    def highest(self) -> float:
        """The rate of the fastest round."""
        return max(sample.rate for sample in self.samples)

    @property
    def p50_ms(self) -> float:
        """Half of the calls took at most this long."""
        return median(sample.p50_ms for sample in self.samples)

    @property
    def p99_ms(self) -> float:
        """99 of 100 calls took at most this long."""
        return median(sample.p99_ms for sample in self.samples)

    @property
    def cpu(self) -> dict[str, float]:
        """Microseconds of processor time a call, by what spent it."""
        names = dict.fromkeys(name for sample in self.samples for name, _ in sample.cpu)
        return {name: median(dict(sample.cpu).get(name, 0.0) for sample in self.samples) for name in names}


def sample_of(latencies: Sequence[float], seconds: float, cpu: dict[str, float] | None = None) -> Sample:
    """A sample from each call's latency in seconds; ``cpu`` holds the processor seconds spent in the whole round."""
    ordered = sorted(latencies)
    if not ordered:
        raise RuntimeError(f"no call finished within {seconds:.1f} s")
    calls = len(ordered)
    return Sample(
        calls,
        seconds,
        quantile(ordered, 0.50) * 1e3,
        quantile(ordered, 0.99) * 1e3,
        tuple((name, spent / calls * 1e6) for name, spent in (cpu or {}).items()),
    )


def quantile(ordered: Sequence[float], share: float) -> float:
    """The value that ``share`` of the ascending values do not exceed."""
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]
