"""Recovery over the wire: what is found, what may be done, and a flow that is brought back once, whoever asks how often."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import grpc
import pytest
from flowledger.v1 import alert_pb2, flow_pb2, integrity_pb2, recovery_pb2
from flowledger.v1 import flow_service_pb2 as pb

from server import app
from tests.conftest import Urls, settings
from tests.services.checkpoints import Sealing
from tests.services.test_alerts import Watching
from tests.services.test_errors import trailer_bytes
from tests.services.test_tenants import STRANGERS
from tests.tenancy import PATIENCE, Refusal, Tenancy

AT_ONCE = 12
# What the constraints of the tables let through: progress that the phases do not say.
WRONG_PROGRESS = "UPDATE flows SET progress = 99 WHERE flow_id = $1"
NOTHING_LEFT = (
    "DELETE FROM events WHERE flow_id = $1",
    "UPDATE discovery_flows SET phases = '[]' WHERE flow_id = $1",
)


async def damaged(tenancy: Tenancy, superuser: asyncpg.Connection, *sql: str) -> str:
    """A flow at revision 3, damaged then."""
    flow_id = (await tenancy.create(state={"json": '{"a":1}'})).flow_id
    await tenancy.move(flow_id, "data_import", "IN_PROGRESS", "COMPLETED")
    for statement in sql or (WRONG_PROGRESS,):
        await superuser.execute(statement, UUID(flow_id))
    return flow_id


async def raw(tenancy: Tenancy, **fields: Any) -> bytes:
    """The bytes of a RecoverFlow's response."""
    rpc: Any = tenancy.channel.unary_unary("/flowledger.v1.FlowService/RecoverFlow")
    found: bytes = await rpc(pb.RecoverFlowRequest(**fields).SerializeToString(), metadata=tenancy.metadata, timeout=PATIENCE)
    return found


async def revision(tenancy: Tenancy, flow_id: str) -> int:
    found: int = (await tenancy.call("ListFlowEvents", flow_id=flow_id)).head_revision
    return found


async def test_what_is_right_needs_nothing(tenancy: Tenancy, superuser: asyncpg.Connection) -> None:
    flow_id = (await tenancy.create()).flow_id
    found = await tenancy.call("ValidateFlow", flow_id=flow_id)
    assert found == pb.ValidateFlowResponse(revision=1)
    request_id = str(uuid4())
    answer = await tenancy.call("RecoverFlow", flow_id=flow_id, request_id=request_id)
    assert (answer.plan.rung, answer.plan.summary) == (recovery_pb2.RECOVERY_RUNG_NONE, "the flow is as it must be")
    assert (answer.flow.revision, answer.HasField("event"), answer.plan.HasField("diff")) == (1, False, False)
    await tenancy.call("PauseFlow", flow_id=flow_id, request_id=request_id)  # it was not remembered
    assert list((await Sealing(tenancy).admin("ListAlerts")).alerts) == []


async def test_damage_is_told_with_its_place_and_mended(tenancy: Tenancy, superuser: asyncpg.Connection) -> None:
    flow_id = await damaged(tenancy, superuser)
    found = await tenancy.call("ValidateFlow", flow_id=flow_id)
    (finding,) = found.findings
    assert (finding.kind, finding.field, finding.recovery_only) == (integrity_pb2.FINDING_KIND_DERIVED_WRONG, "progress", False)
    assert (found.mendable, found.revision, found.omitted_count) == (True, 3, 0)
    before = (await tenancy.call("GetFlow", flow_id=flow_id, view="FLOW_VIEW_FULL", at_revision=3)).flow
    answer = await tenancy.call("RecoverFlow", flow_id=flow_id, reason="the disk was replaced")
    assert answer.flow.revision == answer.event.revision == 4
    after = (await tenancy.call("GetFlow", flow_id=flow_id, view="FLOW_VIEW_FULL")).flow
    assert (after.progress_percent, after.state, after.children[0].phases) == (
        before.progress_percent,
        before.state,
        before.children[0].phases,
    )
    (change,) = answer.event.changes
    assert (change.replaced.reason, change.replaced.quarantine_id) == ("the disk was replaced", answer.plan.quarantine_id)
    reason, actor = await superuser.fetchrow("SELECT reason, actor FROM quarantine WHERE flow_id = $1", UUID(flow_id))  # type: ignore[misc]
    assert (reason, actor) == ("the disk was replaced", tenancy.user)


