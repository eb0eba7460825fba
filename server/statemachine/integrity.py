"""Whether a stored flow can be right: its row and its children by themselves, and compared with what its history tells."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import field, replace
from datetime import datetime
from uuid import UUID

from server.statemachine.definition import Definition
from server.statemachine.derivation import child_progress, child_status, summary
from server.statemachine.event import PhaseChanged
from server.statemachine.finding import Finding, FindingKind
from server.statemachine.graphs import BUILT_IN, JOURNEYS
from server.statemachine.loose import Loose, Row, shown
from server.statemachine.phases import missing_dependencies, permitted
from server.statemachine.states import NOT_BEGUN, TERMINAL, FailureCode, FlowHold, PhaseState
from server.statemachine.value import dataclass
from server.statemachine.values import ActivityKind, ChildFlow, Failure, Flow, Origin, Phase, Tenant

_K, _S = FindingKind, PhaseState
HASH_BYTES = 32
# A phase in one of these stands on what it depends on. RETRY_NEEDED and FAILED do not: a phase is taken along to the former when what
# it depends on is taken back, and can be given up from there.
STANDING = frozenset({_S.IN_PROGRESS, _S.WAITING_VALIDATION, _S.WAITING_APPROVAL, _S.COMPLETED})
ENDED = frozenset({_S.COMPLETED, _S.FAILED})


@dataclass(frozen=True, slots=True)
class Stored:
    """What could be read of a flow's row and its children, and what is wrong with them by themselves.

    ``flow`` is there when everything that cannot be derived could be read and is allowed; what is derived in it is right. The rest is
    there as far as it could be read, whatever the flow as a whole is like.
    """

    findings: tuple[Finding, ...] = ()
    there: bool = False
    revision: int | None = None
    hash: bytes | None = None
    flow: Flow | None = None
    type: str | None = None
    name: str | None = None
    labels: Mapping[str, str] | None = field(default=None, hash=False)
    hold: FlowHold | None = None
    hold_reason: str | None = None
    delete_time: datetime | None = None
    totals: Mapping[ActivityKind, int] | None = field(default=None, hash=False)
    created: tuple[str, datetime] | None = None
    children: tuple[ChildFlow, ...] = ()


NOTHING = Stored()


def read(tenant: Tenant, flow_id: UUID, row: Row, children: Iterable[tuple[str, Row]]) -> Stored:
    """The flow of a row and of its children, each with the domain of the table that it lies in."""
    findings: list[Finding] = []
    loose = Loose(row, findings)
    kind = loose.text("type", empty=False)
    if kind is not None and kind not in JOURNEYS:
        loose.invalid("type", f"one of {', '.join(JOURNEYS)}")
        kind = None
    name, labels = loose.text("display_name"), loose.texts("labels")
    hold, hold_reason = loose.member("hold", FlowHold), loose.text("hold_reason")
    created_by, create_time = loose.text("created_by", empty=False), loose.moment("create_time")
    delete_time, origin = loose.moment("delete_time", required=False), _origin(loose)
    members = _children(kind, hold, row.get("current_child"), children, findings)
    whole = not findings or all(finding.kind is _K.DERIVED_WRONG for finding in findings)
    # Nothing of this keeps the flow from being right: whatever is stored next has all of it anew.
    revision, link = loose.whole("revision", 1), loose.octets("head_hash", HASH_BYTES)
    updated_by, update_time = loose.text("updated_by", empty=False), loose.moment("update_time")
    end_time, totals = loose.moment("end_time", required=False), _totals(loose)
    created = None if created_by is None or create_time is None else (created_by, create_time)
    flow = None
    if whole and kind is not None and name is not None and labels is not None and hold is not None and created is not None:
        latest = max([created[1], *(child.update_time for child in members)])
        flow = _derived(
            Flow(
                tenant,
                flow_id,
                kind,
                revision or 0,
                *created,
                updated_by or created[0],
                update_time or latest,
                name,
                labels,
                hold,
                hold_reason or "",
                members,
                totals or {},
                end_time,
                delete_time,
                origin,
            ),
            loose,
            row,
        )
    return Stored(tuple(findings), True, revision, link, flow, kind, name, labels, hold, hold_reason, delete_time, totals, created, members)


def _origin(loose: Loose) -> Origin | None:
    flow_id, revision = loose.uuid("origin_flow_id", required=False), loose.whole("origin_revision", 1, default=0)
    if (flow_id is None) != (not revision):
        loose.note(_K.FIELD_INVALID, "origin_revision", "origin_flow_id and origin_revision go together, and only one of them is there")
    return Origin(flow_id, revision) if flow_id is not None and revision else None


def _totals(loose: Loose) -> dict[ActivityKind, int] | None:
    found = loose.items("totals")
    if found is None:
        return None
    totals = [total for total in found if type(total) is int and total >= 0]
    if len(totals) != len(found) or len(found) != len(ActivityKind):
        loose.invalid("totals", f"{len(ActivityKind)} whole numbers")
        return None
    return {kind: total for kind, total in zip(ActivityKind, totals, strict=True) if total}


def _derived(flow: Flow, loose: Loose, row: Row) -> Flow:
    """The flow, once what the row derived of it was compared with what is to be derived."""
    said = summary(flow)
    derived = {
        "status": said.status.name,
        "progress": said.progress,
        "current_child": said.current_child,
        "current_phases": list(said.current_phases),
    }
    for name, value in derived.items():
        if row.get(name) != value:
            loose.note(_K.DERIVED_WRONG, name, f"{name} is {shown(row.get(name))}, the phases say {shown(value)}")
    ended = said.status in TERMINAL
    if ended == (row.get("end_time") is None):
        loose.note(_K.DERIVED_WRONG, "end_time", f"the flow is {said.status.name} and has {'no' if ended else 'an'} end_time")
    return replace(flow, end_time=(flow.end_time or flow.update_time) if ended else None)


def _children(
    kind: str | None, hold: FlowHold | None, current: object, rows: Iterable[tuple[str, Row]], findings: list[Finding]
) -> tuple[ChildFlow, ...]:
    """The children that could be read, in the journey's order; ``current`` is the one that the row says is under way."""
    journey = JOURNEYS.get(kind or "", tuple(BUILT_IN))
    found: dict[str, ChildFlow | None] = {}
    for domain, row in rows:
        if domain not in journey or row.get("type") != domain:
            name = shown(row.get("type"))
            text = f"there is a child of type {name} among the {domain} flows, which a flow of type {kind} does not have"
            findings.append(Finding(_K.CHILD_UNEXPECTED, text, child_type=domain))
            continue
        found[domain] = _child(domain, hold, row, findings)
    there = [domain for domain in journey if domain in found]
    for domain in journey[: journey.index(there[-1]) if there and kind is not None else 0]:
        if domain not in found:
            findings.append(Finding(_K.CHILD_MISSING, f"{there[-1]} has begun, and {domain} before it is not there", child_type=domain))
    if current in journey and current not in found and not any(finding.child_type == current for finding in findings):
        text = f"the row says that {current} is under way, and it is not there"
        findings.append(Finding(_K.CHILD_MISSING, text, child_type=str(current)))
    return tuple(child for domain in there if (child := found[domain]) is not None)


