"""What is offered is what ``apply`` accepts: every option works, and nothing that works is left out."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.statemachine.change import (
    CancelFlow,
    Change,
    DeleteFlow,
    PauseFlow,
    ReportProgress,
    ResumeFlow,
    RetryPhase,
    RollbackPhase,
    StartChild,
    TransitionPhase,
    UndeleteFlow,
)
from server.statemachine.definition import PhaseDefinition
from server.statemachine.derivation import flow_status
from server.statemachine.errors import FlowError
from server.statemachine.flow import apply, new_child
from server.statemachine.graphs import ASSESSMENT
from server.statemachine.recovery import RecoveryOption, Remedy, Whom, recovery_options
from server.statemachine.states import RETRYABLE, FailureCode, FlowHold, FlowStatus, PhaseState
from server.statemachine.values import Failure, Flow, Phase

from .steady import steady
from .story import BAD_DATA, BEGINNING, TIMEOUT, S, Story, begun, hold, of_phases, plain, put

R, W = Remedy, Whom
CANCEL = (R.CANCEL, W.OWNER)
# Where a phase may be led by each remedy.
LEADS_TO: dict[Remedy, set[PhaseState]] = {
    R.BEGIN: {S.IN_PROGRESS},
    R.REPORT: {S.WAITING_VALIDATION, S.WAITING_APPROVAL, S.COMPLETED, S.FAILED, S.RETRY_NEEDED},
    R.VALIDATE: {S.WAITING_APPROVAL, S.COMPLETED},
    R.APPROVE: {S.COMPLETED},
    R.REJECT: {S.RETRY_NEEDED, S.FAILED},
    R.RETRY: {S.RETRY_NEEDED, S.IN_PROGRESS},
    R.GRANT_RETRY: {S.RETRY_NEEDED},
    R.GIVE_UP: {S.FAILED},
    R.REDO: {S.RETRY_NEEDED},
    R.ROLL_BACK: {S.ROLLED_BACK},
    R.RESET: {S.NOT_STARTED},
}


def taken(flow: Flow, option: RecoveryOption) -> list[Change]:
    """Each change that somebody would ask for who takes the option."""
    phase, kind = option.phase, option.child_type

    def to(*states: PhaseState) -> list[Change]:
        return [TransitionPhase(phase, state, kind, failure=BAD_DATA if state is S.FAILED else None) for state in states]

    match option.remedy:
        case R.UNDELETE:
            return [UndeleteFlow()]
        case R.RESUME:
            return [ResumeFlow()]
        case R.CANCEL:
            return [CancelFlow()]
        case R.START_CHILD:
            return [StartChild(kind), StartChild()]
        case R.REPORT:
            return [ReportProgress(phase, 0.5, kind)]
        case R.VALIDATE:
            child = next(child for child in flow.children if child.type == kind)
            return to(S.WAITING_APPROVAL if child.definition.phases[child.definition.position[phase]].requires_approval else S.COMPLETED)
        case R.RETRY:
            return [RetryPhase(phase, kind)]
        case R.ROLL_BACK:
            return [RollbackPhase(phase, kind)]
        case remedy:
            return to(*sorted(LEADS_TO[remedy], key=lambda state: state.value))


def works(flow: Flow, change: Change) -> bool:
    try:
        apply(flow, [change], Story(flow).occasion("ann"), {})
    except FlowError:
        return False
    return True


def offered(story: Story) -> list[tuple[Remedy, Whom]]:
    return [(option.remedy, option.whom) for option in recovery_options(story.flow)]


@pytest.mark.parametrize(
    ("state", "options"),
    [
        (S.NOT_STARTED, [(R.BEGIN, W.WORKER)]),
        (S.IN_PROGRESS, [(R.REPORT, W.WORKER)]),
        (S.WAITING_VALIDATION, [(R.VALIDATE, W.VALIDATOR), (R.REJECT, W.VALIDATOR), (R.ROLL_BACK, W.OWNER)]),
        (S.WAITING_APPROVAL, [(R.APPROVE, W.APPROVER), (R.REJECT, W.APPROVER), (R.ROLL_BACK, W.OWNER)]),
        (S.FAILED, [(R.RETRY, W.WORKER), (R.ROLL_BACK, W.OWNER)]),
        (S.RETRY_NEEDED, [(R.RETRY, W.WORKER), (R.GIVE_UP, W.OWNER), (R.ROLL_BACK, W.OWNER)]),
        (S.ROLLED_BACK, [(R.RETRY, W.WORKER), (R.RESET, W.OWNER)]),
    ],
)
def test_each_state_has_its_options(state: PhaseState, options: list[tuple[Remedy, Whom]]) -> None:
    story = of_phases(plain("only"))
    put(story, only=state)
    assert offered(story) == [*options, CANCEL]
    assert {(option.child_type, option.phase) for option in recovery_options(story.flow)} == {("discovery", "only"), ("", "")}


def test_a_completed_flow_can_only_be_gone_back_on() -> None:
    story = of_phases(plain("only"))
    story.complete("only")
    assert offered(story) == [(R.REDO, W.OWNER), (R.ROLL_BACK, W.OWNER)]


def test_the_first_option_between_two_domains_is_the_next_domain() -> None:
    story = begun("migration")
    story.complete_child("discovery")
    first = recovery_options(story.flow)[0]
    assert first == RecoveryOption(R.START_CHILD, W.OWNER, "assessment is the journey's next domain", "assessment")


def test_a_flow_without_a_child_is_offered_the_first_domain() -> None:
    flow = replace(begun("migration").flow, children=())
    assert [(option.remedy, option.child_type) for option in recovery_options(flow)] == [(R.START_CHILD, "discovery"), (R.CANCEL, "")]


@pytest.mark.parametrize(
    ("change", "options"),
    [
        (PauseFlow("change freeze"), [(R.RESUME, W.OWNER), CANCEL]),
        (PauseFlow(), [(R.RESUME, W.OWNER), CANCEL]),
        (CancelFlow(), []),
        (DeleteFlow(), [(R.UNDELETE, W.OWNER)]),
    ],
)
def test_a_held_flow_is_offered_its_way_out_only(change: Change, options: list[tuple[Remedy, Whom]]) -> None:
    story = begun("planning")
    story.do(change)
    assert offered(story) == options


def test_a_flow_under_recovery_can_only_be_cancelled() -> None:
    story = begun("planning")
    hold(story, FlowHold.RECOVERING)
    assert offered(story) == [CANCEL]


@pytest.mark.parametrize(
    ("failure", "retries", "why"),
    [
        (TIMEOUT, 3, "AGENT_TIMEOUT: no answer in 30 s; 3 of 3 retries are spent"),
        (BAD_DATA, 0, "DATA_VALIDATION_FAILED: row 7 has no host name; 0 of 3 retries are spent"),
        (Failure(FailureCode.PERMISSION_DENIED), 1, "PERMISSION_DENIED; 1 of 3 retries are spent"),
        (None, 3, "it failed; 3 of 3 retries are spent"),
    ],
)
def test_a_phase_that_failed_for_good_needs_a_grant_and_the_reason_says_why(failure: Failure | None, retries: int, why: str) -> None:
    story = of_phases(plain("only"))
    failed = Phase("only", S.FAILED, retry_count=retries, failure=failure)
    story.flow = replace(story.flow, children=(replace(story.flow.children[0], phases=(failed,)),))
    option = recovery_options(story.flow)[0]
    assert (option.remedy, option.whom, option.why) == (R.GRANT_RETRY, W.OWNER, why)


def test_the_reason_of_a_retry_is_the_failure() -> None:
    story = of_phases(plain("only"))
    story.move("only", S.IN_PROGRESS)
    story.fail("only")
    assert recovery_options(story.flow)[0].why == "AGENT_TIMEOUT: no answer in 30 s"


@pytest.mark.parametrize(("state", "why"), [(S.FAILED, "it failed"), (S.RETRY_NEEDED, "its result was taken back")])
def test_a_retry_without_a_failure_has_a_reason_too(state: PhaseState, why: str) -> None:
    story = of_phases(plain("only"))
    put(story, only=state)
    assert recovery_options(story.flow)[0].why == why


def test_the_reason_of_a_resumption_is_that_of_the_pause() -> None:
    story = begun("planning")
    story.do(PauseFlow("change freeze"))
    assert recovery_options(story.flow)[0].why == "change freeze"


def test_what_waits_for_a_dependency_is_not_offered_a_beginning() -> None:
    story = of_phases(plain("first"), plain("second", "first"))
    for state, remedies in [
        (S.NOT_STARTED, []),
        (S.RETRY_NEEDED, [R.GIVE_UP, R.ROLL_BACK]),
        (S.ROLLED_BACK, [R.RESET]),
        (S.FAILED, [R.GRANT_RETRY, R.ROLL_BACK]),
    ]:
        put(story, second=state)
        assert [option.remedy for option in recovery_options(story.flow) if option.phase == "second"] == remedies


EITHER = (PhaseDefinition("free", FlowStatus.ACTIVE), PhaseDefinition("checked", FlowStatus.ACTIVE, ("free",), requires_validation=True))


@st.composite
def flows(draw: st.DrawFn) -> Flow:
    """A flow whose phases are in any states at all, held and deleted in any way."""
    if draw(st.booleans()):
        story = of_phases(*EITHER)
    else:
        story = begun(draw(st.sampled_from(["planning", "migration"])))
        if story.flow.type == "migration" and draw(st.booleans()):
            story.flow = replace(story.flow, children=(*story.flow.children, new_child(story.flow.flow_id, ASSESSMENT, BEGINNING)))
    all_complete = draw(st.integers(0, 4)) == 0
    failures = st.sampled_from([None, *(Failure(code) for code in FailureCode)])
    states = st.just(S.COMPLETED) if all_complete else st.one_of(st.just(S.COMPLETED), st.sampled_from(S))
    children = tuple(
        replace(
            child,
            phases=tuple(
                replace(phase, state=draw(states), failure=draw(failures), retry_count=draw(st.integers(0, 4))) for phase in child.phases
            ),
        )
        for child in story.flow.children
    )
    flow = replace(story.flow, children=children)
    holds = (
        [FlowHold.NONE] if flow_status(flow) is FlowStatus.COMPLETED else [FlowHold.NONE] * 4 + list(FlowHold)
    )  # a completed flow takes no command
    return replace(
        flow,
        hold=draw(st.sampled_from(holds)),
        delete_time=BEGINNING if draw(st.integers(0, 9)) == 0 else None,
    )


@steady(100)
@given(flows())
def test_every_option_that_is_offered_can_be_taken(flow: Flow) -> None:
    for option in recovery_options(flow):
        for change in taken(flow, option):
            apply(flow, [change], Story(flow).occasion("ann"), {})


@steady(100)
@given(flows())
def test_everything_that_can_be_done_is_offered(flow: Flow) -> None:
    options = recovery_options(flow)
    reachable = {(option.child_type, option.phase, state) for option in options for state in LEADS_TO.get(option.remedy, ())}
    for child in flow.children:
        for phase in child.phases:
            for state in S:
                failure = BAD_DATA if state is S.FAILED else None
                if works(flow, TransitionPhase(phase.name, state, child.type, failure=failure)):
                    assert (child.type, phase.name, state) in reachable
    for change, remedy in ((CancelFlow(), R.CANCEL), (ResumeFlow(), R.RESUME), (UndeleteFlow(), R.UNDELETE), (StartChild(), R.START_CHILD)):
        assert works(flow, change) == any(option.remedy is remedy for option in options)


@steady(100)
@given(flows())
def test_a_retry_is_offered_exactly_where_one_is_accepted(flow: Flow) -> None:
    options = {(option.child_type, option.phase) for option in recovery_options(flow) if option.remedy is R.RETRY}
    accepted = {
        (child.type, phase.name) for child in flow.children for phase in child.phases if works(flow, RetryPhase(phase.name, child.type))
    }
    assert options == accepted


def test_a_failure_is_retryable_for_the_options_as_for_the_rules() -> None:
    for code in FailureCode:
        story = of_phases(plain("only"))
        failed = Phase("only", S.FAILED, failure=Failure(code))
        story.flow = replace(story.flow, children=(replace(story.flow.children[0], phases=(failed,)),))
        assert (recovery_options(story.flow)[0].remedy is R.RETRY) == (code in RETRYABLE) == works(story.flow, RetryPhase("only"))
