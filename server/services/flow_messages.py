"""Flows as messages, in each of their views."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

import orjson
from flowledger.v1 import activity_pb2, document_pb2, flow_pb2
from google.protobuf import struct_pb2

from server.services import times
from server.services.convert import FLOW_DOCUMENTS, data_of
from server.services.event_messages import entry_message, failure_message
from server.statemachine.derivation import child_progress, child_status, phase_weight, summary
from server.statemachine.graphs import JOURNEYS
from server.statemachine.phases import next_states
from server.statemachine.states import FlowHold
from server.statemachine.values import ActivityEntry, ChildFlow, DocumentPlace, Flow, FlowSummary, Phase

ACTIVITY_BYTES = 1024 * 1024  # of the FULL view
_NEVER = datetime.min.replace(tzinfo=UTC)


def write_summary(target: flow_pb2.Flow, said: FlowSummary) -> None:
    """Write the SUMMARY view into ``target``, which is part of an answer: every commit has one, and a message that is put in is copied."""
    target.flow_id, target.type = str(said.flow_id), said.type
    target.revision, target.status, target.progress_percent = said.revision, said.status.number, said.progress  # type: ignore[assignment]
    target.created_by, target.updated_by = said.created_by, said.updated_by
    times.write_timestamp(target.create_time, said.create_time)
    times.write_timestamp(target.update_time, said.update_time)
    target.journey.extend(JOURNEYS[said.type])
    if said.display_name:
        target.display_name = said.display_name
    if said.current_child:
        target.current_child = said.current_child
        target.current_phases.extend(said.current_phases)
    if said.labels:
        target.labels.update(said.labels)
    if said.end_time is not None:
        times.write_timestamp(target.end_time, said.end_time)
    if said.delete_time is not None:
        times.write_timestamp(target.delete_time, said.delete_time)
    if said.hold_reason:
        target.hold_reason = said.hold_reason
    if said.origin is not None:
        target.lineage.flow_id, target.lineage.revision = str(said.origin.flow_id), said.origin.revision


def summarized(said: FlowSummary) -> flow_pb2.Flow:
    """The SUMMARY view."""
    found = flow_pb2.Flow()
    write_summary(found, said)
    return found


def write_basic(target: flow_pb2.Flow, flow: Flow) -> None:
    """Write the BASIC view into ``target``."""
    write_summary(target, summary(flow))
    target.children.extend(_child_flow(child, flow.hold) for child in flow.children)


def basic(flow: Flow) -> flow_pb2.Flow:
    """The BASIC view."""
    found = flow_pb2.Flow()
    write_basic(found, flow)
    return found


def full(
    flow: Flow, documents: Mapping[DocumentPlace, bytes], entries: Sequence[ActivityEntry], form: document_pb2.DocumentForm.ValueType
) -> flow_pb2.Flow:
    """The FULL view, with the documents in ``form``."""
    found = basic(flow)
    targets: dict[DocumentPlace, document_pb2.Document] = {place: getattr(found, name) for name, place in FLOW_DOCUMENTS.items()}
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
    messages = [entry_message(entry) for entry in entries]
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
        create_time=times.timestamp(child.create_time),
        update_time=times.timestamp(child.update_time),
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
        start_time=times.maybe_timestamp(phase.start_time),
        state_time=times.maybe_timestamp(phase.state_time),
        end_time=times.maybe_timestamp(phase.end_time),
        progress_percent=100.0 * phase_weight(phase),
    )