async def test_a_rehearsal_is_the_plan_and_writes_nothing(tenancy: Tenancy, superuser: asyncpg.Connection) -> None:
    flow_id = await damaged(tenancy, superuser, "UPDATE documents SET body = 'x' WHERE flow_id = $1")
    request_id = str(uuid4())
    plan = (await tenancy.call("RecoverFlow", flow_id=flow_id, validate_only=True, request_id=request_id)).plan
    # The state is damaged in the only place where it was: no revision has it.
    assert plan.rung == recovery_pb2.RECOVERY_RUNG_UNSPECIFIED
    assert [recovery_pb2.RecoveryRung.Name(failure.rung)[14:] for failure in plan.failures] == ["REPAIR", "REVISION", "CHECKPOINT"]
    plan = (await tenancy.call("RecoverFlow", flow_id=flow_id, lowest_rung="RECOVERY_RUNG_RESET", validate_only=True)).plan
    assert plan.rung == recovery_pb2.RECOVERY_RUNG_RESET
    assert "phase discovery/data_import: COMPLETED -> NOT_STARTED" in plan.diff.lines
    assert any(loss.startswith("all progress") for loss in plan.losses)
    assert not plan.quarantine_id
    assert await revision(tenancy, flow_id) == 3
    assert list((await Sealing(tenancy).admin("ListAlerts")).alerts) == []
    refusal = await tenancy.refusal("RecoverFlow", flow_id=flow_id, request_id=request_id)
    assert refusal.reason == "NO_RECOVERY_POINT"
    answer = await tenancy.call("RecoverFlow", flow_id=flow_id, lowest_rung="RECOVERY_RUNG_RESET", request_id=request_id)
    assert [phase.state for phase in answer.flow.children[0].phases] == [flow_pb2.PHASE_STATE_NOT_STARTED] * 7


async def test_requests_are_guarded_and_answered_once(tenancy: Tenancy, superuser: asyncpg.Connection) -> None:
    flow_id, request_id = await damaged(tenancy, superuser), str(uuid4())
    for wrong in (1, 2, 4, 2**63 - 1):
        refusal = await tenancy.refusal("RecoverFlow", flow_id=flow_id, expected_revision=wrong)
        assert (refusal.reason, refusal.metadata) == (
            "CONCURRENT_MODIFICATION",
            {"expected_revision": str(wrong), "current_revision": "3"},
        )
    asked: dict[str, Any] = {"flow_id": flow_id, "expected_revision": 3, "request_id": request_id}
    answers = await asyncio.gather(*(raw(tenancy, **asked) for _ in range(AT_ONCE)))
    assert len(set(answers)) == 1
    assert await revision(tenancy, flow_id) == 4
    await superuser.execute(WRONG_PROGRESS, UUID(flow_id))
    assert await raw(tenancy, **asked) == answers[0]
    refusal = await tenancy.refusal("RecoverFlow", flow_id=flow_id, request_id=request_id)
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "REQUEST_ID_REUSED")
    assert (await tenancy.refusal("PauseFlow", flow_id=flow_id, request_id=request_id)).reason == "REQUEST_ID_REUSED"
    assert await superuser.fetchval("SELECT count(*) FROM quarantine WHERE flow_id = $1", UUID(flow_id)) == 1


async def test_faulty_requests_are_refused_field_by_field(tenancy: Tenancy) -> None:
    refusal = await tenancy.refusal(
        "RecoverFlow", flow_id="x", lowest_rung="RECOVERY_RUNG_NONE", reason="r" * 2001, expected_revision=-1, request_id="y"
    )
    assert refusal.violations.keys() == {"flow_id", "lowest_rung", "reason", "expected_revision", "request_id"}


@pytest.mark.parametrize("stranger", STRANGERS.values(), ids=[name.replace(" ", "_") for name in STRANGERS])
async def test_a_damaged_flow_of_another_tenant_is_not_there(tenancy: Tenancy, superuser: asyncpg.Connection, stranger: Any) -> None:
    flow_id = await damaged(tenancy, superuser)
    for name in ("ValidateFlow", "GetRecoveryOptions", "RecoverFlow"):
        refusal = await stranger(tenancy).refusal(name, flow_id=flow_id)
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.NOT_FOUND, "FLOW_NOT_FOUND")
    assert list((await Sealing(stranger(tenancy)).admin("ListAlerts")).alerts) == []
    assert await superuser.fetchval("SELECT progress FROM flows WHERE flow_id = $1", UUID(flow_id)) == 99


