"""From requests to what the domain is asked for. Decides nothing; the way back is in flow_messages.py and event_messages.py."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from types import MappingProxyType
from typing import Any

from flowledger.v1 import activity_pb2, change_pb2, document_pb2

from server.services.fields import NAME_LENGTH, Fields
from server.statemachine import change as ask
from server.statemachine.errors import LimitExceeded
from server.statemachine.states import FailureCode, PhaseState
from server.statemachine.values import (
    ActivityEntry,
    ActivityKind,
    DocumentName,
    DocumentPlace,
    Failure,
)

CHANGES = 100
ENTRIES = 100
PARTICIPANTS = 50
RECORD_BYTES = 64 * 1024  # of one record: it becomes one event
_LONGEST = timedelta(days=10_000)

FLOW_DOCUMENTS: Mapping[str, DocumentPlace] = MappingProxyType(
    {name.value: DocumentPlace(name.value) for name in DocumentName if name is not DocumentName.DATA}
)
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
