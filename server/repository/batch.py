"""From outcomes to rows: what each commit stores, merged where several commits of one batch meet in one row."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

import orjson

from server.repository import codec
from server.repository.commit_statement import Batch, Row, child_table
from server.repository.document_store import packed
from server.repository.flows import Head
from server.repository.requests import Committed
from server.repository.tables import ACTIVITY_SLOTS
from server.statemachine.change import Change, MergeDocument, ReplaceDocument, StartChild, UpdateFlow
from server.statemachine.derivation import child_progress, child_status, current_child, current_phases
from server.statemachine.document import sha256
from server.statemachine.flow import Outcome
from server.statemachine.values import ActivityKind, ChildFlow, DocumentPlace, Flow


@dataclass(frozen=True, slots=True)
class Step:
    """One commit of one flow: the revision it must find (0 for a new flow), what it comes to, and its link in the hash chain."""

    expected: int
    before: Flow | None
    outcome: Outcome
    body: str
    hash: bytes

    @classmethod
    def after(cls, head: Head | None, outcome: Outcome) -> Self:
        """The step from ``head`` to ``outcome``."""
        body = codec.event_to_text(outcome.event)
        flow = outcome.flow
        link = codec.chained(codec.NO_HASH if head is None else head.hash, flow.tenant, flow.flow_id, outcome.event, body)
        return cls(outcome.event.revision - 1, None if head is None else head.flow, outcome, body, link)

    @property
    def committed(self) -> Committed:
        """What the caller is told once it is on disk."""
        return Committed(self.outcome.flow, self.outcome.event, self.hash)


def merged_places(changes: Iterable[Change]) -> list[DocumentPlace]:
    """The documents that must be read before the changes can be applied."""
    found = {
        wanted.place: None
        for change in changes
        if type(change) is UpdateFlow
        for wanted in change.documents
        if isinstance(wanted, MergeDocument)
    }
    return list(found)


def document_bytes(changes: Iterable[Change]) -> int:
    """How many bytes of documents the changes carry."""
    total = 0
    for change in changes:
        if type(change) is UpdateFlow:
            total += sum(len(wanted.text if isinstance(wanted, ReplaceDocument) else wanted.patch) for wanted in change.documents)
        elif type(change) is StartChild:
            total += len(change.data or b"")
    return total


async def batch_of(steps: Sequence[Step]) -> Batch:
    """The rows of all steps. Steps of one flow stand in their order; the flow's row is guarded by the first and filled by the last."""
    batch = Batch()
    flows: dict[tuple[object, ...], Row] = {}
    children: dict[str, dict[tuple[object, ...], Row]] = {}
    documents: dict[tuple[object, ...], Row] = {}
    activity: dict[tuple[object, ...], Row] = {}
    for step in steps:
        flow, event = step.outcome.flow, step.outcome.event
        key = (flow.tenant.client_account_id, flow.tenant.engagement_id, flow.flow_id)
        earlier = flows.get(key)
        flows[key] = _flow_row(key, step.expected if earlier is None else earlier[3], step)
        batch.events.append((*key, event.revision, event.time, event.actor, step.body, step.hash))
        for child in _changed_children(step):
            children.setdefault(child_table(child.type), {})[(*key, child.type)] = _child_row(key, flow, child)
        for place, text in step.outcome.documents.items():
            body = await packed(text)
            documents[(*key, place)] = (*key, event.revision, len(text), place.name, place.child_type, sha256(text), body)
        for entry in step.outcome.activity:
            slot = (entry.sequence - 1) % ACTIVITY_SLOTS
            told = (entry.sequence, entry.time, entry.kind.value, slot, entry.actor, codec.entry_to_text(entry))
            activity[(*key, entry.kind, slot)] = (*key, *told)
    # In the order of the key, so that two processes lock the rows of their batches in the same order.
    batch.flows = [flows[key] for key in sorted(flows)]
    batch.children = {name: list(rows.values()) for name, rows in children.items()}
    batch.documents, batch.activity = list(documents.values()), list(activity.values())
    return batch


def _changed_children(step: Step) -> Iterable[ChildFlow]:
    before = () if step.before is None else step.before.children
    held = step.before is not None and step.before.hold is not step.outcome.flow.hold
    for at, child in enumerate(step.outcome.flow.children):
        if held or at >= len(before) or before[at] is not child:
            yield child


def _flow_row(key: tuple[object, ...], expected: object, step: Step) -> Row:
    flow, event = step.outcome.flow, step.outcome.event
    child = current_child(flow)
    totals = flow.totals
    return (
        *key,
        expected,
        flow.revision,
        event.progress,
        flow.update_time,
        flow.end_time,
        flow.delete_time,
        event.status.name,
        flow.hold.name,
        flow.hold_reason,
        flow.display_name,
        flow.updated_by,
        "" if child is None else child.type,
        ",".join(current_phases(flow)),
        orjson.dumps(dict(flow.labels)).decode() if flow.labels else "{}",
        ",".join(str(totals.get(kind, 0)) for kind in ActivityKind),
        step.hash,
        flow.type,
        flow.created_by,
        flow.create_time,
    )


def _child_row(key: tuple[object, ...], flow: Flow, child: ChildFlow) -> Row:
    return (
        *key,
        child.child_flow_id,
        child_progress(child),
        child.create_time,
        child.update_time,
        child.definition.version,
        child.type,
        child_status(child, flow.hold).name,
        codec.phases_to_text(child.phases),
    )
