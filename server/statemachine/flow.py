"""The one way a flow changes: ``apply``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import field, replace
from datetime import datetime
from typing import NoReturn
from uuid import UUID

from server.statemachine import activity, document, phases
from server.statemachine import change as ask
from server.statemachine.definition import Definition
from server.statemachine.derivation import child_completed, flow_progress, flow_status, summary
from server.statemachine.errors import (
    ChildExists,
    DependencyIncomplete,
    FlowError,
    FlowNotActive,
    FlowNotDeleted,
    FlowNotPaused,
    PhaseNotFound,
    invalid,
)
from server.statemachine.event import (
    ActivityRecorded,
    ChildStarted,
    DocumentChanged,
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
from server.statemachine.graphs import BUILT_IN, JOURNEYS
from server.statemachine.replacement import replaced
from server.statemachine.states import TERMINAL, FlowHold, FlowStatus, PhaseState
from server.statemachine.value import dataclass
from server.statemachine.values import (
    ActivityEntry,
    ActivityKind,
    ChildFlow,
    DocumentName,
    DocumentPlace,
    Flow,
    FlowSummary,
    Origin,
    Phase,
    Tenant,
)

_LIMITS = document.Limits()


@dataclass(frozen=True, slots=True)
class Occasion:
    """Who changes a flow, when, where new ids come from, and how large its documents may become."""

    actor: str
    now: datetime
    new_id: Callable[[], UUID]
    limits: document.Limits = _LIMITS


@dataclass(frozen=True, slots=True)
class Outcome:
    """A flow after a commit, the event that records it, the documents and activity to store, and the documents to remove."""

    flow: Flow
    summary: FlowSummary
    event: Event
    documents: Mapping[DocumentPlace, bytes]
    activity: tuple[ActivityEntry, ...]
    removed: tuple[DocumentPlace, ...] = ()


@dataclass(frozen=False, slots=True)
class _Draft:
    """The flow while the changes of one commit are applied to it."""

    flow: Flow
    occasion: Occasion
    stored: Mapping[DocumentPlace, bytes]
    facts: list[Fact]
    totals: Mapping[ActivityKind, int]
    written: dict[DocumentPlace, bytes] = field(default_factory=dict)
    activity: list[ActivityEntry] = field(default_factory=list)
    removed: tuple[DocumentPlace, ...] = ()

    def write(self, place: DocumentPlace, text: bytes) -> None:
        self.written[place] = text
        self.facts.append(DocumentChanged(place, len(text), document.sha256(text)))


def create(
    tenant: Tenant,
    flow_id: UUID,
    flow_type: str,
    display_name: str,
    labels: Mapping[str, str],
    changes: Sequence[ask.Change],
    occasion: Occasion,
    origin: Origin | None = None,
) -> Outcome:
    """A new flow at revision 1 with ``changes`` (a first child, documents; a fork's content) applied to it.

    Raises InvalidRequest for a type that is no journey.
    """
    if flow_type not in JOURNEYS:
        raise invalid("type", f"{flow_type[:100]!r} is not a flow type; known ones are {', '.join(JOURNEYS)}")
    actor, now = occasion.actor, occasion.now
    flow = Flow(tenant, flow_id, flow_type, 0, actor, now, actor, now, display_name=display_name, labels=labels, origin=origin)
    return _commit(flow, changes, occasion, {}, [FlowCreated(flow_type, display_name, labels)])


def apply(flow: Flow, changes: Sequence[ask.Change], occasion: Occasion, stored: Mapping[DocumentPlace, bytes]) -> Outcome:
    """The flow with all of ``changes`` applied in order, at the next revision.

    ``stored`` holds the documents that the changes merge into. Raises the first change's error that does not apply, with
    ``change_index`` in its metadata.
    """
    return _commit(flow, changes, occasion, stored, [])


def _commit(
    flow: Flow, changes: Sequence[ask.Change], occasion: Occasion, stored: Mapping[DocumentPlace, bytes], facts: list[Fact]
) -> Outcome:
    if occasion.now < flow.update_time:  # clocks of two machines differ; a flow's own history does not run backwards
        occasion = replace(occasion, now=flow.update_time)
    draft = _Draft(flow, occasion, stored, facts, flow.totals)
    for at, change in enumerate(changes):
        try:
            _RULES[type(change)](draft, change)
        except FlowError as error:
            if len(changes) > 1:
                error.metadata["change_index"] = str(at)
            raise
    after = _committed(draft, flow)
    said = summary(after)
    regressed = flow.revision > 0 and said.progress < flow_progress(flow)
    told = tuple(draft.facts)
    event = Event(after.revision, after.update_time, after.updated_by, told, said.status, said.progress, regressed, after.labels)
    return Outcome(after, said, event, draft.written, tuple(draft.activity), draft.removed)


def _committed(draft: _Draft, before: Flow) -> Flow:
    """The draft as the next revision. Spelled out: ``replace`` looks every field up by its name, and every commit comes by here."""
    flow, actor, now = draft.flow, draft.occasion.actor, draft.occasion.now
    end_time = (before.end_time or now) if flow_status(flow) in TERMINAL else None
    return Flow(
        flow.tenant,
        flow.flow_id,
        flow.type,
        before.revision + 1,
        flow.created_by,
        flow.create_time,
        actor,
        now,
        flow.display_name,
        flow.labels,
        flow.hold,
        flow.hold_reason,
        flow.children,
        draft.totals,
        end_time,
        flow.delete_time,
        flow.origin,
    )


def _transition(draft: _Draft, change: ask.TransitionPhase) -> None:
    child, at = _movable(draft, change.phase, change.child_type)
    moved, changed = phases.transition(child, at, change.to, change.failure, change.reason, draft.occasion.now)
    _moved(draft, moved, changed)


def _retry(draft: _Draft, change: ask.RetryPhase) -> None:
    child, at = _movable(draft, change.phase, change.child_type)
    moved, changed = phases.retry(child, at, change.reason, draft.occasion.now)
    _moved(draft, moved, changed)


def _rollback(draft: _Draft, change: ask.RollbackPhase) -> None:
    child, at = _movable(draft, change.phase, change.child_type)
    moved, changed = phases.transition(child, at, PhaseState.ROLLED_BACK, None, change.reason, draft.occasion.now)
    _moved(draft, moved, changed)


def _report(draft: _Draft, change: ask.ReportProgress) -> None:
    child, at = _movable(draft, change.phase, change.child_type)
    moved, changed = phases.report(child, at, change.fraction, change.message, draft.occasion.now)
    _put_child(draft, moved)
    draft.facts.append(changed)


def _update(draft: _Draft, change: ask.UpdateFlow) -> None:
    _check_updatable(draft.flow)
    flow = draft.flow
    if change.display_name is not None and change.display_name != flow.display_name:
        draft.facts.append(NameChanged(flow.display_name, change.display_name))
        flow = replace(flow, display_name=change.display_name)
    if change.labels is not None and change.labels != flow.labels:
        draft.facts.append(LabelsChanged(flow.labels, change.labels))
        flow = replace(flow, labels=change.labels)
    draft.flow = flow
    for wanted in change.documents:
        place = wanted.place
        if place.child_type and all(child.type != place.child_type for child in flow.children):
            raise invalid(f"update.child_data[{place.child_type[:100]}]", "flow has no child of this type")
        if isinstance(wanted, ask.MergeDocument):
            target = draft.written.get(place) or draft.stored.get(place, document.EMPTY)
            merged = document.merge_patch(target, wanted.patch)
            document.check_size(merged, f"{place.name} with the patch merged", draft.occasion.limits)
            draft.write(place, merged)
        else:
            draft.write(place, wanted.text)


def _record(draft: _Draft, change: ask.RecordActivity) -> None:
    if draft.flow.delete_time is not None:
        raise FlowNotActive("DELETED", "activity", "undelete it first")
    draft.facts.append(ActivityRecorded(_add_activity(draft, change.entries)))


def _pause(draft: _Draft, change: ask.PauseFlow) -> None:
    status = _check_open(draft.flow, "pause")
    if draft.flow.hold is FlowHold.PAUSED or status in TERMINAL:
        raise FlowNotActive(status.name, "pause", "it is not running")
    _hold(draft, FlowHold.PAUSED, change.reason)


def _resume(draft: _Draft, change: ask.ResumeFlow) -> None:
    status = _check_open(draft.flow, "resume")
    if draft.flow.hold is not FlowHold.PAUSED:
        raise FlowNotPaused(status.name)
    _hold(draft, FlowHold.NONE, change.reason)


def _cancel(draft: _Draft, change: ask.CancelFlow) -> None:
    status = _check_open(draft.flow, "cancel")
    if status is FlowStatus.COMPLETED:
        raise FlowNotActive(status.name, "cancel", "it has ended")
    _hold(draft, FlowHold.CANCELLED, change.reason)


def _start_child(draft: _Draft, change: ask.StartChild) -> None:
    _check_movable(draft.flow, "new child")
    flow = draft.flow
    journey = JOURNEYS[flow.type]
    started = {child.type: child for child in flow.children}
    wanted = change.type or next((domain for domain in journey if domain not in started), "")
    if wanted in started or not wanted:
        raise ChildExists(wanted)
    if wanted not in journey:
        raise invalid("child_start.type", f"{wanted[:100]!r} is not in the journey {flow.type}: {', '.join(journey)}")
    earlier = journey[: journey.index(wanted)]
    if missing := [domain for domain in earlier if domain not in started or not child_completed(started[domain])]:
        raise DependencyIncomplete("child", wanted, missing)
    child = new_child(draft.occasion.new_id(), BUILT_IN[wanted], draft.occasion.now)
    draft.flow = replace(flow, children=(*flow.children, child))
    draft.facts.append(ChildStarted(child.child_flow_id, child.type, child.definition.version))
    if change.data is not None:
        draft.write(DocumentPlace(DocumentName.DATA.value, wanted), change.data)


def _delete(draft: _Draft, change: ask.DeleteFlow) -> None:
    if draft.flow.delete_time is not None:
        raise FlowNotActive("DELETED", "deletion", "it is deleted already")
    draft.flow = replace(draft.flow, delete_time=draft.occasion.now)
    draft.facts.append(FlowDeleted(change.reason))


def _undelete(draft: _Draft, _: ask.UndeleteFlow) -> None:
    if draft.flow.delete_time is None:
        raise FlowNotDeleted
    draft.facts.append(FlowUndeleted(draft.flow.delete_time))
    draft.flow = replace(draft.flow, delete_time=None)


def _replace_content(draft: _Draft, change: ask.ReplaceContent) -> None:
    _check_updatable(draft.flow)
    content = change.content
    children, facts = replaced(draft.flow, change, draft.occasion.now)
    draft.facts += facts
    draft.flow = replace(
        draft.flow,
        display_name=content.display_name,
        labels=content.labels,
        hold=content.hold,
        hold_reason=content.hold_reason,
        children=children,
    )
    for place, text in content.documents.items():
        if place not in change.keep:
            draft.write(place, text)
    draft.removed = change.remove


_RULES: Mapping[type, Callable[[_Draft, object], None]] = {
    ask.TransitionPhase: _transition,  # type: ignore[dict-item]
    ask.RetryPhase: _retry,  # type: ignore[dict-item]
    ask.RollbackPhase: _rollback,  # type: ignore[dict-item]
    ask.ReportProgress: _report,  # type: ignore[dict-item]
    ask.UpdateFlow: _update,  # type: ignore[dict-item]
    ask.RecordActivity: _record,  # type: ignore[dict-item]
    ask.PauseFlow: _pause,  # type: ignore[dict-item]
    ask.ResumeFlow: _resume,  # type: ignore[dict-item]
    ask.CancelFlow: _cancel,  # type: ignore[dict-item]
    ask.StartChild: _start_child,  # type: ignore[dict-item]
    ask.DeleteFlow: _delete,  # type: ignore[dict-item]
    ask.UndeleteFlow: _undelete,  # type: ignore[dict-item]
    ask.ReplaceContent: _replace_content,  # type: ignore[dict-item]
}


def new_child(child_flow_id: UUID, definition: Definition, now: datetime) -> ChildFlow:
    """A child with every phase NOT_STARTED."""
    return ChildFlow(child_flow_id, definition, tuple(Phase(phase.name, state_time=now) for phase in definition.phases), now, now)


def locate(flow: Flow, phase: str, child_type: str) -> tuple[ChildFlow, int]:
    """The child that has the phase, and the phase's position in it.

    Raises PhaseNotFound, and InvalidRequest when several children have a phase of that name and ``child_type`` is empty.
    """
    found = [child for child in flow.children if phase in child.definition.position and child_type in ("", child.type)]
    if len(found) == 1:
        return found[0], found[0].definition.position[phase]
    if found:
        raise invalid("child_type", f"is required: phase {phase} is in {', '.join(child.type for child in found)}")
    known = [name for child in flow.children if child_type in ("", child.type) for name in child.definition.position]
    raise PhaseNotFound(phase, child_type[:100], known)


def _movable(draft: _Draft, phase: str, child_type: str) -> tuple[ChildFlow, int]:
    _check_movable(draft.flow, "change of a phase")
    return locate(draft.flow, phase, child_type)


def _check_open(flow: Flow, what: str) -> FlowStatus:
    if flow.delete_time is not None:
        raise FlowNotActive("DELETED", what, "undelete it first")
    if flow.hold is FlowHold.CANCELLED:
        raise FlowNotActive(flow.hold.name, what, "it has ended for good")
    return flow_status(flow)


def _check_updatable(flow: Flow) -> None:
    if flow.delete_time is not None or flow.hold is FlowHold.CANCELLED:
        _check_open(flow, "update")


def _check_movable(flow: Flow, what: str) -> None:
    if flow.delete_time is not None or flow.hold is not FlowHold.NONE:
        _check_open(flow, what)
        _refuse_held(flow, what)


def _refuse_held(flow: Flow, what: str) -> NoReturn:
    if flow.hold is FlowHold.PAUSED:
        raise FlowNotActive("PAUSED", what, "resume it first")
    raise FlowNotActive(FlowStatus.ERROR_RECOVERY.name, what, "wait until its recovery has ended")


def _hold(draft: _Draft, hold: FlowHold, reason: str) -> None:
    flow = draft.flow
    draft.facts.append(HoldChanged(flow.hold, hold, flow.hold_reason, reason))
    draft.flow = replace(flow, hold=hold, hold_reason=reason if hold is not FlowHold.NONE else "")


def _put_child(draft: _Draft, child: ChildFlow) -> None:
    flow, kind = draft.flow, child.definition.type
    if len(flow.children) == 1:
        children: tuple[ChildFlow, ...] = (child,)
    else:
        children = tuple([child if other.definition.type == kind else other for other in flow.children])
    draft.flow = Flow(
        flow.tenant,
        flow.flow_id,
        flow.type,
        flow.revision,
        flow.created_by,
        flow.create_time,
        flow.updated_by,
        flow.update_time,
        flow.display_name,
        flow.labels,
        flow.hold,
        flow.hold_reason,
        children,
        flow.totals,
        flow.end_time,
        flow.delete_time,
        flow.origin,
    )


def _moved(draft: _Draft, child: ChildFlow, changed: tuple[PhaseChanged, ...]) -> None:
    _put_child(draft, child)
    draft.facts.extend(changed)
    _add_activity(draft, activity.moved(changed))


def _add_activity(draft: _Draft, entries: Sequence[ActivityEntry]) -> tuple[ActivityEntry, ...]:
    recorded, draft.totals = activity.numbered(entries, draft.totals, draft.occasion.now, draft.occasion.actor)
    draft.activity.extend(recorded)
    return recorded
