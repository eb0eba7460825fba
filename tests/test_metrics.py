"""Metrics: what is counted is what happened, and Prometheus' own parser reads it."""

from __future__ import annotations

import asyncio
import socket
import time
from typing import Any
from urllib.request import urlopen

import grpc
import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from server import app
from server.metrics import COUNTERS, GAUGES, Metrics, exposed, registry_of
from tests.conftest import Urls, settings
from tests.services.test_alerts import alert, owner
from tests.tenancy import Tenancy

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def read(port: int) -> Samples:
    """Everything that is served, by name and labels."""
    with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as response:
        text = response.read().decode()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(samples: Samples, name: str, **labels: str) -> float:
    """One number; 0 when nothing was counted."""
    return samples.get((f"flowledger_{name}", tuple(sorted(labels.items()))), 0.0)


async def test_calls_commits_watches_and_alerts_are_counted(urls: Urls) -> None:
    port = free_port()
    running = app.running(settings(urls, metrics_port=port, pool_max=9))
    async with running as server, grpc.aio.insecure_channel(server.address) as channel:
        tenancy = Tenancy.fresh(channel)
        flow = await tenancy.create()
        await asyncio.gather(*(tenancy.create() for _ in range(20)))
        await tenancy.refusal("CreateFlow", type="discovery", flow_id=flow.flow_id)
        stream: Any = tenancy.watch(flow.flow_id)
        await anext(aiter(stream))
        for _ in range(2):
            await server.raise_alert(owner(tenancy), alert("the same"))
        found = await asyncio.to_thread(read, port)
        create = "flowledger.v1.FlowService/CreateFlow"
        assert value(found, "calls_total", method=create, outcome="OK") == 21
        assert value(found, "calls_total", method=create, outcome="FLOW_EXISTS") == 1
        assert value(found, "call_seconds_count", method=create) == 22
        assert value(found, "call_seconds_bucket", method=create, le="+Inf") == 22
        assert 0 < value(found, "call_seconds_sum", method=create) < 22 * 20
        assert value(found, "commits_total") == 21
        assert 1 <= value(found, "commit_batches_total") <= 22
        assert value(found, "watches_open", kind="flow") == 1
        assert value(found, "watches_open", kind="alerts") == 0
        assert value(found, "alerts_total", kind="FLOW_STUCK") == 1
        pool = {state: value(found, "pool_connections", state=state) for state in ("in_use", "idle", "most")}
        assert pool["most"] == 9
        assert 1 <= pool["in_use"] + pool["idle"] <= 9
        assert found[("process_resident_memory_bytes", ())] > 1e6
        stream.cancel()
    with pytest.raises(OSError, match="refused"):
        await asyncio.to_thread(read, port)


def test_every_name_has_its_text_and_can_be_counted_or_read() -> None:
    metrics = Metrics()
    for name, (_, labels) in COUNTERS.items():
        metrics.count(name, *labels)
    for name, (_, labels) in {**COUNTERS, **GAUGES}.items():
        metrics.read(name, lambda labels=labels: {labels: 2.0})  # type: ignore[misc]
    found = {(family.name, sample.value) for family in metrics.collect() for sample in family.samples if family.type != "histogram"}
    assert found >= {(f"flowledger_{name}", 3.0) for name in COUNTERS} | {(f"flowledger_{name}", 2.0) for name in GAUGES}
    with pytest.raises(KeyError):
        metrics.read("nothing", dict)
    with pytest.raises(KeyError):
        metrics.count("nothing")


def test_a_call_falls_into_the_bucket_of_its_time() -> None:
    metrics, now = Metrics(), time.perf_counter()
    for spent in (0.0, 0.02, 0.3, 99.0):
        metrics("S/M", "OK", now - spent, None, "", "")
    port = free_port()
    with exposed(registry_of(metrics), "127.0.0.1", port):
        found = read(port)
    counts = [value(found, "call_seconds_bucket", method="S/M", le=bound) for bound in ("0.01", "0.025", "0.25", "0.5", "30.0", "+Inf")]
    assert counts == [1, 2, 2, 3, 3, 4]
    assert 99.3 < value(found, "call_seconds_sum", method="S/M") < 100.5


def test_counting_a_call_costs_about_a_microsecond() -> None:
    metrics, now = Metrics(), time.perf_counter()
    best = min(_seconds(metrics, now) for _ in range(5))
    assert best < 3e-6  # 0.5 to 0.6 us on the machine that it was written on


def _seconds(metrics: Metrics, started: float) -> float:
    began, times = time.perf_counter(), 5000
    for _ in range(times):
        metrics("flowledger.v1.FlowService/GetFlow", "OK", started, None, "", "")
    return (time.perf_counter() - began) / times


def test_workers_take_the_next_port_that_is_free() -> None:
    one, other, port = Metrics(), Metrics(), free_port()
    one("S/M", "OK", time.perf_counter())
    with exposed(registry_of(one), "127.0.0.1", port), exposed(registry_of(other), "127.0.0.1", port, 63) as second:
        assert second > port
        assert (value(read(port), "calls_total", method="S/M", outcome="OK"), value(read(second), "calls_total")) == (1, 0)


def test_a_port_that_is_taken_is_told_with_its_setting() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        with pytest.raises(OSError, match="FLOWLEDGER_METRICS_PORT"), exposed(CollectorRegistry(), "127.0.0.1", port):
            pass
