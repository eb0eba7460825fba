"""Rows to values and back: phases and events as JSON, the hash chain over them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import orjson

from server.statemachine import event as told
from server.statemachine.definition import Definition
from server.statemachine.states import FailureCode, FlowHold, FlowStatus, PhaseState
from server.statemachine.values import ActivityEntry, ActivityKind, ChildFlow, DocumentPlace, Failure, Phase, Tenant

JsonObject = dict[str, Any]
NO_HASH = bytes(32)

_STATE_BY_NAME = {state.name: state for state in PhaseState}
_STATE_NAME = {state: state.name for state in PhaseState}
_UTC_Z = orjson.OPT_UTC_Z


def time_of(text: str | None) -> datetime | None:
    """The aware time that ``text`` (RFC 3339) tells."""
    return None if text is None else datetime.fromisoformat(text)


def phase_to_text(phase: Phase) -> bytes:
    """The phase as JSON text, without what has its default."""
    text = phase.memo_text
    if text is None:
        found: JsonObject = {"name": phase.name, "state": _STATE_NAME[phase.state]}
        if phase.fraction:
            found["fraction"] = phase.fraction
        if phase.message:
            found["message"] = phase.message
        if phase.retry_count:
            found["retry_count"] = phase.retry_count
        if phase.failure is not None:
            found["failure"] = {"code": phase.failure.code.name, "message": phase.failure.message}
        if phase.start_time is not None:
            found["start_time"] = phase.start_time
        if phase.state_time is not None:
            found["state_time"] = phase.state_time
        if phase.end_time is not None:
            found["end_time"] = phase.end_time
        text = orjson.dumps(found, option=_UTC_Z)
        object.__setattr__(phase, "memo_text", text)
    return text


def phase_from_json(found: JsonObject) -> Phase:
    """The phase that ``phase_to_text`` wrote."""
    failure = found.get("failure")
    return Phase(
        found["name"],
        _STATE_BY_NAME[found["state"]],
        found.get("fraction", 0.0),
        found.get("message", ""),
        found.get("retry_count", 0),
        None if failure is None else Failure(FailureCode[failure["code"]], failure["message"]),
        time_of(found.get("start_time")),
        time_of(found.get("state_time")),
        time_of(found.get("end_time")),
    )


def phases_to_text(phases: tuple[Phase, ...]) -> str:
    """A child's phases as JSON text."""
    return f"[{b','.join([phase_to_text(phase) for phase in phases]).decode()}]"


def child_from_row(definition: Definition, row: tuple[Any, ...]) -> ChildFlow:
    """The child of (child_flow_id, phases, create_time, update_time)."""
    child_flow_id, phases, create_time, update_time = row
    return ChildFlow(child_flow_id, definition, tuple(phase_from_json(found) for found in orjson.loads(phases)), create_time, update_time)


def entry_to_json(entry: ActivityEntry) -> JsonObject:
    """The entry without what has its default, and without what the row's own columns hold."""
    found: JsonObject = {"kind": entry.kind.name}
    for name in ("phase", "subject", "message", "unit"):
        if value := getattr(entry, name):
            found[name] = value
    if entry.participants:
        found["participants"] = list(entry.participants)
    if entry.value is not None:
        found["value"] = entry.value
    if entry.duration is not None:
        found["duration_us"] = entry.duration // timedelta(microseconds=1)
    return found


def entry_from_json(found: JsonObject, time: datetime | None, actor: str, sequence: int) -> ActivityEntry:
    """The entry that ``entry_to_json`` wrote."""
    spent = found.get("duration_us")
    return ActivityEntry(
        ActivityKind[found["kind"]],
        found.get("phase", ""),
        found.get("subject", ""),
        tuple(found.get("participants", ())),
        found.get("message", ""),
        found.get("value"),
        found.get("unit", ""),
        None if spent is None else timedelta(microseconds=spent),
        time,
        actor,
        sequence,
    )


def entry_to_text(entry: ActivityEntry) -> str:
    """The entry as JSON text."""
    return orjson.dumps(entry_to_json(entry), option=_UTC_Z).decode()


def _created(fact: told.FlowCreated) -> JsonObject:
    return {"type": fact.type, "display_name": fact.display_name, "labels": dict(fact.labels)}


def _child_started(fact: told.ChildStarted) -> JsonObject:
    return {"child_flow_id": str(fact.child_flow_id), "type": fact.type, "definition_version": fact.definition_version}


def _phase_changed(fact: told.PhaseChanged) -> JsonObject:
    found: JsonObject = {
        "child": fact.child_type,
        "before": orjson.Fragment(phase_to_text(fact.before)),
        "after": orjson.Fragment(phase_to_text(fact.after)),
    }
    if fact.reason:
        found["reason"] = fact.reason
    if fact.taken_along_by:
        found["taken_along_by"] = fact.taken_along_by
    return found


