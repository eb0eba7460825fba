"""What differs between two states of a flow: its own fields, its phases and children, and its documents as RFC 6902 patches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import field

from server.statemachine import document, json_patch
from server.statemachine.derivation import summary
from server.statemachine.graphs import JOURNEYS
from server.statemachine.states import FlowStatus, PhaseState
from server.statemachine.value import dataclass
from server.statemachine.values import DocumentPlace, Flow, FlowSummary, Phase

# Of all patches of one difference together, so that it fits into a message.
MOST_PATCHES = 3 * json_patch.MOST_BYTES


@dataclass(frozen=True, slots=True)
class Side:
    """A state of a flow; at revision 0 where it is none of the flow's revisions."""

    flow: Flow
    documents: Mapping[DocumentPlace, bytes] = field(hash=False)

    @property
    def size(self) -> int:
        """The bytes of its documents."""
        return sum(map(len, self.documents.values()))


@dataclass(frozen=True, slots=True)
class PhaseDiff:
    """A phase that differs; None where its child is not there."""

    child_type: str
    before: Phase | None
    after: Phase | None

    @property
    def name(self) -> str:
        """The phase's name."""
        found = self.after or self.before
        assert found is not None
        return found.name


@dataclass(frozen=True, slots=True)
class DocumentDiff:
    """A document that differs; sizes are 0 and digests empty where it is not there, the patch is None where it would be too large."""

    place: DocumentPlace
    patch: bytes | None
    size_before: int
    size_after: int
    sha256_before: bytes
    sha256_after: bytes


@dataclass(frozen=True, slots=True)
class FlowDiff:
    """Everything that differs; ``lines`` are the whole of it for people."""

    before: Flow
    after: Flow
    status_before: FlowStatus
    status_after: FlowStatus
    progress_before: float
    progress_after: float
    phases: tuple[PhaseDiff, ...]
    children_added: tuple[str, ...]
    children_removed: tuple[str, ...]
    documents: tuple[DocumentDiff, ...]
    lines: tuple[str, ...]


def difference(before: Side, after: Side) -> FlowDiff:
    """What makes ``after`` of ``before``; takes as long as their documents are large."""
    one, other = before.flow, after.flow
    theirs, ours = ({child.type for child in flow.children} for flow in (one, other))
    phases = tuple(_phases(one, other))
    documents: list[DocumentDiff] = []
    told: list[str] = []
    room = MOST_PATCHES
    for place in sorted({*before.documents, *after.documents}):
        texts = before.documents.get(place), after.documents.get(place)
        if texts[0] != texts[1]:
            found, lines = _document(place, *texts, room)
            room -= len(found.patch or b"")
            documents.append(found)
            told += lines
    said, says = summary(one), summary(other)
    return FlowDiff(
        one,
        other,
        said.status,
        says.status,
        said.progress,
        says.progress,
        phases,
        tuple(child.type for child in other.children if child.type not in theirs),
        tuple(child.type for child in one.children if child.type not in ours),
        tuple(documents),
        (*_lines(one, other, said, says), *map(_phase_line, phases), *told),
    )


def _phases(one: Flow, other: Flow) -> Iterator[PhaseDiff]:
    known, wanted = ({child.type: child for child in flow.children} for flow in (one, other))
    journey = JOURNEYS[other.type]
    for domain in (*journey, *sorted({*known, *wanted} - {*journey})):
        before, after = ({phase.name: phase for phase in side[domain].phases} if domain in side else {} for side in (known, wanted))
        for name in {**after, **before}:
            if before.get(name) != after.get(name):
                yield PhaseDiff(domain, before.get(name), after.get(name))


def _document(place: DocumentPlace, before: bytes | None, after: bytes | None, room: int) -> tuple[DocumentDiff, list[str]]:
    name = f"{place.name}/{place.child_type}" if place.child_type else place.name
    try:
        found = json_patch.difference(before or document.EMPTY, after or document.EMPTY, min(room, json_patch.MOST_BYTES))
    except ValueError:  # damaged: recoveries compare what they find
        found = json_patch.Patch(None, ("is no document on one side",))
    sizes = len(before or b""), len(after or b"")
    digests = b"" if before is None else document.sha256(before), b"" if after is None else document.sha256(after)
    told = [f"{name}: {sizes[0]:,} -> {sizes[1]:,} bytes{'' if found.lines else ', of the same value'}"]
    return DocumentDiff(place, found.text, *sizes, *digests), told + [f"{name} {line}" for line in found.lines]


def _lines(one: Flow, other: Flow, said: FlowSummary, says: FlowSummary) -> Iterator[str]:
    if said.status is not says.status:
        yield f"status: {said.status.name} -> {says.status.name}"
    if said.progress != says.progress:
        yield f"progress: {said.progress:g} % -> {says.progress:g} %"
    if one.display_name != other.display_name:
        yield f"display_name: {one.display_name!r} -> {other.display_name!r}"
    for key in sorted({*one.labels, *other.labels}):
        before, after = one.labels.get(key), other.labels.get(key)
        if before != after:
            yield f"label {key}: {_told(before)} -> {_told(after)}"
    if (one.hold, one.hold_reason) != (other.hold, other.hold_reason):
        yield f"hold: {_held(one)} -> {_held(other)}"
    if one.delete_time != other.delete_time:
        yield "deleted" if other.delete_time is not None else "undeleted"
    theirs, ours = ({child.type for child in flow.children} for flow in (one, other))
    yield from (f"child {domain}: removed" for domain in sorted(theirs - ours))
    yield from (f"child {domain}: added" for domain in sorted(ours - theirs))


def _told(value: str | None) -> str:
    return "not there" if value is None else repr(value)


def _held(flow: Flow) -> str:
    return f"{flow.hold.name} ({flow.hold_reason})" if flow.hold_reason else flow.hold.name


def _phase_line(found: PhaseDiff) -> str:
    before, after = _stage(found.before), _stage(found.after)
    return f"phase {found.child_type}/{found.name}: {before} -> {after if before != after else 'the same, message or times differ'}"


def _stage(phase: Phase | None) -> str:
    if phase is None:
        return "not there"
    told = phase.state.name
    if phase.state is PhaseState.IN_PROGRESS:
        told += f" {phase.fraction:.0%}"
    if phase.retry_count:
        told += f", retry {phase.retry_count}"
    if phase.failure is not None:
        told += f", {phase.failure.code.name}"
    return told
