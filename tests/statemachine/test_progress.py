"""Progress: exact numbers, whole at the end, and honest when it falls."""

from __future__ import annotations

from dataclasses import replace
from math import inf, nan

import pytest

from server.statemachine.change import RecordActivity, ReportProgress, StartChild
from server.statemachine.definition import PhaseDefinition
from server.statemachine.derivation import child_progress, flow_progress
from server.statemachine.errors import InvalidPhaseTransition, InvalidRequest
from server.statemachine.states import FlowStatus, PhaseState
from server.statemachine.values import ActivityEntry, ActivityKind

from .story import BAD_DATA, TIMEOUT, S, begun, minute, of_phases, phase_facts, plain, put


@pytest.mark.parametrize("flow_type", ["discovery", "assessment", "planning", "execution"])
def test_a_built_in_graph_reaches_exactly_one_hundred(flow_type: str) -> None:
    story = begun(flow_type)
    assert story.progress == 0.0
    story.complete_child(flow_type)
    assert story.progress == 100.0
    assert story.event.progress == 100.0


def test_a_migration_gives_each_domain_a_quarter() -> None:
    story = begun("migration")
    for done, domain in enumerate(("discovery", "assessment", "planning", "execution")):
        assert story.progress == 25.0 * done
        story.complete_child(domain)
        assert child_progress(story.flow.children[done]) == 100.0
        if domain != "execution":
            story.do(StartChild())
    assert story.progress == 100.0


@pytest.mark.parametrize(
    ("state", "progress"),
    [
        (S.NOT_STARTED, 0.0),
        (S.IN_PROGRESS, 30.0),
        (S.WAITING_VALIDATION, 70.0),
        (S.WAITING_APPROVAL, 80.0),
        (S.COMPLETED, 100.0),
        (S.FAILED, 0.0),
        (S.RETRY_NEEDED, 10.0),
        (S.ROLLED_BACK, 0.0),
    ],
)
def test_a_state_counts_as_much_as_the_design_says(state: PhaseState, progress: float) -> None:
    story = of_phases(plain("only"))
    put(story, only=state)
    assert story.progress == progress


@pytest.mark.parametrize(("fraction", "progress"), [(0.0, 30.0), (0.25, 40.0), (0.5, 50.0), (1.0, 70.0)])
def test_a_phase_in_progress_rises_with_the_reported_fraction(fraction: float, progress: float) -> None:
    story = of_phases(plain("only"))
    story.move("only", S.IN_PROGRESS)
    story.do(ReportProgress("only", fraction))
    assert story.progress == progress


def test_weights_are_shares_of_their_sum() -> None:
    story = of_phases(PhaseDefinition("large", FlowStatus.ACTIVE, weight=3.0), PhaseDefinition("small", FlowStatus.ACTIVE, weight=1.0))
    story.complete("large")
    assert story.progress == 75.0
    story.move("small", S.IN_PROGRESS)
    assert story.progress == 82.5


def test_one_seventh_is_told_to_four_decimals() -> None:
    story = begun("discovery")
    story.complete("data_import")
    assert story.progress == 14.2857
    story.move("field_mapping", S.IN_PROGRESS, S.WAITING_APPROVAL)
    assert story.progress == 25.7143


def test_a_flow_without_a_child_has_no_progress() -> None:
    assert flow_progress(replace(begun("migration").flow, children=())) == 0.0


def test_a_report_keeps_everything_but_fraction_and_message() -> None:
    story = of_phases(plain("only"))
    story.move("only", S.IN_PROGRESS)
    story.fail("only")
    story.retry("only")
    before = story.phase("only")
    outcome = story.do(ReportProgress("only", 0.4, message="148 of 371 rows"))
    after = story.phase("only")
    assert (after.fraction, after.message) == (0.4, "148 of 371 rows")
    assert (after.state, after.retry_count, after.failure) == (S.IN_PROGRESS, 1, TIMEOUT)
    assert (after.start_time, after.state_time, after.end_time) == (before.start_time, before.state_time, None)
    (fact,) = phase_facts(outcome)
    assert (fact.before, fact.after, fact.reason) == (before, after, "148 of 371 rows")
    assert story.flow.children[0].update_time == minute(story.flow.revision)


def test_a_report_without_a_message_keeps_the_last_one() -> None:
    story = of_phases(plain("only"))
    story.move("only", S.IN_PROGRESS)
    story.do(ReportProgress("only", 0.4, message="half way"))
    story.do(ReportProgress("only", 0.6))
    assert (story.phase("only").fraction, story.phase("only").message) == (0.6, "half way")


def test_the_fraction_is_gone_once_the_phase_leaves_in_progress() -> None:
    story = of_phases(plain("only"))
    story.move("only", S.IN_PROGRESS)
    story.do(ReportProgress("only", 0.9, message="nearly"))
    story.move("only", S.WAITING_VALIDATION)
    assert (story.phase("only").fraction, story.phase("only").message) == (0.0, "nearly")


@pytest.mark.parametrize("fraction", [-0.01, 1.01, nan, inf, -inf])
def test_a_fraction_outside_zero_to_one_is_refused(fraction: float) -> None:
    story = of_phases(plain("only"))
    story.move("only", S.IN_PROGRESS)
    with pytest.raises(InvalidRequest) as refused:
        story.do(ReportProgress("only", fraction))
    assert refused.value.violations[0].field == "progress.fraction"


@pytest.mark.parametrize("state", [state for state in S if state is not S.IN_PROGRESS])
def test_progress_is_reported_of_a_phase_in_progress_only(state: PhaseState) -> None:
    story = of_phases(plain("only"))
    put(story, only=state)
    with pytest.raises(InvalidPhaseTransition, match="progress is reported while IN_PROGRESS"):
        story.do(ReportProgress("only", 0.5))


def test_an_event_says_when_progress_fell() -> None:
    story = of_phases(plain("first"), plain("second", "first"))
    story.complete("first")
    assert [outcome.event.progress_regressed for outcome in story.outcomes] == [False] * 3
    story.move("second", S.IN_PROGRESS)
    story.do(ReportProgress("second", 0.5))
    assert not story.event.progress_regressed
    story.do(ReportProgress("second", 0.4))
    assert story.event.progress_regressed
    story.do(ReportProgress("second", 0.4))
    assert not story.event.progress_regressed
    story.fail("second", BAD_DATA)
    assert (story.event.progress, story.event.progress_regressed) == (50.0, True)
    story.move("second", S.RETRY_NEEDED)
    assert (story.event.progress, story.event.progress_regressed) == (55.0, False)
    story.roll_back("first")
    assert (story.event.progress, story.event.progress_regressed) == (0.0, True)


def test_progress_that_falls_and_recovers_within_one_commit_did_not_fall() -> None:
    story = of_phases(plain("only"))
    story.move("only", S.IN_PROGRESS)
    story.do(ReportProgress("only", 0.5))
    story.do(ReportProgress("only", 0.1), ReportProgress("only", 0.6))
    assert not story.event.progress_regressed


def test_activity_leaves_progress_and_status() -> None:
    story = begun("discovery")
    story.move("data_import", S.IN_PROGRESS)
    before = (story.progress, story.status)
    story.do(RecordActivity((ActivityEntry(ActivityKind.MEMORY, value=120.0, unit="MiB"),)))
    assert (story.progress, story.status) == before
