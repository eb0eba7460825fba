"""Which events somebody wants to see: by what kind of change they hold, and which phases those are of."""

from __future__ import annotations

from collections.abc import Mapping
from enum import unique
from types import MappingProxyType

from server.statemachine import event as told
from server.statemachine.states import Member
from server.statemachine.value import dataclass


@unique
class EventKind(Member):
    """What a fact is; numbers as in the contract."""

    FLOW_CREATED = 1
    CHILD_STARTED = 2
    PHASE_CHANGED = 3
    PROGRESS_REPORTED = 4
    HOLD_CHANGED = 5
    FIELDS_CHANGED = 6
    DOCUMENT_CHANGED = 7
    ACTIVITY_RECORDED = 8
    FLOW_DELETED = 9
    FLOW_UNDELETED = 10
    FLOW_REPLACED = 11
    EVENT_LOST = 12


_KINDS: Mapping[type, EventKind] = MappingProxyType(
    {
        told.FlowCreated: EventKind.FLOW_CREATED,
        told.ChildStarted: EventKind.CHILD_STARTED,
        told.PhaseChanged: EventKind.PHASE_CHANGED,
        told.HoldChanged: EventKind.HOLD_CHANGED,
        told.NameChanged: EventKind.FIELDS_CHANGED,
        told.LabelsChanged: EventKind.FIELDS_CHANGED,
        told.DocumentChanged: EventKind.DOCUMENT_CHANGED,
        told.ActivityRecorded: EventKind.ACTIVITY_RECORDED,
        told.FlowDeleted: EventKind.FLOW_DELETED,
        told.FlowUndeleted: EventKind.FLOW_UNDELETED,
        told.FlowReplaced: EventKind.FLOW_REPLACED,
        told.EventLost: EventKind.EVENT_LOST,
    }
)


def kind_of(fact: told.Fact) -> EventKind:
    """What the fact is: a phase whose state stayed as it was has reported progress."""
    if isinstance(fact, told.PhaseChanged) and fact.before.state is fact.after.state:
        return EventKind.PROGRESS_REPORTED
    return _KINDS[type(fact)]


def types_of(kinds: frozenset[EventKind]) -> frozenset[type]:
    """The types of the facts that may be of one of the kinds."""
    moves = {EventKind.PHASE_CHANGED, EventKind.PROGRESS_REPORTED}
    found = {fact for fact, kind in _KINDS.items() if kind in kinds}
    return frozenset(found if moves.isdisjoint(kinds) else {*found, told.PhaseChanged})


def phases_of(fact: told.Fact) -> frozenset[str]:
    """The names of the phases that the fact is about; of most facts none."""
    if isinstance(fact, told.PhaseChanged):
        return frozenset((fact.after.name,))
    if isinstance(fact, told.ActivityRecorded):
        return frozenset(entry.phase for entry in fact.entries if entry.phase)
    return frozenset()


@dataclass(frozen=True, slots=True)
class EventFilter:
    """Asks that one fact at least is of one of the kinds, and about one of the phases; an empty set asks nothing."""

    kinds: frozenset[EventKind] = frozenset()
    phases: frozenset[str] = frozenset()

    def passes(self, event: told.Event) -> bool:
        """Whether the event, which is then shown as a whole, is wanted."""
        if not self.kinds and not self.phases:
            return True
        return any(
            (not self.kinds or kind_of(fact) in self.kinds) and (not self.phases or not self.phases.isdisjoint(phases_of(fact)))
            for fact in event.facts
        )
