"""Between the contract's messages and the domain's values. Decides nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import Any
from uuid import UUID

import orjson
from flowledger.v1 import activity_pb2, change_pb2, document_pb2, event_pb2, flow_pb2
from google.protobuf import duration_pb2, struct_pb2, timestamp_pb2

from server.services.fields import NAME_LENGTH, Fields
from server.statemachine import change as ask
from server.statemachine import event as told
from server.statemachine.derivation import child_progress, child_status, phase_weight, summary
from server.statemachine.errors import LimitExceeded
from server.statemachine.graphs import JOURNEYS
from server.statemachine.phases import next_states
from server.statemachine.states import RETRYABLE, FailureCode, FlowHold, PhaseState
from server.statemachine.values import (
    ActivityEntry,
    ActivityKind,
    ChildFlow,
    DocumentName,
    DocumentPlace,
    Failure,
    Flow,
    FlowSummary,
    Phase,
)

CHANGES = 100
ENTRIES = 100
PARTICIPANTS = 50
RECORD_BYTES = 64 * 1024  # of one record: it becomes one event
ACTIVITY_BYTES = 1024 * 1024  # of the FULL view
_LONGEST = timedelta(days=10_000)
_NEVER = datetime.min.replace(tzinfo=UTC)

_STATE = DocumentPlace(DocumentName.STATE.value)
_METADATA = DocumentPlace(DocumentName.METADATA.value)
_CONTEXT = DocumentPlace(DocumentName.CROSS_PHASE_CONTEXT.value)
FLOW_DOCUMENTS: Mapping[str, DocumentPlace] = MappingProxyType({place.name: place for place in (_STATE, _METADATA, _CONTEXT)})
_UPDATABLE = ("display_name", "labels", *FLOW_DOCUMENTS, "child_data")


def data_of(child_type: str) -> DocumentPlace:
    """Where a child's document lies."""
    return DocumentPlace(DocumentName.DATA.value, child_type)


# ---- from messages ----------------------------------------------------------------------------------------------------------------


def transition(fields: Fields, path: str, given: change_pb2.PhaseTransition) -> ask.TransitionPhase:
    """The change that the message asks for."""
    to = fields.member(f"{path}.to", given.to, PhaseState)
    failure = None
    if given.HasField("failure"):
        code = fields.member(f"{path}.failure.code", given.failure.code, FailureCode)
        failure = Failure(code, fields.text(f"{path}.failure.message", given.failure.message))
    reason = fields.text(f"{path}.reason", given.reason) if given.reason else ""
    return ask.TransitionPhase(*_phase(fields, path, given.phase), to, _child(fields, path, given.child_type), reason, failure)


def retry(fields: Fields, path: str, given: change_pb2.PhaseRetry) -> ask.RetryPhase:
    """The change that the message asks for."""
    reason = fields.text(f"{path}.reason", given.reason)
    return ask.RetryPhase(*_phase(fields, path, given.phase), _child(fields, path, given.child_type), reason)


def rollback(fields: Fields, path: str, given: change_pb2.PhaseRollback) -> ask.RollbackPhase:
    """The change that the message asks for."""
    reason = fields.text(f"{path}.reason", given.reason)
    return ask.RollbackPhase(*_phase(fields, path, given.phase), _child(fields, path, given.child_type), reason)


def progress(fields: Fields, path: str, given: change_pb2.ProgressReport) -> ask.ReportProgress:
    """The change that the message asks for."""
    fraction = fields.fraction(f"{path}.fraction", given.fraction)
    message = fields.text(f"{path}.message", given.message) if given.message else ""
    return ask.ReportProgress(*_phase(fields, path, given.phase), fraction, _child(fields, path, given.child_type), message)


def update(fields: Fields, path: str, given: change_pb2.FlowUpdate) -> ask.UpdateFlow:
    """The change that the message asks for."""
    mask = _mask(fields, path, given)
    merging = given.document_mode == document_pb2.DOCUMENT_MODE_MERGE_PATCH
    if given.document_mode not in document_pb2.DocumentMode.values():
        fields.wrong(f"{path}.document_mode", f"{given.document_mode} is unknown; one of REPLACE, MERGE_PATCH")

    def document(name: str, place: DocumentPlace, message: document_pb2.Document | None) -> ask.ReplaceDocument | ask.MergeDocument:
        text = b"{}" if message is None else fields.document(f"{path}.{name}", message)
        return ask.MergeDocument(place, text) if merging else ask.ReplaceDocument(place, text)

    documents = [
        document(name, place, getattr(given, name) if given.HasField(name) else None)  # type: ignore[arg-type]
        for name, place in FLOW_DOCUMENTS.items()
        if name in mask and (given.HasField(name) or not merging)  # type: ignore[arg-type]  # nothing to merge
    ]
    if "child_data" in mask:
        documents += [
            # Without a type it would be nobody's document.
            document(f"child_data[{kind[:NAME_LENGTH]}]", data_of(fields.required(f"{path}.child_data (a key)", kind, 100)), data)
            for kind, data in sorted(given.child_data.items())
        ]
    return ask.UpdateFlow(
        fields.text(f"{path}.display_name", given.display_name, NAME_LENGTH) if "display_name" in mask else None,
        fields.labels(f"{path}.labels", given.labels) if "labels" in mask else None,
        tuple(documents),
    )


