"""Whether the values of an event are of their types: one that was changed in the database may hold anything that JSON can."""

from __future__ import annotations

from collections.abc import Mapping

from server.statemachine.event import (
    ActivityRecorded,
    ChildStarted,
    DocumentChanged,
    Event,
    Fact,
    FlowCreated,
    FlowDeleted,
    FlowReplaced,
    FlowUndeleted,
    HoldChanged,
    LabelsChanged,
    NameChanged,
    PhaseChanged,
)
from server.statemachine.values import ActivityEntry, Phase


def sound(event: Event) -> bool:
    """Whether everything in the event is of its type and in its range."""
    return _number(event.progress, 0, 100) and type(event.progress_regressed) is bool and all(map(_fact, event.facts))


def _fact(fact: Fact) -> bool:
    match fact:
        case FlowCreated():
            return _texts(fact.type, fact.display_name) and _labels(fact.labels)
        case ChildStarted():
            return _texts(fact.type) and type(fact.definition_version) is int
        case PhaseChanged():
            return (
                _texts(fact.child_type, fact.reason, fact.taken_along_by)
                and type(fact.failed) is bool
                and _phase(fact.before)
                and _phase(fact.after)
            )
        case HoldChanged():
            return _texts(fact.reason_before, fact.reason)
        case NameChanged():
            return _texts(fact.before, fact.after)
        case LabelsChanged():
            return _labels(fact.before) and _labels(fact.after)
        case DocumentChanged():
            return _texts(fact.place.name, fact.place.child_type) and _whole(fact.size) and len(fact.sha256) == 32
        case ActivityRecorded():
            return all(map(_entry, fact.entries))
        case FlowDeleted():
            return _texts(fact.reason)
        case FlowUndeleted():
            return fact.deleted.tzinfo is not None
        case FlowReplaced():
            places = [text for place in fact.documents_removed for text in (place.name, place.child_type)]
            return _texts(fact.reason, *fact.children_removed, *places) and _whole(fact.source_revision)
        case _:
            return True


def _phase(phase: Phase) -> bool:
    failure = () if phase.failure is None else (phase.failure.message,)
    times = (phase.start_time, phase.state_time, phase.end_time)
    return (
        _texts(phase.name, phase.message, *failure)
        and _number(phase.fraction, 0, 1)
        and _whole(phase.retry_count)
        and all(time is None or time.tzinfo is not None for time in times)
    )


def _entry(entry: ActivityEntry) -> bool:
    texts = (entry.phase, entry.subject, entry.message, entry.unit, *entry.participants)
    return _texts(*texts) and (entry.value is None or type(entry.value) in (int, float)) and _whole(entry.sequence)


def _texts(*values: object) -> bool:
    return all(type(value) is str for value in values)


def _labels(labels: object) -> bool:
    return isinstance(labels, Mapping) and _texts(*labels.values())


def _number(value: object, least: float, most: float) -> bool:
    return isinstance(value, int | float) and type(value) is not bool and least <= value <= most


def _whole(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**63
