"""Random walks, legal and not, over every built-in graph and the whole migration."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import nan

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
    UpdateFlow,
)
from server.statemachine.definition import PhaseDefinition
from server.statemachine.derivation import child_progress, child_status, current_phases
from server.statemachine.errors import FlowError
from server.statemachine.event import PhaseChanged
from server.statemachine.flow import Outcome
from server.statemachine.graphs import BUILT_IN, JOURNEYS
from server.statemachine.phases import next_states
from server.statemachine.states import FailureCode, FlowHold, FlowStatus, PhaseState
from server.statemachine.values import ChildFlow, Failure, Flow, Phase

from .oracle import master_status_of, progress_of, status_of
from .replay import replayed
from .steady import steady
from .story import S, Story, begun
from .test_matrix import TABLE

T = FlowStatus
MAY_BE_RETRIED = {"PHASE_EXECUTION_FAILED", "AGENT_TIMEOUT", "EXTERNAL_SERVICE_ERROR", "TEMPORARY_RESOURCE_UNAVAILABLE"}


@dataclass(frozen=True)
class Step:
    """One thing to try; which phase and state it means depends on the flow at that time."""

    way: str
    phase: int
    state: int
    fraction: float
    code: FailureCode | None


WAYS = ["next"] * 6 + ["finish phase"] * 4 + ["finish domain"] + ["fail"] * 4 + ["retry"] * 4 + ["report"] * 3 + ["any"] * 3
WAYS += ["rollback", "pause", "resume", "child", "other"]
STEPS = st.builds(
    Step,
    st.sampled_from(WAYS),
    st.integers(0, 29),
    st.integers(0, 29),
    st.one_of(st.floats(0, 1), st.sampled_from([-1.0, 1.5, nan])),
    st.sampled_from([None, None, None, *FailureCode]),
)
FINISH_DOMAIN = Step("finish domain", 0, 0, 0.0, None)
OTHERS: list[Change] = [
    UpdateFlow(display_name="Wave 4"),
    UpdateFlow(labels={"wave": "4"}),
    DeleteFlow("by mistake"),
    UndeleteFlow(),
    UndeleteFlow(),
    CancelFlow(),
    StartChild("cleanup"),
    TransitionPhase("no_such_phase", S.IN_PROGRESS),
    RetryPhase("data_import", "no_such_child"),
]


def path_to_completed(phase: Phase, definition: PhaseDefinition) -> list[PhaseState]:
    """The states through which the phase must still go."""
    if phase.state is S.COMPLETED:
        return []
    waits = [S.WAITING_VALIDATION] * definition.requires_validation + [S.WAITING_APPROVAL] * definition.requires_approval
    route = [S.IN_PROGRESS, *waits, S.COMPLETED]
    if phase.state is S.FAILED:
        return [S.RETRY_NEEDED, *route]
    if phase.state is S.IN_PROGRESS:
        return route[1:]
    later = [S.WAITING_APPROVAL, S.COMPLETED] if definition.requires_approval else [S.COMPLETED]
    return {S.WAITING_VALIDATION: later, S.WAITING_APPROVAL: [S.COMPLETED]}.get(phase.state, route)


def finishing(child: ChildFlow, limit: int) -> list[Change]:
    """What completes the first ``limit`` of the child's open phases."""
    open_ones = [
        (phase, definition)
        for phase, definition in zip(child.phases, child.definition.phases, strict=True)
        if phase.state is not S.COMPLETED
    ]
    return [
        TransitionPhase(phase.name, state, child.type)
        for phase, definition in open_ones[:limit]
        for state in path_to_completed(phase, definition)
    ]