def _mask(fields: Fields, path: str, given: change_pb2.FlowUpdate) -> Sequence[str]:
    if not given.HasField("update_mask"):
        return [
            name
            for name in _UPDATABLE
            if (given.HasField(name) if name in FLOW_DOCUMENTS else bool(getattr(given, name)))  # type: ignore[arg-type]
        ]
    paths = list(given.update_mask.paths)
    if "*" in paths:
        if len(paths) > 1:
            fields.wrong(f"{path}.update_mask", "* stands alone")
        return _UPDATABLE
    unknown = [name for name in paths if name not in _UPDATABLE]
    for name in unknown[:20]:
        fields.wrong(f"{path}.update_mask", f"{name[:60]!r} cannot be updated; one of {', '.join(_UPDATABLE)}, or *")
    if not paths:
        fields.wrong(f"{path}.update_mask", "names no field")
    return paths


def activity(fields: Fields, path: str, given: change_pb2.ActivityRecord) -> ask.RecordActivity:
    """The change that the message asks for."""
    if not 1 <= len(given.entries) <= ENTRIES:
        fields.wrong(f"{path}.entries", f"has {len(given.entries)} entries, it must have 1 to {ENTRIES}")
        return ask.RecordActivity(())
    if (size := given.ByteSize()) > RECORD_BYTES:
        raise LimitExceeded(f"{path} (bytes)", RECORD_BYTES, size)
    return ask.RecordActivity(tuple(_entry(fields, f"{path}.entries[{at}]", entry) for at, entry in enumerate(given.entries)))


def _entry(fields: Fields, path: str, given: activity_pb2.ActivityEntry) -> ActivityEntry:
    kind = fields.member(f"{path}.kind", given.kind, ActivityKind)
    if kind in (ActivityKind.TRANSITION, ActivityKind.RETRY) and given.kind:
        fields.wrong(f"{path}.kind", f"{kind.name} is recorded by the service itself")
    if len(given.participants) > PARTICIPANTS:
        fields.wrong(f"{path}.participants", f"has {len(given.participants)}, the limit is {PARTICIPANTS}")
    for name in ("time", "actor", "sequence"):
        if given.HasField("time") if name == "time" else getattr(given, name):
            fields.wrong(f"{path}.{name}", "is set by the service")
    return ActivityEntry(
        kind,
        fields.text(f"{path}.phase", given.phase, 100),
        fields.text(f"{path}.subject", given.subject, NAME_LENGTH),
        tuple(fields.text(f"{path}.participants", name, NAME_LENGTH) for name in given.participants[:PARTICIPANTS]),
        fields.text(f"{path}.message", given.message),
        fields.finite(f"{path}.value", given.value) if given.HasField("value") else None,
        fields.text(f"{path}.unit", given.unit, 50),
        fields.span(f"{path}.duration", given.duration, timedelta(), _LONGEST) if given.HasField("duration") else None,
    )


def pause(fields: Fields, path: str, given: change_pb2.FlowPause) -> ask.PauseFlow:
    """The change that the message asks for."""
    return ask.PauseFlow(fields.text(f"{path}.reason", given.reason))


def resume(fields: Fields, path: str, given: change_pb2.FlowResume) -> ask.ResumeFlow:
    """The change that the message asks for."""
    return ask.ResumeFlow(fields.text(f"{path}.reason", given.reason))


def cancel(fields: Fields, path: str, given: change_pb2.FlowCancel) -> ask.CancelFlow:
    """The change that the message asks for."""
    return ask.CancelFlow(fields.text(f"{path}.reason", given.reason))


def child_start(fields: Fields, path: str, given: change_pb2.ChildStart) -> ask.StartChild:
    """The change that the message asks for."""
    kind = fields.text(f"{path}.type", given.type, NAME_LENGTH)
    return ask.StartChild(kind, fields.document(f"{path}.data", given.data) if given.HasField("data") else None)


