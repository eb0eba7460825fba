"""How a damaged flow is brought back: the first rung of the ladder that holds, and why those above it do not.

    NONE        nothing is wrong that could be mended
    REPAIR      what is wrong follows from what is right; the flow is what it was
    REVISION    the newest revision that is sure and whose documents can be had
    CHECKPOINT  the newest checkpoint that opens
    RESET       the flow as it was created; only when asked for by name

A repair goes by what is sure, in this order: the history, if it is sure up to its end and the row knows of nothing after it; else the row
and the children by themselves, if nothing in them speaks against them and the row is no older than the history.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import field, replace
from datetime import datetime
from enum import unique
from uuid import UUID

from server.statemachine.document import sha256
from server.statemachine.evidence import Command, Evidence, Gap
from server.statemachine.finding import Finding, FindingKind
from server.statemachine.flow import new_child
from server.statemachine.graphs import BUILT_IN, JOURNEYS
from server.statemachine.history import Version, Versions
from server.statemachine.integrity import unmet
from server.statemachine.states import Member
from server.statemachine.value import dataclass
from server.statemachine.values import ActivityEntry, ActivityKind, DocumentPlace, Flow

_K = FindingKind
# Of more derived fields than this that are wrong it is not sure that it is they that are wrong, and not what they are derived from.
DERIVED_MOST = 1
# So many lost events a recovery puts notes in the place of, at most; a row that is further ahead of its events is not believed.
LOST_MOST = 100_000


@unique
class Rung(Member):
    """How far down the ladder; numbers as in the contract."""

    NONE = 1
    REPAIR = 2
    REVISION = 3
    CHECKPOINT = 4
    RESET = 5


@dataclass(frozen=True, slots=True)
class Copy:
    """A checkpoint that opens, and what it holds."""

    checkpoint_id: UUID
    flow: Flow
    documents: Mapping[DocumentPlace, bytes] = field(hash=False)


@dataclass(frozen=True, slots=True)
class Target:
    """What the flow shall be: its content, which version each document shall be of, and its analytics."""

    flow: Flow
    versions: Versions = field(hash=False)
    activity: tuple[ActivityEntry, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be done, or, without a rung, why nothing can be."""

    rung: Rung | None
    summary: str
    findings: tuple[Finding, ...]
    failures: tuple[tuple[Rung, str], ...] = ()
    target: Target | None = None
    source_revision: int = 0
    source_checkpoint_id: UUID | None = None
    losses: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Ground:
    """What a rung stands on: what is known of the flow, its newest checkpoint that opens, or why there is none, and where ids come from."""

    evidence: Evidence
    copy: Copy | None
    no_copy: str
    lowest: Rung
    new_id: Callable[[], UUID]
    now: datetime
    digests: frozenset[bytes] = field(init=False)

    def __post_init__(self) -> None:
        held = () if self.copy is None else map(sha256, self.copy.documents.values())
        object.__setattr__(self, "digests", self.evidence.texts.digests.union(held))

    def lost(self, versions: Versions) -> list[str]:
        """Those of the documents whose texts can not be had any more."""
        return [f"{place} of revision {version.revision}" for place, version in versions.items() if version.sha256 not in self.digests]


def plan(ground: Ground) -> Plan:
    """What is to be done about the flow."""
    evidence = ground.evidence
    findings = evidence.findings()
    if not mendable(evidence):
        left = f"; {len(findings)} finding{'s' if len(findings) > 1 else ''} can not be mended, nor need they be" if findings else ""
        return Plan(Rung.NONE, f"the flow is as it must be{left}", findings)
    failures: list[tuple[Rung, str]] = []
    for rung, step in _LADDER:
        if rung.value <= ground.lowest.value:
            found = step(ground)
            if isinstance(found, Plan):
                return replace(found, findings=findings, failures=tuple(failures), losses=(*found.losses, *_losses(ground)))
            failures.append((rung, found))
    return Plan(None, f"nothing down to {ground.lowest.name} brings the flow back", findings, tuple(failures))


def mendable(evidence: Evidence) -> bool:
    """Whether a recovery has anything to do."""
    told = evidence.told
    return bool(evidence.own() or told.gaps or told.hashes or told.bases)