def _hold_changed(fact: told.HoldChanged) -> JsonObject:
    return {"before": fact.before.name, "after": fact.after.name, "reason_before": fact.reason_before, "reason": fact.reason}


def _name_changed(fact: told.NameChanged) -> JsonObject:
    return {"before": fact.before, "after": fact.after}


def _labels_changed(fact: told.LabelsChanged) -> JsonObject:
    return {"before": dict(fact.before), "after": dict(fact.after)}


def _document_changed(fact: told.DocumentChanged) -> JsonObject:
    return {"document": fact.place.name, "child": fact.place.child_type, "size": fact.size, "sha256": fact.sha256.hex()}


def _activity_recorded(fact: told.ActivityRecorded) -> JsonObject:
    return {"entries": [{**entry_to_json(entry), "sequence": entry.sequence} for entry in fact.entries]}


def _deleted(fact: told.FlowDeleted) -> JsonObject:
    return {"reason": fact.reason}


def _undeleted(fact: told.FlowUndeleted) -> JsonObject:
    return {"deleted": fact.deleted}


_WRITERS: Mapping[type, tuple[str, Callable[[Any], JsonObject]]] = {
    told.FlowCreated: ("created", _created),
    told.ChildStarted: ("child_started", _child_started),
    told.PhaseChanged: ("phase", _phase_changed),
    told.HoldChanged: ("hold", _hold_changed),
    told.NameChanged: ("display_name", _name_changed),
    told.LabelsChanged: ("labels", _labels_changed),
    told.DocumentChanged: ("document", _document_changed),
    told.ActivityRecorded: ("activity", _activity_recorded),
    told.FlowDeleted: ("deleted", _deleted),
    told.FlowUndeleted: ("undeleted", _undeleted),
}


def _fact_from_json(found: JsonObject, time: datetime, actor: str) -> told.Fact:
    match found["fact"]:
        case "created":
            return told.FlowCreated(found["type"], found["display_name"], found["labels"])
        case "child_started":
            return told.ChildStarted(UUID(found["child_flow_id"]), found["type"], found["definition_version"])
        case "phase":
            before, after = phase_from_json(found["before"]), phase_from_json(found["after"])
            return told.PhaseChanged(found["child"], before, after, found.get("reason", ""), found.get("taken_along_by", ""))
        case "hold":
            return told.HoldChanged(FlowHold[found["before"]], FlowHold[found["after"]], found["reason_before"], found["reason"])
        case "display_name":
            return told.NameChanged(found["before"], found["after"])
        case "labels":
            return told.LabelsChanged(found["before"], found["after"])
        case "document":
            place = DocumentPlace(found["document"], found["child"])
            return told.DocumentChanged(place, found["size"], bytes.fromhex(found["sha256"]))
        case "activity":
            return told.ActivityRecorded(tuple(entry_from_json(entry, time, actor, entry["sequence"]) for entry in found["entries"]))
        case "deleted":
            return told.FlowDeleted(found["reason"])
        case "undeleted":
            return told.FlowUndeleted(datetime.fromisoformat(found["deleted"]))
        case unknown:
            raise ValueError(f"an event holds a fact of unknown kind {unknown!r}")


def event_to_text(event: told.Event) -> str:
    """The event's body: everything that the row's own columns do not hold."""
    facts = []
    for fact in event.facts:
        kind, write = _WRITERS[type(fact)]
        facts.append({"fact": kind, **write(fact)})
    body: JsonObject = {"status": event.status.name, "progress": event.progress, "facts": facts}
    if event.progress_regressed:
        body["progress_regressed"] = True
    return orjson.dumps(body, option=_UTC_Z).decode()


def event_from_row(revision: int, time: datetime, actor: str, body: str) -> told.Event:
    """The event that ``event_to_text`` wrote."""
    found = orjson.loads(body)
    return told.Event(
        revision,
        time,
        actor,
        tuple(_fact_from_json(fact, time, actor) for fact in found["facts"]),
        FlowStatus[found["status"]],
        found["progress"],
        found.get("progress_regressed", False),
    )


def chained(before: bytes, tenant: Tenant, flow_id: UUID, event: told.Event, body: str) -> bytes:
    """SHA-256 over the hash of the event before and everything that the event's row says, each part behind its length."""
    parts = [before, tenant.client_account_id.bytes, tenant.engagement_id.bytes, flow_id.bytes]
    for part in (str(event.revision), event.time.isoformat(), event.actor, body):
        text = part.encode()
        parts += len(text).to_bytes(8, "big"), text
    return hashlib.sha256(b"".join(parts)).digest()
