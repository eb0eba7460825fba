"""What each RPC does, seen from its caller."""

from __future__ import annotations

from typing import Any
from uuid import UUID, uuid4

import grpc
import pytest
from flowledger.v1 import flow_pb2

from tests.tenancy import Refusal, Tenancy

DOMAINS = ("discovery", "assessment", "planning", "execution")
FAILED_RETRYABLE = {"code": "FAILURE_CODE_AGENT_TIMEOUT", "message": "no answer"}
FAILED_FOR_GOOD = {"code": "FAILURE_CODE_DATA_VALIDATION_FAILED", "message": "bad rows"}


async def test_a_created_flow_has_its_first_child_and_revision_1(tenancy: Tenancy) -> None:
    flow = await tenancy.create(type="migration", display_name="move", labels={"wave": "3"})
    assert (flow.revision, flow.current_child, [child.type for child in flow.children]) == (1, "discovery", ["discovery"])
    assert flow.labels == {"wave": "3"}
    assert list(flow.journey) == ["discovery", "assessment", "planning", "execution"]


@pytest.mark.parametrize("view", ["SUMMARY", "BASIC", "FULL"])
async def test_a_flow_is_read_back_in_every_view(tenancy: Tenancy, view: str) -> None:
    made = await tenancy.create(state={"json": '{"big":9007199254740993}'})
    flow = (await tenancy.call("GetFlow", flow_id=made.flow_id, view=f"FLOW_VIEW_{view}")).flow
    assert flow.flow_id == made.flow_id
    assert len(flow.children) == (0 if view == "SUMMARY" else 1)
    assert flow.state.json == ('{"big":9007199254740993}' if view == "FULL" else "")


async def _complete(tenancy: Tenancy, flow_id: str, domain: str) -> flow_pb2.Flow:
    """The flow once every phase of its child of that domain is complete."""
    flow: flow_pb2.Flow = (await tenancy.call("GetFlow", flow_id=flow_id)).flow
    child = next(child for child in flow.children if child.type == domain)
    for phase in child.phases:
        states = ["IN_PROGRESS", *["WAITING_VALIDATION"] * phase.requires_validation, *["WAITING_APPROVAL"] * phase.requires_approval]
        for state in (*states, "COMPLETED"):
            transition = {"phase": phase.name, "child_type": domain, "to": f"PHASE_STATE_{state}"}
            flow = (await tenancy.call("TransitionPhase", flow_id=flow_id, transition=transition)).flow
    return flow


async def _phases(tenancy: Tenancy, flow_id: str) -> dict[str, flow_pb2.Phase]:
    flow = (await tenancy.call("GetFlow", flow_id=flow_id)).flow
    return {phase.name: phase for child in flow.children for phase in child.phases}


async def _transition_refusal(tenancy: Tenancy, flow_id: str, **transition: Any) -> Refusal:
    return await tenancy.refusal("TransitionPhase", flow_id=flow_id, transition=transition)


# ---- CreateFlow, GetFlow --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["migration", *DOMAINS])
async def test_a_flow_begins_with_the_first_domain_of_its_journey(tenancy: Tenancy, kind: str) -> None:
    response = await tenancy.call("CreateFlow", type=kind)
    flow = response.flow
    assert list(flow.journey) == (list(DOMAINS) if kind == "migration" else [kind])
    assert [child.type for child in flow.children] == [flow.journey[0]]
    assert {phase.state for phase in flow.children[0].phases} == {flow_pb2.PHASE_STATE_NOT_STARTED}
    assert sum(phase.weight for phase in flow.children[0].phases) == pytest.approx(1.0)
    assert [change.WhichOneof("kind") for change in response.event.changes] == ["created", "child_started"]
    assert (flow.status, flow.progress_percent) == (flow_pb2.FLOW_STATUS_INITIALIZED, 0.0)
    assert flow.create_time == flow.update_time == response.event.time
    assert flow.created_by == flow.updated_by == tenancy.user


