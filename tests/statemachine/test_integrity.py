"""A stored flow is looked at value by value: what is right comes through as it was, and each thing that is wrong is named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest

from server.statemachine.derivation import child_progress, child_status, summary
from server.statemachine.event import PhaseChanged
from server.statemachine.finding import FindingKind
from server.statemachine.flow import new_child
from server.statemachine.graphs import ASSESSMENT, DISCOVERY
from server.statemachine.integrity import Stored, differences, forbidden, read, unmet
from server.statemachine.loose import Loose, bytes_of
from server.statemachine.states import FailureCode, FlowHold
from server.statemachine.values import ActivityKind, ChildFlow, Flow, Origin, Phase

from .story import BEGINNING, S, Story, begun, put

K = FindingKind
Damage = Callable[[dict[str, Any], list[tuple[str, dict[str, Any]]]], object]


def row_of(flow: Flow) -> dict[str, Any]:
    """The flow's row as PostgreSQL tells it."""
    said = summary(flow)
    return {
        "type": flow.type, "display_name": flow.display_name, "labels": dict(flow.labels), "hold": flow.hold.name,
        "hold_reason": flow.hold_reason, "created_by": flow.created_by, "create_time": flow.create_time.isoformat(),
        "revision": flow.revision, "head_hash": "\\x" + "00" * 32, "updated_by": flow.updated_by,
        "update_time": flow.update_time.isoformat(), "totals": [flow.totals.get(kind, 0) for kind in ActivityKind],
        "status": said.status.name, "progress": said.progress, "current_child": said.current_child,
        "current_phases": list(said.current_phases), "end_time": None,
    }  # fmt: skip


def child_row(flow: Flow, child: ChildFlow) -> dict[str, Any]:
    """The child's row."""
    return {
        "type": child.type, "child_flow_id": str(child.child_flow_id), "create_time": child.create_time.isoformat(),
        "update_time": child.update_time.isoformat(), "definition_version": child.definition.version,
        "progress": child_progress(child), "status": child_status(child, flow.hold).name,
        "phases": [phase_row(phase) for phase in child.phases],
    }  # fmt: skip


def phase_row(phase: Phase) -> dict[str, Any]:
    """The phase as it is stored."""
    found: dict[str, Any] = {
        "name": phase.name, "state": phase.state.name, "fraction": phase.fraction, "message": phase.message,
        "retry_count": phase.retry_count,
    }  # fmt: skip
    if phase.failure is not None:
        found["failure"] = {"code": phase.failure.code.name, "message": phase.failure.message}
    times = {name: getattr(phase, name) for name in ("start_time", "state_time", "end_time")}
    return {**found, **{name: time.isoformat() for name, time in times.items() if time is not None}}


def stored(story: Story, damage: Damage = lambda row, children: None) -> Stored:
    """What is read of the flow once it was damaged."""
    flow = story.flow
    row, children = row_of(flow), [(child.type, child_row(flow, child)) for child in flow.children]
    damage(row, children)
    return read(flow.tenant, flow.flow_id, row, children)


def under_way() -> Story:
    """A migration in its second domain."""
    story = begun("migration")
    story.complete_child("discovery")
    story.flow = replace(story.flow, children=(*story.flow.children, new_child(UUID(int=9), ASSESSMENT, BEGINNING)))
    return story


