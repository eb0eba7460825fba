"""What is counted while the service runs, and the port where Prometheus reads it.

Counting costs a call well under a microsecond: numbers go into plain dictionaries, and are put into Prometheus' form only when somebody
scrapes. The names and help texts stand here; who counts hands over the labels.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import accumulate
from types import MappingProxyType
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import start_http_server

Labels = tuple[str, ...]
# What is counted elsewhere and read at each scrape: a number for each combination of labels.
Reading = Callable[[], Mapping[Labels, float]]

PREFIX = "flowledger"
# Upper bounds in seconds: a cached read takes half a millisecond, a durable commit some, a large checkpoint seconds.
BOUNDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)

# What only ever rises: its help text and its labels.
COUNTERS: Mapping[str, tuple[str, Labels]] = MappingProxyType(
    {
        "calls": ("Calls that ended, by method and outcome: OK, CANCELLED or the reason of the error.", ("method", "outcome")),
        "commits": ("Commits that were stored.", ()),
        "commit_batches": ("Statements that carried commits; commits / batches says how well they gather.", ()),
        "alerts": ("Alerts that were raised, each once.", ("kind",)),
        "alerts_not_stored": ("Alerts that could not be written down; the log has them.", ("kind",)),
        "shared_views": ("Views of flows asked of Redis or put there, by outcome: hit, miss, shared, failure, dropped.", ("outcome",)),
        "sweeper_runs": ("Runs of the sweeper's jobs, by job and outcome.", ("job", "outcome")),
    }
)
# What rises and falls.
GAUGES: Mapping[str, tuple[str, Labels]] = MappingProxyType(
    {
        "pool_connections": ("Connections to PostgreSQL: in use, idle, and the most there may be.", ("state",)),
        "redis_reachable": ("1 while Redis answers, 0 while it is left alone, by what it is used for.", ("use",)),
        "watch_lag_seconds": ("How far the slowest WatchFlows is behind what was committed, in seconds.", ()),
        "watches_open": ("Streams that watch, by what they watch.", ("kind",)),
    }
)


class Metrics:
    """Counts what happens, and hears of each call that ended: it is a ``boundary.Tell``."""

    def __init__(self) -> None:
        self._counts: dict[str, dict[Labels, float]] = {name: {} for name in COUNTERS}
        self._readings: dict[str, list[Reading]] = {}
        # Of each method, how many calls fell below each bound and not the one before; the last is beyond all bounds.
        self._spent: dict[str, list[int]] = {}
        self._seconds: dict[str, float] = {}

    def __call__(self, method: str, outcome: str, started: float, *_: object) -> None:
        """A call ended; ``started`` is of time.perf_counter."""
        seconds = time.perf_counter() - started
        calls, place = self._counts["calls"], (method, outcome)
        calls[place] = calls.get(place, 0) + 1
        spent = self._spent.get(method)
        if spent is None:
            spent = self._spent[method] = [0] * (len(BOUNDS) + 1)
            self._seconds[method] = 0.0
        spent[bisect_left(BOUNDS, seconds)] += 1
        self._seconds[method] += seconds

    def count(self, name: str, *labels: str) -> None:
        """One more of ``name``, which stands in COUNTERS."""
        counts = self._counts[name]
        counts[labels] = counts.get(labels, 0) + 1

    def read(self, name: str, reading: Reading) -> None:
        """Ask ``reading`` for ``name``, which stands in COUNTERS or GAUGES, at each scrape; several readings of one name add up."""
        if name not in COUNTERS and name not in GAUGES:
            raise KeyError(name)
        self._readings.setdefault(name, []).append(reading)

    def collect(self) -> Iterator[Metric]:
        """Everything in Prometheus' form. Called from the thread that serves it, so each dictionary is copied in one step first."""
        for name, (text, labels) in COUNTERS.items():
            counter = CounterMetricFamily(f"{PREFIX}_{name}", text, labels=labels)
            for place, value in self._read(name, dict(self._counts[name])).items():
                counter.add_metric(place, value)
            yield counter
        for name, (text, labels) in GAUGES.items():
            gauge = GaugeMetricFamily(f"{PREFIX}_{name}", text, labels=labels)
            for place, value in self._read(name, {}).items():
                gauge.add_metric(place, value)
            yield gauge
        yield self._latencies()

    def _read(self, name: str, found: dict[Labels, float]) -> dict[Labels, float]:
        for reading in self._readings.get(name, ()):
            for place, value in reading().items():
                found[place] = found.get(place, 0) + value
        return found

    def _latencies(self) -> HistogramMetricFamily:
        text = "How long calls took; streams from their first to their last message."
        family = HistogramMetricFamily(f"{PREFIX}_call_seconds", text, labels=("method",))
        for method, spent in dict(self._spent).items():
            counts = list(accumulate(spent))
            bounds = [*(str(bound) for bound in BOUNDS), "+Inf"]
            family.add_metric([method], list(zip(bounds, counts, strict=True)), self._seconds[method])
        return family


def registry_of(metrics: Metrics) -> CollectorRegistry:
    """A registry with what is counted, and with what the operating system knows of the process."""
    registry = CollectorRegistry()
    registry.register(metrics)
    ProcessCollector(registry=registry)
    return registry


@contextmanager
def exposed(registry: CollectorRegistry, host: str, port: int, spare: int = 0) -> Iterator[int]:
    """The registry served over HTTP from a thread, while the block lasts: on ``port``, or one of the ``spare`` ports after it; which.

    Raises OSError when all of them are taken.
    """
    server, thread, chosen = _started(registry, host, range(port, port + spare + 1))
    try:
        yield chosen
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _started(registry: CollectorRegistry, host: str, ports: range) -> tuple[WSGIServer, threading.Thread, int]:
    trouble: OSError | None = None
    for port in ports:
        try:
            return *start_http_server(port, host.strip("[]"), registry), port
        except OSError as error:
            trouble = error
    raise OSError(f"cannot serve metrics on {host}:{ports[0]} ({trouble}): set FLOWLEDGER_METRICS_PORT") from trouble