async def test_ids_are_made_by_the_service_or_chosen_by_the_creator(tenancy: Tenancy) -> None:
    made = await tenancy.create()
    assert UUID(made.flow_id).version == UUID(made.children[0].child_flow_id).version == 7
    chosen = str(uuid4())
    assert (await tenancy.create(flow_id=chosen)).flow_id == chosen
    refusal = await tenancy.refusal("CreateFlow", type="planning", flow_id=chosen)
    assert (refusal.code, refusal.reason, refusal.metadata) == (grpc.StatusCode.ALREADY_EXISTS, "FLOW_EXISTS", {"flow_id": chosen})


async def test_one_id_has_one_spelling(tenancy: Tenancy) -> None:
    flow_id = (await tenancy.create()).flow_id
    assert (await tenancy.call("GetFlow", flow_id=flow_id.upper())).flow.flow_id == flow_id
    for spelling in (
        f"{{{flow_id}}}",
        flow_id.replace("-", ""),
        f"urn:uuid:{flow_id}",
        flow_id[:-2] + "_" + flow_id[-1],
        f"-{flow_id[:7]}{flow_id[8]}{flow_id[7]}{flow_id[9:]}",
    ):
        assert (await tenancy.refusal("GetFlow", flow_id=spelling)).violations.keys() == {"flow_id"}, spelling


async def test_events_name_their_flow_in_its_one_spelling(tenancy: Tenancy) -> None:
    flow_id = (await tenancy.create()).flow_id
    (event,) = (await tenancy.call("ListFlowEvents", flow_id=flow_id.upper())).events
    assert event.flow_id == flow_id


async def test_a_master_can_be_made_alone(tenancy: Tenancy) -> None:
    flow = await tenancy.create(type="migration", skip_first_child=True)
    assert (list(flow.children), flow.current_child, flow.status) == ([], "", flow_pb2.FLOW_STATUS_INITIALIZED)
    refusal = await tenancy.refusal("CreateFlow", type="migration", skip_first_child=True, child_data={"json": "{}"})
    assert refusal.violations.keys() == {"child_data"}
    refusal = await tenancy.refusal("ReportProgress", flow_id=flow.flow_id, progress={"phase": "data_import"})
    assert refusal.reason == "PHASE_NOT_FOUND"


async def test_a_read_can_ask_for_a_revision_that_the_flow_must_have_reached(tenancy: Tenancy) -> None:
    flow_id = (await tenancy.create()).flow_id
    await tenancy.call("PauseFlow", flow_id=flow_id)
    for view in ("SUMMARY", "BASIC", "FULL"):
        assert (await tenancy.call("GetFlow", flow_id=flow_id, min_revision=2, view=f"FLOW_VIEW_{view}")).flow.revision == 2
        refusal = await tenancy.refusal("GetFlow", flow_id=flow_id, min_revision=3, view=f"FLOW_VIEW_{view}")
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.OUT_OF_RANGE, "REVISION_IN_FUTURE")
        assert refusal.metadata["head_revision"] == "2"


# ---- CommitFlow, BatchUpdateFlows -----------------------------------------------------------------------------------------------------


async def test_a_commit_of_every_kind_of_change_is_one_revision(tenancy: Tenancy) -> None:
    flow_id = (await tenancy.create(type="migration", skip_first_child=True)).flow_id
    phase = {"phase": "data_import"}
    changes: list[dict[str, Any]] = [
        {"child_start": {"data": {"json": "{}"}}},
        {"transition": {**phase, "to": "PHASE_STATE_IN_PROGRESS"}},
        {"progress": {**phase, "fraction": 0.5, "message": "half"}},
        {"transition": {**phase, "to": "PHASE_STATE_FAILED", "failure": FAILED_RETRYABLE}},
        {"retry": phase},
        {"transition": {**phase, "to": "PHASE_STATE_COMPLETED"}},
        {"rollback": {**phase, "reason": "wrong file"}},
        {"update": {"display_name": "all", "labels": {"a": "b"}, "state": {"json": "{}"}}},
        {"activity": {"entries": [{"kind": "ACTIVITY_KIND_MEMORY", "value": 1.5, "unit": "MiB"}]}},
        {"pause": {"reason": "lunch"}},
        {"resume": {}},
        {"cancel": {"reason": "done"}},
    ]
    response = await tenancy.call("CommitFlow", flow_id=flow_id, changes=changes)
    assert (response.flow.revision, response.flow.status) == (2, flow_pb2.FLOW_STATUS_CANCELLED)
    assert [change.WhichOneof("kind") for change in response.event.changes] == [
        "child_started", "document", "phase", "phase", "phase", "phase", "phase", "phase", "fields", "fields", "document", "activity",
        "hold", "hold", "hold",
    ]  # fmt: skip
    assert len((await tenancy.call("ListFlowEvents", flow_id=flow_id)).events) == 2