def meant(flow: Flow, step: Step) -> list[Change]:
    """The changes that ``step`` means for ``flow``."""
    places = [(child, phase) for child in flow.children for phase in child.phases]
    child, phase = places[step.phase % len(places)]
    failure = Failure(step.code) if step.code else None
    last = flow.children[-1]
    if step.way in ("next", "finish phase") and (flow.delete_time is not None or flow.hold is FlowHold.PAUSED):
        return [ResumeFlow() if flow.delete_time is None else UndeleteFlow()]
    match step.way:
        case "next":
            legal = [(c, p, to) for c, p in places for to in next_states(c, p)]
            child, phase, to = legal[step.state % len(legal)]
            fails = to in (S.FAILED, S.RETRY_NEEDED) and (failure is not None or to is S.FAILED)
            code = step.code or FailureCode.AGENT_TIMEOUT
            return [TransitionPhase(phase.name, to, child.type, failure=Failure(code) if fails else None)]
        case "finish phase":
            return finishing(last, 1) or [StartChild()]
        case "finish domain":
            return [*finishing(last, 99), StartChild()] if len(flow.children) < len(JOURNEYS[flow.type]) else finishing(last, 99)
        case "any":
            return [TransitionPhase(phase.name, list(S)[step.state % 8], child.type, failure=failure)]
        case "report":
            active = [(c, p) for c, p in places if p.state is S.IN_PROGRESS] or [(child, phase)]
            child, phase = active[step.phase % len(active)]
            return [ReportProgress(phase.name, step.fraction, child.type, "so far")]
        case "fail":
            active = [(c, p) for c, p in places if p.state is S.IN_PROGRESS] or [(child, phase)]
            child, phase = active[step.phase % len(active)]
            return [TransitionPhase(phase.name, S.FAILED, child.type, failure=Failure(step.code or FailureCode.AGENT_TIMEOUT))]
        case "retry":
            broken = [(c, p) for c, p in places if p.state in (S.RETRY_NEEDED, S.FAILED)] or [(child, phase)]
            child, phase = broken[step.phase % len(broken)]
            return [RetryPhase(phase.name, child.type)]
        case "rollback":
            return [RollbackPhase(phase.name, child.type)]
        case "pause":
            return [PauseFlow("lunch")]
        case "resume":
            return [ResumeFlow()]
        case "child":
            return [StartChild()]
        case _:
            return [OTHERS[step.state % len(OTHERS)]]


