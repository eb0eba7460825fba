"""Every (state, state) pair against a copy of the table that was written by hand."""

from __future__ import annotations

from itertools import product

import pytest

from server.statemachine.change import RollbackPhase, TransitionPhase
from server.statemachine.definition import PhaseDefinition
from server.statemachine.errors import InvalidPhaseTransition
from server.statemachine.states import IN_PROGRESS_FULL, STATE_WEIGHTS, TRANSITIONS, FlowStatus, PhaseState

from .story import BAD_DATA, Story, of_phases, phase_facts, put

# From DESIGN section 4, not from the code.
TABLE = {
    "NOT_STARTED": "IN_PROGRESS",
    "IN_PROGRESS": "WAITING_VALIDATION WAITING_APPROVAL COMPLETED FAILED RETRY_NEEDED",
    "WAITING_VALIDATION": "WAITING_APPROVAL COMPLETED FAILED RETRY_NEEDED ROLLED_BACK",
    "WAITING_APPROVAL": "COMPLETED FAILED RETRY_NEEDED ROLLED_BACK",
    "COMPLETED": "ROLLED_BACK RETRY_NEEDED",
    "FAILED": "RETRY_NEEDED ROLLED_BACK",
    "RETRY_NEEDED": "IN_PROGRESS FAILED ROLLED_BACK",
    "ROLLED_BACK": "IN_PROGRESS NOT_STARTED",
}
WEIGHTS = {
    "NOT_STARTED": 0.0,
    "IN_PROGRESS": 0.3,
    "WAITING_VALIDATION": 0.7,
    "WAITING_APPROVAL": 0.8,
    "COMPLETED": 1.0,
    "FAILED": 0.0,
    "RETRY_NEEDED": 0.1,
    "ROLLED_BACK": 0.0,
}
# What a definition forbids on top: (requires_validation, requires_approval) -> from -> to.
FORBIDDEN = {
    (False, False): {},
    (False, True): {"IN_PROGRESS": "COMPLETED", "WAITING_VALIDATION": "COMPLETED"},
    (True, False): {"IN_PROGRESS": "WAITING_APPROVAL COMPLETED"},
    (True, True): {"IN_PROGRESS": "WAITING_APPROVAL COMPLETED", "WAITING_VALIDATION": "COMPLETED"},
}
STATES = list(TABLE)
PAIRS = list(product(STATES, STATES))


def allowed(before: str, validation: bool, approval: bool) -> list[str]:
    forbidden = FORBIDDEN[validation, approval].get(before, "").split()
    return [state for state in TABLE[before].split() if state not in forbidden]


def in_state(before: str, validation: bool = False, approval: bool = False) -> Story:
    story = of_phases(PhaseDefinition("only", FlowStatus.ACTIVE, requires_validation=validation, requires_approval=approval))
    put(story, only=PhaseState[before])
    return story


def test_the_table_is_the_designs() -> None:
    assert {before.name: " ".join(to.name for to in after) for before, after in TRANSITIONS.items()} == TABLE


def test_the_state_weights_are_the_designs() -> None:
    assert {state.name: weight for state, weight in STATE_WEIGHTS.items()} == WEIGHTS
    assert IN_PROGRESS_FULL == 0.7


def test_every_pair_is_walked() -> None:
    assert len(PAIRS) == 64
    assert {name for pair in PAIRS for name in pair} == {state.name for state in PhaseState}


@pytest.mark.parametrize(("validation", "approval"), FORBIDDEN)
@pytest.mark.parametrize(("before", "after"), PAIRS)
def test_a_pair_is_allowed_or_refused_as_the_table_says(before: str, after: str, validation: bool, approval: bool) -> None:
    story = in_state(before, validation, approval)
    ask = TransitionPhase("only", PhaseState[after], failure=BAD_DATA if after == "FAILED" else None)
    expected = allowed(before, validation, approval)
    if after in expected:
        outcome = story.do(ask)
        assert story.state("only") is PhaseState[after]
        assert [(fact.before.state.name, fact.after.state.name) for fact in phase_facts(outcome)] == [(before, after)]
        assert story.phase("only").state_time == outcome.event.time
    else:
        unchanged = story.flow
        with pytest.raises(InvalidPhaseTransition) as refused:
            story.do(ask)
        assert refused.value.metadata == {"phase": "only", "valid_transitions": ",".join(expected)}
        assert refused.value.subject == "phase/only"
        assert before in str(refused.value)
        assert after in str(refused.value)
        assert story.flow == unchanged


@pytest.mark.parametrize("before", STATES)
def test_rolling_back_is_allowed_where_the_table_says(before: str) -> None:
    story = in_state(before)
    if "ROLLED_BACK" in TABLE[before].split():
        story.do(RollbackPhase("only"))
        assert story.state("only") is PhaseState.ROLLED_BACK
    else:
        with pytest.raises(InvalidPhaseTransition) as refused:
            story.do(RollbackPhase("only"))
        assert refused.value.metadata["valid_transitions"] == ",".join(TABLE[before].split())
