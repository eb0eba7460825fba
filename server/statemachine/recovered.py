"""A flow once its recovery was carried out: its next revision, the event that tells of it, and what is done about its documents."""

from __future__ import annotations

from dataclasses import field, replace
from uuid import UUID

from server.statemachine.change import ReplaceContent
from server.statemachine.derivation import flow_progress, summary
from server.statemachine.event import Cause, DocumentChanged, Event, EventLost
from server.statemachine.evidence import Evidence, Gap
from server.statemachine.flow import Occasion
from server.statemachine.history import Version, Versions
from server.statemachine.replacement import content_of, replaced
from server.statemachine.rungs import LOST_MOST, Plan, Rung
from server.statemachine.states import TERMINAL
from server.statemachine.value import dataclass
from server.statemachine.values import DocumentPlace, Flow, FlowSummary


@dataclass(frozen=True, slots=True)
class Recovered:
    """The flow at its new revision. ``lost`` are the gaps of the log that get notes in the place of events, in order.

    ``written`` are the documents whose rows are written: those that change at the new revision, and those that are put right at the
    revision that they are of. ``absent`` are those that history knows of and that are no longer there.
    """

    flow: Flow
    summary: FlowSummary
    event: Event
    lost: tuple[Gap, ...]
    versions: Versions = field(hash=False)
    written: Versions = field(hash=False)
    absent: tuple[DocumentPlace, ...]

    def note(self, revision: int) -> Event:
        """What stands in the log in the place of an event that is lost."""
        event = self.event
        return Event(revision, event.time, event.actor, (EventLost(),), event.status, event.progress, False)


def recovered(plan: Plan, evidence: Evidence, last: int, reason: str, quarantine_id: UUID, occasion: Occasion) -> Recovered:
    """The flow once ``plan`` was carried out; ``last`` is the newest revision that it was ever at."""
    assert plan.target is not None
    target, revision = plan.target, last + 1
    versions, written, facts = _documents(target.versions, evidence, revision)
    absent = tuple(sorted(evidence.versions.keys() - versions.keys()))
    now = max(occasion.now, target.flow.update_time, *(() if evidence.told.last is None else (evidence.told.last.time,)))
    before = _before(plan, evidence)
    change = ReplaceContent(
        content_of(target.flow, {}),
        Cause.RECOVERY,
        reason,
        absent,
        source_revision=plan.source_revision,
        source_checkpoint_id=plan.source_checkpoint_id,
        quarantine_id=quarantine_id,
    )
    children, changed = replaced(before, change, now)
    flow = replace(target.flow, revision=revision, updated_by=occasion.actor, update_time=now, children=children)
    said = summary(flow)
    flow = replace(flow, end_time=(target.flow.end_time or now) if said.status in TERMINAL else None)
    said = summary(flow)
    regressed = said.progress < flow_progress(before)
    event = Event(revision, now, occasion.actor, (*changed, *facts), said.status, said.progress, regressed)
    return Recovered(flow, said, event, _lost(evidence, last), versions, written, absent)


def _documents(wanted: Versions, evidence: Evidence, revision: int) -> tuple[Versions, Versions, list[DocumentChanged]]:
    """Which versions the documents are of then, which of them must be written, and what is told of it."""
    versions: dict[DocumentPlace, Version] = {}
    written: dict[DocumentPlace, Version] = {}
    facts = []
    for place, version in wanted.items():
        known, present = evidence.versions.get(place), evidence.texts.present.get(place)
        if known is None or known.sha256 != version.sha256:
            known = Version(revision, version.size, version.sha256)
            facts.append(DocumentChanged(place, version.size, version.sha256))
        versions[place] = known
        if present is None or not present.right or present.version != known:
            written[place] = known
    return versions, written, facts


def _before(plan: Plan, evidence: Evidence) -> Flow:
    """What the flow was last known to be: what the event tells as changed is changed from there."""
    assert plan.target is not None
    state = evidence.told.state
    if plan.rung is Rung.REPAIR or state is None or state.flow.type != plan.target.flow.type:
        return plan.target.flow
    return state.flow


def _lost(evidence: Evidence, last: int) -> tuple[Gap, ...]:
    """The gaps that are filled, the newest first as long as they are not beyond measure; in order."""
    told, room, found = evidence.told, LOST_MOST, []
    gaps = [*told.gaps, *([Gap(told.head + 1, last, told.hash)] if last > told.head else [])]
    for gap in reversed(gaps):
        first = max(gap.first, gap.last - room + 1)
        if first > gap.last:
            break
        found.append(replace(gap, first=first, before=gap.before if first == gap.first else None))
        room -= gap.last - first + 1
    return tuple(reversed(found))