def last_revision(evidence: Evidence, copy: Copy | None) -> int:
    """The newest revision that the flow was ever at, as far as that can be believed."""
    head = evidence.told.head
    claims = (evidence.stored.revision or 0, 0 if copy is None else copy.flow.revision)
    return max(head, *(claim for claim in claims if claim - head <= LOST_MOST))


# ---- the ladder ---------------------------------------------------------------------------------------------------------------------


def _repair(ground: Ground) -> Plan | str:
    evidence = ground.evidence
    state = evidence.told.state
    if evidence.reached and state is not None:
        flow, by = state.flow, "its history, which is sure up to its end"
    elif why := _doubt(evidence):
        return why
    else:
        assert evidence.stored.flow is not None
        flow, by = evidence.stored.flow, "its row and children, which are right by themselves"
    if lost := ground.lost(evidence.versions):
        return f"{', '.join(lost)} can not be had any more"
    target = _target(evidence, flow, evidence.versions)
    return Plan(Rung.REPAIR, f"the flow stays as it is at revision {flow.revision}, by {by}", (), (), target, flow.revision)


def _revision(ground: Ground) -> Plan | str:
    evidence, copy = ground.evidence, ground.copy
    found = next((state for state in evidence.told.good if not unmet(state.flow)), None)
    if found is None:
        return "no revision is sure, valid, and has documents that can be had"
    revision = found.flow.revision
    if copy is not None and copy.flow.revision > revision and ground.lowest.value >= Rung.CHECKPOINT.value:
        return (
            f"revision {revision} could be rebuilt, but checkpoint {copy.checkpoint_id} is of revision {copy.flow.revision}: less is lost"
        )
    target = _target(evidence, _commanded(evidence, found.flow), found.kept.versions)
    losses = _undone(revision, last_revision(evidence, copy))
    return Plan(Rung.REVISION, f"the flow becomes what it was at revision {revision}", (), (), target, revision, losses=losses)


def _checkpoint(ground: Ground) -> Plan | str:
    copy = ground.copy
    if copy is None:
        return ground.no_copy
    if why := unmet(copy.flow):
        return f"checkpoint {copy.checkpoint_id} holds a flow that can not be: {why}"
    versions = {place: Version(copy.flow.revision, len(text), sha256(text)) for place, text in copy.documents.items()}
    target = _target(ground.evidence, _commanded(ground.evidence, copy.flow), versions)
    summary = f"the flow becomes what checkpoint {copy.checkpoint_id} holds, of revision {copy.flow.revision}"
    losses = _undone(copy.flow.revision, last_revision(ground.evidence, copy))
    return Plan(Rung.CHECKPOINT, summary, (), (), target, copy.flow.revision, copy.checkpoint_id, losses)


def _reset(ground: Ground) -> Plan | str:
    evidence, first = ground.evidence, ground.evidence.told.first
    stored, now = evidence.stored, ground.now
    known = [flow for flow in (stored.flow, first and first.flow, evidence.told.state and evidence.told.state.flow) if flow]
    kind = stored.type or next((flow.type for flow in known), None)
    if kind is None:
        return "nothing says of which type the flow was"
    created = stored.created or next(((flow.created_by, flow.create_time) for flow in known), None)
    name = stored.name if stored.name is not None else next((flow.display_name for flow in known), "")
    labels = stored.labels if stored.labels is not None else next((flow.labels for flow in known), {})
    begun = first is None or bool(first.flow.children)
    ids = {child.type: child.child_flow_id for flow in reversed(known) for child in flow.children}
    ids |= {child.type: child.child_flow_id for child in stored.children}
    domain = JOURNEYS[kind][0]
    children = (new_child(ids.get(domain) or ground.new_id(), BUILT_IN[domain], now),) if begun else ()
    flow = Flow(
        evidence.key.tenant,
        evidence.key.flow_id,
        kind,
        0 if first is None else 1,
        *(created or ("unknown", now)),
        "",
        now,
        name,
        labels,
        children=children,
        origin=next((flow.origin for flow in known), None),
    )
    versions = {} if first is None else first.kept.versions
    had = {place: version for place, version in versions.items() if version.sha256 in ground.digests}
    losses = (
        "all progress of all phases, and every later child",
        *(f"{place}" for place in {**evidence.versions, **versions} if place not in had),
    )
    target = _target(evidence, _commanded(evidence, flow), had)
    return Plan(Rung.RESET, "the flow becomes what it was when it was created", (), (), target, flow.revision, losses=losses)


