"""Events, states and statuses as people read them."""

from __future__ import annotations

from typing import Any

from flowledger.v1 import activity_pb2, event_pb2, flow_pb2

_ORDER = {"replaced": 0, "phase": 1}


def event_text(event: event_pb2.FlowEvent) -> str:
    """What one commit did, as one line."""
    # What replaced everything comes first, then phases: where a line is cut, what a person waits for is still there.
    ordered = sorted(event.changes, key=lambda change: _ORDER.get(change.WhichOneof("kind") or "", len(_ORDER)))
    told = [text for change in ordered if (text := _change(change))]
    fallen = " (progress fell)" if event.progress_regressed else ""
    return "; ".join(told) + fallen


def state_name(state: flow_pb2.PhaseState.ValueType) -> str:
    """A phase state for people: `waiting approval`."""
    return _named(flow_pb2.PhaseState, state, "PHASE_STATE_").replace("_", " ").lower()


def status_name(status: flow_pb2.FlowStatus.ValueType) -> str:
    """A flow status as the documentation writes it: `WAITING_APPROVAL`."""
    return _named(flow_pb2.FlowStatus, status, "FLOW_STATUS_")


def _change(change: event_pb2.EventChange) -> str:
    match change.WhichOneof("kind"):
        case "created":
            return f"{change.created.display_name or 'the flow'} was created"
        case "child_started":
            return f"its {change.child_started.type} began"
        case "phase":
            return _phase(change.phase)
        case "hold":
            hold = _named(event_pb2.FlowHold, change.hold.to_hold, "FLOW_HOLD_").lower()
            return f"the flow is now {hold}{_because(change.hold.reason)}"
        case "fields":
            return "name or labels changed"
        case "document":
            return _document(change.document)
        case "activity":
            return "; ".join(map(_activity, change.activity.entries))
        case "deleted":
            return f"the flow was deleted{_because(change.deleted.reason)}"
        case "undeleted":
            return "the flow was brought back"
        case "replaced":
            return _replaced(change.replaced)
        case "lost":
            return "what happened here was lost"
        case other:
            return f"something newer than this client: {other or 'a change without a name'}"


def _phase(changed: event_pb2.PhaseChanged) -> str:
    name = changed.phase
    if changed.from_state == changed.to_state == flow_pb2.PHASE_STATE_IN_PROGRESS:
        return f"{name} is at {changed.to_fraction:.0%}: {changed.reason}" if changed.reason else f"{name} is at {changed.to_fraction:.0%}"
    if changed.taken_along_by:
        return f"{name} is {state_name(changed.to_state)}, taken along by {changed.taken_along_by}"
    why = f": {changed.reason}" if changed.reason else ""
    match changed.to_state:
        case flow_pb2.PHASE_STATE_IN_PROGRESS:
            return f"{name} began again, retry {changed.retry_count}{why}" if changed.retry_count else f"{name} began{why}"
        case flow_pb2.PHASE_STATE_COMPLETED:
            if changed.from_state == flow_pb2.PHASE_STATE_WAITING_APPROVAL:
                return f"{name} was approved{why}"
            return f"{name} is complete{why}"
        case flow_pb2.PHASE_STATE_WAITING_APPROVAL:
            return f"{name} waits for approval{why}"
        case flow_pb2.PHASE_STATE_RETRY_NEEDED if changed.from_state == flow_pb2.PHASE_STATE_WAITING_APPROVAL:
            return f"{name} was rejected{why}"
        case flow_pb2.PHASE_STATE_RETRY_NEEDED if changed.failure.code:
            return f"{name} failed and may be retried, {_code(changed.failure)}: {changed.failure.message}"
        case flow_pb2.PHASE_STATE_FAILED:
            return f"{name} failed for good, {_code(changed.failure)}: {changed.failure.message}"
        case state:
            return f"{name} is {state_name(state)}{why}"


def _document(changed: event_pb2.DocumentChanged) -> str:
    name = f"{changed.child_type} data" if changed.document == "data" else changed.document
    size = f"{changed.size_bytes / 1024:,.1f} KiB" if changed.size_bytes >= 1024 else f"{changed.size_bytes} bytes"
    return f"{name} is now {size}"


def _replaced(changed: event_pb2.FlowReplaced) -> str:
    checkpoint = f"checkpoint {changed.source_checkpoint_id}" if changed.source_checkpoint_id else ""
    revision = f"revision {changed.source_revision}" if changed.source_revision else ""
    match changed.cause:
        case event_pb2.REPLACEMENT_CAUSE_REVERT:
            told = f"the flow went back to {revision}"
        case event_pb2.REPLACEMENT_CAUSE_FORK:
            told = f"the flow began as a copy of {changed.source_flow_id}, {revision}"
        case event_pb2.REPLACEMENT_CAUSE_RESTORE:
            told = f"{checkpoint} was restored, of {revision}"
        case event_pb2.REPLACEMENT_CAUSE_RECOVERY:
            told = f"the flow was recovered from {checkpoint or revision or 'what could be derived'}"
        case cause:
            told = f"the flow was replaced, {_named(event_pb2.ReplacementCause, cause, 'REPLACEMENT_CAUSE_')}"
    gone = [*(f"its {child}" for child in changed.children_removed), *changed.documents_removed]
    without = f", without {', '.join(gone)}" if gone else ""
    return f"{told}{without}{_because(changed.reason)}"


def _activity(entry: activity_pb2.ActivityEntry) -> str:
    if entry.kind == activity_pb2.ACTIVITY_KIND_TIMING:
        return f"{entry.phase} took {entry.duration.ToTimedelta().total_seconds() * 1000:,.0f} ms, {entry.value:,.0f} {entry.unit}"
    kind = _named(activity_pb2.ActivityKind, entry.kind, "ACTIVITY_KIND_").lower()
    return f"{kind} recorded: {entry.message or entry.subject}"


def _code(failure: flow_pb2.PhaseFailure) -> str:
    return _named(flow_pb2.FailureCode, failure.code, "FAILURE_CODE_")


def _because(reason: str) -> str:
    return f": {reason}" if reason else ""


def _named(enum: Any, value: int, prefix: str) -> str:
    """The value's name without its prefix; the number of one that is newer than this client."""
    try:
        return str(enum.Name(value)).removeprefix(prefix)
    except ValueError:
        return str(value)