def phase_at(children: list[tuple[str, dict[str, Any]]], at: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = children[0][1]["phases"][at]
    return found


def test_what_is_right_comes_through_as_it_is() -> None:
    for story in (begun("discovery", labels={"a": "b"}), under_way()):
        found = stored(story)
        assert found.findings == ()
        assert found.flow == story.flow
    assert stored(begun("discovery"), lambda row, _: row.update(origin_flow_id=str(UUID(int=7)), origin_revision=2)).flow == replace(
        begun("discovery").flow, origin=Origin(UUID(int=7), 2)
    )


WRONG: dict[str, tuple[Damage, FindingKind, str]] = {
    "a name that is no text": (lambda row, _: row.update(display_name=7), K.FIELD_INVALID, "display_name"),
    "half an origin": (lambda row, _: row.update(origin_flow_id=str(UUID(int=7))), K.FIELD_INVALID, "origin_revision"),
    "an origin that is none": (lambda row, _: row.update(origin_flow_id=7, origin_revision=1), K.FIELD_INVALID, "origin_flow_id"),
    "a progress that is no number": (lambda row, _: row.update(progress="x"), K.DERIVED_WRONG, "progress"),
    "an end that there is not": (lambda row, _: row.update(end_time=BEGINNING.isoformat()), K.DERIVED_WRONG, "end_time"),
    "labels without": (lambda row, _: row.pop("labels"), K.FIELD_MISSING, "labels"),
    "a hold without": (lambda row, _: row.pop("hold"), K.FIELD_MISSING, "hold"),
    "totals without": (lambda row, _: row.pop("totals"), K.FIELD_MISSING, "totals"),
    "a hash that is no hexadecimal": (lambda row, _: row.update(head_hash="\\xzz"), K.FIELD_INVALID, "head_hash"),
    "a hash without": (lambda row, _: row.pop("head_hash"), K.FIELD_MISSING, "head_hash"),
    "a fraction without": (lambda _, children: phase_at(children).update(fraction="x"), K.FIELD_INVALID, "fraction"),
    "a fraction of what is not under way": (lambda _, children: phase_at(children).update(fraction=0.5), K.PHASE_STATE, "fraction"),
    "no beginning": (lambda _, children: phase_at(children).update(state="IN_PROGRESS"), K.PHASE_STATE, "start_time"),
    "an end too early": (lambda _, children: phase_at(children).update(end_time=BEGINNING.isoformat()), K.PHASE_STATE, "end_time"),
    "a failure of a success": (
        lambda _, children: phase_at(children).update(
            state="COMPLETED", start_time=BEGINNING.isoformat(), end_time=BEGINNING.isoformat(), failure={"code": "AGENT_TIMEOUT"}
        ),
        K.PHASE_STATE,
        "failure",
    ),
    "a state without": (lambda _, children: phase_at(children).pop("state"), K.FIELD_MISSING, "state"),
    "a child's id that is none": (lambda _, children: children[0][1].update(child_flow_id="x"), K.FIELD_INVALID, "child_flow_id"),
    "a child's definition of another version": (
        lambda _, children: children[0][1].update(definition_version=2), K.PHASES_UNKNOWN, "definition_version"
    ),
    "a child that is under way and not there": (lambda _, children: children.clear(), K.CHILD_MISSING, ""),
    "a child in another's table": (lambda _, children: children.append(("planning", dict(children[0][1]))), K.CHILD_UNEXPECTED, ""),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG, ids=[name.replace(" ", "_") for name in WRONG])
def test_what_is_wrong_is_named(name: str) -> None:
    damage, kind, field = WRONG[name]
    found = stored(begun("discovery"), damage)
    assert (kind, field) in {(finding.kind, finding.field) for finding in found.findings}, found.findings


def test_a_child_before_another_is_missed_once() -> None:
    found = stored(under_way(), lambda row, children: children.pop(0))
    assert [(finding.kind, finding.child_type) for finding in found.findings] == [(K.CHILD_MISSING, "discovery")]
    found = stored(under_way(), lambda row, children: (row.update(current_child="discovery"), children.pop(0)))
    assert [(finding.kind, finding.child_type) for finding in found.findings] == [(K.CHILD_MISSING, "discovery")]


def test_a_phase_that_stands_on_nothing_is_told() -> None:
    story = begun("discovery")
    assert unmet(story.flow) == ""
    put(story, field_mapping=S.COMPLETED)
    assert unmet(story.flow) == "field_mapping is COMPLETED, and data_import is not COMPLETED"


def changed(before: S, after: S, **more: Any) -> PhaseChanged:
    return PhaseChanged("discovery", Phase("field_mapping", before), Phase("field_mapping", after), **more)


def test_what_a_graph_does_not_allow_is_said() -> None:
    assert forbidden(changed(S.IN_PROGRESS, S.WAITING_APPROVAL), DISCOVERY) == ""
    assert forbidden(changed(S.IN_PROGRESS, S.IN_PROGRESS), DISCOVERY) == ""
    assert forbidden(changed(S.FAILED, S.IN_PROGRESS), DISCOVERY) == ""
    assert forbidden(changed(S.IN_PROGRESS, S.COMPLETED), DISCOVERY) == "it went from IN_PROGRESS to COMPLETED"  # unapproved
    assert forbidden(changed(S.COMPLETED, S.COMPLETED), DISCOVERY) == "progress was reported while COMPLETED"
    assert forbidden(changed(S.COMPLETED, S.ROLLED_BACK, taken_along_by="data_import"), DISCOVERY) == ""
    assert forbidden(changed(S.COMPLETED, S.FAILED, taken_along_by="data_import"), DISCOVERY) == "it was taken along to FAILED"


def test_each_difference_from_the_history_is_told() -> None:
    flow = under_way().flow
    first = flow.children[0]
    other = replace(first, child_flow_id=UUID(int=77), phases=(replace(first.phases[0], message="x"), *first.phases[1:]))
    found = differences(replace(flow, display_name="y", hold=FlowHold.PAUSED, children=(other,)), flow)
    assert [(finding.kind, finding.field, finding.phase) for finding in found] == [
        (K.ROW_DIFFERS, "display_name", ""),
        (K.ROW_DIFFERS, "hold", ""),
        (K.ROW_DIFFERS, "child_flow_id", ""),
        (K.ROW_DIFFERS, "phases", "data_import"),
        (K.CHILD_MISSING, "", ""),
    ]
    assert [finding.kind for finding in differences(flow, replace(flow, children=(first,)))] == [K.CHILD_UNEXPECTED]
    assert differences(flow, flow) == []


def test_a_value_of_the_wrong_type_is_no_value() -> None:
    found: list[Any] = []
    loose = Loose({"text": 7, "number": "x", "uuid": "x", "empty": "", "texts": {"a": 1}, "items": {}, "octets": 7}, found)
    read: list[Any] = [
        loose.text("text"), loose.number("number", 0, 1), loose.uuid("uuid"), loose.texts("texts"), loose.items("items"),
        loose.octets("octets", 3), loose.text("empty", empty=False), loose.number("gone", 0, 1), loose.uuid("gone"),
        loose.texts("gone"), loose.items("gone"), loose.whole("gone"), loose.member("gone", FailureCode),
    ]  # fmt: skip
    assert read == [None] * 13
    assert len(found) == 13
    assert [bytes_of(value) for value in ("\\x0g", "00", None)] == [None] * 3
