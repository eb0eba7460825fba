"""Failures: which may be retried, how often, and who may grant more."""

from __future__ import annotations

import pytest

from server.statemachine.change import TransitionPhase
from server.statemachine.errors import DependencyIncomplete, InvalidPhaseTransition, RetryLimitReached
from server.statemachine.states import FailureCode, FlowStatus, PhaseState
from server.statemachine.values import Failure

from .story import BAD_DATA, TIMEOUT, S, Story, minute, of_phases, phase_facts, plain, put

MAY = ("PHASE_EXECUTION_FAILED", "AGENT_TIMEOUT", "EXTERNAL_SERVICE_ERROR", "TEMPORARY_RESOURCE_UNAVAILABLE")
MAY_NOT = ("INVALID_TRANSITION", "DATA_VALIDATION_FAILED", "PERMISSION_DENIED", "MALFORMED_REQUEST")


def in_progress(max_retries: int = 3) -> Story:
    story = of_phases(plain("work", max_retries=max_retries))
    story.move("work", S.IN_PROGRESS)
    return story


def spent(max_retries: int = 3) -> Story:
    """Failed as often as the limit allows, and once more."""
    story = in_progress(max_retries)
    for _ in range(max_retries):
        story.fail("work")
        story.retry("work")
    story.fail("work")
    return story


def test_every_failure_code_is_of_one_kind() -> None:
    assert sorted(MAY + MAY_NOT) == sorted(code.name for code in FailureCode)


@pytest.mark.parametrize("asked", [S.FAILED, S.RETRY_NEEDED])
@pytest.mark.parametrize(("name", "becomes"), [*((name, S.RETRY_NEEDED) for name in MAY), *((name, S.FAILED) for name in MAY_NOT)])
def test_the_code_of_a_workers_failure_decides_what_the_phase_becomes(asked: PhaseState, name: str, becomes: PhaseState) -> None:
    story = in_progress()
    failure = Failure(FailureCode[name], "as it was")
    story.move("work", asked, failure=failure)
    assert (story.state("work"), story.phase("work").failure) == (becomes, failure)
    assert story.status is (FlowStatus.RETRY_PENDING if becomes is S.RETRY_NEEDED else FlowStatus.FAILED)


@pytest.mark.parametrize("limit", [0, 1, 3])
@pytest.mark.parametrize("asked", [S.FAILED, S.RETRY_NEEDED])
def test_a_retryable_failure_is_to_be_retried_until_the_limit_and_then_failed(limit: int, asked: PhaseState) -> None:
    story = in_progress(limit)
    for count in range(limit):
        story.move("work", asked, failure=TIMEOUT)
        assert (story.state("work"), story.phase("work").retry_count) == (S.RETRY_NEEDED, count)
        story.retry("work")
        assert (story.state("work"), story.phase("work").retry_count) == (S.IN_PROGRESS, count + 1)
    story.move("work", asked, failure=TIMEOUT)
    assert (story.state("work"), story.phase("work").retry_count) == (S.FAILED, limit)
    assert story.status is FlowStatus.FAILED


def test_a_retry_by_transition_counts_as_one_by_retry_does() -> None:
    story = in_progress()
    story.fail("work")
    story.move("work", S.IN_PROGRESS)
    assert story.phase("work").retry_count == 1


def test_a_retry_beyond_the_limit_is_refused_and_says_who_can_help() -> None:
    story = spent()
    with pytest.raises(RetryLimitReached, match="a person may grant one more") as refused:
        story.retry("work")
    assert refused.value.metadata == {"phase": "work", "retry_count": "3", "max_retries": "3", "retry_allowed": "false"}
    assert refused.value.subject == "phase/work"


@pytest.mark.parametrize("name", MAY_NOT)
def test_a_failure_that_may_not_be_retried_is_refused_a_retry(name: str) -> None:
    story = in_progress()
    story.fail("work", Failure(FailureCode[name]))
    with pytest.raises(InvalidPhaseTransition, match=name) as refused:
        story.retry("work")
    assert refused.value.metadata == {
        "phase": "work",
        "valid_transitions": "RETRY_NEEDED,ROLLED_BACK",
        "retry_allowed": "false",
    }


def test_a_grant_allows_one_more_retry_beyond_the_limit() -> None:
    story = spent()
    story.move("work", S.RETRY_NEEDED, reason="the service is back", actor="maria")
    assert (story.state("work"), story.status) == (S.RETRY_NEEDED, FlowStatus.RETRY_PENDING)
    story.retry("work")
    assert (story.state("work"), story.phase("work").retry_count) == (S.IN_PROGRESS, 4)
    story.fail("work")
    assert story.state("work") is S.FAILED