async def test_a_failure_is_an_alert_and_fits_into_trailers(tenancy: Tenancy, superuser: asyncpg.Connection) -> None:
    flow_id = await damaged(tenancy, superuser, *NOTHING_LEFT)
    watching = Watching(tenancy)
    await watching.next()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await tenancy.call("RecoverFlow", flow_id=flow_id)
    refusal = Refusal.of(caught.value)
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "NO_RECOVERY_POINT")
    assert "or allow a lower rung than CHECKPOINT" in refusal.text or refusal.text.endswith("...")
    assert trailer_bytes(caught.value) < 2048
    alert = await watching.alert()
    assert (alert.kind, alert.severity, alert.flow_id) == (
        alert_pb2.ALERT_KIND_RECOVERY_FAILED,
        alert_pb2.ALERT_SEVERITY_CRITICAL,
        flow_id,
    )
    watching.call.cancel()
    for _ in range(2):
        await tenancy.refusal("RecoverFlow", flow_id=flow_id)
    assert len((await Sealing(tenancy).admin("ListAlerts")).alerts) == 1  # each failure once


async def test_who_watches_the_flow_sees_its_recovery(tenancy: Tenancy, superuser: asyncpg.Connection) -> None:
    flow_id = await damaged(tenancy, superuser)
    stream = tenancy.watch(flow_id, start="WATCH_START_AFTER_REVISION", after_revision=3)
    messages = aiter(stream)
    answer = await tenancy.call("RecoverFlow", flow_id=flow_id)
    async with asyncio.timeout(PATIENCE):
        while not (message := await anext(messages)).HasField("event"):
            pass
    stream.cancel()
    assert message.event == answer.event


async def test_options_name_what_can_be_called(tenancy: Tenancy, superuser: asyncpg.Connection) -> None:
    flow_id = (await tenancy.create(state={"json": '{"a":1}'})).flow_id
    await tenancy.move(flow_id, "data_import", "IN_PROGRESS")
    taken = await Sealing(tenancy).create(flow_id)
    await tenancy.move(flow_id, "data_import", "COMPLETED")
    found = await tenancy.call("GetRecoveryOptions", flow_id=flow_id)
    options = {recovery_pb2.Remedy.Name(option.remedy).removeprefix("REMEDY_"): option for option in found.options}
    assert options.keys() == {"CANCEL", "REDO", "ROLL_BACK", "BEGIN", "REVERT", "RESTORE"}
    assert found.revision == 3
    restore = options["RESTORE"]
    assert (restore.checkpoint_id, list(restore.effect.phases)) == (taken.checkpoint_id, ["data_import: COMPLETED -> IN_PROGRESS"])
    await superuser.execute(WRONG_PROGRESS, UUID(flow_id))
    found = await tenancy.call("GetRecoveryOptions", flow_id=flow_id)
    assert found.options[0].remedy == recovery_pb2.REMEDY_RECOVER
    assert "REPAIR" in found.options[0].why
    assert (found.options[0].effect.progress_percent, list(found.options[0].effect.phases)) == (
        options["CANCEL"].effect.progress_percent,
        [],
    )
    await tenancy.call("RecoverFlow", flow_id=flow_id)
    await Sealing(tenancy).call("RestoreCheckpoint", checkpoint_id=restore.checkpoint_id)
    seen = (await tenancy.call("GetFlow", flow_id=flow_id)).flow
    assert seen.children[0].phases[0].state == flow_pb2.PHASE_STATE_IN_PROGRESS
    reverts = [option.revision for option in (await tenancy.call("GetRecoveryOptions", flow_id=flow_id)).options if option.revision]
    await tenancy.call("RevertFlow", flow_id=flow_id, revision=reverts[0])


async def test_another_server_goes_on_from_what_was_recovered(urls: Urls, tenancy: Tenancy, superuser_of: Any) -> None:
    """Its memory has the flow as it was before the recovery."""
    async with (
        app.running(settings(urls)) as one,
        app.running(settings(urls)) as two,
        grpc.aio.insecure_channel(one.address) as to_one,
        grpc.aio.insecure_channel(two.address) as to_two,
    ):
        superuser = await superuser_of(urls)
        flow_id = await damaged(tenancy.on(to_two), superuser)
        await tenancy.on(to_one).call("RecoverFlow", flow_id=flow_id)
        answer = await tenancy.on(to_two).move(flow_id, "field_mapping", "IN_PROGRESS")
        assert answer.flow.revision == 5
        assert (await tenancy.on(to_one).call("GetFlow", flow_id=flow_id, min_revision=5)).flow.revision == 5
        assert list((await tenancy.on(to_two).call("ValidateFlow", flow_id=flow_id)).findings) == []
