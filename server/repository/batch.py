"""From outcomes to rows: what each commit stores, merged where several commits of one batch meet in one row."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self
from uuid import UUID

import orjson

from server.repository import codec
from server.repository.commit_statement import WIDE, Batch, Key, Row, child_table
from server.repository.document_store import packed
from server.repository.flows import Head
from server.repository.requests import Committed
from server.repository.tables import ACTIVITY_SLOTS
from server.statemachine.change import Change, MergeDocument, ReplaceDocument, StartChild, UpdateFlow
from server.statemachine.derivation import child_progress, child_status
from server.statemachine.document import sha256
from server.statemachine.flow import Outcome
from server.statemachine.values import ActivityEntry, ActivityKind, ChildFlow, DocumentPlace, Flow

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
    def after(cls, head: Head | None, outcome: Outcome) -> Self:
        """The step from ``head`` to ``outcome``."""
        body = codec.event_to_text(outcome.event)
        flow = outcome.flow
        link = codec.chained(codec.NO_HASH if head is None else head.hash, flow.tenant, flow.flow_id, outcome.event, body)
        return cls(outcome.event.revision - 1, None if head is None else head.flow, outcome, body, link)

    @property
    def committed(self) -> Committed:
        """What the caller is told once it is on disk."""
        return Committed(self.outcome.flow, self.outcome.summary, self.outcome.event, self.hash)


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
    flows: dict[Key, _Moves] = {}
    for step in steps:
        flow = step.outcome.flow
        key = flow.tenant, flow.flow_id
        moves = flows.get(key)
        if moves is None:
            flows[key] = moves = _Moves(step)
        moves.add(step)
    batch = Batch()
    # In the order of the key, so that two processes lock the rows of their batches in the same order.
    for place, key in enumerate(sorted(flows, key=_sorted_by) if len(flows) > 1 else flows):
        moves = flows[key]
        batch.keys.append(key)
        batch.flows.append(_flow_row(place, moves))
        batch.wide |= moves.wide
        for step in moves.steps:
            event = step.outcome.event
            batch.events.append((place, event.revision, event.time, event.actor, step.body, step.hash))
        last = moves.steps[-1].outcome
        for child in last.flow.children:
            if child.type in moves.born:
                batch.born_children.setdefault(child_table(child.type), []).append(_born_row(place, last.flow, child))
            elif child.type in moves.changed:
                batch.children.setdefault(child_table(child.type), []).append(_child_row(place, last.flow, child))
        for at, (revision, text) in moves.documents.items():
            body = await packed(text)
            batch.documents.append((place, revision, len(text), at.name, at.child_type, sha256(text), body))
        for (kind, slot), entry in moves.activity.items():
            told = (entry.sequence, entry.time, kind.value, slot, entry.actor, codec.entry_to_text(entry))
            batch.activity.append((place, *told))
    return batch


class _Moves:
    """What the steps of one flow come to together."""

    __slots__ = ("activity", "born", "changed", "documents", "steps", "wide")

    def __init__(self, first: Step) -> None:
        self.steps: list[Step] = []
        self.wide = first.before is None
        self.born: set[str] = set()
        self.changed: set[str] = set()
        self.documents: dict[DocumentPlace, tuple[int, bytes]] = {}
        self.activity: dict[tuple[ActivityKind, int], ActivityEntry] = {}

    def add(self, step: Step) -> None:
        """Note what the step changes."""
        self.steps.append(step)
        before, outcome = step.before, step.outcome
        flow = outcome.flow
        known = () if before is None else before.children
        held = before is not None and before.hold is not flow.hold
        for at, child in enumerate(flow.children):
            if at >= len(known):
                self.born.add(child.type)
            elif held or known[at] is not child:
                self.changed.add(child.type)
        self.wide |= before is None or not all(getattr(before, name) is getattr(flow, name) for name in WIDE)
        for place, text in outcome.documents.items():
            self.documents[place] = flow.revision, text
        for entry in outcome.activity:
            self.activity[entry.kind, (entry.sequence - 1) % ACTIVITY_SLOTS] = entry


def _sorted_by(key: Key) -> tuple[UUID, UUID, UUID]:
    tenant, flow_id = key
    return tenant.client_account_id, tenant.engagement_id, flow_id


def _flow_row(place: int, moves: _Moves) -> Row:
    last = moves.steps[-1]
    flow, said, totals = last.outcome.flow, last.outcome.summary, last.outcome.flow.totals
    lean = (
        place,
        flow.tenant.client_account_id,
        flow.tenant.engagement_id,
        flow.flow_id,
        moves.steps[0].expected,
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
    labels = orjson.dumps(dict(flow.labels)).decode() if flow.labels else "{}"
    wide = (flow.hold.name, flow.hold_reason, flow.display_name, labels, flow.delete_time)
    return (*lean, *wide, flow.type, flow.created_by, flow.create_time)


def _child_row(place: int, flow: Flow, child: ChildFlow) -> Row:
    status = child_status(child, flow.hold).name
    return place, child.type, child_progress(child), child.update_time, status, codec.phases_to_text(child.phases)


def _born_row(place: int, flow: Flow, child: ChildFlow) -> Row:
    return (*_child_row(place, flow, child), child.child_flow_id, child.create_time, child.definition.version)
