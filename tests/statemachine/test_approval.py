"""Waits for validation and approval: not to be skipped, and on record."""

from __future__ import annotations

import pytest

from server.statemachine.definition import PhaseDefinition
from server.statemachine.errors import InvalidPhaseTransition
from server.statemachine.states import FlowStatus

from .story import BAD_DATA, TIMEOUT, S, Story, begun, of_phases, phase_facts


def mapping_in_progress() -> Story:
    story = begun("discovery")
    story.complete("data_import")
    story.move("field_mapping", S.IN_PROGRESS)
    return story


def validated_and_approved() -> Story:
    story = of_phases(PhaseDefinition("plan", FlowStatus.PLANNING, requires_validation=True, requires_approval=True))
    story.move("plan", S.IN_PROGRESS)
    return story


def test_field_mapping_cannot_complete_without_approval() -> None:
    story = mapping_in_progress()
    with pytest.raises(InvalidPhaseTransition) as refused:
        story.move("field_mapping", S.COMPLETED)
    assert refused.value.metadata["valid_transitions"] == "WAITING_VALIDATION,WAITING_APPROVAL,FAILED,RETRY_NEEDED"
    story.move("field_mapping", S.WAITING_APPROVAL, S.COMPLETED)
    assert story.state("field_mapping") is S.COMPLETED


def test_a_voluntary_validation_does_not_take_the_place_of_a_required_approval() -> None:
    story = mapping_in_progress()
    story.move("field_mapping", S.WAITING_VALIDATION)
    with pytest.raises(InvalidPhaseTransition) as refused:
        story.move("field_mapping", S.COMPLETED)
    assert refused.value.metadata["valid_transitions"] == "WAITING_APPROVAL,FAILED,RETRY_NEEDED,ROLLED_BACK"


def test_an_approval_does_not_take_the_place_of_a_required_validation() -> None:
    story = validated_and_approved()
    with pytest.raises(InvalidPhaseTransition) as refused:
        story.move("plan", S.WAITING_APPROVAL)
    assert refused.value.metadata["valid_transitions"] == "WAITING_VALIDATION,FAILED,RETRY_NEEDED"
    story.move("plan", S.WAITING_VALIDATION, S.WAITING_APPROVAL, S.COMPLETED)
    assert story.state("plan") is S.COMPLETED


def test_a_phase_that_only_requires_validation_may_be_approved_as_well() -> None:
    story = begun("execution")
    story.complete("preparation")
    story.move("rehearsal", S.IN_PROGRESS, S.WAITING_VALIDATION, S.WAITING_APPROVAL, S.COMPLETED)
    assert story.state("rehearsal") is S.COMPLETED


def test_who_approved_and_why_is_in_the_event() -> None:
    story = mapping_in_progress()
    story.move("field_mapping", S.WAITING_APPROVAL, actor="agent-7")
    outcome = story.move("field_mapping", S.COMPLETED, reason="checked all 21 columns", actor="maria")
    (fact,) = phase_facts(outcome)
    assert (outcome.event.actor, fact.reason) == ("maria", "checked all 21 columns")
    assert (fact.before.state, fact.after.state) == (S.WAITING_APPROVAL, S.COMPLETED)
    assert story.flow.updated_by == "maria"


def test_who_rejected_and_why_is_in_the_event() -> None:
    story = mapping_in_progress()
    story.move("field_mapping", S.WAITING_APPROVAL)
    outcome = story.move("field_mapping", S.RETRY_NEEDED, reason="ram is not disk", actor="maria")
    (fact,) = phase_facts(outcome)
    assert (outcome.event.actor, fact.reason, fact.after.state) == ("maria", "ram is not disk", S.RETRY_NEEDED)


def test_a_rejection_may_carry_a_failure_and_stays_a_request_to_do_it_again() -> None:
    story = validated_and_approved()
    story.move("plan", S.WAITING_VALIDATION)
    story.move("plan", S.RETRY_NEEDED, failure=BAD_DATA)
    assert (story.state("plan"), story.phase("plan").failure) == (S.RETRY_NEEDED, BAD_DATA)


def test_a_rejection_for_good_takes_a_failure_that_may_not_be_retried() -> None:
    story = validated_and_approved()
    story.move("plan", S.WAITING_VALIDATION)
    story.fail("plan", BAD_DATA)
    assert (story.state("plan"), story.status) == (S.FAILED, FlowStatus.FAILED)


def test_a_retryable_failure_of_work_that_waits_is_to_be_retried() -> None:
    story = validated_and_approved()
    story.move("plan", S.WAITING_VALIDATION)
    story.fail("plan", TIMEOUT)
    assert story.state("plan") is S.RETRY_NEEDED


def test_rejected_work_is_not_complete_before_it_is_approved_again() -> None:
    story = mapping_in_progress()
    story.move("field_mapping", S.WAITING_APPROVAL, S.RETRY_NEEDED)
    story.retry("field_mapping")
    with pytest.raises(InvalidPhaseTransition):
        story.move("field_mapping", S.COMPLETED)
    story.move("field_mapping", S.WAITING_APPROVAL, S.COMPLETED)
    assert story.state("field_mapping") is S.COMPLETED
