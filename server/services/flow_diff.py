"""What differs between two states of a flow, as the contract tells it."""

from __future__ import annotations

from flowledger.v1 import event_pb2, history_pb2

from server.services import event_messages, times
from server.statemachine.diff import DocumentDiff, FlowDiff, PhaseDiff
from server.statemachine.values import Flow, Phase

_NO_PHASE = Phase("")


def message(found: FlowDiff) -> history_pb2.FlowDiff:
    """The difference."""
    before, after = found.before, found.after
    deleted = before.delete_time != after.delete_time
    return history_pb2.FlowDiff(
        from_revision=before.revision,
        to_revision=after.revision,
        from_status=found.status_before.value,  # type: ignore[arg-type]
        to_status=found.status_after.value,  # type: ignore[arg-type]
        from_progress_percent=found.progress_before,
        to_progress_percent=found.progress_after,
        fields=_fields(before, after),
        hold=_hold(before, after),
        phases=[_phase(phase) for phase in found.phases],
        children_added=found.children_added,
        children_removed=found.children_removed,
        documents=[_document(document) for document in found.documents],
        lines=found.lines,
        from_delete_time=times.maybe_timestamp(before.delete_time) if deleted else None,
        to_delete_time=times.maybe_timestamp(after.delete_time) if deleted else None,
    )


def _fields(before: Flow, after: Flow) -> event_pb2.FieldsChanged | None:
    named, labelled = before.display_name != after.display_name, before.labels != after.labels
    if not named and not labelled:
        return None
    return event_pb2.FieldsChanged(
        from_display_name=before.display_name if named else None,
        to_display_name=after.display_name if named else None,
        labels_before=before.labels if labelled else None,
        labels_after=after.labels if labelled else None,
        labels_changed=labelled,
    )


def _hold(before: Flow, after: Flow) -> event_pb2.HoldChanged | None:
    if (before.hold, before.hold_reason) == (after.hold, after.hold_reason):
        return None
    return event_pb2.HoldChanged(
        from_hold=before.hold.value,  # type: ignore[arg-type]
        to_hold=after.hold.value,  # type: ignore[arg-type]
        reason=after.hold_reason,
    )


def _phase(found: PhaseDiff) -> event_pb2.PhaseChanged:
    before, after = found.before or _NO_PHASE, found.after or _NO_PHASE
    return event_pb2.PhaseChanged(
        child_type=found.child_type,
        phase=found.name,
        from_state=0 if found.before is None else before.state.value,  # type: ignore[arg-type]
        to_state=0 if found.after is None else after.state.value,  # type: ignore[arg-type]
        from_fraction=before.fraction,
        to_fraction=after.fraction,
        reason=after.message,
        failure=event_messages.failure_message(after.failure),
        retry_count=after.retry_count,
    )


def _document(found: DocumentDiff) -> history_pb2.DocumentDiff:
    return history_pb2.DocumentDiff(
        document=found.place.name,
        child_type=found.place.child_type,
        json_patch="" if found.patch is None else found.patch.decode(),
        from_size_bytes=found.size_before,
        to_size_bytes=found.size_after,
        from_sha256=found.sha256_before,
        to_sha256=found.sha256_after,
        patch_omitted=found.patch is None,
    )