@pytest.mark.parametrize("at", [0, 1, 2])
async def test_one_refused_change_refuses_the_commit_and_is_named(tenancy: Tenancy, at: int) -> None:
    flow_id = (await tenancy.create()).flow_id
    changes: list[dict[str, Any]] = [{"update": {"display_name": str(number)}} for number in range(2)]
    changes.insert(at, {"resume": {}})
    refusal = await tenancy.refusal("CommitFlow", flow_id=flow_id, changes=changes)
    assert (refusal.reason, refusal.metadata["change_index"]) == ("FLOW_NOT_PAUSED", str(at))
    flow = (await tenancy.call("GetFlow", flow_id=flow_id)).flow
    assert (flow.revision, flow.display_name) == (1, "")


async def test_a_commit_has_1_to_100_changes(tenancy: Tenancy) -> None:
    flow_id = (await tenancy.create()).flow_id
    change = {"update": {"display_name": "x"}}
    assert (await tenancy.refusal("CommitFlow", flow_id=flow_id)).violations.keys() == {"changes"}
    refusal = await tenancy.refusal("CommitFlow", flow_id=flow_id, changes=[change] * 101)
    assert (refusal.code, refusal.metadata) == (
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        {"field": "changes", "limit": "100", "actual": "101"},
    )
    assert (await tenancy.call("CommitFlow", flow_id=flow_id, changes=[change] * 100)).flow.revision == 2


async def test_a_batch_is_all_or_nothing(tenancy: Tenancy) -> None:
    flows = [(await tenancy.create()).flow_id for _ in range(3)]
    commits: list[dict[str, Any]] = [{"flow_id": flow_id, "changes": [{"pause": {}}, {"resume": {}}]} for flow_id in flows]
    commits[1]["changes"].append({"resume": {}})
    refusal = await tenancy.refusal("BatchUpdateFlows", commits=commits)
    assert refusal.reason == "FLOW_NOT_PAUSED"
    assert refusal.metadata.items() >= {"flow_id": flows[1], "commit_index": "1", "change_index": "2"}.items()
    assert {(await tenancy.call("GetFlow", flow_id=flow_id)).flow.revision for flow_id in flows} == {1}
    commits[1]["changes"].pop()
    results = (await tenancy.call("BatchUpdateFlows", commits=commits)).results
    assert [(one.flow.flow_id, one.flow.revision) for one in results] == [(flow_id, 2) for flow_id in flows]
    refusal = await tenancy.refusal("BatchUpdateFlows", commits=[commits[0], commits[0]])
    assert refusal.violations.keys() == {"commits[1].flow_id"}
    assert (await tenancy.refusal("BatchUpdateFlows")).violations.keys() == {"commits"}
    assert (await tenancy.refusal("BatchUpdateFlows", commits=commits[:1] * 101)).metadata["limit"] == "100"
    await tenancy.call(
        "BatchUpdateFlows", commits=[{"flow_id": (await tenancy.create()).flow_id, "changes": [{"pause": {}}]} for _ in range(100)]
    )


# ---- phases ---------------------------------------------------------------------------------------------------------------------------


