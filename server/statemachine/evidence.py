"""Everything that is known of a stored flow, damaged or not, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import field, replace
from datetime import datetime
from typing import Self

from server.statemachine import stored_activity
from server.statemachine.document import sha256
from server.statemachine.event import Event
from server.statemachine.finding import Finding, FindingKind
from server.statemachine.history import Base, Version, Versions
from server.statemachine.integrity import Stored, differences
from server.statemachine.states import FlowHold
from server.statemachine.stored_activity import StoredActivity
from server.statemachine.value import dataclass
from server.statemachine.values import DocumentPlace, Flow, FlowKey

_K = FindingKind


@dataclass(frozen=True, slots=True)
class Present:
    """A document's row: which version it says it is, and its text, where it opens and is a document.

    ``right`` says that the row and its text agree.
    """

    place: DocumentPlace
    version: Version | None
    text: bytes | None
    right: bool


@dataclass(frozen=True, slots=True)
class Texts:
    """The texts of documents that can be had: the present ones by place, and by place and revision the SHA-256 of every one that opens."""

    present: Mapping[DocumentPlace, Present] = field(default_factory=dict, hash=False)
    readable: Mapping[tuple[DocumentPlace, int], bytes] = field(default_factory=dict, hash=False)
    # Texts of rows that there cannot be, by their SHA-256: what is missing may be among them.
    strays: Mapping[bytes, bytes] = field(default_factory=dict, hash=False)
    findings: tuple[Finding, ...] = ()
    digests: frozenset[bytes] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "digests", frozenset({*self.readable.values(), *self.strays}))

    def has(self, version: Version) -> bool:
        """Whether the text can be had, wherever it lies."""
        return version.sha256 in self.digests

    def source(self, digest: bytes) -> bytes | tuple[DocumentPlace, int] | None:
        """The text with that SHA-256, or the earlier version that has it; None when it can not be had."""
        for present in self.present.values():
            if present.text is not None and sha256(present.text) == digest:
                return present.text
        return self.strays.get(digest) or next((place for place, found in self.readable.items() if found == digest), None)


@dataclass(frozen=True, slots=True)
class Command:
    """What commands had made of the flow, as far as events tell."""

    hold: FlowHold
    hold_reason: str
    delete_time: datetime | None

    @classmethod
    def of(cls, flow: Flow) -> Self:
        """What they made of ``flow``."""
        return cls(flow.hold, flow.hold_reason, flow.delete_time)


@dataclass(frozen=True, slots=True)
class Gap:
    """Revisions whose events are not there, or one whose event cannot be read; ``before`` is the hash of the event before them."""

    first: int
    last: int
    before: bytes | None
    damaged: bool = False

    def __str__(self) -> str:
        return f"{self.first}" if self.first == self.last else f"{self.first} to {self.last}"


@dataclass(frozen=True, slots=True)
class Told:
    """What a history tells, and what is wrong with it.

    ``state`` is the flow at ``head``, as far as it could be followed, and ``sure`` whether it can be relied on; where it is not, ``last``
    is the last event that could be read, and ``command`` what such events tell of holds and deletion. ``good`` are the newest states
    that are sure and whose documents can be had, the newest first; ``turns`` are such states from which a phase went on, nothing having
    failed; ``first`` is the flow as it was created.
    """

    head: int = 0
    hash: bytes | None = None
    state: Base | None = None
    sure: bool = False
    # Whether its activity is: events before format 2 do not tell all of it.
    exact: bool = True
    good: tuple[Base, ...] = ()
    turns: tuple[Base, ...] = ()
    first: Base | None = None
    last: Event | None = None
    command: Command | None = None
    # What a recovery has to do about the log: gaps in it, hashes that are wrong with what they must be, and bases that can be made anew.
    gaps: tuple[Gap, ...] = ()
    hashes: Mapping[int, bytes] = field(default_factory=dict, hash=False)
    bases: Mapping[int, Base] = field(default_factory=dict, hash=False)
    # Events of which only the hash is left, by erasure.
    erased: int = 0
    findings: tuple[Finding, ...] = ()


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is stored of a flow: its row with children and documents, its activity, its history, and what is wrong with its checkpoints."""

    key: FlowKey
    stored: Stored
    activity: StoredActivity
    texts: Texts
    told: Told
    checkpoints: tuple[Finding, ...] = ()

    @property
    def reached(self) -> bool:
        """Whether the history is sure up to its end, and tells of everything that the row can know."""
        stored, told = self.stored, self.told
        return told.sure and (stored.revision is None or stored.revision <= told.head or stored.hash == told.hash)

    @property
    def versions(self) -> Versions:
        """Which version each document must be of: what the history tells, and what the rows say where it does not reach."""
        told = {} if self.told.state is None else dict(self.told.state.kept.versions)
        if self.reached:
            return told
        rows = {place: present.version for place, present in self.texts.present.items() if present.version is not None}
        return {**told, **{place: version for place, version in rows.items() if version.revision > self.told.head or place not in told}}

    @property
    def tail(self) -> Gap | None:
        """The revisions that the row knows of and no event tells of."""
        revision, told = self.stored.revision, self.told
        if revision is None or revision <= told.head or self.stored.hash == told.hash:
            return None
        return Gap(told.head + 1, revision, told.hash)

    def own(self) -> tuple[Finding, ...]:
        """What is wrong with the flow as it is."""
        return (*self._row(), *self.texts.findings, *self._documents())

    def findings(self) -> tuple[Finding, ...]:
        """Everything that is wrong, the flow as it is first."""
        found = [*self.own(), *self.told.findings, *self.checkpoints]
        return tuple(sorted(found, key=lambda finding: finding.recovery_only))

    def _row(self) -> Iterator[Finding]:
        stored, told, state = self.stored, self.told, self.told.state
        yield from stored.findings
        if not stored.there:
            yield Finding(_K.ROW_DIFFERS, "the flow's row is not there", revision=told.head)
        yield from self._position()
        if self.reached and state is not None and stored.flow is not None:
            for finding in differences(stored.flow, state.flow):
                if finding.field != "totals" or told.exact:
                    yield finding
        yield from self.activity.findings
        if self.reached and state is not None and told.exact:
            yield from stored_activity.differing(self.activity, state.kept.activity)
        elif stored.totals is not None:
            yield from stored_activity.beyond(self.activity, stored.totals)

    def _position(self) -> Iterator[Finding]:
        stored, told = self.stored, self.told
        if stored.revision is None:
            return
        if stored.revision < told.head:
            text = f"the row is at revision {stored.revision}, and its history goes on to {told.head}"
            yield Finding(_K.REVISION, text, "revision", revision=stored.revision)
        elif stored.revision > told.head and stored.hash == told.hash:
            text = f"the row is at revision {stored.revision}, and carries the hash of revision {told.head}, the last there is"
            yield Finding(_K.REVISION, text, "revision", revision=stored.revision)
        elif (tail := self.tail) is not None:
            text = f"there is no event of revision {tail}, and the row is at {stored.revision}"
            yield Finding(_K.EVENT_MISSING, text, revision=tail.first)
        elif stored.hash is not None and stored.hash != told.hash:
            text = f"the row does not carry the hash of its last event, revision {told.head}"
            yield Finding(_K.CHAIN_BROKEN, text, "head_hash", revision=told.head)

    def _documents(self) -> Iterator[Finding]:
        known = {(finding.document, finding.child_type) for finding in self.texts.findings}
        for place, version in self.versions.items():
            present = self.texts.present.get(place)
            if present is None:
                yield _of(place, _K.DOCUMENT_MISSING, f"{place}, of revision {version.revision}, is not there")
            elif present.version != version and (place.name, place.child_type) not in known:
                text = f"{place} is not the one that the history tells of, of revision {version.revision}"
                yield _of(place, _K.DOCUMENT_HASH, text)
        if self.reached:
            for place in sorted(self.texts.present.keys() - self.versions.keys()):
                yield _of(place, _K.DOCUMENT_HASH, f"{place} is there, and the history does not tell of it")


def as_stored(evidence: Evidence, like: Flow) -> Flow:
    """The flow as it is stored, as far as it can be read; what cannot be is as in ``like``, or not there."""
    stored = evidence.stored
    if stored.flow is not None:
        return stored.flow
    return replace(
        like,
        revision=stored.revision or 0,
        display_name=stored.name or "",
        labels=stored.labels or {},
        hold=like.hold if stored.hold is None else stored.hold,
        hold_reason=stored.hold_reason or "",
        children=stored.children,
        delete_time=stored.delete_time,
    )


def _of(place: DocumentPlace, kind: FindingKind, text: str) -> Finding:
    return Finding(kind, text, child_type=place.child_type, document=place.name)
