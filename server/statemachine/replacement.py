"""Putting one content in the place of another: what a revert, a fork, a restore and a recovery have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import datetime
from uuid import UUID

from server.statemachine.change import ReplaceContent
from server.statemachine.event import (
    Cause,
    ChildStarted,
    Fact,
    FlowReplaced,
    HoldChanged,
    LabelsChanged,
    NameChanged,
    PhaseChanged,
)
from server.statemachine.states import FlowHold
from server.statemachine.values import ChildFlow, Content, DocumentPlace, Flow


def content_of(flow: Flow, documents: Mapping[DocumentPlace, bytes]) -> Content:
    """What can be brought back of the flow as it is."""
    return Content(flow.display_name, flow.labels, flow.hold, flow.hold_reason, flow.children, documents)


def replacement(
    content: Content,
    present: Mapping[DocumentPlace, bytes],
    cause: Cause,
    reason: str,
    *,
    source_revision: int = 0,
    source_flow_id: UUID | None = None,
    source_checkpoint_id: UUID | None = None,
    quarantine_id: UUID | None = None,
) -> ReplaceContent:
    """The change that makes ``content`` of a flow whose documents are ``present``."""
    wanted = content.documents
    return ReplaceContent(
        content,
        cause,
        reason,
        tuple(sorted(place for place in present if place not in wanted)),
        frozenset(place for place, text in present.items() if wanted.get(place) == text),
        source_revision,
        source_flow_id,
        source_checkpoint_id,
        quarantine_id,
    )


def forked(content: Content, new_id: Callable[[], UUID], now: datetime) -> Content:
    """The content for another flow: children of its own, and no hold."""
    children = tuple(ChildFlow(new_id(), child.definition, child.phases, now, now) for child in content.children)
    return replace(content, children=children, hold=FlowHold.NONE, hold_reason="")


def replaced(flow: Flow, change: ReplaceContent, now: datetime) -> tuple[tuple[ChildFlow, ...], list[Fact]]:
    """The children that the flow then has, and the facts; documents are left to the caller."""
    content = change.content
    known = {child.type: child for child in flow.children}
    children = tuple(_adopted(known.get(child.type), child, now) for child in content.children)
    wanted = {child.type for child in children}
    removed = tuple(child.type for child in flow.children if child.type not in wanted)
    facts: list[Fact] = [
        FlowReplaced(
            change.cause,
            change.reason,
            change.source_revision,
            change.source_flow_id,
            change.source_checkpoint_id,
            change.quarantine_id,
            removed,
            change.remove,
        )
    ]
    if content.display_name != flow.display_name:
        facts.append(NameChanged(flow.display_name, content.display_name))
    if content.labels != flow.labels:
        facts.append(LabelsChanged(flow.labels, content.labels))
    if (content.hold, content.hold_reason) != (flow.hold, flow.hold_reason):
        facts.append(HoldChanged(flow.hold, content.hold, flow.hold_reason, content.hold_reason))
    for child in children:
        before = known.get(child.type)
        if before is None:
            facts.append(ChildStarted(child.child_flow_id, child.type, child.definition.version))
        elif before is not child:
            facts += _differing(before, child)
    return children, facts


def _adopted(known: ChildFlow | None, child: ChildFlow, now: datetime) -> ChildFlow:
    """The content's child under the identity of the flow's own, if there is one; the flow's own where nothing differs."""
    if known is None:
        return child
    if known.phases == child.phases and known.definition == child.definition:
        return known
    return ChildFlow(known.child_flow_id, child.definition, child.phases, known.create_time, now)


def _differing(before: ChildFlow, after: ChildFlow) -> Iterator[PhaseChanged]:
    phases = {phase.name: phase for phase in before.phases}
    for phase in after.phases:
        known = phases.get(phase.name)
        if known is not None and known != phase:
            yield PhaseChanged(after.type, known, phase)