async def test_a_transition_that_the_table_lacks_names_those_that_it_has(tenancy: Tenancy) -> None:
    flow_id = (await tenancy.create()).flow_id
    refusal = await _transition_refusal(tenancy, flow_id, phase="data_import", to="PHASE_STATE_COMPLETED")
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "INVALID_PHASE_TRANSITION")
    assert refusal.metadata["valid_transitions"] == "IN_PROGRESS"
    refusal = await _transition_refusal(tenancy, flow_id, phase="field_mapping", to="PHASE_STATE_IN_PROGRESS")
    assert (refusal.reason, refusal.metadata["missing_dependencies"]) == ("DEPENDENCY_INCOMPLETE", "data_import")
    await tenancy.move(flow_id, "data_import", "IN_PROGRESS", "COMPLETED")
    await tenancy.move(flow_id, "field_mapping", "IN_PROGRESS")
    refusal = await _transition_refusal(tenancy, flow_id, phase="field_mapping", to="PHASE_STATE_COMPLETED")
    assert "WAITING_APPROVAL" in refusal.metadata["valid_transitions"].split(",")
    phases = await _phases(tenancy, flow_id)
    allowed = [flow_pb2.PhaseState.Name(state).removeprefix("PHASE_STATE_") for state in phases["field_mapping"].next_states]
    assert refusal.metadata["valid_transitions"] == ",".join(allowed)


async def test_a_failure_says_why(tenancy: Tenancy) -> None:
    flow_id = (await tenancy.create()).flow_id
    await tenancy.move(flow_id, "data_import", "IN_PROGRESS")
    assert (await _transition_refusal(tenancy, flow_id, phase="data_import", to="PHASE_STATE_FAILED")).violations.keys() == {
        "transition.failure"
    }
    refusal = await _transition_refusal(tenancy, flow_id, phase="data_import", to="PHASE_STATE_COMPLETED", failure=FAILED_FOR_GOOD)
    assert refusal.violations.keys() == {"transition.failure"}
    transition = {"phase": "data_import", "to": "PHASE_STATE_FAILED", "failure": FAILED_FOR_GOOD}
    flow = (await tenancy.call("TransitionPhase", flow_id=flow_id, transition=transition)).flow
    assert flow.status == flow_pb2.FLOW_STATUS_FAILED
    assert flow.HasField("end_time")
    phase = (await _phases(tenancy, flow_id))["data_import"]
    assert (phase.failure.message, phase.failure.retryable) == ("bad rows", False)
    refusal = await tenancy.refusal("RetryPhase", flow_id=flow_id, retry={"phase": "data_import"})
    assert (refusal.reason, refusal.metadata["retry_allowed"]) == ("INVALID_PHASE_TRANSITION", "false")
    await tenancy.move(flow_id, "data_import", "RETRY_NEEDED")  # somebody grants it
    response = await tenancy.call("RetryPhase", flow_id=flow_id, retry={"phase": "data_import"})
    assert not response.flow.HasField("end_time")
    phase = (await _phases(tenancy, flow_id))["data_import"]
    assert (phase.state, phase.retry_count) == (flow_pb2.PHASE_STATE_IN_PROGRESS, 1)


async def test_a_roll_back_takes_along_what_depends_on_it(tenancy: Tenancy) -> None:
    flow_id = (await tenancy.create()).flow_id
    await tenancy.move(flow_id, "data_import", "IN_PROGRESS", "COMPLETED")
    await tenancy.move(flow_id, "field_mapping", "IN_PROGRESS", "WAITING_APPROVAL", "COMPLETED")
    await tenancy.move(flow_id, "data_cleansing", "IN_PROGRESS")
    response = await tenancy.call("RollbackPhase", flow_id=flow_id, rollback={"phase": "data_import", "reason": "wrong file"})
    told = [(change.phase.phase, change.phase.to_state, change.phase.taken_along_by) for change in response.event.changes]
    assert told == [
        ("data_import", flow_pb2.PHASE_STATE_ROLLED_BACK, ""),
        ("field_mapping", flow_pb2.PHASE_STATE_ROLLED_BACK, "data_import"),
        ("data_cleansing", flow_pb2.PHASE_STATE_RETRY_NEEDED, "data_import"),
    ]
    assert response.event.progress_regressed
    late = await tenancy.refusal("ReportProgress", flow_id=flow_id, progress={"phase": "data_cleansing", "fraction": 0.9})
    assert late.reason == "INVALID_PHASE_TRANSITION"


