"""Rows to values and back: phases, activity entries and bases as JSON; events have a codec of their own."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import orjson

from server.statemachine.definition import Definition
from server.statemachine.history import Base, Kept, Version
from server.statemachine.states import FailureCode, FlowHold, PhaseState
from server.statemachine.values import ActivityEntry, ActivityKind, ChildFlow, DocumentPlace, Failure, Flow, Origin, Phase, Tenant

JsonObject = dict[str, Any]

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


def base_to_bytes(base: Base) -> bytes:
    """The base as JSON text; its hash has a column of its own."""
    flow = base.flow
    found: JsonObject = {
        "type": flow.type,
        "revision": flow.revision,
        "created_by": flow.created_by,
        "create_time": flow.create_time,
        "updated_by": flow.updated_by,
        "update_time": flow.update_time,
        "display_name": flow.display_name,
        "labels": dict(flow.labels),
        "hold": flow.hold.name,
        "hold_reason": flow.hold_reason,
        "children": [
            {
                "child_flow_id": str(child.child_flow_id),
                "type": child.type,
                "definition_version": child.definition.version,
                "phases": [orjson.Fragment(phase_to_text(phase)) for phase in child.phases],
                "create_time": child.create_time,
                "update_time": child.update_time,
            }
            for child in flow.children
        ],
        "totals": {kind.name: total for kind, total in flow.totals.items()},
        "end_time": flow.end_time,
        "delete_time": flow.delete_time,
        "origin": None if flow.origin is None else [str(flow.origin.flow_id), flow.origin.revision],
        "activity": [
            {**entry_to_json(entry), "time": entry.time, "actor": entry.actor, "sequence": entry.sequence} for entry in base.kept.activity
        ],
        "documents": [
            [place.name, place.child_type, version.revision, version.size, version.sha256.hex()]
            for place, version in sorted(base.kept.versions.items(), key=lambda item: item[0])
        ],
    }
    return orjson.dumps(found, option=_UTC_Z)


def base_from_bytes(text: bytes, tenant: Tenant, flow_id: UUID, link: bytes, definitions: Mapping[str, Definition]) -> Base:
    """The base that ``base_to_bytes`` wrote."""
    found = orjson.loads(text)
    children = tuple(
        ChildFlow(
            UUID(child["child_flow_id"]),
            definitions[child["type"]],
            tuple(phase_from_json(phase) for phase in child["phases"]),
            datetime.fromisoformat(child["create_time"]),
            datetime.fromisoformat(child["update_time"]),
        )
        for child in found["children"]
    )
    origin = found["origin"]
    flow = Flow(
        tenant,
        flow_id,
        found["type"],
        found["revision"],
        found["created_by"],
        datetime.fromisoformat(found["create_time"]),
        found["updated_by"],
        datetime.fromisoformat(found["update_time"]),
        found["display_name"],
        found["labels"],
        FlowHold[found["hold"]],
        found["hold_reason"],
        children,
        {ActivityKind[name]: total for name, total in found["totals"].items()},
        time_of(found["end_time"]),
        time_of(found["delete_time"]),
        None if origin is None else Origin(UUID(origin[0]), origin[1]),
    )
    entries = tuple(entry_from_json(entry, time_of(entry["time"]), entry["actor"], entry["sequence"]) for entry in found["activity"])
    versions = {
        DocumentPlace(name, child_type): Version(revision, size, bytes.fromhex(sha256))
        for name, child_type, revision, size, sha256 in found["documents"]
    }
    return Base(flow, Kept(entries, versions), link)