def _child(domain: str, hold: FlowHold | None, row: Row, findings: list[Finding]) -> ChildFlow | None:
    before = len(findings)
    loose, definition = Loose(row, findings, child_type=domain), BUILT_IN[domain]
    child_flow_id, create_time = loose.uuid("child_flow_id"), loose.moment("create_time")
    update_time = loose.moment("update_time")
    version = loose.whole("definition_version", 1)
    if version is not None and version != definition.version:
        loose.note(_K.PHASES_UNKNOWN, "definition_version", f"there is no definition {domain} of version {version}")
    phases = _phases(loose, domain, definition, findings)
    if len(findings) > before or child_flow_id is None or create_time is None or update_time is None:
        return None
    child = ChildFlow(child_flow_id, definition, phases, create_time, update_time)
    derived = {"progress": child_progress(child), "status": None if hold is None else child_status(child, hold).name}
    for name, value in derived.items():
        if value is not None and row.get(name) != value:
            loose.note(_K.DERIVED_WRONG, name, f"{name} of {domain} is {shown(row.get(name))}, its phases say {shown(value)}")
    return child


def _phases(loose: Loose, domain: str, definition: Definition, findings: list[Finding]) -> tuple[Phase, ...]:
    rows = loose.items("phases")
    if rows is None:
        return ()
    names = [row.get("name") if isinstance(row, dict) else None for row in rows]
    if names != list(definition.position):
        text = f"the phases of {domain} are {shown(names)}, its definition has {', '.join(definition.position)}"
        loose.note(_K.PHASES_UNKNOWN, "phases", text)
        return ()
    phases = [_phase(domain, row, findings) for row in rows if isinstance(row, dict)]
    # By what they say, whatever else is wrong with them.
    states = {str(row["name"]): _state_of(row) for row in rows if isinstance(row, dict)}
    for wanted in definition.phases:
        unmet = [name for name in wanted.depends_on if states[name] not in (_S.COMPLETED, None)]
        state = states[wanted.name]
        if unmet and state in STANDING and state is not None:
            text = f"{wanted.name} is {state.name} and depends on {', '.join(unmet)}, not COMPLETED"
            findings.append(Finding(_K.PHASE_STATE, text, "state", domain, wanted.name))
    return tuple(phase for phase in phases if phase is not None)


def _state_of(row: Row) -> PhaseState | None:
    name = row.get("state")
    return PhaseState.__members__.get(name) if isinstance(name, str) else None


