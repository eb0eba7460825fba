"""The load on the service's unary methods, and the flows that it is put on."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from benchmarks.generator import Requests, Target, paced_load, unary_load
from benchmarks.postgres import Postgres
from benchmarks.requests import BEGIN, CREATIONS, FULL, REPORTS, SUMMARY, UPDATES, Each, Identified, Tenant, Toggles, Turns, tenants
from benchmarks.sample import Measure, Sample
from benchmarks.serving import Serving, serving

FLOWS = 1_024
CONCURRENCIES = (1, 16, 64)


@dataclass(frozen=True, slots=True)
class Service:
    """A running server, and the flows in it.

    The phase data_import of ``running`` and ``spread`` flows is IN_PROGRESS and stays so; that of ``toggled`` flows goes to RETRY_NEEDED
    and back.
    """

    serving: Serving
    running: tuple[Tenant, ...]
    toggled: tuple[Tenant, ...]
    spread: tuple[Tenant, ...]


@asynccontextmanager
async def service(postgres: Postgres) -> AsyncIterator[Service]:
    """The service, filled: 1,024 flows of one tenant to report to, as many to toggle, as many over 16 tenants."""
    async with serving(postgres) as started:
        running, toggled, spread = tenants(1, FLOWS, 11), tenants(1, FLOWS, 12), tenants(16, FLOWS, 13)
        for owner in (*running, *toggled, *spread):
            await fill(started, owner)
        yield Service(started, running, toggled, spread)


async def fill(started: Serving, owner: Tenant) -> None:
    """Creates the tenant's flows, discoveries with a 10 KiB document, and begins their first phase."""
    for method, rest in (("CreateFlow", CREATIONS), ("TransitionPhase", [BEGIN])):
        await unary_load(started.target(method, (owner,)), Each(owner, rest), 16, 3_600)


def unary_measures(service: Service) -> list[Measure]:
    """Each unary measure at 1, 16 and 64 callers, and at half of what 64 reached."""
    running, toggled, spread = service.running, service.toggled, service.spread
    target = service.serving.target
    in_progress: dict[str, bool] = {}
    operations: list[tuple[str, Target, Callable[[int], Requests]]] = [
        ("get_flow", target("GetFlow", running), lambda callers: Turns(running, callers, [SUMMARY])),
        ("report_progress", target("ReportProgress", running), lambda callers: Turns(running, callers, REPORTS)),
        ("transition_phase", target("TransitionPhase", toggled), lambda callers: Toggles(toggled, callers, in_progress)),
        ("update_flow", target("UpdateFlow", running), lambda callers: Turns(running, callers, UPDATES)),
        ("get_flow_full", target("GetFlow", running), lambda callers: Turns(running, callers, [FULL])),
    ]
    measures: list[Measure] = []
    for name, called, requests in operations:
        measures += _operation(name, called, requests)
    reports = target("ReportProgress", running)
    return [
        *measures,
        unary("report_progress, request_id", reports, 16, lambda callers: Identified(Turns(running, callers, REPORTS))),
        unary("report_progress, 16 tenants", target("ReportProgress", spread), 64, lambda callers: Turns(spread, callers, REPORTS)),
    ]


def unary(name: str, target: Target, callers: int, requests: Callable[[int], Requests]) -> Measure:
    """A measure of callers that never wait."""

    async def run(seconds: float) -> Sample:
        return await unary_load(target, requests(callers), callers, seconds)

    return Measure(name, callers, run)


def _operation(name: str, target: Target, requests: Callable[[int], Requests]) -> list[Measure]:
    most = CONCURRENCIES[-1]
    reached: list[float] = []

    async def full(seconds: float) -> Sample:
        sample = await unary_load(target, requests(most), most, seconds)
        reached.append(sample.rate)
        return sample

    async def half(seconds: float) -> Sample:
        if not reached:
            await full(1.0)
        return await paced_load(target, requests(most), most, reached[-1] / 2, seconds)

    fewer = [unary(name, target, callers, requests) for callers in CONCURRENCIES[:-1]]
    return [*fewer, Measure(name, most, full), Measure(f"{name}, half load", most, half)]
