"""A flow rebuilt from a base and the events after it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import field, replace
from uuid import UUID

from server.statemachine import activity
from server.statemachine.event import (
    ChildStarted,
    DocumentChanged,
    Event,
    EventLost,
    Fact,
    FlowCreated,
    FlowDeleted,
    FlowReplaced,
    FlowUndeleted,
    HoldChanged,
    LabelsChanged,
    NameChanged,
    PhaseChanged,
)
from server.statemachine.graphs import BUILT_IN
from server.statemachine.states import TERMINAL, FlowHold
from server.statemachine.value import dataclass
from server.statemachine.values import ActivityEntry, ChildFlow, DocumentPlace, Flow, Phase, Tenant

# A base is stored with every so many revisions, so that rebuilding any of them reads no more events than this.
EVERY = 100


@dataclass(frozen=True, slots=True)
class Version:
    """Which version of a document: the revision that it is of, its bytes of JSON text and their SHA-256."""

    revision: int
    size: int
    sha256: bytes


Versions = Mapping[DocumentPlace, Version]


@dataclass(frozen=True, slots=True)
class Kept:
    """What belongs to a flow and is not part of it: the activity that is kept, and which version each document is of."""

    activity: tuple[ActivityEntry, ...] = ()
    versions: Versions = field(default_factory=dict, hash=False)


@dataclass(frozen=True, slots=True)
class Base:
    """A flow with what belongs to it at one revision, and the hash of that revision's event: what rebuilding begins with."""

    flow: Flow
    kept: Kept
    hash: bytes


class Unexplained(ValueError):
    """An event does not fit the flow that it is told of: the history is damaged, or needs a base that is not there."""


def wants_base(event: Event) -> bool:
    """Whether a base is stored with the event."""
    return event.revision % EVERY == 0 or any(isinstance(fact, FlowReplaced) for fact in event.facts)


def begun(tenant: Tenant, flow_id: UUID, event: Event) -> Flow:
    """The flow before its first event."""
    return Flow(tenant, flow_id, "", 0, event.actor, event.time, event.actor, event.time)


def replayed(flow: Flow, event: Event) -> Flow:
    """The flow once the event has been told. Raises Unexplained when it does not fit."""
    if event.revision != flow.revision + 1:
        raise Unexplained(f"revision {event.revision} cannot follow revision {flow.revision}")
    after = flow
    for fact in event.facts:
        after = _told(after, fact, event)
    _, totals = activity.numbered(activity.told(event.facts), flow.totals, event.time, event.actor)
    return replace(
        after,
        revision=event.revision,
        updated_by=event.actor,
        update_time=event.time,
        end_time=(flow.end_time or event.time) if event.status in TERMINAL else None,
        totals=totals,
    )


def written(versions: Versions, event: Event) -> dict[DocumentPlace, Version]:
    """The versions of the documents once the event has been told."""
    found = dict(versions)
    for fact in event.facts:
        if isinstance(fact, DocumentChanged):
            found[fact.place] = Version(event.revision, fact.size, fact.sha256)
        elif isinstance(fact, FlowReplaced):
            for place in fact.documents_removed:
                found.pop(place, None)
    return found


def rebuilt(base: Base | None, tenant: Tenant, flow_id: UUID, events: Iterable[tuple[Event, bytes]]) -> Base:
    """What the events, each with its hash, lead to from ``base``, or from nothing.

    Raises Unexplained, and ValueError when there is neither.
    """
    flow = None if base is None else base.flow
    before = Kept() if base is None else base.kept
    entries, versions = list(before.activity), before.versions
    link = b"" if base is None else base.hash
    for event, link in events:  # noqa: B007 - the last one is wanted
        flow = begun(tenant, flow_id, event) if flow is None else flow
        entries += activity.numbered(activity.told(event.facts), flow.totals, event.time, event.actor)[0]
        flow, versions = replayed(flow, event), written(versions, event)
    if flow is None:
        raise ValueError("neither a base nor events")
    return Base(flow, Kept(activity.kept(entries, ()), versions), link)


def _told(flow: Flow, fact: Fact, event: Event) -> Flow:
    match fact:
        case FlowCreated():
            return replace(flow, type=fact.type, display_name=fact.display_name, labels=fact.labels)
        case ChildStarted():
            definition = BUILT_IN.get(fact.type)
            if definition is None or definition.version != fact.definition_version:
                raise Unexplained(f"there is no definition {fact.type} of version {fact.definition_version}")
            phases = tuple(Phase(phase.name, state_time=event.time) for phase in definition.phases)
            return replace(flow, children=(*flow.children, ChildFlow(fact.child_flow_id, definition, phases, event.time, event.time)))
        case PhaseChanged():
            return replace(flow, children=_moved(flow, fact, event))
        case HoldChanged():
            return replace(flow, hold=fact.after, hold_reason="" if fact.after is FlowHold.NONE else fact.reason)
        case NameChanged():
            return replace(flow, display_name=fact.after)
        case LabelsChanged():
            return replace(flow, labels=fact.after)
        case FlowDeleted():
            return replace(flow, delete_time=event.time)
        case FlowUndeleted():
            return replace(flow, delete_time=None)
        case EventLost():
            raise Unexplained(f"what revision {event.revision} did was lost, and there is no base for it")
        case FlowReplaced():
            raise Unexplained(f"revision {event.revision} replaced the flow as a whole, and its base is not there")
        case _:
            return flow  # documents and activity are not part of the flow itself


def _moved(flow: Flow, fact: PhaseChanged, event: Event) -> tuple[ChildFlow, ...]:
    children = []
    found = False
    for child in flow.children:
        at = child.definition.position.get(fact.after.name) if child.type == fact.child_type else None
        if at is None:
            children.append(child)
            continue
        if child.phases[at] != fact.before:
            raise Unexplained(f"phase {fact.after.name} was not as the event of revision {event.revision} says it was")
        found = True
        phases = (*child.phases[:at], fact.after, *child.phases[at + 1 :])
        children.append(ChildFlow(child.child_flow_id, child.definition, phases, child.create_time, event.time))
    if not found:
        raise Unexplained(f"there is no phase {fact.after.name} for the event of revision {event.revision} to change")
    return tuple(children)