async def test_progress_is_reported_while_a_phase_is_under_way(tenancy: Tenancy) -> None:
    flow_id = (await tenancy.create()).flow_id
    report = {"phase": "data_import", "fraction": 0.5, "message": "row 5 of 10"}
    assert (await tenancy.refusal("ReportProgress", flow_id=flow_id, progress=report)).reason == "INVALID_PHASE_TRANSITION"
    await tenancy.move(flow_id, "data_import", "IN_PROGRESS")
    before = (await tenancy.call("GetFlow", flow_id=flow_id)).flow.progress_percent
    response = await tenancy.call("ReportProgress", flow_id=flow_id, progress=report)
    assert response.flow.progress_percent > before
    (change,) = response.event.changes
    assert (change.phase.from_fraction, change.phase.to_fraction, change.phase.reason) == (0.0, 0.5, "row 5 of 10")
    response = await tenancy.call("ReportProgress", flow_id=flow_id, progress={"phase": "data_import", "fraction": 0.25})
    assert response.event.progress_regressed
    phase = (await _phases(tenancy, flow_id))["data_import"]
    assert (phase.fraction, phase.message) == (0.25, "row 5 of 10")  # an empty message keeps the last one


# ---- holds, deletion, children, activity ----------------------------------------------------------------------------------------------

_MOVES: list[tuple[str, dict[str, Any]]] = [
    ("TransitionPhase", {"transition": {"phase": "data_import", "to": "PHASE_STATE_COMPLETED"}}),
    ("RetryPhase", {"retry": {"phase": "data_import"}}),
    ("RollbackPhase", {"rollback": {"phase": "data_import"}}),
    ("ReportProgress", {"progress": {"phase": "data_import"}}),
    ("StartChildFlow", {"child_start": {"type": "assessment"}}),
    ("PauseFlow", {}),
]
_UPDATE: tuple[str, dict[str, Any]] = ("UpdateFlow", {"update": {"display_name": "x"}})
_ACTIVITY: tuple[str, dict[str, Any]] = ("RecordActivity", {"activity": {"entries": [{"kind": "ACTIVITY_KIND_TIMING"}]}})


@pytest.mark.parametrize(
    ("hold", "refused", "taken"),
    [
        ("PauseFlow", _MOVES, [_UPDATE, _ACTIVITY, ("ResumeFlow", {})]),
        ("CancelFlow", [*_MOVES, _UPDATE, ("CancelFlow", {}), ("ResumeFlow", {})], [_ACTIVITY, ("DeleteFlow", {})]),
        ("DeleteFlow", [*_MOVES, _UPDATE, _ACTIVITY, ("CancelFlow", {}), ("ResumeFlow", {}), ("DeleteFlow", {})], [("UndeleteFlow", {})]),
    ],
)
async def test_what_a_held_flow_refuses_and_takes(
    tenancy: Tenancy, hold: str, refused: list[tuple[str, dict[str, Any]]], taken: list[tuple[str, dict[str, Any]]]
) -> None:
    flow_id = (await tenancy.create(type="migration")).flow_id
    await tenancy.move(flow_id, "data_import", "IN_PROGRESS")
    await tenancy.call(hold, flow_id=flow_id)
    for name, fields in refused:
        refusal = await tenancy.refusal(name, flow_id=flow_id, **fields)
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "FLOW_NOT_ACTIVE"), name
        assert refusal.metadata["status"] == {"PauseFlow": "PAUSED", "CancelFlow": "CANCELLED", "DeleteFlow": "DELETED"}[hold]
    assert (await tenancy.call("GetFlow", flow_id=flow_id)).flow.revision == 3
    for name, fields in taken:
        await tenancy.call(name, flow_id=flow_id, **fields)


