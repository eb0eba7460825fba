"""What must come first, what runs side by side, and what a rollback or a redo takes along."""

from __future__ import annotations

import pytest

from server.statemachine.change import ReportProgress, RetryPhase, TransitionPhase
from server.statemachine.errors import DependencyIncomplete, InvalidPhaseTransition, InvalidRequest, PhaseNotFound
from server.statemachine.phases import next_states
from server.statemachine.states import FlowStatus, PhaseState

from .story import BAD_DATA, S, Story, begun, of_phases, phase_facts, plain, put


def diamond() -> Story:
    """``top`` before ``left`` and ``right``, both before ``bottom``; ``aside`` on its own."""
    return of_phases(plain("top"), plain("left", "top"), plain("right", "top"), plain("bottom", "left", "right"), plain("aside"))


def next_of(story: Story, name: str) -> tuple[PhaseState, ...]:
    return next_states(story.flow.children[0], story.phase(name))


def test_a_phase_begins_only_after_all_it_depends_on_is_complete() -> None:
    story = diamond()
    story.complete("top", "left")
    with pytest.raises(DependencyIncomplete) as refused:
        story.move("bottom", S.IN_PROGRESS)
    assert refused.value.metadata == {"missing_dependencies": "right"}
    assert refused.value.subject == "phase/bottom"
    story.complete("right")
    story.move("bottom", S.IN_PROGRESS)
    assert story.state("bottom") is S.IN_PROGRESS


@pytest.mark.parametrize("state", [state for state in S if state is not S.COMPLETED])
def test_only_completed_counts_as_complete(state: PhaseState) -> None:
    story = diamond()
    put(story, left=state, right=S.COMPLETED)
    with pytest.raises(DependencyIncomplete) as refused:
        story.move("bottom", S.IN_PROGRESS)
    assert refused.value.metadata == {"missing_dependencies": "left"}


def test_all_that_is_missing_is_named_in_the_graphs_order() -> None:
    with pytest.raises(DependencyIncomplete) as refused:
        diamond().move("bottom", S.IN_PROGRESS)
    assert refused.value.metadata == {"missing_dependencies": "left,right"}


def test_independent_branches_run_side_by_side() -> None:
    story = begun("discovery")
    story.complete("data_import", "field_mapping", "data_cleansing", "asset_creation", "asset_inventory")
    story.move("dependency_analysis", S.IN_PROGRESS)
    story.move("tech_debt_analysis", S.IN_PROGRESS)
    assert [name for name, state in story.states().items() if state is S.IN_PROGRESS] == ["dependency_analysis", "tech_debt_analysis"]
    story.fail("dependency_analysis", BAD_DATA)
    story.move("tech_debt_analysis", S.COMPLETED)
    assert story.state("tech_debt_analysis") is S.COMPLETED


def test_next_states_leave_out_a_beginning_whose_dependencies_are_incomplete() -> None:
    story = diamond()
    assert next_of(story, "top") == (S.IN_PROGRESS,)
    assert next_of(story, "left") == ()
    put(story, left=S.RETRY_NEEDED, right=S.ROLLED_BACK)
    assert next_of(story, "left") == (S.FAILED, S.ROLLED_BACK)
    assert next_of(story, "right") == (S.NOT_STARTED,)
    put(story, top=S.COMPLETED)
    assert next_of(story, "left") == (S.IN_PROGRESS, S.FAILED, S.ROLLED_BACK)
    assert next_of(story, "right") == (S.IN_PROGRESS, S.NOT_STARTED)


def test_valid_transitions_leave_out_what_dependencies_forbid() -> None:
    story = diamond()
    put(story, left=S.RETRY_NEEDED)
    with pytest.raises(InvalidPhaseTransition) as refused:
        story.move("left", S.COMPLETED)
    assert refused.value.metadata["valid_transitions"] == "FAILED,ROLLED_BACK"
    with pytest.raises(InvalidPhaseTransition, match="it may become: nothing now"):
        story.move("bottom", S.COMPLETED)


def test_a_retry_waits_for_dependencies_too() -> None:
    story = diamond()
    put(story, left=S.RETRY_NEEDED)
    with pytest.raises(DependencyIncomplete) as refused:
        story.do(RetryPhase("left"))
    assert refused.value.metadata == {"missing_dependencies": "top"}


def test_a_rollback_takes_along_every_phase_that_was_built_on_the_result() -> None:
    story = diamond()
    story.complete("top", "left", "right", "aside")
    story.move("bottom", S.IN_PROGRESS)
    outcome = story.roll_back("top")
    assert story.states() == {
        "top": S.ROLLED_BACK,
        "left": S.ROLLED_BACK,
        "right": S.ROLLED_BACK,
        "bottom": S.RETRY_NEEDED,
        "aside": S.COMPLETED,
    }
    assert [(fact.after.name, fact.taken_along_by) for fact in phase_facts(outcome)] == [
        ("top", ""),
        ("left", "top"),
        ("right", "top"),
        ("bottom", "top"),
    ]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (S.NOT_STARTED, S.NOT_STARTED),
        (S.IN_PROGRESS, S.RETRY_NEEDED),
        (S.WAITING_VALIDATION, S.ROLLED_BACK),
        (S.WAITING_APPROVAL, S.ROLLED_BACK),
        (S.COMPLETED, S.ROLLED_BACK),
        (S.FAILED, S.ROLLED_BACK),
        (S.RETRY_NEEDED, S.ROLLED_BACK),
        (S.ROLLED_BACK, S.ROLLED_BACK),
    ],
)
@pytest.mark.parametrize("way", [S.ROLLED_BACK, S.RETRY_NEEDED])
def test_a_dependant_that_is_taken_along_becomes_what_the_design_says(before: PhaseState, after: PhaseState, way: PhaseState) -> None:
    story = of_phases(plain("first"), plain("second", "first"))
    put(story, first=S.COMPLETED, second=before)
    outcome = story.move("first", way)
    assert story.states() == {"first": way, "second": after}
    assert len(phase_facts(outcome)) == (1 if before is after else 2)