_LADDER: tuple[tuple[Rung, Callable[[Ground], Plan | str]], ...] = (
    (Rung.REPAIR, _repair),
    (Rung.REVISION, _revision),
    (Rung.CHECKPOINT, _checkpoint),
    (Rung.RESET, _reset),
)


def _doubt(evidence: Evidence) -> str:
    """Why the row and the children can not be relied on by themselves; empty when they can."""
    stored, told = evidence.stored, evidence.told
    flow, unsure = stored.flow, "the history is not sure up to its end" if not told.sure else "the row knows of more than the history"
    why = ""
    if not stored.there:
        why = "the row is not there"
    elif flow is None:
        why = next((finding.description for finding in stored.findings if finding.kind is not _K.DERIVED_WRONG), "the row can not be read")
    elif stored.revision is None or stored.revision < told.head:
        why = "the row is older than the history"
    elif stored.revision > told.head + LOST_MOST:
        why = f"the row says that it is at revision {stored.revision}, which can not be believed"
    elif len(wrong := [finding.field for finding in stored.findings if finding.kind is _K.DERIVED_WRONG]) > DERIVED_MOST:
        why = f"{', '.join(wrong)} do not fit the phases: it is not sure which of them is wrong"
    elif told.state is not None:
        why = _strange(flow, told.state.flow)
    return f"{unsure}, and {why}" if why else ""


def _strange(flow: Flow, told: Flow) -> str:
    """What the row can not be, since the flow was once another."""
    for name in ("type", "created_by", "create_time", "origin"):
        if getattr(flow, name) != getattr(told, name):
            return f"{name} is not what the history tells"
    there = {child.type for child in flow.children}
    gone = [child.type for child in told.children if child.type not in there]
    return f"child {', '.join(gone)} is not there" if gone else ""


def _target(evidence: Evidence, flow: Flow, versions: Versions) -> Target:
    """The flow with what is best known of its analytics: those are never set back."""
    state = evidence.told.state
    if evidence.reached and state is not None and evidence.told.exact:
        return Target(replace(flow, totals=state.flow.totals), versions, state.kept.activity)
    totals: dict[ActivityKind, int] = {}
    for known in (evidence.stored.totals or {}, {} if state is None else state.flow.totals, evidence.activity.totals):
        totals |= {kind: max(total, totals.get(kind, 0)) for kind, total in known.items()}
    return Target(replace(flow, totals=totals), versions, evidence.activity.entries)


def _commanded(evidence: Evidence, flow: Flow) -> Flow:
    """The flow under the hold that it was last known to be under, and deleted if it was: a recovery must not undo what people commanded."""
    stored, told = evidence.stored, evidence.told
    command = told.command
    if evidence.reached and told.state is not None:
        command = Command.of(told.state.flow)
    elif stored.hold is not None and (command is None or (stored.revision or 0) >= told.head):
        command = Command(stored.hold, stored.hold_reason or "", stored.delete_time)
    if command is None:
        return flow
    return replace(flow, hold=command.hold, hold_reason=command.hold_reason, delete_time=command.delete_time)


def _undone(revision: int, last: int) -> tuple[str, ...]:
    if last <= revision:
        return ()
    told = f"revision {last} is" if last == revision + 1 else f"revisions {revision + 1} to {last} are"
    return (f"{told} undone: what was done in them must be done again",)


def _losses(ground: Ground) -> Iterator[str]:
    """What no rung brings back."""
    evidence, told = ground.evidence, ground.evidence.told
    for gap in told.gaps:
        yield f"what revision {gap} did, who did it and when: the event {'cannot be read' if gap.damaged else 'is gone'}"
    last = last_revision(evidence, ground.copy)
    if last > told.head and (evidence.stored.hash is None or evidence.stored.hash != told.hash):
        yield f"what revision {Gap(told.head + 1, last, None)} did, who did it and when: the event is gone"
    if not told.head and not evidence.stored.there:
        yield f"what was done after revision {last}, if anything was: nothing tells of it"
    for finding in told.findings:
        if finding.kind is _K.HISTORY_DAMAGED and finding.revision not in told.bases:
            yield finding.description
    if not evidence.reached and evidence.activity.findings:
        yield f"{len(evidence.activity.findings)} entries of activity that cannot be read"
