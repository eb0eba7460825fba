"""The thirteen statuses: each can be reached, and of two that could be said the first of the list is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from uuid import UUID

import pytest

from server.statemachine.change import CancelFlow, PauseFlow, ResumeFlow, RollbackPhase, StartChild, UpdateFlow
from server.statemachine.definition import Definition, PhaseDefinition
from server.statemachine.derivation import child_status, current_child, current_phases, flow_status, summary
from server.statemachine.flow import new_child
from server.statemachine.states import TERMINAL, FlowHold, FlowStatus, PhaseState

from .story import BAD_DATA, S, Story, begun, hold, minute, of_phases, plain, put

T = FlowStatus
WORK = (T.DATA_GATHERING, T.DISCOVERY, T.ASSESSMENT_READY, T.PLANNING, T.ACTIVE)


def four() -> Story:
    return of_phases(plain("a"), plain("b"), plain("c"), PhaseDefinition("d", T.PLANNING))


# What makes a child have a status, the strongest first; COMPLETED stands apart, because it leaves no phase to be anything else.
CAUSES: dict[FlowStatus, Callable[[Story], None]] = {
    T.CANCELLED: lambda story: hold(story, FlowHold.CANCELLED),
    T.PAUSED: lambda story: hold(story, FlowHold.PAUSED),
    T.FAILED: lambda story: put(story, a=S.FAILED),
    T.ERROR_RECOVERY: lambda story: hold(story, FlowHold.RECOVERING),
    T.RETRY_PENDING: lambda story: put(story, b=S.RETRY_NEEDED),
    T.WAITING_APPROVAL: lambda story: put(story, c=S.WAITING_APPROVAL),
    T.PLANNING: lambda story: put(story, d=S.IN_PROGRESS),
    T.INITIALIZED: lambda story: None,
}
HOLDS = {T.CANCELLED, T.PAUSED, T.ERROR_RECOVERY}


@pytest.mark.parametrize("status", CAUSES)
def test_one_cause_gives_its_status(status: FlowStatus) -> None:
    story = four()
    CAUSES[status](story)
    assert story.status is status
    assert child_status(story.flow.children[0], story.flow.hold) is status


@pytest.mark.parametrize(
    ("first", "second"), [pair for pair in combinations(CAUSES, 2) if not HOLDS.issuperset(pair)], ids=lambda status: status.name
)
def test_of_two_causes_the_first_of_the_list_wins(first: FlowStatus, second: FlowStatus) -> None:
    story = four()
    CAUSES[second](story)
    CAUSES[first](story)
    assert story.status is first


def test_all_thirteen_statuses_are_reached_here() -> None:
    assert {*CAUSES, *WORK, T.COMPLETED} == set(FlowStatus)


@pytest.mark.parametrize("status", WORK)
@pytest.mark.parametrize("state", [S.IN_PROGRESS, S.WAITING_VALIDATION])
def test_a_phase_under_way_gives_the_status_of_its_definition(status: FlowStatus, state: PhaseState) -> None:
    story = of_phases(PhaseDefinition("work", status))
    put(story, work=state)
    assert story.status is status


@pytest.mark.parametrize("kind", FlowHold)
def test_a_child_that_has_completed_stays_completed_whatever_holds_the_flow(kind: FlowHold) -> None:
    story = four()
    put(story, a=S.COMPLETED, b=S.COMPLETED, c=S.COMPLETED, d=S.COMPLETED)
    assert child_status(story.flow.children[0], kind) is T.COMPLETED


def test_discovery_goes_through_the_statuses_of_the_design() -> None:
    story = begun("discovery")
    seen = [story.status]
    for phase in ("data_import", "field_mapping", "data_cleansing", "asset_creation", "asset_inventory", "dependency_analysis"):
        story.move(phase, S.IN_PROGRESS)
        seen.append(story.status)
        if phase == "field_mapping":
            story.move(phase, S.WAITING_APPROVAL)
            seen.append(story.status)
        story.move(phase, S.COMPLETED)
    story.complete("tech_debt_analysis")
    seen.append(story.status)
    assert seen == [
        T.INITIALIZED,
        T.DATA_GATHERING,
        T.DISCOVERY,
        T.WAITING_APPROVAL,
        T.DISCOVERY,
        T.DISCOVERY,
        T.ASSESSMENT_READY,
        T.PLANNING,
        T.COMPLETED,
    ]


def test_between_two_phases_the_status_is_that_of_the_one_just_completed() -> None:
    story = begun("discovery")
    story.complete("data_import")
    assert story.status is T.DATA_GATHERING


def test_a_branch_that_completed_does_not_hide_one_under_way() -> None:
    story = of_phases(PhaseDefinition("gather", T.DATA_GATHERING), PhaseDefinition("plan", T.PLANNING))
    put(story, gather=S.IN_PROGRESS, plan=S.COMPLETED)
    assert story.status is T.DATA_GATHERING


def test_a_child_whose_every_phase_was_taken_back_is_as_if_not_begun() -> None:
    story = of_phases(plain("first"), plain("second", "first"))
    story.complete("first", "second")
    story.roll_back("first")
    assert set(story.states().values()) == {S.ROLLED_BACK}
    assert story.status is T.INITIALIZED


def two_children(first: Callable[[Story], None], second: Callable[[Story], None], *works: FlowStatus) -> Story:
    """A migration with two children, each four phases of which the last has a status of its own."""
    story = begun("migration")
    made = []
    for at, (cause, kind, work) in enumerate(zip((first, second), ("discovery", "assessment"), works, strict=True)):
        phases = (plain("a"), plain("b"), plain("c"), PhaseDefinition("d", work))
        alone = of_phases(*phases)
        child = new_child(UUID(int=10 + at), Definition(kind, 1, phases), minute(1))
        alone.flow = replace(alone.flow, children=(child,))
        cause(alone)
        made.append(alone.flow.children[0])
    story.flow = replace(story.flow, children=tuple(made))
    return story


def cause_of(status: FlowStatus) -> Callable[[Story], None]:
    return CAUSES[T.PLANNING] if status in WORK else CAUSES[status]


MASTER_LIST = (T.FAILED, T.RETRY_PENDING, T.WAITING_APPROVAL, *WORK, T.INITIALIZED)


@pytest.mark.parametrize(("first", "second"), list(combinations(MASTER_LIST, 2)), ids=lambda status: status.name)
def test_of_two_children_under_way_the_master_takes_the_first_of_the_list(first: FlowStatus, second: FlowStatus) -> None:
    one = two_children(cause_of(first), cause_of(second), first, second)
    other = two_children(cause_of(second), cause_of(first), second, first)
    assert flow_status(one.flow) is first
    assert flow_status(other.flow) is first
    assert [child and child.type for child in (current_child(one.flow), current_child(other.flow))] == ["discovery", "assessment"]


def test_of_two_children_with_one_status_the_earlier_domain_is_the_current_one() -> None:
    story = two_children(CAUSES[T.FAILED], CAUSES[T.FAILED], T.ACTIVE, T.ACTIVE)
    child = current_child(story.flow)
    assert child is story.flow.children[0]


def test_a_completed_domain_does_not_hide_the_one_under_way() -> None:
    story = begun("migration")
    story.complete_child("discovery")
    story.do(StartChild())
    seen = [story.status]
    story.move("application_selection", S.IN_PROGRESS)
    assert [*seen, story.status] == [T.INITIALIZED, T.ASSESSMENT_READY]
    assert current_phases(story.flow) == ("application_selection",)


def test_a_migration_is_active_between_two_domains_and_complete_only_at_its_end() -> None:
    story = begun("migration")
    for domain in ("discovery", "assessment", "planning", "execution"):
        story.complete_child(domain)
        if domain != "execution":
            assert (story.status, current_phases(story.flow), story.flow.end_time) == (T.ACTIVE, (), None)
            assert current_child(story.flow) is story.flow.children[-1]
            story.do(StartChild())
    assert (story.status, story.flow.end_time) == (T.COMPLETED, minute(story.flow.revision))


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        (FlowHold.NONE, T.INITIALIZED),
        (FlowHold.RECOVERING, T.ERROR_RECOVERY),
        (FlowHold.PAUSED, T.PAUSED),
        (FlowHold.CANCELLED, T.CANCELLED),
    ],
)
def test_a_flow_without_a_child_has_a_status_too(kind: FlowHold, status: FlowStatus) -> None:
    flow = replace(begun("migration").flow, children=(), hold=kind)
    assert (flow_status(flow), current_child(flow), current_phases(flow)) == (status, None, ())


@pytest.mark.parametrize(
    ("kind", "status"),
    [(FlowHold.RECOVERING, T.ERROR_RECOVERY), (FlowHold.PAUSED, T.PAUSED), (FlowHold.CANCELLED, T.CANCELLED)],
)
def test_a_hold_between_two_domains_is_seen(kind: FlowHold, status: FlowStatus) -> None:
    story = begun("migration")
    story.complete_child("discovery")
    hold(story, kind)
    assert story.status is status


def test_current_phases_are_those_begun_and_not_complete() -> None:
    story = four()
    put(story, a=S.COMPLETED, b=S.WAITING_VALIDATION, c=S.ROLLED_BACK, d=S.FAILED)
    assert current_phases(story.flow) == ("b", "d")


def test_a_flow_that_completes_gets_an_end_time_which_updates_leave_and_a_rollback_clears() -> None:
    story = begun("planning")
    story.complete_child("planning")
    ended = minute(story.flow.revision)
    seen = [(story.flow.end_time, flow_status(story.flow) in TERMINAL)]
    for change in (UpdateFlow(display_name="afterwards"), RollbackPhase("scheduling")):
        story.do(change)
        seen.append((story.flow.end_time, flow_status(story.flow) in TERMINAL))
    assert seen == [(ended, True), (ended, True), (None, False)]


def test_a_flow_that_fails_gets_an_end_time_which_a_grant_clears() -> None:
    story = begun("planning")
    story.move("wave_planning", S.IN_PROGRESS)
    story.fail("wave_planning", BAD_DATA)
    assert story.flow.end_time == minute(3)
    story.move("wave_planning", S.RETRY_NEEDED)
    assert story.flow.end_time is None


def test_a_cancelled_flow_has_an_end_time_and_a_paused_one_has_none() -> None:
    story = begun("planning")
    story.do(PauseFlow())
    assert story.flow.end_time is None
    story.do(ResumeFlow())
    story.do(CancelFlow())
    assert story.flow.end_time == minute(4)


def test_a_summary_tells_what_is_derived_and_what_is_kept() -> None:
    story = begun("discovery", labels={"wave": "3"})
    story.complete("data_import")
    story.move("field_mapping", S.IN_PROGRESS, actor="agent-7")
    told = summary(story.flow)
    assert (told.status, told.progress, told.current_child, told.current_phases) == (
        T.DISCOVERY,
        18.5714,
        "discovery",
        ("field_mapping",),
    )
    kept = ("tenant", "flow_id", "type", "display_name", "revision", "labels", "create_time", "created_by", "update_time")
    for name in (*kept, "updated_by", "end_time", "delete_time", "hold_reason"):
        assert getattr(told, name) == getattr(story.flow, name)
    assert (told.labels, told.updated_by, told.create_time) == ({"wave": "3"}, "agent-7", minute(1))


def test_a_summary_of_a_flow_without_a_child_names_none() -> None:
    assert summary(replace(begun("migration").flow, children=())).current_child == ""
