"""Names and numbers that make no sense are refused with an error for the caller, and with nothing else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.statemachine.change import (
    Change,
    MergeDocument,
    ReportProgress,
    RetryPhase,
    RollbackPhase,
    StartChild,
    TransitionPhase,
    UpdateFlow,
)
from server.statemachine.errors import FlowError
from server.statemachine.flow import create
from server.statemachine.graphs import BUILT_IN, JOURNEYS
from server.statemachine.states import FailureCode, PhaseState
from server.statemachine.values import DocumentPlace, Failure

from .steady import steady
from .story import TENANT, Story, begun

KNOWN = {*BUILT_IN, *JOURNEYS, *(phase.name for definition in BUILT_IN.values() for phase in definition.phases)}
STRANGE = (st.text(min_size=1) | st.text(min_size=200, max_size=9000)).filter(lambda name: name not in KNOWN)
FAILURES = st.none() | st.builds(Failure, st.sampled_from(FailureCode), st.text(max_size=20))
STORY = begun("migration")


def refusal(change: Change) -> FlowError:
    with pytest.raises(FlowError) as refused:
        Story(STORY.flow).do(change)
    return refused.value


@steady(35)
@given(
    STRANGE.flatmap(
        lambda name: st.one_of(
            st.builds(TransitionPhase, st.just(name), st.sampled_from(PhaseState), failure=FAILURES),
            st.builds(TransitionPhase, st.just("data_import"), st.sampled_from(PhaseState), st.just(name), failure=FAILURES),
            st.builds(RetryPhase, st.just(name)),
            st.builds(RollbackPhase, st.just("data_import"), st.just(name)),
            st.builds(ReportProgress, st.just(name), st.floats()),
            st.builds(StartChild, st.just(name)),
            st.builds(UpdateFlow, documents=st.just((MergeDocument(DocumentPlace("data", name), b"{}"),))),
        )
    )
)
def test_a_strange_name_is_refused_with_a_short_error(change: Change) -> None:
    error = refusal(change)
    text = str(error) + "".join(error.metadata.values())
    assert error.reason
    assert len(text.encode()) < 2048  # more would not fit beside the status in the trailers


@steady(20)
@given(STRANGE)
def test_a_strange_flow_type_is_refused_with_a_short_error(flow_type: str) -> None:
    with pytest.raises(FlowError) as refused:
        create(TENANT, STORY.flow.flow_id, flow_type, "", {}, [], STORY.occasion("ann"))
    assert len(str(refused.value).encode()) < 2048


@steady(35)
@given(st.floats().filter(lambda fraction: not 0 <= fraction <= 1))
def test_a_number_that_is_no_fraction_is_refused_as_such(fraction: float) -> None:
    assert refusal(ReportProgress("data_import", fraction)).reason == "INVALID_REQUEST"
