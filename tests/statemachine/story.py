"""A flow and what is done to it, one commit a minute: what most tests of the state machine begin with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from itertools import count
from uuid import UUID

from server.statemachine.change import Change, RetryPhase, RollbackPhase, StartChild, TransitionPhase
from server.statemachine.definition import Definition, PhaseDefinition
from server.statemachine.derivation import flow_progress, flow_status
from server.statemachine.event import Event, PhaseChanged
from server.statemachine.flow import Occasion, Outcome, apply, create, new_child
from server.statemachine.states import FailureCode, FlowHold, FlowStatus, PhaseState
from server.statemachine.values import DocumentPlace, Failure, Flow, Phase, Tenant

S = PhaseState
TENANT = Tenant(UUID(int=1), UUID(int=2))
BEGINNING = datetime(2026, 11, 22, 8, 0, tzinfo=UTC)
TIMEOUT = Failure(FailureCode.AGENT_TIMEOUT, "no answer in 30 s")
BAD_DATA = Failure(FailureCode.DATA_VALIDATION_FAILED, "row 7 has no host name")


def minute(revision: int) -> datetime:
    """When a story commits that revision."""
    return BEGINNING + timedelta(minutes=revision)


def ids() -> Iterator[UUID]:
    """Ids that are the same in every run."""
    return (UUID(int=number) for number in count(1000))


@dataclass(slots=True)
class Story:
    """A flow, its documents, and the outcome of each commit so far."""

    flow: Flow
    documents: dict[DocumentPlace, bytes] = field(default_factory=dict)
    outcomes: list[Outcome] = field(default_factory=list)
    ids: Iterator[UUID] = field(default_factory=ids)

    def occasion(self, actor: str) -> Occasion:
        """The next commit's."""
        return Occasion(actor, minute(self.flow.revision + 1), lambda: next(self.ids))

    def do(self, *changes: Change, actor: str = "ann") -> Outcome:
        """Commit ``changes``."""
        outcome = apply(self.flow, changes, self.occasion(actor), self.documents)
        self.flow = outcome.flow
        self.documents.update(outcome.documents)
        self.outcomes.append(outcome)
        return outcome

    def move(self, phase: str, *states: PhaseState, failure: Failure | None = None, reason: str = "", actor: str = "ann") -> Outcome:
        """Move a phase through ``states``, one commit each; the last commit's outcome."""
        for state in states:
            last = self.do(TransitionPhase(phase, state, reason=reason, failure=failure), actor=actor)
        return last

    def fail(self, phase: str, failure: Failure = TIMEOUT) -> Outcome:
        """Report that a phase failed."""
        return self.move(phase, S.FAILED, failure=failure)

    def retry(self, phase: str) -> Outcome:
        """Begin a phase again."""
        return self.do(RetryPhase(phase))

    def roll_back(self, phase: str) -> Outcome:
        """Take a phase's result back."""
        return self.do(RollbackPhase(phase))

    def complete(self, *names: str) -> None:
        """Carry phases from their beginning to COMPLETED, through the waits that they require."""
        for name in names:
            definition = next(p for child in self.flow.children for p in child.definition.phases if p.name == name)
            self.move(name, S.IN_PROGRESS)
            if definition.requires_validation:
                self.move(name, S.WAITING_VALIDATION)
            if definition.requires_approval:
                self.move(name, S.WAITING_APPROVAL)
            self.move(name, S.COMPLETED)

    def complete_child(self, child_type: str) -> None:
        """Carry every phase of a child to COMPLETED."""
        child = next(child for child in self.flow.children if child.type == child_type)
        self.complete(*(phase.name for phase in child.phases if phase.state is not S.COMPLETED))

    def phase(self, name: str) -> Phase:
        """The phase as it is."""
        return next(phase for child in self.flow.children for phase in child.phases if phase.name == name)

    def state(self, name: str) -> PhaseState:
        """The phase's state."""
        return self.phase(name).state

    def states(self) -> dict[str, PhaseState]:
        """Every phase's state."""
        return {phase.name: phase.state for child in self.flow.children for phase in child.phases}

    @property
    def status(self) -> FlowStatus:
        """The flow's status."""
        return flow_status(self.flow)

    @property
    def progress(self) -> float:
        """The flow's progress."""
        return flow_progress(self.flow)

    @property
    def event(self) -> Event:
        """What the last commit did."""
        return self.outcomes[-1].event


def begun(flow_type: str, *changes: Change, labels: Mapping[str, str] | None = None) -> Story:
    """The story of a flow that was just created with its first child."""
    story = Story(Flow(TENANT, UUID(int=3), flow_type, 0, "", BEGINNING, "", BEGINNING))
    asked = (StartChild(), *changes)
    outcome = create(TENANT, UUID(int=3), flow_type, "Wave 3", labels or {}, asked, story.occasion("ann"))
    story.flow = outcome.flow
    story.documents.update(outcome.documents)
    story.outcomes.append(outcome)
    return story


def of_phases(*phases: PhaseDefinition) -> Story:
    """The story of a flow with one child of a definition made for the test."""
    story = begun("discovery")
    child = new_child(UUID(int=4), Definition("discovery", 1, phases), minute(1))
    story.flow = replace(story.flow, children=(child,))
    return story


def plain(name: str, *depends_on: str, max_retries: int = 3) -> PhaseDefinition:
    """A phase without waits."""
    return PhaseDefinition(name, FlowStatus.ACTIVE, depends_on, max_retries=max_retries)


def put(story: Story, **states: PhaseState) -> None:
    """Set phases' states by force, past the rules: for tests of what is derived from them."""
    children = tuple(
        replace(child, phases=tuple(replace(phase, state=states.get(phase.name, phase.state)) for phase in child.phases))
        for child in story.flow.children
    )
    story.flow = replace(story.flow, children=children)


def hold(story: Story, kind: FlowHold) -> None:
    """Lay a hold on the flow by force; RECOVERING has no command of its own yet."""
    story.flow = replace(story.flow, hold=kind)


def phase_facts(outcome: Outcome) -> list[PhaseChanged]:
    """What the commit did to phases."""
    return [fact for fact in outcome.event.facts if isinstance(fact, PhaseChanged)]