_CHANGES: Mapping[str, Callable[[Fields, str, Any], ask.Change]] = MappingProxyType(
    {
        "transition": transition,
        "retry": retry,
        "rollback": rollback,
        "progress": progress,
        "update": update,
        "activity": activity,
        "pause": pause,
        "resume": resume,
        "cancel": cancel,
        "child_start": child_start,
    }
)


def changes(fields: Fields, path: str, given: Sequence[change_pb2.Change]) -> tuple[ask.Change, ...]:
    """The changes that the messages ask for, in order."""
    if not given:
        fields.wrong(path, f"must have 1 to {CHANGES} changes")
    found = []
    for at, message in enumerate(given):
        kind = message.WhichOneof("kind")
        if kind is None:
            fields.wrong(f"{path}[{at}]", f"must have one of {', '.join(_CHANGES)}")
            continue
        found.append(_CHANGES[kind](fields, f"{path}[{at}].{kind}", getattr(message, kind)))
    return tuple(found)


def _phase(fields: Fields, path: str, name: str) -> tuple[str]:
    return (fields.required(f"{path}.phase", name, 100),)


def _child(fields: Fields, path: str, kind: str) -> str:
    return fields.text(f"{path}.child_type", kind, 100) if kind else ""


# ---- to messages ------------------------------------------------------------------------------------------------------------------


def timestamp(time: datetime) -> timestamp_pb2.Timestamp:
    """The time, to the microsecond."""
    return timestamp_pb2.Timestamp(seconds=int(time.timestamp()), nanos=time.microsecond * 1000)


def seconds(number: float) -> duration_pb2.Duration:
    """So many seconds, to the microsecond."""
    return _duration(timedelta(seconds=number))


def maybe_timestamp(time: datetime | None) -> timestamp_pb2.Timestamp | None:
    """The time, if there is one."""
    return None if time is None else timestamp(time)


def summarized(said: FlowSummary) -> flow_pb2.Flow:
    """The SUMMARY view."""
    return flow_pb2.Flow(
        flow_id=str(said.flow_id),
        type=said.type,
        display_name=said.display_name,
        revision=said.revision,
        status=said.status.value,  # type: ignore[arg-type]
        progress_percent=said.progress,
        current_child=said.current_child,
        current_phases=said.current_phases,
        labels=said.labels or None,
        create_time=timestamp(said.create_time),
        created_by=said.created_by,
        update_time=timestamp(said.update_time),
        updated_by=said.updated_by,
        end_time=maybe_timestamp(said.end_time),
        delete_time=maybe_timestamp(said.delete_time),
        hold_reason=said.hold_reason,
        journey=JOURNEYS[said.type],
        lineage=None if said.origin is None else flow_pb2.Lineage(flow_id=str(said.origin.flow_id), revision=said.origin.revision),
    )


def basic(flow: Flow) -> flow_pb2.Flow:
    """The BASIC view."""
    found = summarized(summary(flow))
    found.children.extend(_child_flow(child, flow.hold) for child in flow.children)
    return found


def full(
    flow: Flow, documents: Mapping[DocumentPlace, bytes], entries: Sequence[ActivityEntry], form: document_pb2.DocumentForm.ValueType
) -> flow_pb2.Flow:
    """The FULL view, with the documents in ``form``."""
    found = basic(flow)
    targets = {_STATE: found.state, _METADATA: found.metadata, _CONTEXT: found.cross_phase_context}
    targets |= {data_of(child.type): child.data for child in found.children}
    for place, text in documents.items():
        _write_document(targets[place], text, form)
    found.activity.entries.extend(_fitting(entries))
    for kind, total in flow.totals.items():
        if total:
            found.activity.totals.add(kind=kind.value, total=total)
    return found


def _fitting(entries: Sequence[ActivityEntry]) -> list[activity_pb2.ActivityEntry]:
    """The entries in their order; where all of them would be too much for one message, the newest."""
    messages = [_entry_message(entry) for entry in entries]
    room = ACTIVITY_BYTES
    kept = set()
    for at in sorted(range(len(messages)), key=lambda at: entries[at].time or _NEVER, reverse=True):
        room -= messages[at].ByteSize()
        if room < 0:
            break
        kept.add(at)
    return [message for at, message in enumerate(messages) if at in kept]


