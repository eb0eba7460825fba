"""Many flows are damaged by SQL in every way at once, behind a running server: each is found and the best that exists comes back.

`--corrupted 300` damages so many flows.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import grpc
import orjson
import pytest
import zstandard
from flowledger.v1 import alert_pb2, flow_pb2, integrity_pb2, recovery_pb2

from server import app
from server.repository.tables import TENANT_TABLES
from tests.cluster import Cluster
from tests.conftest import Urls, cloned, settings
from tests.damage import UNBOUND, WAYS
from tests.repository.store import superuser
from tests.services.checkpoints import Sealing
from tests.tenancy import Tenancy

AT_ONCE = 8
# What a flow had been at three moments of its life: when its checkpoint was taken, before its document changed for the last time, and
# in the end.
CHECKPOINT, BEFORE_LAST, END = "as the checkpoint has it", "before its document changed", "as it was"
NOTHING = "nothing"  # is to be done
NO_POINT = "no recovery point"
FOUND = ("flows", "discovery_flows", "documents", "activity", "events", "document_versions")

ALL_TEXTS = "UPDATE documents SET body = 'x' WHERE flow_id = $1; UPDATE document_versions SET body = 'x' WHERE flow_id = $1"
FLIPPED = "UPDATE checkpoints SET header = set_byte(header, 30, get_byte(header, 30) # 1) WHERE flow_id = $1"
NO_KEY = "DELETE FROM tenant_keys k USING flows f WHERE f.flow_id = $1 AND k.engagement_id = f.engagement_id"
NO_PART = (
    "DELETE FROM checkpoint_parts p USING checkpoints c WHERE c.flow_id = $1 AND p.checkpoint_id = c.checkpoint_id AND p.name = 'state'"
)
ALL_ROWS = "; ".join(f"DELETE FROM {table} WHERE flow_id = $1" for table in FOUND)


@dataclass(frozen=True, slots=True)
class Way:
    """What is done to a flow, a kind of finding that there must be then, the rung that is climbed to and what the flow is afterwards."""

    sql: str
    finds: str
    rung: str
    becomes: str


def _of(name: str, rung: str = "REPAIR", becomes: str = END) -> Way:
    return Way(WAYS[name].sql, WAYS[name].finds.name, rung, becomes)


CORRUPTIONS: Mapping[str, Way] = MappingProxyType(
    {
        "document damaged": _of("document damaged", "REVISION", BEFORE_LAST),
        "phase state impossible": _of("phase state impossible"),
        "progress 150": _of("progress 150"),
        "revision behind its events": _of("revision behind its events"),
        "child missing": _of("child missing"),
        "row gone": _of("row gone"),
        "last event deleted": _of("last event missing"),
        "event rewritten": Way(
            "UPDATE events SET body = replace(body, 'IN_PROGRESS', 'COMPLETED') WHERE flow_id = $1 AND revision = 2",
            "CHAIN_BROKEN",
            "NONE",
            NOTHING,
        ),
        "all events deleted": _of("all events missing"),
        "document gone": _of("document missing", "REVISION", BEFORE_LAST),
        "checkpoint bit flipped": Way(FLIPPED, "CHECKPOINT_UNREADABLE", "NONE", NOTHING),
        "data key gone": Way(NO_KEY, "KEY_MISSING", "NONE", NOTHING),
        "part of the checkpoint gone": Way(NO_PART, "CHECKPOINT_INCOMPLETE", "NONE", NOTHING),
        "every text damaged": Way(ALL_TEXTS, "DOCUMENT_DAMAGED", "CHECKPOINT", CHECKPOINT),
        "everything but the checkpoint gone": Way(ALL_ROWS, "ROW_DIFFERS", "CHECKPOINT", CHECKPOINT),
        "every text damaged, and a bit of the checkpoint flipped": Way(f"{ALL_TEXTS}; {FLIPPED}", "CHECKPOINT_UNREADABLE", "", NO_POINT),
        "every text damaged, and the data key gone": Way(f"{NO_KEY}; {ALL_TEXTS}", "KEY_MISSING", "", NO_POINT),
        "events deleted, phases and checkpoint damaged": Way(
            f"{WAYS['all events missing'].sql}; {WAYS['phases missing'].sql}; {FLIPPED}", "EVENT_MISSING", "", NO_POINT
        ),
    }
)


@dataclass(slots=True)
class Flow:
    """A flow, what it was like at the moments of its life, and its neighbour."""

    tenancy: Tenancy
    flow_id: str
    neighbour: str
    was: dict[str, Any] = field(default_factory=dict)
    rows: dict[str, list[str]] = field(default_factory=dict)
    beside: dict[str, list[str]] = field(default_factory=dict)

    async def seen(self) -> Any:
        """The flow as a caller sees it, without what every commit changes."""
        flow = (await self.tenancy.call("GetFlow", flow_id=self.flow_id, view="FLOW_VIEW_FULL")).flow
        for name in ("revision", "update_time", "updated_by", "activity"):
            flow.ClearField(name)
        for child in flow.children:
            child.ClearField("update_time")
        return flow


async def lived(channel: grpc.aio.Channel) -> Flow:
    """A flow of a tenant of its own with a document, activity, events, a checkpoint, and a neighbour."""
    tenancy = Tenancy.fresh(channel)
    neighbour = (await tenancy.create(state={"json": '{"next":"door"}'})).flow_id
    flow = Flow(tenancy, (await tenancy.create(state={"json": '{"at":1}'}, display_name="Wave 7")).flow_id, neighbour)
    flow_id = flow.flow_id
    await tenancy.move(flow_id, "data_import", "IN_PROGRESS")
    await tenancy.call("ReportProgress", flow_id=flow_id, progress={"phase": "data_import", "fraction": 0.25})
    await tenancy.call("UpdateFlow", flow_id=flow_id, update={"state": {"json": '{"at":2}'}})
    await Sealing(tenancy).create(flow_id)
    flow.was[CHECKPOINT] = await flow.seen()
    await tenancy.call("RecordActivity", flow_id=flow_id, activity={"entries": [{"kind": "ACTIVITY_KIND_TIMING", "value": 1.0}]})
    await tenancy.move(flow_id, "data_import", "COMPLETED")
    flow.was[BEFORE_LAST] = await flow.seen()
    await tenancy.call("UpdateFlow", flow_id=flow_id, update={"state": {"json": '{"at":3}'}})
    await tenancy.move(flow_id, "field_mapping", "IN_PROGRESS")
    flow.was[END] = await flow.seen()
    return flow


async def rows(hand: asyncpg.Connection, flow_id: str) -> dict[str, list[str]]:
    """Every row of the flow, as PostgreSQL writes it down in JSON."""
    query = "SELECT to_json(t)::text FROM {} t WHERE flow_id = $1 ORDER BY 1"
    names = [table.name for table in TENANT_TABLES if "flow_id" in table.c and table.name not in ("alerts", "quarantine", "requests")]
    return {name: [row[0] for row in await hand.fetch(query.format(name), UUID(flow_id))] for name in names}


async def damage(hand: asyncpg.Connection, sql: str, flow_id: str) -> None:
    """Run the statements, one after another."""
    for statement in sql.split("; "):
        assert not (await hand.execute(statement, UUID(flow_id))).endswith(" 0"), statement


@pytest.fixture
def unbound(postgres: Cluster, template: str) -> Iterator[Urls]:
    """A database without constraints."""
    for urls in cloned(postgres, template):
        postgres.run(UNBOUND, urls.name)
        yield urls


@pytest.fixture
async def hand(unbound: Urls) -> AsyncIterator[asyncpg.Connection]:
    """Who does the damage, and sees everything."""
    async with superuser(unbound.service) as connection:
        await connection.execute("SET timezone = 'UTC'")  # as the service has it
        yield connection


@pytest.mark.timeout(900)
async def test_whatever_is_corrupted_is_found_and_the_best_that_exists_comes_back(
    unbound: Urls, hand: asyncpg.Connection, request: pytest.FixtureRequest
) -> None:
    wanted = request.config.getoption("--corrupted")
    names = [list(CORRUPTIONS)[at % len(CORRUPTIONS)] for at in range(max(wanted, len(CORRUPTIONS)))]
    limit = asyncio.Semaphore(AT_ONCE)
    async with app.running(settings(unbound)) as server, grpc.aio.insecure_channel(server.address) as channel:

        async def limited(work: Any) -> Any:
            async with limit:
                return await work

        flows: list[Flow] = await asyncio.gather(*(limited(lived(channel)) for _ in names))
        for flow in flows:
            found = await flow.tenancy.call("ValidateFlow", flow_id=flow.flow_id)
            assert (list(found.findings), found.mendable) == ([], False)
        for name, flow in zip(names, flows, strict=True):
            await damage(hand, CORRUPTIONS[name].sql, flow.flow_id)
        for flow in flows:
            flow.rows, flow.beside = await rows(hand, flow.flow_id), await rows(hand, flow.neighbour)
        await asyncio.gather(*(limited(_found(CORRUPTIONS[name], flow)) for name, flow in zip(names, flows, strict=True)))
        for flow in flows:  # looking changed nothing
            assert await rows(hand, flow.flow_id) == flow.rows
        outcomes = await asyncio.gather(*(limited(_recovered(CORRUPTIONS[name], flow)) for name, flow in zip(names, flows, strict=True)))
        for name, flow, (first, quarantine_id) in zip(names, flows, outcomes, strict=True):
            await _kept(hand, flow, quarantine_id)
            assert await rows(hand, flow.neighbour) == flow.beside, name
            assert first == CORRUPTIONS[name].becomes
        await asyncio.gather(*(limited(_goes_on(flow)) for name, flow in zip(names, flows, strict=True) if _is_back(CORRUPTIONS[name])))


def _is_back(way: Way) -> bool:
    return way.becomes != NO_POINT


async def _found(way: Way, flow: Flow) -> None:
    """ValidateFlow names the damage, and the plan says what will be done about it, and why not better."""
    found = await flow.tenancy.call("ValidateFlow", flow_id=flow.flow_id)
    kinds = {integrity_pb2.FindingKind.Name(finding.kind).removeprefix("FINDING_KIND_") for finding in found.findings}
    assert way.finds in kinds, (way, kinds)
    assert found.mendable == (way.becomes != NOTHING), (way, kinds)
    plan = (await flow.tenancy.call("RecoverFlow", flow_id=flow.flow_id, validate_only=True)).plan
    rung = recovery_pb2.RecoveryRung.Name(plan.rung).removeprefix("RECOVERY_RUNG_")
    assert rung == (way.rung or "UNSPECIFIED"), (way, plan)
    above = {"NONE": 0, "REPAIR": 0, "REVISION": 1, "CHECKPOINT": 2, "": 3}[way.rung]
    assert [failure.rung for failure in plan.failures] == [2, 3, 4][:above]
    assert all(failure.why for failure in plan.failures)
    assert bool(plan.losses) == (way.rung in ("REVISION", "CHECKPOINT") or (way.finds == "EVENT_MISSING" and way.rung == "REPAIR")), plan


async def _recovered(way: Way, flow: Flow) -> tuple[str, str]:
    """What the flow has become, and where that lies which it was before."""
    tenancy, fields = flow.tenancy, {"flow_id": flow.flow_id, "request_id": str(uuid4()), "reason": "the disk was replaced"}
    if way.becomes == NO_POINT:
        refusal = await tenancy.refusal("RecoverFlow", **fields)
        assert (refusal.reason, refusal.code) == ("NO_RECOVERY_POINT", grpc.StatusCode.FAILED_PRECONDITION)
        await _alerted(flow, "RECOVERY_FAILED")
        return NO_POINT, ""
    answer = await tenancy.call("RecoverFlow", **fields)
    if way.becomes == NOTHING:
        assert not answer.plan.quarantine_id
        assert not answer.HasField("event")
        return NOTHING if await flow.seen() == flow.was[END] else "something else", ""
    assert await tenancy.call("RecoverFlow", **fields) == answer
    await _alerted(flow, "FLOW_RECOVERED")
    events = (await tenancy.call("ListFlowEvents", flow_id=flow.flow_id)).events
    assert events[-1] == answer.event
    assert events[-1].changes[0].replaced.quarantine_id == answer.plan.quarantine_id
    found = await tenancy.call("ValidateFlow", flow_id=flow.flow_id)
    assert (found.mendable, found.revision) == (False, answer.flow.revision)
    seen = await flow.seen()
    return next((moment for moment, was in flow.was.items() if was == seen), f"{seen}"), answer.plan.quarantine_id


async def _alerted(flow: Flow, kind: str) -> None:
    (alert,) = (await Sealing(flow.tenancy).admin("ListAlerts")).alerts
    assert (alert.kind, alert.flow_id) == (getattr(alert_pb2, f"ALERT_KIND_{kind}"), flow.flow_id)


async def _kept(hand: asyncpg.Connection, flow: Flow, quarantine_id: str) -> None:
    """Every row that was there is there still, or lies in the quarantine as it was."""
    now, aside = await rows(hand, flow.flow_id), dict[str, list[Any]]()
    if quarantine_id:
        body = await hand.fetchval("SELECT body FROM quarantine WHERE quarantine_id = $1", UUID(quarantine_id))
        aside = orjson.loads(zstandard.ZstdDecompressor().decompress(body))["tables"]
    else:
        assert now == flow.rows
    for table, texts in flow.rows.items():
        gone = [orjson.loads(text) for text in {*texts} - {*now[table]}]
        assert all(row in aside.get(table, []) for row in gone), (table, gone)


async def _goes_on(flow: Flow) -> None:
    """The flow takes commits, and stays as it must be."""
    phases = (await flow.seen()).children[0].phases
    under_way = next(phase.name for phase in phases if phase.state != flow_pb2.PHASE_STATE_COMPLETED)
    if all(phase.state != flow_pb2.PHASE_STATE_IN_PROGRESS for phase in phases):
        await flow.tenancy.move(flow.flow_id, under_way, "IN_PROGRESS")
    await flow.tenancy.call("ReportProgress", flow_id=flow.flow_id, progress={"phase": under_way, "fraction": 0.5})
    await flow.tenancy.call("UpdateFlow", flow_id=flow.flow_id, update={"state": {"json": '{"at":4}'}})
    assert not (await flow.tenancy.call("ValidateFlow", flow_id=flow.flow_id)).mendable
