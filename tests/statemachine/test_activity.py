"""What the analytics are told, by the service and by callers, and how it is numbered."""

from __future__ import annotations

from datetime import timedelta

from server.statemachine.change import PauseFlow, RecordActivity, ReportProgress, RetryPhase, TransitionPhase
from server.statemachine.event import ActivityRecorded
from server.statemachine.flow import Occasion, Outcome, apply
from server.statemachine.states import FailureCode
from server.statemachine.values import ActivityEntry, ActivityKind, Failure

from .story import BAD_DATA, TIMEOUT, S, begun, minute, of_phases, plain, put

K = ActivityKind


def told(outcome: Outcome) -> list[tuple[ActivityKind, str, str]]:
    return [(entry.kind, entry.phase, entry.message) for entry in outcome.activity]


def test_a_transition_is_told_with_its_place_and_who_made_it() -> None:
    story = begun("discovery")
    outcome = story.move("data_import", S.IN_PROGRESS, actor="agent-7")
    assert outcome.activity == (
        ActivityEntry(
            K.TRANSITION,
            "data_import",
            "discovery",
            message="NOT_STARTED to IN_PROGRESS",
            time=minute(2),
            actor="agent-7",
            sequence=1,
        ),
    )
    assert story.flow.totals == {K.TRANSITION: 1}


def test_leaving_in_progress_tells_how_long_the_phase_took() -> None:
    story = of_phases(plain("work"))
    story.move("work", S.IN_PROGRESS)
    story.do(ReportProgress("work", 0.5))
    story.do(ReportProgress("work", 0.9))
    assert [entry.duration for entry in story.move("work", S.COMPLETED).activity] == [timedelta(minutes=3)]
    assert [entry.duration for entry in story.roll_back("work").activity] == [None]


def test_a_clock_that_went_back_gives_no_negative_duration() -> None:
    story = of_phases(plain("work"))
    story.move("work", S.IN_PROGRESS)
    story.do(ReportProgress("work", 0.5))
    behind = Occasion("ann", minute(0), lambda: next(story.ids))
    outcome = apply(story.flow, [TransitionPhase("work", S.COMPLETED)], behind, {})
    assert [entry.duration for entry in outcome.activity] == [timedelta(minutes=1)]


def test_a_phase_put_in_progress_without_a_start_time_has_no_duration() -> None:
    story = of_phases(plain("work"))
    put(story, work=S.IN_PROGRESS)
    assert [entry.duration for entry in story.move("work", S.COMPLETED).activity] == [None]


def test_a_failure_is_told_as_an_error_each_time_it_is_reported() -> None:
    story = of_phases(plain("work"))
    story.move("work", S.IN_PROGRESS)
    first = story.fail("work")
    assert told(first) == [
        (K.TRANSITION, "work", "IN_PROGRESS to RETRY_NEEDED"),
        (K.ERROR, "work", "AGENT_TIMEOUT: no answer in 30 s"),
    ]
    story.retry("work")
    story.fail("work")  # the very same failure again
    assert story.flow.totals[K.ERROR] == 2
    story.retry("work")
    story.fail("work", Failure(FailureCode.DATA_VALIDATION_FAILED))
    assert [entry.message for entry in story.outcomes[-1].activity if entry.kind is K.ERROR] == ["DATA_VALIDATION_FAILED"]


def test_a_rejection_or_a_grant_without_a_failure_is_no_error() -> None:
    story = of_phases(plain("work"))
    story.move("work", S.IN_PROGRESS)
    story.fail("work", BAD_DATA)
    story.move("work", S.RETRY_NEEDED, S.IN_PROGRESS, S.WAITING_APPROVAL, S.RETRY_NEEDED)
    assert story.flow.totals[K.ERROR] == 1


def test_a_retry_is_told_with_its_number_and_reason() -> None:
    story = of_phases(plain("work"))
    story.move("work", S.IN_PROGRESS)
    story.fail("work", TIMEOUT)
    outcome = story.do(RetryPhase("work", reason="the agent is back"))
    assert told(outcome) == [(K.TRANSITION, "work", "RETRY_NEEDED to IN_PROGRESS"), (K.RETRY, "work", "the agent is back")]
    assert [entry.value for entry in outcome.activity] == [None, 1.0]
    assert story.flow.totals == {K.TRANSITION: 3, K.ERROR: 1, K.RETRY: 1}


def test_what_is_taken_along_is_told_too_and_is_no_error() -> None:
    story = of_phases(plain("first"), plain("second", "first"))
    story.complete("first")
    story.move("second", S.IN_PROGRESS)
    story.fail("second")
    story.retry("second")
    assert told(story.roll_back("first")) == [
        (K.TRANSITION, "first", "COMPLETED to ROLLED_BACK"),
        (K.TRANSITION, "second", "IN_PROGRESS to RETRY_NEEDED"),
    ]


def test_progress_and_commands_are_no_activity() -> None:
    story = of_phases(plain("work"))
    story.move("work", S.IN_PROGRESS)
    assert story.do(ReportProgress("work", 0.5), PauseFlow()).activity == ()
    assert story.flow.totals == {K.TRANSITION: 1}


def test_entries_of_callers_are_numbered_by_kind_over_all_commits() -> None:
    story = begun("discovery")
    given = (
        ActivityEntry(K.TIMING, "data_import", "parser", duration=timedelta(seconds=3)),
        ActivityEntry(K.MEMORY, "", "parser", value=120.0, unit="MiB"),
        ActivityEntry(K.TIMING, "data_import", "writer", duration=timedelta(seconds=4)),
    )
    first = story.do(RecordActivity(given), actor="agent-7")
    second = story.do(RecordActivity((ActivityEntry(K.COLLABORATION, "", "crew", ("ann", "bob")), given[0])))
    assert [(entry.kind, entry.sequence) for entry in (*first.activity, *second.activity)] == [
        (K.TIMING, 1),
        (K.MEMORY, 1),
        (K.TIMING, 2),
        (K.COLLABORATION, 1),
        (K.TIMING, 3),
    ]
    assert story.flow.totals == {K.TIMING: 3, K.MEMORY: 1, K.COLLABORATION: 1}
    assert {(entry.time, entry.actor) for entry in first.activity} == {(minute(2), "agent-7")}
    assert first.event.facts == (ActivityRecorded(first.activity),)


def test_several_changes_of_one_commit_are_numbered_on() -> None:
    story = of_phases(plain("work"))
    outcome = story.do(TransitionPhase("work", S.IN_PROGRESS), TransitionPhase("work", S.COMPLETED))
    assert [entry.sequence for entry in outcome.activity] == [1, 2]


def test_an_earlier_flow_keeps_its_own_totals() -> None:
    story = of_phases(plain("work"))
    story.move("work", S.IN_PROGRESS)
    earlier = story.flow
    story.move("work", S.COMPLETED)
    assert (earlier.totals, story.flow.totals) == ({K.TRANSITION: 1}, {K.TRANSITION: 2})
