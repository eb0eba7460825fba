"""A flow rebuilt from what its events tell, written apart from the rules that made them."""

from __future__ import annotations

from dataclasses import replace

from server.statemachine.event import (
    ChildStarted,
    Event,
    Fact,
    FlowCreated,
    FlowDeleted,
    FlowUndeleted,
    HoldChanged,
    LabelsChanged,
    NameChanged,
    PhaseChanged,
)
from server.statemachine.flow import Outcome
from server.statemachine.graphs import BUILT_IN
from server.statemachine.states import FlowHold, FlowStatus
from server.statemachine.values import ChildFlow, Flow, Phase

from .story import TENANT

ENDED = (FlowStatus.COMPLETED, FlowStatus.FAILED, FlowStatus.CANCELLED)


def replayed(flow: Flow | None, outcome: Outcome) -> Flow:
    """``flow`` (None before the first revision) once the outcome's event has been told; each fact must fit what was before it."""
    event = outcome.event
    if flow is None:
        flow = Flow(TENANT, outcome.flow.flow_id, "", 0, event.actor, event.time, event.actor, event.time)
    for fact in event.facts:
        flow = _told(flow, fact, event)
    totals = {**flow.totals, **{entry.kind: entry.sequence for entry in outcome.activity}}
    return replace(
        flow,
        revision=event.revision,
        updated_by=event.actor,
        update_time=event.time,
        end_time=(flow.end_time or event.time) if event.status in ENDED else None,
        totals=totals,
    )


def _told(flow: Flow, fact: Fact, event: Event) -> Flow:
    match fact:
        case FlowCreated():
            return replace(flow, type=fact.type, display_name=fact.display_name, labels=fact.labels)
        case ChildStarted():
            definition = BUILT_IN[fact.type]
            assert definition.version == fact.definition_version
            phases = tuple(Phase(phase.name, state_time=event.time) for phase in definition.phases)
            return replace(flow, children=(*flow.children, ChildFlow(fact.child_flow_id, definition, phases, event.time, event.time)))
        case PhaseChanged():
            return replace(flow, children=tuple(_moved(child, fact, event) for child in flow.children))
        case HoldChanged():
            assert (flow.hold, flow.hold_reason) == (fact.before, fact.reason_before)
            return replace(flow, hold=fact.after, hold_reason="" if fact.after is FlowHold.NONE else fact.reason)
        case NameChanged():
            assert flow.display_name == fact.before
            return replace(flow, display_name=fact.after)
        case LabelsChanged():
            assert flow.labels == fact.before
            return replace(flow, labels=fact.after)
        case FlowDeleted():
            assert flow.delete_time is None
            return replace(flow, delete_time=event.time)
        case FlowUndeleted():
            assert flow.delete_time == fact.deleted
            return replace(flow, delete_time=None)
        case _:
            return flow  # documents and activity are not part of the flow


def _moved(child: ChildFlow, fact: PhaseChanged, event: Event) -> ChildFlow:
    if child.type != fact.child_type:
        return child
    assert fact.before in child.phases
    phases = tuple(fact.after if phase == fact.before else phase for phase in child.phases)
    return replace(child, phases=phases, update_time=event.time)