@pytest.mark.parametrize("state", [S.WAITING_VALIDATION, S.WAITING_APPROVAL, S.FAILED, S.RETRY_NEEDED])
def test_a_rollback_takes_along_what_was_left_over_from_a_redo(state: PhaseState) -> None:
    story = of_phases(plain("first"), plain("second", "first"))
    put(story, first=state, second=S.RETRY_NEEDED)
    story.roll_back("first")
    assert story.states() == {"first": S.ROLLED_BACK, "second": S.ROLLED_BACK}


def test_only_a_result_that_was_there_takes_dependants_along() -> None:
    story = of_phases(plain("first"), plain("second", "first"))
    put(story, first=S.IN_PROGRESS, second=S.RETRY_NEEDED)
    story.fail("first", BAD_DATA)
    assert story.states() == {"first": S.FAILED, "second": S.RETRY_NEEDED}


def test_a_rollback_in_the_middle_leaves_what_came_before_and_the_other_branch() -> None:
    story = diamond()
    story.complete("top", "left", "right", "bottom")
    story.roll_back("left")
    assert story.states() == {
        "top": S.COMPLETED,
        "left": S.ROLLED_BACK,
        "right": S.COMPLETED,
        "bottom": S.ROLLED_BACK,
        "aside": S.NOT_STARTED,
    }


def test_a_dependant_by_two_ways_is_taken_along_once() -> None:
    story = diamond()
    story.complete("top", "left", "right", "bottom")
    assert [fact.after.name for fact in phase_facts(story.roll_back("top"))].count("bottom") == 1


def test_a_redo_takes_dependants_along_like_a_rollback() -> None:
    story = begun("discovery")
    story.complete("data_import", "field_mapping")
    story.move("data_cleansing", S.IN_PROGRESS)
    outcome = story.move("field_mapping", S.RETRY_NEEDED, reason="a column was missed")
    assert [story.state(name) for name in ("data_import", "field_mapping", "data_cleansing", "asset_creation")] == [
        S.COMPLETED,
        S.RETRY_NEEDED,
        S.RETRY_NEEDED,
        S.NOT_STARTED,
    ]
    assert [(fact.reason, fact.taken_along_by) for fact in phase_facts(outcome)] == [
        ("a column was missed", ""),
        ("a column was missed", "field_mapping"),
    ]


@pytest.mark.parametrize(
    "late",
    [ReportProgress("second", 0.9), TransitionPhase("second", S.COMPLETED), TransitionPhase("second", S.WAITING_APPROVAL)],
)
def test_the_late_report_of_a_worker_whose_phase_was_taken_back_is_refused(late: ReportProgress | TransitionPhase) -> None:
    story = of_phases(plain("first"), plain("second", "first"))
    story.complete("first")
    story.move("second", S.IN_PROGRESS)
    story.roll_back("first")
    with pytest.raises(InvalidPhaseTransition) as refused:
        story.do(late)
    assert refused.value.metadata["valid_transitions"] == "FAILED,ROLLED_BACK"
    assert story.state("second") is S.RETRY_NEEDED


def test_a_rolled_back_phase_can_begin_again_or_be_set_back_to_the_start() -> None:
    story = of_phases(plain("first"), plain("second"))
    story.complete("first", "second")
    story.roll_back("first")
    story.roll_back("second")
    story.move("first", S.IN_PROGRESS)
    story.move("second", S.NOT_STARTED)
    assert story.states() == {"first": S.IN_PROGRESS, "second": S.NOT_STARTED}


def test_a_rollback_reopens_a_completed_flow() -> None:
    story = begun("planning")
    story.complete_child("planning")
    seen = [story.status]
    story.roll_back("plan_review")
    assert [*seen, story.status] == [FlowStatus.COMPLETED, FlowStatus.PLANNING]


def test_an_unknown_phase_is_named_with_those_that_exist() -> None:
    story = diamond()
    with pytest.raises(PhaseNotFound) as refused:
        story.move("middle", S.IN_PROGRESS)
    assert refused.value.metadata == {"phase": "middle", "phases": "top,left,right,bottom,aside"}
    with pytest.raises(PhaseNotFound, match="child planning has no phase 'top'"):
        story.do(TransitionPhase("top", S.IN_PROGRESS, child_type="planning"))


def test_a_long_unknown_name_is_cut_in_the_error() -> None:
    with pytest.raises(PhaseNotFound) as refused:
        diamond().do(TransitionPhase("x" * 5000, S.IN_PROGRESS, child_type="y" * 5000))
    assert len(str(refused.value)) < 400
    assert refused.value.metadata["phase"] == "x" * 100


def test_a_phase_with_a_child_type_is_looked_for_in_that_child_only() -> None:
    story = diamond()
    story.do(TransitionPhase("top", S.IN_PROGRESS, child_type="discovery"))
    assert story.state("top") is S.IN_PROGRESS


def test_a_failure_is_required_and_allowed_only_where_it_says_something() -> None:
    story = diamond()
    story.move("top", S.IN_PROGRESS)
    with pytest.raises(InvalidRequest) as missing:
        story.move("top", S.FAILED)
    with pytest.raises(InvalidRequest) as misplaced:
        story.move("top", S.COMPLETED, failure=BAD_DATA)
    assert missing.value.violations[0].field == misplaced.value.violations[0].field == "transition.failure"
    assert "is required" in str(missing.value)
    assert "not with COMPLETED" in str(misplaced.value)