def test_a_grant_allows_a_retry_of_a_failure_that_may_not_be_retried() -> None:
    story = in_progress()
    story.fail("work", BAD_DATA)
    story.move("work", S.RETRY_NEEDED)
    story.retry("work")
    assert story.state("work") is S.IN_PROGRESS


@pytest.mark.parametrize("state", [S.NOT_STARTED, S.IN_PROGRESS, S.WAITING_VALIDATION, S.WAITING_APPROVAL, S.COMPLETED])
def test_what_neither_failed_nor_was_taken_back_has_nothing_to_retry(state: PhaseState) -> None:
    story = of_phases(plain("work"))
    put(story, work=state)
    with pytest.raises(InvalidPhaseTransition, match="has nothing to retry") as refused:
        story.retry("work")
    assert refused.value.metadata["retry_allowed"] == "false"


def test_a_rolled_back_phase_begins_again_without_spending_a_retry() -> None:
    story = of_phases(plain("work"))
    story.complete("work")
    story.roll_back("work")
    story.retry("work")
    assert (story.state("work"), story.phase("work").retry_count) == (S.IN_PROGRESS, 0)


def test_giving_up_stays_failed_even_if_the_failure_may_be_retried() -> None:
    story = in_progress()
    story.fail("work")
    story.move("work", S.FAILED, reason="the server is gone")
    assert (story.state("work"), story.phase("work").failure) == (S.FAILED, TIMEOUT)
    story.move("work", S.RETRY_NEEDED)
    story.move("work", S.FAILED, failure=TIMEOUT)
    assert story.state("work") is S.FAILED


@pytest.mark.parametrize("failure", [None, TIMEOUT])
def test_a_phase_given_up_below_the_limit_can_be_retried_in_one_step(failure: Failure | None) -> None:
    story = in_progress()
    story.move("work", S.RETRY_NEEDED, failure=failure)
    story.move("work", S.FAILED)
    outcome = story.retry("work")
    assert [(fact.before.state, fact.after.state) for fact in phase_facts(outcome)] == [(S.FAILED, S.IN_PROGRESS)]
    assert story.phase("work").retry_count == 1


def test_a_failed_phase_whose_dependency_was_redone_waits_for_it() -> None:
    story = of_phases(plain("first"), plain("second", "first"))
    put(story, first=S.RETRY_NEEDED, second=S.FAILED)
    with pytest.raises(DependencyIncomplete):
        story.retry("second")
    assert story.state("second") is S.FAILED


def test_a_worker_may_hand_its_work_back_without_a_failure() -> None:
    story = in_progress()
    story.move("work", S.RETRY_NEEDED, reason="my node is drained")
    assert (story.state("work"), story.phase("work").failure) == (S.RETRY_NEEDED, None)


def test_the_last_failure_is_kept_until_the_phase_completes() -> None:
    story = in_progress()
    story.fail("work")
    story.retry("work")
    assert story.phase("work").failure == TIMEOUT
    story.fail("work", BAD_DATA)
    assert story.phase("work").failure == BAD_DATA
    story.move("work", S.RETRY_NEEDED, S.IN_PROGRESS, S.COMPLETED)
    assert story.phase("work").failure is None


def test_times_tell_when_a_phase_began_changed_and_ended() -> None:
    story = of_phases(plain("work"))
    assert (story.phase("work").start_time, story.phase("work").end_time) == (None, None)
    story.move("work", S.IN_PROGRESS)
    story.fail("work", BAD_DATA)
    failed = story.phase("work")
    assert (failed.start_time, failed.state_time, failed.end_time) == (minute(2), minute(3), minute(3))
    story.move("work", S.RETRY_NEEDED)
    assert story.phase("work").end_time is None
    story.retry("work")
    story.move("work", S.COMPLETED)
    done = story.phase("work")
    assert (done.start_time, done.state_time, done.end_time) == (minute(5), minute(6), minute(6))
    story.roll_back("work")
    assert story.phase("work").end_time is None


def test_a_retry_begins_with_no_progress_and_no_message() -> None:
    story = of_phases(plain("work"))
    story.complete("work")
    story.do(TransitionPhase("work", S.RETRY_NEEDED), TransitionPhase("work", S.IN_PROGRESS))
    assert (story.phase("work").fraction, story.phase("work").message) == (0.0, "")