async def test_a_pause_is_told_with_its_reason_and_ends_as_it_began(tenancy: Tenancy) -> None:
    flow_id = (await tenancy.create()).flow_id
    await tenancy.move(flow_id, "data_import", "IN_PROGRESS")
    before = await _phases(tenancy, flow_id)
    flow = (await tenancy.call("PauseFlow", flow_id=flow_id, pause={"reason": "lunch"})).flow
    assert (flow.status, flow.hold_reason) == (flow_pb2.FLOW_STATUS_PAUSED, "lunch")
    assert (await tenancy.call("GetFlow", flow_id=flow_id)).flow.children[0].status == flow_pb2.FLOW_STATUS_PAUSED
    flow = (await tenancy.call("ResumeFlow", flow_id=flow_id)).flow
    assert (flow.status, flow.hold_reason) == (flow_pb2.FLOW_STATUS_DATA_GATHERING, "")
    assert await _phases(tenancy, flow_id) == before


async def test_a_deleted_flow_is_read_until_it_is_undeleted(tenancy: Tenancy) -> None:
    flow_id = (await tenancy.create(state={"json": '{"a":1}'})).flow_id
    await tenancy.call("PauseFlow", flow_id=flow_id)
    deleted = (await tenancy.call("DeleteFlow", flow_id=flow_id, reason="a mistake")).flow
    assert deleted.HasField("delete_time")
    found = (await tenancy.call("GetFlow", flow_id=flow_id, view="FLOW_VIEW_FULL")).flow
    assert (found.delete_time, found.state.json) == (deleted.delete_time, '{"a":1}')
    flow = (await tenancy.call("UndeleteFlow", flow_id=flow_id)).flow
    assert (flow.HasField("delete_time"), flow.status, flow.revision) == (False, flow_pb2.FLOW_STATUS_PAUSED, 4)


async def test_a_journey_goes_from_domain_to_domain_until_it_is_complete(tenancy: Tenancy) -> None:
    flow_id = (await tenancy.create(type="migration")).flow_id
    refusal = await tenancy.refusal("StartChildFlow", flow_id=flow_id)
    assert (refusal.reason, refusal.metadata["missing_dependencies"]) == ("DEPENDENCY_INCOMPLETE", "discovery")
    refusal = await tenancy.refusal("StartChildFlow", flow_id=flow_id, child_start={"type": "discovery"})
    assert (refusal.reason, refusal.metadata["child_type"]) == ("CHILD_EXISTS", "discovery")
    assert (await tenancy.refusal("StartChildFlow", flow_id=flow_id, child_start={"type": "x"})).violations.keys() == {"child_start.type"}
    flow = await _complete(tenancy, flow_id, "discovery")
    for domain in DOMAINS[1:]:
        assert flow.status != flow_pb2.FLOW_STATUS_COMPLETED
        response = await tenancy.call("StartChildFlow", flow_id=flow_id, child_start={"data": {"json": f'{{"of":"{domain}"}}'}})
        assert (response.flow.children[-1].type, response.event.changes[0].child_started.type) == (domain, domain)
        flow = await _complete(tenancy, flow_id, domain)
    assert (flow.status, flow.progress_percent, flow.HasField("end_time")) == (flow_pb2.FLOW_STATUS_COMPLETED, 100.0, True)
    full = (await tenancy.call("GetFlow", flow_id=flow_id, view="FLOW_VIEW_FULL")).flow
    assert [child.data.json for child in full.children[1:]] == [f'{{"of":"{domain}"}}' for domain in DOMAINS[1:]]
    assert (await tenancy.refusal("StartChildFlow", flow_id=flow_id)).reason == "CHILD_EXISTS"
    assert (await tenancy.refusal("CancelFlow", flow_id=flow_id)).metadata["status"] == "COMPLETED"
    assert (await tenancy.refusal("PauseFlow", flow_id=flow_id)).reason == "FLOW_NOT_ACTIVE"
    await tenancy.call("UpdateFlow", flow_id=flow_id, update={"display_name": "a completed flow can be updated"})
    reopened = await tenancy.call("RollbackPhase", flow_id=flow_id, rollback={"phase": "decommissioning"})
    assert reopened.flow.status != flow_pb2.FLOW_STATUS_COMPLETED
    assert not reopened.flow.HasField("end_time")


