"""From outcomes to rows: what each commit stores, merged where several commits of one batch meet in one row."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import field
from itertools import pairwise
from typing import Self

import orjson

from server.repository import codec, event_codec
from server.repository.commit_statement import Batch, Row, child_table
from server.repository.document_store import packed, packed_delta
from server.repository.flows import Head
from server.repository.history_tables import VersionKind
from server.repository.requests import Committed
from server.repository.tables import ACTIVITY_SLOTS
from server.statemachine.activity import kept as newest
from server.statemachine.change import Change, MergeDocument, ReplaceContent, ReplaceDocument, StartChild, UpdateFlow
from server.statemachine.derivation import child_progress, child_status
from server.statemachine.document import sha256
from server.statemachine.flow import Outcome
from server.statemachine.history import Base, Kept, wants_base, written
from server.statemachine.value import dataclass
from server.statemachine.values import ActivityEntry, ActivityKind, ChildFlow, DocumentPlace, Flow, FlowKey

_NOTHING_KEPT = Kept()
_NO_TOTALS = ",".join("0" for _ in ActivityKind)


@dataclass(frozen=True, slots=True)
class Step:
    """One commit of one flow: the revision it must find (0 for a new flow), what it comes to, and its link in the hash chain."""

    expected: int
    before: Flow | None
    outcome: Outcome
    body: str
    hash: bytes

    @classmethod
    def after(cls, key: FlowKey, head: Head | None, outcome: Outcome) -> Self:
        """The step from ``head`` to ``outcome``."""
        event, body = outcome.event, event_codec.event_to_text(outcome.event)
        content = sha256(event_codec.content_of(event.time, event.actor, body))
        link = event_codec.chained(event_codec.NO_HASH if head is None else head.hash, key, event.revision, content)
        return cls(event.revision - 1, None if head is None else head.flow, outcome, body, link)

    @property
    def committed(self) -> Committed:
        """What it has come to, once it is on disk."""
        return self.told(b"")

    def told(self, answer: bytes) -> Committed:
        """The same, with what the caller is told of it."""
        return Committed(self.outcome.flow, self.outcome.summary, self.outcome.event, self.hash, answer)


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
        elif type(change) is ReplaceContent:
            total += sum(len(text) for text in change.content.documents.values())
    return total


@dataclass(frozen=True, slots=True)
class Moves:
    """The steps of one flow in their order, and what was known before them; ``texts`` has documents with their revisions."""

    steps: Sequence[Step]
    kept: Kept = _NOTHING_KEPT
    texts: Mapping[DocumentPlace, tuple[int, bytes]] = field(default_factory=dict, hash=False)


async def batch_of(flows: Mapping[FlowKey, Moves]) -> Batch:
    """The rows of each flow's steps; a flow's row is guarded by the first and filled by the last."""
    batch = Batch()
    # In the order of the key, so that two processes lock the rows of their batches in the same order.
    for place, key in enumerate(sorted(flows)):
        await _put(batch, place, key, flows[key])
    if batch.wide:
        batch.flows = [(*row, *_wide(flows[key].steps[-1].outcome.flow)) for key, row in zip(batch.keys, batch.flows, strict=True)]
    return batch


async def _put(batch: Batch, place: int, key: FlowKey, moves: Moves) -> None:
    steps = moves.steps
    before, last = steps[0].before, steps[-1]
    flow = last.outcome.flow
    batch.keys.append(key)
    batch.flows.append(_lean(place, steps[0].expected, last))
    batch.wide = batch.wide or before is None or _differs(before, flow)
    _put_children(batch, place, before, flow)
    activity: dict[tuple[ActivityKind, int], ActivityEntry] = {}
    written = False
    for step in steps:
        outcome = step.outcome
        event = outcome.event
        batch.events.append((place, event.revision, event.time, event.actor, step.body, step.hash))
        written = written or bool(outcome.documents)
        batch.gone_documents += [(place, event.revision, gone.name, gone.child_type) for gone in outcome.removed]
        for entry in outcome.activity:
            activity[entry.kind, (entry.sequence - 1) % ACTIVITY_SLOTS] = entry
        if wants_base(event):
            await _put_base(batch, place, moves, step)
    if written:
        await _put_documents(batch, place, moves)
    for (kind, slot), entry in activity.items():
        batch.activity.append((place, entry.sequence, entry.time, kind.value, slot, entry.actor, codec.entry_to_text(entry)))


def _put_children(batch: Batch, place: int, before: Flow | None, flow: Flow) -> None:
    known = {} if before is None else {child.type: child for child in before.children}
    held = before is not None and before.hold is not flow.hold
    for child in flow.children:
        earlier = known.pop(child.type, None)
        if earlier is None:
            batch.born_children.setdefault(child_table(child.type), []).append(_born_row(place, flow, child))
        elif held or earlier is not child:
            batch.children.setdefault(child_table(child.type), []).append(_child_row(place, flow, child))
    for gone in known:
        batch.gone_children.setdefault(child_table(gone), []).append((place, gone))


async def _put_documents(batch: Batch, place: int, moves: Moves) -> None:
    """The newest version of each document; what lies between it and the stored one goes straight to the earlier versions."""
    written: dict[DocumentPlace, list[tuple[int, bytes]]] = {}
    for step in moves.steps:
        for document, text in step.outcome.documents.items():
            written.setdefault(document, []).append((step.outcome.event.revision, text))
    for document, texts in written.items():
        name, child_type = document.name, document.child_type
        stored = moves.texts.get(document)
        delta = delta_of = None
        if stored is not None:
            delta_of, delta = stored[0], await packed_delta(stored[1], texts[0][1])
        for (revision, text), (_, later) in pairwise(texts):
            body = await packed_delta(text, later)
            batch.versions.append((place, revision, len(text), VersionKind.DELTA.value, name, child_type, sha256(text), body))
        revision, text = texts[-1]
        row = (place, revision, len(text), name, child_type, sha256(text), await packed(text), len(texts), delta, delta_of)
        batch.documents.append(row)


async def _put_base(batch: Batch, place: int, moves: Moves, step: Step) -> None:
    flow = step.outcome.flow
    recorded: list[ActivityEntry] = []
    versions = moves.kept.versions
    for earlier in moves.steps:
        if earlier.expected <= step.expected:
            recorded += earlier.outcome.activity
            versions = written(versions, earlier.outcome.event)
    base = Base(flow, Kept(newest(moves.kept.activity, recorded), versions), step.hash)
    body = await packed(codec.base_to_bytes(base))
    batch.bases.append((place, flow.revision, step.hash, body))


def _differs(before: Flow, after: Flow) -> bool:
    """Whether one of the columns differs that are written only then: commit_statement.WIDE."""
    return not (
        before.hold is after.hold
        and before.display_name is after.display_name
        and before.labels is after.labels
        and before.hold_reason is after.hold_reason
        and before.delete_time is after.delete_time
    )


def _lean(place: int, expected: int, last: Step) -> Row:
    flow, said = last.outcome.flow, last.outcome.summary
    tenant, totals = flow.tenant, flow.totals
    return (
        place,
        tenant.client_account_id,
        tenant.engagement_id,
        flow.flow_id,
        expected,
        flow.revision,
        said.progress,
        flow.update_time,
        flow.end_time,
        said.status.name,
        flow.updated_by,
        said.current_child,
        ",".join(said.current_phases),
        ",".join([str(totals.get(kind, 0)) for kind in ActivityKind]) if totals else _NO_TOTALS,
        last.hash,
    )


def _wide(flow: Flow) -> Row:
    labels = orjson.dumps(dict(flow.labels)).decode() if flow.labels else "{}"
    wide = (flow.hold.name, flow.hold_reason, flow.display_name, labels, flow.delete_time)
    origin = (None, None) if flow.origin is None else (flow.origin.flow_id, flow.origin.revision)
    return (*wide, flow.type, flow.created_by, flow.create_time, *origin)


def _child_row(place: int, flow: Flow, child: ChildFlow) -> Row:
    status = child_status(child, flow.hold).name
    return place, child.type, child_progress(child), child.update_time, status, codec.phases_to_text(child.phases)


def _born_row(place: int, flow: Flow, child: ChildFlow) -> Row:
    return (*_child_row(place, flow, child), child.child_flow_id, child.create_time, child.definition.version)