@dataclass
class Walk:
    """A story that is checked after each step, beside a flow rebuilt from its events alone."""

    story: Story
    rebuilt: Flow
    grants: dict[tuple[str, str], int] = field(default_factory=dict)

    def take(self, step: Step) -> None:
        before = self.story.flow
        kept = (replace(before), dict(before.totals), dict(before.labels))
        changes = meant(before, step)
        refused: FlowError | None = None
        try:
            self.story.do(*changes)
        except FlowError as error:
            refused = error
        if refused is None:
            self.check(before, self.story.outcomes[-1], changes)
        else:
            assert str(refused)
            assert refused.reason
            assert all(isinstance(value, str) for value in refused.metadata.values())
            assert self.story.flow is before
        assert (before, dict(before.totals), dict(before.labels)) == kept

    def check(self, before: Flow, outcome: Outcome, changes: list[Change]) -> None:
        flow, event = outcome.flow, outcome.event
        assert flow.revision == event.revision == before.revision + 1
        assert flow.update_time == event.time > before.update_time
        self.check_moves(outcome, changes)
        self.check_phases(flow)
        self.check_derived(outcome)
        self.rebuilt = replayed(self.rebuilt, outcome)
        assert self.rebuilt == flow

    def check_phases(self, flow: Flow) -> None:
        for child in flow.children:
            states = {phase.name: phase.state for phase in child.phases}
            for phase, definition in zip(child.phases, child.definition.phases, strict=True):
                if phase.state in (S.IN_PROGRESS, S.WAITING_VALIDATION, S.WAITING_APPROVAL, S.COMPLETED):
                    assert all(states[name] is S.COMPLETED for name in definition.depends_on)
                assert 0 <= phase.fraction <= 1
                assert phase.state is S.IN_PROGRESS or phase.fraction == 0
                assert (phase.end_time is not None) == (phase.state in (S.COMPLETED, S.FAILED))
                assert phase.state is not S.COMPLETED or phase.failure is None
                assert phase.retry_count <= definition.max_retries + self.grants.get((child.type, phase.name), 0)

    def check_derived(self, outcome: Outcome) -> None:
        flow, event = outcome.flow, outcome.event
        for child in flow.children:
            assert child_progress(child) == pytest.approx(progress_of(child), abs=6e-5)
            assert child_status(child, flow.hold) is status_of(child, flow.hold)
        expected = sum(progress_of(child) for child in flow.children) / len(JOURNEYS[flow.type])
        assert event.progress == pytest.approx(expected, abs=2e-4)
        assert 0 <= event.progress <= 100
        assert event.status is master_status_of(flow)
        assert (event.status is T.COMPLETED) == (event.progress == 100)
        assert (flow.end_time is not None) == (event.status in (T.COMPLETED, T.FAILED, T.CANCELLED))
        assert event.progress_regressed == (event.progress < self.story.outcomes[-2].event.progress)
        assert set(current_phases(flow)) <= {phase.name for child in flow.children for phase in child.phases}

    def check_moves(self, outcome: Outcome, changes: list[Change]) -> None:
        asked = {change.phase: change for change in changes if isinstance(change, TransitionPhase)}
        for fact in outcome.event.facts:
            if not isinstance(fact, PhaseChanged):
                continue
            old, new = fact.before.state.name, fact.after.state.name
            retried = isinstance(changes[0], RetryPhase) and (old, new) == ("FAILED", "IN_PROGRESS")
            reported = isinstance(changes[0], ReportProgress) and old == new == "IN_PROGRESS"
            assert new in TABLE[old].split() or retried or reported
            if new == "RETRY_NEEDED":
                failure = asked[fact.after.name].failure if fact.after.name in asked else None
                by_code = old == "IN_PROGRESS" and failure is not None and not fact.taken_along_by
                definition = next(p for p in BUILT_IN[fact.child_type].phases if p.name == fact.after.name)
                if by_code:
                    assert failure is not None
                    assert failure.code.name in MAY_BE_RETRIED
                    assert fact.after.retry_count < definition.max_retries
                else:
                    place = (fact.child_type, fact.after.name)
                    self.grants[place] = self.grants.get(place, 0) + 1


@pytest.mark.parametrize("flow_type", JOURNEYS)
@steady(60)
@given(done=st.integers(0, 3), steps=st.lists(STEPS, min_size=20, max_size=60))
def test_a_walk_never_breaks_an_invariant(flow_type: str, done: int, steps: list[Step]) -> None:
    story = begun(flow_type)
    walk = Walk(story, replayed(None, story.outcomes[0]))
    assert walk.rebuilt == story.flow
    for step in [FINISH_DOMAIN] * min(done, len(JOURNEYS[flow_type]) - 1) + steps:
        walk.take(step)


@pytest.mark.parametrize("flow_type", JOURNEYS)
@steady(10)
@given(steps=st.lists(STEPS, max_size=20))
def test_any_flow_that_is_not_cancelled_can_still_be_completed(flow_type: str, steps: list[Step]) -> None:
    story = begun(flow_type)
    walk = Walk(story, replayed(None, story.outcomes[0]))
    for step in steps:
        walk.take(step)
    if story.flow.hold is FlowHold.CANCELLED:
        return
    if story.flow.delete_time is not None:
        story.do(UndeleteFlow())
    if story.flow.hold is FlowHold.PAUSED:
        story.do(ResumeFlow())
    while story.status is not T.COMPLETED:
        story.do(*(finishing(next((c for c in story.flow.children if finishing(c, 1)), story.flow.children[-1]), 99) or [StartChild()]))
    assert story.progress == 100.0