def _phase(domain: str, row: Row, findings: list[Finding]) -> Phase | None:
    """One phase, by itself."""
    before, name = len(findings), str(row["name"])
    loose = Loose(row, findings, child_type=domain, phase=name)
    state = loose.member("state", PhaseState, _K.PHASE_STATE)
    fraction, message = loose.number("fraction", 0.0, 1.0, default=0.0), loose.text("message", default="")
    retry_count = loose.whole("retry_count", most=2**31 - 1, default=0)
    failure = _failure(loose, row, domain, name, findings)
    start_time, end_time = loose.moment("start_time", required=False), loose.moment("end_time", required=False)
    state_time = loose.moment("state_time")
    if len(findings) > before or state is None or fraction is None or message is None or retry_count is None:
        return None
    if fraction and state is not _S.IN_PROGRESS:
        loose.note(_K.PHASE_STATE, "fraction", f"{name} is {state.name} and has a fraction of {fraction:g}")
    if start_time is None and state not in NOT_BEGUN:
        loose.note(_K.PHASE_STATE, "start_time", f"{name} is {state.name} and has no start_time")
    if (end_time is not None) != (state in ENDED):
        loose.note(_K.PHASE_STATE, "end_time", f"{name} is {state.name} and has {'no' if end_time is None else 'an'} end_time")
    if failure is not None and state is _S.COMPLETED:
        loose.note(_K.PHASE_STATE, "failure", f"{name} is COMPLETED and has a failure")
    if len(findings) > before:
        return None
    return Phase(name, state, fraction, message, retry_count, failure, start_time, state_time, end_time)


def _failure(loose: Loose, row: Row, domain: str, phase: str, findings: list[Finding]) -> Failure | None:
    given = row.get("failure")
    if given is None:
        return None
    if not isinstance(given, dict):
        loose.invalid("failure", "an object")
        return None
    inner = Loose(given, findings, prefix="failure.", child_type=domain, phase=phase)
    code, message = inner.member("code", FailureCode), inner.text("message", default="")
    return None if code is None or message is None else Failure(code, message)


def unmet(flow: Flow) -> str:
    """Which phase of the flow stands on something that is not COMPLETED; empty when none does."""
    for child in flow.children:
        for phase, wanted in zip(child.phases, child.definition.phases, strict=True):
            if phase.state in STANDING and (missing := missing_dependencies(child, wanted)):
                return f"{phase.name} is {phase.state.name}, and {', '.join(missing)} is not COMPLETED"
    return ""


def forbidden(fact: PhaseChanged, definition: Definition) -> str:
    """Why the graph does not allow what the fact tells; empty when it does."""
    before, after = fact.before.state, fact.after.state
    if before is after:
        return "" if before is _S.IN_PROGRESS else f"progress was reported while {before.name}"
    if fact.taken_along_by:
        return "" if after in (_S.ROLLED_BACK, _S.RETRY_NEEDED) else f"it was taken along to {after.name}"
    allowed = permitted(before, definition.phases[definition.position[fact.after.name]])
    if after in allowed or (before is _S.FAILED and after is _S.IN_PROGRESS):  # a retry grants and begins at once
        return ""
    return f"it went from {before.name} to {after.name}"


def differences(stored: Flow, told: Flow) -> list[Finding]:
    """What the row has otherwise than its history tells; what is derived, and the revision, are left to others."""
    names = (
        "type",
        "display_name",
        "labels",
        "hold",
        "hold_reason",
        "created_by",
        "create_time",
        "updated_by",
        "update_time",
        "end_time",
        "delete_time",
        "origin",
        "totals",
    )
    found = [
        Finding(_K.ROW_DIFFERS, f"{name} is {shown(getattr(stored, name))}, the history tells {shown(getattr(told, name))}", name)
        for name in names
        if getattr(stored, name) != getattr(told, name)
    ]
    return found + _children_differ(stored.children, told.children)


def _children_differ(stored: Sequence[ChildFlow], told: Sequence[ChildFlow]) -> list[Finding]:
    known, found = {child.type: child for child in stored}, []
    for wanted in told:
        child = known.pop(wanted.type, None)
        if child is None:
            found.append(
                Finding(_K.CHILD_MISSING, f"the history tells of a {wanted.type} child, which is not there", child_type=wanted.type)
            )
            continue
        for name in ("child_flow_id", "create_time", "update_time"):
            if getattr(child, name) != getattr(wanted, name):
                text = f"{name} of {child.type} is {shown(getattr(child, name))}, the history tells {shown(getattr(wanted, name))}"
                found.append(Finding(_K.ROW_DIFFERS, text, name, child.type))
        for phase, right in zip(child.phases, wanted.phases, strict=True):
            if phase != right:
                parts = [name for name in _PHASE if getattr(phase, name) != getattr(right, name)]
                text = f"{phase.name} is {phase.state.name}, the history tells {right.state.name}; they differ in {', '.join(parts)}"
                found.append(Finding(_K.ROW_DIFFERS, text, "phases", child.type, phase.name))
    return found + [
        Finding(_K.CHILD_UNEXPECTED, f"there is a {name} child that the history does not tell of", child_type=name) for name in known
    ]


_PHASE = ("state", "fraction", "message", "retry_count", "failure", "start_time", "state_time", "end_time")