def _write_document(target: document_pb2.Document, text: bytes, form: document_pb2.DocumentForm.ValueType) -> None:
    if form == document_pb2.DOCUMENT_FORM_STRUCT:
        target.struct.CopyFrom(struct_pb2.Struct())
        target.struct.update(orjson.loads(text))
    else:
        target.json = text.decode()


def _child_flow(child: ChildFlow, hold: FlowHold) -> flow_pb2.ChildFlow:
    return flow_pb2.ChildFlow(
        child_flow_id=str(child.child_flow_id),
        type=child.type,
        definition_version=child.definition.version,
        status=child_status(child, hold).value,  # type: ignore[arg-type]
        progress_percent=child_progress(child),
        phases=[_phase_message(child, at, phase) for at, phase in enumerate(child.phases)],
        create_time=timestamp(child.create_time),
        update_time=timestamp(child.update_time),
    )


def _phase_message(child: ChildFlow, at: int, phase: Phase) -> flow_pb2.Phase:
    definition = child.definition.phases[at]
    return flow_pb2.Phase(
        name=phase.name,
        state=phase.state.value,  # type: ignore[arg-type]
        fraction=phase.fraction,
        message=phase.message,
        weight=child.definition.shares[at],
        depends_on=definition.depends_on,
        requires_validation=definition.requires_validation,
        requires_approval=definition.requires_approval,
        retry_count=phase.retry_count,
        max_retries=definition.max_retries,
        failure=failure_message(phase.failure),
        next_states=[state.value for state in next_states(child, phase)],  # type: ignore[misc]
        start_time=maybe_timestamp(phase.start_time),
        state_time=maybe_timestamp(phase.state_time),
        end_time=maybe_timestamp(phase.end_time),
        progress_percent=100.0 * phase_weight(phase),
    )


def failure_message(failure: Failure | None) -> flow_pb2.PhaseFailure | None:
    """The failure, if there is one."""
    if failure is None:
        return None
    return flow_pb2.PhaseFailure(code=failure.code.value, message=failure.message, retryable=failure.code in RETRYABLE)  # type: ignore[arg-type]


def _entry_message(entry: ActivityEntry) -> activity_pb2.ActivityEntry:
    return activity_pb2.ActivityEntry(
        kind=entry.kind.value,  # type: ignore[arg-type]
        phase=entry.phase,
        subject=entry.subject,
        participants=entry.participants,
        message=entry.message,
        value=entry.value,
        unit=entry.unit,
        duration=None if entry.duration is None else _duration(entry.duration),
        time=maybe_timestamp(entry.time),
        actor=entry.actor,
        sequence=entry.sequence,
    )


def _duration(span: timedelta) -> duration_pb2.Duration:
    return duration_pb2.Duration(seconds=span.days * 86_400 + span.seconds, nanos=span.microseconds * 1000)


def _created(fact: told.FlowCreated) -> event_pb2.EventChange:
    return event_pb2.EventChange(created=event_pb2.FlowCreated(type=fact.type, display_name=fact.display_name))


def _child_started(fact: told.ChildStarted) -> event_pb2.EventChange:
    started = event_pb2.ChildStarted(child_flow_id=str(fact.child_flow_id), type=fact.type, definition_version=fact.definition_version)
    return event_pb2.EventChange(child_started=started)


def _phase_changed(fact: told.PhaseChanged) -> event_pb2.EventChange:
    before, after = fact.before, fact.after
    return event_pb2.EventChange(
        phase=event_pb2.PhaseChanged(
            child_type=fact.child_type,
            phase=after.name,
            from_state=before.state.value,  # type: ignore[arg-type]
            to_state=after.state.value,  # type: ignore[arg-type]
            from_fraction=before.fraction,
            to_fraction=after.fraction,
            reason=fact.reason,
            failure=failure_message(after.failure),
            retry_count=after.retry_count,
            taken_along_by=fact.taken_along_by,
        )
    )


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
    entries = [_entry_message(entry) for entry in fact.entries]
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
            documents_removed=[f"{place.name}/{place.child_type}" if place.child_type else place.name for place in fact.documents_removed],
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
        told.PhaseChanged: _phase_changed,
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


def event(flow_id: str, happened: told.Event, link: bytes) -> event_pb2.FlowEvent:
    """The event; ``link`` is its hash in the chain."""
    return event_pb2.FlowEvent(
        flow_id=flow_id,
        revision=happened.revision,
        time=timestamp(happened.time),
        actor=happened.actor,
        changes=[_FACTS[type(fact)](fact) for fact in happened.facts],
        status=happened.status.value,  # type: ignore[arg-type]
        progress_percent=happened.progress,
        progress_regressed=happened.progress_regressed,
        hash=link,
    )
