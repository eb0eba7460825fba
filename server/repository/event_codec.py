"""Events to rows and back, and the hash chain over them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import orjson

from server.repository.codec import JsonObject, entry_from_json, entry_to_json, phase_from_json, phase_to_text
from server.statemachine import event as told
from server.statemachine.event_filter import EventFilter, types_of
from server.statemachine.states import FlowHold, FlowStatus
from server.statemachine.values import DocumentPlace, FlowKey, Phase

NO_HASH = bytes(32)
# How links are made now; see ``chained`` and ``chained_1``.
FORMAT = 2

_UTC_Z = orjson.OPT_UTC_Z


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
    if fact.failed is not _looks_failed(fact.before, fact.after):
        found["failed"] = fact.failed
    return found


def _looks_failed(before: Phase, after: Phase) -> bool:
    return after.failure is not None and after.failure != before.failure


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


def _replaced(fact: told.FlowReplaced) -> JsonObject:
    found: JsonObject = {"cause": fact.cause.name}
    if fact.reason:
        found["reason"] = fact.reason
    if fact.source_revision:
        found["source_revision"] = fact.source_revision
    for name in ("source_flow_id", "source_checkpoint_id", "quarantine_id"):
        if value := getattr(fact, name):
            found[name] = str(value)
    if fact.children_removed:
        found["children_removed"] = list(fact.children_removed)
    if fact.documents_removed:
        found["documents_removed"] = [[place.name, place.child_type] for place in fact.documents_removed]
    return found


def _lost(_: told.EventLost) -> JsonObject:
    return {}


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
    told.FlowReplaced: ("replaced", _replaced),
    told.EventLost: ("lost", _lost),
}


def _uuid(text: str | None) -> UUID | None:
    return None if text is None else UUID(text)


def _read_phase(found: JsonObject) -> told.PhaseChanged:
    before, after = phase_from_json(found["before"]), phase_from_json(found["after"])
    failed = found.get("failed", _looks_failed(before, after))
    return told.PhaseChanged(found["child"], before, after, found.get("reason", ""), found.get("taken_along_by", ""), failed)


def _read_replaced(found: JsonObject) -> told.FlowReplaced:
    return told.FlowReplaced(
        told.Cause[found["cause"]],
        found.get("reason", ""),
        found.get("source_revision", 0),
        _uuid(found.get("source_flow_id")),
        _uuid(found.get("source_checkpoint_id")),
        _uuid(found.get("quarantine_id")),
        tuple(found.get("children_removed", ())),
        tuple(DocumentPlace(*place) for place in found.get("documents_removed", ())),
    )


_READERS: Mapping[str, Callable[[JsonObject], told.Fact]] = {
    "created": lambda found: told.FlowCreated(found["type"], found["display_name"], found["labels"]),
    "child_started": lambda found: told.ChildStarted(UUID(found["child_flow_id"]), found["type"], found["definition_version"]),
    "phase": _read_phase,
    "hold": lambda found: told.HoldChanged(FlowHold[found["before"]], FlowHold[found["after"]], found["reason_before"], found["reason"]),
    "display_name": lambda found: told.NameChanged(found["before"], found["after"]),
    "labels": lambda found: told.LabelsChanged(found["before"], found["after"]),
    "document": lambda found: told.DocumentChanged(
        DocumentPlace(found["document"], found["child"]), found["size"], bytes.fromhex(found["sha256"])
    ),
    "deleted": lambda found: told.FlowDeleted(found["reason"]),
    "undeleted": lambda found: told.FlowUndeleted(datetime.fromisoformat(found["deleted"])),
    "replaced": _read_replaced,
    "lost": lambda _: told.EventLost(),
}


def _fact_from_json(found: JsonObject, time: datetime, actor: str) -> told.Fact:
    kind = found["fact"]
    if kind == "activity":  # its time and actor are the event's
        return told.ActivityRecorded(tuple(entry_from_json(entry, time, actor, entry["sequence"]) for entry in found["entries"]))
    if kind not in _READERS:
        raise ValueError(f"an event holds a fact of unknown kind {kind!r}")
    return _READERS[kind](found)


def event_to_text(event: told.Event) -> str:
    """The event's body: everything that the row's own columns do not hold."""
    facts = []
    for fact in event.facts:
        kind, write = _WRITERS[type(fact)]
        facts.append({"fact": kind, **write(fact)})
    body: JsonObject = {"status": event.status.name, "progress": event.progress, "facts": facts}
    if event.progress_regressed:
        body["progress_regressed"] = True
    if event.labels:
        body["labels"] = dict(event.labels)
    return orjson.dumps(body, option=_UTC_Z).decode()


def marks_of(wanted: EventFilter) -> tuple[list[str], list[str]]:
    """Two lists of texts: the body of each event that passes has one of the first, if there are any, and one of the second, likewise.

    Others' bodies may have them too: as the name and value of a label, for example.
    """
    kinds = [f'"fact":"{_WRITERS[fact][0]}"' for fact in types_of(wanted.kinds)]
    names = [orjson.dumps(phase).decode() for phase in wanted.phases]
    return kinds, [f'"{key}":{name}' for name in names for key in ("name", "phase")]


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
        found.get("labels", {}),
    )


def content_of(time: datetime, actor: str, body: str) -> bytes:
    """The canonical bytes of what an event says: its parts, each behind its length."""
    parts: list[bytes] = []
    for part in (_utc(time), actor, body):
        text = part.encode()
        parts += len(text).to_bytes(8, "big"), text
    return b"".join(parts)


def _utc(time: datetime) -> str:
    return time.isoformat() if time.tzinfo is UTC else time.astimezone(UTC).isoformat()


def chained(before: bytes, key: FlowKey, revision: int, content_sha256: bytes) -> bytes:
    """An event's link in the chain, format 2: SHA-256 over the hash of the event before, the flow, the revision and the content's SHA-256.

    Over the content's hash rather than the content, so that the link can still be verified when the content was erased.
    """
    return hashlib.sha256(b"".join((before, key, revision.to_bytes(8, "big"), content_sha256))).digest()


def chained_1(before: bytes, key: FlowKey, revision: int, time: datetime, actor: str, body: str) -> bytes:
    """An event's link in the chain as it was made before format 2: over the content itself."""
    parts: list[bytes] = [before, key]
    for part in (str(revision), _utc(time), actor, body):
        text = part.encode()
        parts += len(text).to_bytes(8, "big"), text
    return hashlib.sha256(b"".join(parts)).digest()
