"""Events, and what they tell of, as messages."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any
from uuid import UUID

from flowledger.v1 import activity_pb2, event_pb2, flow_pb2

from server.services import times
from server.statemachine import event as told
from server.statemachine.states import RETRYABLE
from server.statemachine.values import ActivityEntry, Failure


def write_event(target: event_pb2.FlowEvent, flow_id: str, happened: told.Event, link: bytes) -> None:
    """Write the event into ``target``, which is part of an answer; ``link`` is its hash in the chain."""
    target.flow_id, target.revision, target.actor, target.hash = flow_id, happened.revision, happened.actor, link
    times.write_timestamp(target.time, happened.time)
    target.status, target.progress_percent = happened.status.number, happened.progress  # type: ignore[assignment]
    if happened.progress_regressed:
        target.progress_regressed = True
    for fact in happened.facts:
        if type(fact) is told.PhaseChanged:
            _write_phase_changed(target.changes.add().phase, fact)
        else:
            target.changes.append(_FACTS[type(fact)](fact))


def event(flow_id: str, happened: told.Event, link: bytes) -> event_pb2.FlowEvent:
    """The event; ``link`` is its hash in the chain."""
    found = event_pb2.FlowEvent()
    write_event(found, flow_id, happened, link)
    return found


def write_failure(target: flow_pb2.PhaseFailure, failure: Failure) -> None:
    """Write the failure into ``target``."""
    target.code, target.message = failure.code.number, failure.message  # type: ignore[assignment]
    target.retryable = failure.code in RETRYABLE


def failure_message(failure: Failure | None) -> flow_pb2.PhaseFailure | None:
    """The failure, if there is one."""
    if failure is None:
        return None
    found = flow_pb2.PhaseFailure()
    write_failure(found, failure)
    return found


def entry_message(entry: ActivityEntry) -> activity_pb2.ActivityEntry:
    """The line of analytics."""
    return activity_pb2.ActivityEntry(
        kind=entry.kind.value,  # type: ignore[arg-type]
        phase=entry.phase,
        subject=entry.subject,
        participants=entry.participants,
        message=entry.message,
        value=entry.value,
        unit=entry.unit,
        duration=None if entry.duration is None else times.duration(entry.duration),
        time=times.maybe_timestamp(entry.time),
        actor=entry.actor,
        sequence=entry.sequence,
    )


def _created(fact: told.FlowCreated) -> event_pb2.EventChange:
    return event_pb2.EventChange(created=event_pb2.FlowCreated(type=fact.type, display_name=fact.display_name))


def _child_started(fact: told.ChildStarted) -> event_pb2.EventChange:
    started = event_pb2.ChildStarted(child_flow_id=str(fact.child_flow_id), type=fact.type, definition_version=fact.definition_version)
    return event_pb2.EventChange(child_started=started)


def _write_phase_changed(target: event_pb2.PhaseChanged, fact: told.PhaseChanged) -> None:
    """As the others, but into its place: of all facts it is the one that most commits have."""
    before, after = fact.before, fact.after
    target.child_type, target.phase = fact.child_type, after.name
    target.from_state, target.to_state = before.state.number, after.state.number  # type: ignore[assignment]
    if before.fraction:
        target.from_fraction = before.fraction
    if after.fraction:
        target.to_fraction = after.fraction
    if fact.reason:
        target.reason = fact.reason
    if after.failure is not None:
        write_failure(target.failure, after.failure)
    if after.retry_count:
        target.retry_count = after.retry_count
    if fact.taken_along_by:
        target.taken_along_by = fact.taken_along_by


def _hold_changed(fact: told.HoldChanged) -> event_pb2.EventChange:
    return event_pb2.EventChange(
        hold=event_pb2.HoldChanged(from_hold=fact.before.value, to_hold=fact.after.value, reason=fact.reason)  # type: ignore[arg-type]
    )


def _name_changed(fact: told.NameChanged) -> event_pb2.EventChange:
    return event_pb2.EventChange(fields=event_pb2.FieldsChanged(from_display_name=fact.before, to_display_name=fact.after))


def _labels_changed(fact: told.LabelsChanged) -> event_pb2.EventChange:
    changed = event_pb2.FieldsChanged(labels_before=fact.before, labels_after=fact.after, labels_changed=True)
    return event_pb2.EventChange(fields=changed)


def _document_changed(fact: told.DocumentChanged) -> event_pb2.EventChange:
    return event_pb2.EventChange(
        document=event_pb2.DocumentChanged(
            document=fact.place.name, child_type=fact.place.child_type, size_bytes=fact.size, sha256=fact.sha256
        )
    )


def _activity_recorded(fact: told.ActivityRecorded) -> event_pb2.EventChange:
    entries = [entry_message(entry) for entry in fact.entries]
    return event_pb2.EventChange(activity=event_pb2.ActivityRecorded(entries=entries))


def _deleted(fact: told.FlowDeleted) -> event_pb2.EventChange:
    return event_pb2.EventChange(deleted=event_pb2.FlowDeleted(reason=fact.reason))


def _undeleted(_: told.FlowUndeleted) -> event_pb2.EventChange:
    return event_pb2.EventChange(undeleted=event_pb2.FlowUndeleted())


def _replaced(fact: told.FlowReplaced) -> event_pb2.EventChange:
    return event_pb2.EventChange(
        replaced=event_pb2.FlowReplaced(
            cause=fact.cause.value,  # type: ignore[arg-type]
            source_revision=fact.source_revision,
            source_flow_id=_id(fact.source_flow_id),
            source_checkpoint_id=_id(fact.source_checkpoint_id),
            reason=fact.reason,
            quarantine_id=_id(fact.quarantine_id),
            children_removed=fact.children_removed,
            documents_removed=[str(place) for place in fact.documents_removed],
        )
    )


def _lost(_: told.EventLost) -> event_pb2.EventChange:
    return event_pb2.EventChange(lost=event_pb2.EventLost())


def _id(found: UUID | None) -> str:
    return "" if found is None else str(found)


_FACTS: Mapping[type, Callable[[Any], event_pb2.EventChange]] = MappingProxyType(
    {
        told.FlowCreated: _created,
        told.ChildStarted: _child_started,
        told.HoldChanged: _hold_changed,
        told.NameChanged: _name_changed,
        told.LabelsChanged: _labels_changed,
        told.DocumentChanged: _document_changed,
        told.ActivityRecorded: _activity_recorded,
        told.FlowDeleted: _deleted,
        told.FlowUndeleted: _undeleted,
        told.FlowReplaced: _replaced,
        told.EventLost: _lost,
    }
)
