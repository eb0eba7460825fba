"""Processor time of process trees, so that a rate comes with what it cost and where."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import psutil


@dataclass(slots=True)
class Spent:
    """Filled in when the ``with`` block of :func:`spending` ends; seconds."""

    wall: float = 0.0
    cpu: dict[str, float] = field(default_factory=dict)


@contextmanager
def spending(trees: Mapping[str, int]) -> Iterator[Spent]:
    """Measures wall time and the processor time of each named process tree (name to the pid of its root) while the block runs."""
    spent = Spent()
    before = {name: _total(pid) for name, pid in trees.items()}
    start = time.perf_counter()
    yield spent
    spent.wall = time.perf_counter() - start
    spent.cpu = {name: _total(pid) - before[name] for name, pid in trees.items()}


@dataclass(slots=True)
class Others:
    """Filled in when the ``with`` block of :func:`others` ends; shares of all processors, 0 to 1."""

    used: float = 0.0
    stolen: float = 0.0


@contextmanager
def others(trees: Mapping[str, int]) -> Iterator[Others]:
    """Measures what processes outside the ``trees`` used of the processors while the block runs, and what the hypervisor took away."""
    found = Others()
    busy, stolen = _machine()
    with spending(trees) as spent:
        yield found
    busy_after, stolen_after = _machine()
    available = spent.wall * (psutil.cpu_count() or 1)
    found.used = max(0.0, busy_after - busy - sum(spent.cpu.values())) / available
    found.stolen = (stolen_after - stolen) / available


def _machine() -> tuple[float, float]:
    """Seconds that all processors were busy, and seconds that the hypervisor gave to others (0 where that is not known)."""
    times = psutil.cpu_times()
    busy = times.user + times.nice + times.system + getattr(times, "irq", 0.0) + getattr(times, "softirq", 0.0)
    return busy, getattr(times, "steal", 0.0)


def _total(pid: int) -> float:
    root = psutil.Process(pid)
    while True:
        children = root.children(recursive=True)
        try:
            live = sum(times.user + times.system for times in (child.cpu_times() for child in children))
        except psutil.NoSuchProcess:
            continue
        times = root.cpu_times()
        if children == root.children(recursive=True):  # else one ended in between and would be counted twice, or not at all
            return float(live + times.user + times.system + times.children_user + times.children_system)