async def test_of_each_kind_of_activity_the_last_100_are_kept_and_all_are_counted(tenancy: Tenancy) -> None:
    flow_id = (await tenancy.create()).flow_id
    for start in (0, 100, 150):
        entries = [
            {"kind": "ACTIVITY_KIND_TIMING", "value": float(start + at), "duration": {"seconds": 1, "nanos": 500}}
            for at in range(50 if start else 100)
        ]
        event = (await tenancy.call("RecordActivity", flow_id=flow_id, activity={"entries": entries})).event
        assert [entry.value for entry in event.changes[0].activity.entries] == [entry["value"] for entry in entries]
    await tenancy.call("RecordActivity", flow_id=flow_id, activity={"entries": [{"kind": "ACTIVITY_KIND_ERROR", "message": "x"}]})
    activity = (await tenancy.call("GetFlow", flow_id=flow_id, view="FLOW_VIEW_FULL")).flow.activity
    timings = [entry for entry in activity.entries if entry.kind == 4]
    assert [(entry.sequence, entry.value) for entry in timings] == [(at + 1, float(at)) for at in range(199, 99, -1)]
    assert {(total.kind, total.total) for total in activity.totals} == {(3, 1), (4, 200)}
    assert all(entry.actor == tenancy.user and entry.HasField("time") for entry in activity.entries)
    for entry in ({"kind": "ACTIVITY_KIND_TRANSITION"}, {"kind": "ACTIVITY_KIND_RETRY"}, {}):
        refusal = await tenancy.refusal("RecordActivity", flow_id=flow_id, activity={"entries": [entry]})
        assert refusal.violations.keys() == {"activity.entries[0].kind"}
    for count in (0, 101):
        refusal = await tenancy.refusal("RecordActivity", flow_id=flow_id, activity={"entries": [{"kind": 4}] * count})
        assert refusal.violations.keys() == {"activity.entries"}


@pytest.mark.parametrize("name", ["UpdateFlow", "TransitionPhase", "RetryPhase", "RollbackPhase", "ReportProgress", "RecordActivity"])
async def test_a_change_that_is_required_cannot_be_left_out(tenancy: Tenancy, name: str) -> None:
    flow_id = (await tenancy.create()).flow_id
    assert (await tenancy.refusal(name, flow_id=flow_id)).reason == "INVALID_REQUEST"


@pytest.mark.parametrize("view", ["SUMMARY", "BASIC", "FULL"])
async def test_an_old_revision_is_returned_as_it_was_when_it_was_new(tenancy: Tenancy, view: str) -> None:
    flow = await tenancy.create(state={"json": '{"exact":9007199254740993}'})
    seen = {}
    for change in (
        {"transition": {"phase": "data_import", "to": "PHASE_STATE_IN_PROGRESS"}},
        {"progress": {"phase": "data_import", "fraction": 0.5, "message": "half"}},
        {"update": {"state": {"json": "{}"}, "display_name": "Other", "labels": {"a": "b"}}},
        {"activity": {"entries": [{"kind": "ACTIVITY_KIND_MEMORY", "value": 3.5}]}},
        {"pause": {"reason": "lunch"}},
    ):
        done = await tenancy.call("CommitFlow", flow_id=flow.flow_id, changes=[change])
        read = await tenancy.call("GetFlow", flow_id=flow.flow_id, view=f"FLOW_VIEW_{view}")
        seen[done.flow.revision] = read.flow
    assert len(seen) == 5
    for revision, known in seen.items():
        past = await tenancy.call("GetFlow", flow_id=flow.flow_id, view=f"FLOW_VIEW_{view}", at_revision=revision)
        assert past.flow == known


async def test_a_revision_that_is_to_come_and_two_wishes_at_once_are_refused(tenancy: Tenancy) -> None:
    flow = await tenancy.create()
    assert (await tenancy.refusal("GetFlow", flow_id=flow.flow_id, at_revision=2)).reason == "REVISION_IN_FUTURE"
    both = await tenancy.refusal("GetFlow", flow_id=flow.flow_id, at_revision=1, min_revision=1)
    assert both.violations.keys() == {"at_revision"}
    negative = await tenancy.refusal("GetFlow", flow_id=flow.flow_id, at_revision=-1)
    assert negative.violations.keys() == {"at_revision"}
