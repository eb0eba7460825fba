"""A walk along a flow's history, event by event, that takes nothing for granted: what it tells, and from where to where that is sure.

What is told is *sure* as long as every event follows from the one before it by its hash, from the first event on or from a base. A gap, an
event that cannot be read, or one that was changed ends that; the next base, or the flow's own row if that is right, begins it anew.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace

import zstandard

from server.repository import codec, event_codec
from server.repository.document_store import content_size, unpack
from server.repository.doubtful_chain import DoubtfulChain, Link
from server.repository.remains import Logged, row_of
from server.repository.texts import HASH_BYTES, MOST_BYTES
from server.statemachine import activity
from server.statemachine.derivation import flow_status
from server.statemachine.document import sha256
from server.statemachine.event import (
    DocumentChanged,
    Event,
    EventLost,
    FlowDeleted,
    FlowReplaced,
    FlowUndeleted,
    HoldChanged,
    PhaseChanged,
)
from server.statemachine.evidence import Command, Gap, Texts, Told
from server.statemachine.finding import Finding, FindingKind
from server.statemachine.graphs import BUILT_IN
from server.statemachine.history import Base, Kept, Unexplained, Version, Versions, begun, replayed, wants_base, written
from server.statemachine.integrity import forbidden
from server.statemachine.loose import Loose, Row, bytes_of
from server.statemachine.sound import sound
from server.statemachine.states import FlowHold, FlowStatus, PhaseState
from server.statemachine.value import dataclass
from server.statemachine.values import ActivityEntry, DocumentPlace, Flow, FlowKey

_K = FindingKind
# So many of the newest states that are sure are kept: the newest is nearly always good enough.
CANDIDATES = 20
# Of those from which a phase went on, so many, if nothing had failed then.
TURNS = 3
_BAD = frozenset({FlowStatus.FAILED, FlowStatus.RETRY_PENDING, FlowStatus.ERROR_RECOVERY})
_ENTRIES = 5000
_NO_PLACE = DocumentPlace("")
_UNREADABLE = (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError, zstandard.ZstdError)


@dataclass(frozen=True, slots=True)
class _Read:
    """An event's row, as far as it could be read."""

    hash: bytes | None
    format: int
    event: Event | None
    made: Callable[[bytes], bytes] | None
    why: str = ""


class Walk:
    """One walk; ``take`` pages of events with the bases of the same revisions in order, then ``end``."""

    def __init__(self, key: FlowKey, texts: Texts, anchor: Base | None) -> None:
        """``texts`` are the documents that can be had; ``anchor`` is the flow's own row, if it can be right."""
        self._key, self._texts, self._anchor = key, texts, anchor
        self._chain = DoubtfulChain()
        self._at = 0
        self._hash: bytes | None = event_codec.NO_HASH  # as it is stored
        # The flow at ``_at`` in parts: what changes with each event is not put together before it is needed.
        self._flow: Flow | None = None
        self._entries: list[ActivityEntry] = []
        self._versions: Versions = {}
        self._sure = True
        self._hoped = False  # it is sure if the last event's hash alone is wrong
        self._exact = True  # events before format 2 do not tell all of the activity
        self._complete: Versions | None = None  # those that are known to be had
        self._good: deque[Base] = deque(maxlen=CANDIDATES)
        self._turns: deque[Base] = deque(maxlen=TURNS)
        self._first: Base | None = None
        self._last: Event | None = None
        self._erased = 0
        self._command: Command | None = None
        self._needed: dict[tuple[DocumentPlace, int], Version] = {}
        self._gaps: list[Gap] = []
        self._noted: list[Gap] = []  # by a recovery
        self._bases: dict[int, Base] = {}
        self._findings: list[Finding] = []

    def take(self, events: Sequence[Logged], bases: Sequence[Logged]) -> None:
        """The next events in order, and the bases that there are up to the last of them."""
        told = {row.revision: row_of(row.text) for row in events}
        known = {row.revision: row_of(row.text) for row in bases}
        for revision in sorted({*told, *known}):
            self._gap(revision, told.get(revision), known.get(revision))
            event = self._event(revision, told[revision]) if revision in told else None
            if revision in known:
                self._base(revision, known[revision])
            elif event is not None and event.format == event_codec.FORMAT and event.event is not None and _wants_base(event.event):
                self._history(revision, "the base that belongs to this revision is not there")
            self._by_row(revision)
            self._candidate(revision)

    def end(self, link: bytes | None) -> Told:
        """What was told; ``link`` is the last event's hash as the flow's row has it."""
        if self._chain.proves(link) and self._hoped:
            self._sure, self._hoped = True, False
            self._candidate(self._at)
        if self._hash is None and (link := self._link()) is not None:
            self._chain.proved[self._at] = link  # some hash it must have, or nothing could follow it
        for gap in self._noted:
            self._note(_K.EVENT_MISSING, f"what revision {gap} did was lost; a recovery noted so", gap.first)
        state = self._state()
        present = {} if state is None else state.kept.versions
        for (place, revision), version in self._needed.items():
            if self._texts.readable.get((place, revision)) != version.sha256 and present.get(place) != version:
                self._note(_K.HISTORY_DAMAGED, f"{place} of revision {revision} is not kept as it was", revision, place)
        return Told(
            self._at,
            self._link(),
            state,
            self._sure and state is not None,
            self._exact,
            tuple(reversed(self._good)),
            tuple(reversed(self._turns)),
            self._first,
            self._last,
            self._command,
            tuple(self._gaps),
            dict(self._chain.proved),
            self._bases,
            self._erased,
            tuple(self._findings),
        )

    # ---- what is missing --------------------------------------------------------------------------------------------------------------

    def _gap(self, revision: int, event: Row | None, base: Row | None) -> None:
        """Notes the events that are missing before ``revision``, and the one of a base that stands without one."""
        first, last = self._at + 1, revision if event is None else revision - 1
        if last < first:
            return
        # What compaction removed ends with a base that is signed.
        if base is None or base.get("signature") is None:
            self._gaps.append(Gap(first, last, self._link()))
            told = f"{first}" if first == last else f"{first} to {last}"
            self._findings.append(Finding(_K.EVENT_MISSING, f"there is no event of revision {told}", revision=first))
        self._forget()
        self._chain.restart()

    def _forget(self) -> None:
        self._flow, self._sure, self._hoped = None, False, False

    # ---- events ---------------------------------------------------------------------------------------------------------------------

    def _event(self, revision: int, row: Row) -> _Read:
        read = _read(self._key, revision, row)
        before, self._at, self._hash = self._link(), revision, read.hash
        if read.made is None:
            self._damage(revision, read, before)
            return read
        link, proven = self._chain.follow(revision, read.hash, read.made)
        was_sure = self._sure or (self._hoped and proven)
        self._sure, self._hoped = was_sure and link is Link.FOLLOWS, was_sure and link is Link.BROKEN
        if read.event is None:  # erased: its link is all that there is of it
            self._erased += 1
            self._forget()
            return read
        if link is not Link.FOLLOWS and not sound(read.event):
            self._damage(revision, replace(read, why="it holds what no event can hold"), before)
            return replace(read, event=None)
        if link is Link.BROKEN:
            self._break(revision, read.event)
        self._replay(read.event, read)
        return read

    def _damage(self, revision: int, read: _Read, before: bytes | None) -> None:
        self._gaps.append(Gap(revision, revision, before, damaged=True))
        self._findings.append(Finding(_K.EVENT_DAMAGED, f"the event of revision {revision} cannot be read: {read.why}", revision=revision))
        self._forget()
        self._chain.restart(*(() if read.hash is None else (read.hash,)))

    def _break(self, revision: int, event: Event) -> None:
        text = f"the hash of revision {revision} does not follow from what it says and from the hash before it: one of them was changed"
        self._findings.append(Finding(_K.CHAIN_BROKEN, text, revision=revision))
        if any(isinstance(fact, FlowReplaced) for fact in event.facts):
            return
        for fact in event.facts:
            if isinstance(fact, PhaseChanged) and (why := _forbidden(fact)):
                text = f"revision {revision} says of {fact.after.name} that {why}, which its graph does not allow"
                found = Finding(_K.PHASE_STATE, text, "", fact.child_type, fact.after.name, revision=revision, recovery_only=True)
                self._findings.append(found)

    def _replay(self, event: Event, read: _Read) -> None:
        self._last = event
        self._commanded(event)
        if any(isinstance(fact, EventLost) for fact in event.facts):
            if self._noted and self._noted[-1].last == event.revision - 1:
                self._noted[-1] = replace(self._noted[-1], last=event.revision)
            else:
                self._noted.append(Gap(event.revision, event.revision, None))
            self._forget()
            self._chain.restart(*(() if read.hash is None else (read.hash,)), certain=False)
            return
        before = begun(self._key.tenant, self._key.flow_id, event) if event.revision == 1 else self._flow
        if before is None:
            return
        try:
            flow = replayed(before, event)
        except Unexplained as error:
            if self._sure and not any(isinstance(fact, FlowReplaced) for fact in event.facts):
                self._history(event.revision, str(error))
            self._forget()
            return
        entries, _ = activity.numbered(activity.told(event.facts), before.totals, event.time, event.actor)
        self._entries += entries
        if len(self._entries) > _ENTRIES:
            self._entries = list(activity.kept(self._entries, ()))
        self._exact = self._exact and read.format == event_codec.FORMAT
        self._flow, self._versions = flow, written(self._versions, event)
        for fact in event.facts:
            # Before format 2 earlier documents were not kept.
            if isinstance(fact, DocumentChanged) and read.format == event_codec.FORMAT:
                self._needed[fact.place, event.revision] = self._versions[fact.place]
        if event.revision == 1:
            self._first = self._state()

    def _commanded(self, event: Event) -> None:
        command = self._command or Command(FlowHold.NONE, "", None)
        for fact in event.facts:
            match fact:
                case HoldChanged():
                    command = replace(command, hold=fact.after, hold_reason="" if fact.after is FlowHold.NONE else fact.reason)
                case FlowDeleted():
                    command = replace(command, delete_time=event.time)
                case FlowUndeleted():
                    command = replace(command, delete_time=None)
                case _:
                    pass
        self._command = command

    def _link(self) -> bytes | None:
        """The hash of the last event: the right one, if it is known, else as it is stored."""
        return self._chain.proved.get(self._at) or self._hash or next(iter(self._chain.links), None)

    # ---- states ---------------------------------------------------------------------------------------------------------------------

    def _base(self, revision: int, row: Row) -> None:
        """Compare the base with what was told, or begin anew with it."""
        stands_alone, self._at = self._at < revision, revision
        base = _base_of(self._key, row)
        if base is None or base.flow.revision != revision:
            self._history(revision, "the base that is kept with it cannot be read")
            return
        self._needed.update({(place, version.revision): version for place, version in base.kept.versions.items()})
        if self._sure and self._flow is not None:
            told = self._state()
            if told is not None and not _same(told, base, exact=self._exact):
                self._history(revision, "the base that is kept with it is not what the events lead to")
            elif not self._exact:
                self._adopt(base)
        elif stands_alone or base.hash in self._chain.links:
            self._chain.proves(base.hash)
            self._adopt(base)
            if stands_alone:
                self._hash = base.hash
                self._chain.restart(base.hash)

    def _by_row(self, revision: int) -> None:
        """Begin anew with the flow's own row, where nothing else says what the flow was."""
        anchor = self._anchor
        if anchor is not None and anchor.flow.revision == revision and not self._sure and anchor.hash in self._chain.links:
            self._chain.proves(anchor.hash)
            self._adopt(anchor)

    def _adopt(self, base: Base) -> None:
        self._flow, self._entries, self._versions = base.flow, list(base.kept.activity), base.kept.versions
        self._sure, self._hoped, self._exact = True, False, True
        self._command = Command.of(base.flow)
        if base.flow.revision == 1:
            self._first = base

    def _candidate(self, revision: int) -> None:
        if not self._sure or self._flow is None or (self._good and self._good[-1].flow.revision == revision):
            return
        if self._complete is not self._versions and all(self._texts.has(version) for version in self._versions.values()):
            self._complete = self._versions
        if self._complete is self._versions:
            found = Base(self._flow, Kept((), self._versions), b"")
            if self._good and _states(self._good[-1].flow) != _states(self._flow) and flow_status(self._good[-1].flow) not in _BAD:
                self._turns.append(self._good[-1])
            self._good.append(found)

    def _state(self) -> Base | None:
        if self._flow is None:
            return None
        link = next(iter(self._chain.links), b"")
        return Base(self._flow, Kept(activity.kept(self._entries, ()), self._versions), link)

    def _history(self, revision: int, why: str) -> None:
        """Notes that what is kept of ``revision`` is damaged; what it must be is told where that is sure."""
        self._note(_K.HISTORY_DAMAGED, f"revision {revision}: {why}", revision)
        if self._sure and (state := self._state()) is not None:
            self._bases[revision] = state

    def _note(self, kind: FindingKind, text: str, revision: int, place: DocumentPlace = _NO_PLACE) -> None:
        found = Finding(kind, text, child_type=place.child_type, document=place.name, revision=revision, recovery_only=True)
        self._findings.append(found)


def _read(key: FlowKey, revision: int, row: Row) -> _Read:
    found: list[Finding] = []
    loose = Loose(row, found)
    link, form = loose.octets("hash", HASH_BYTES), loose.whole("format", 1, event_codec.FORMAT)
    time, actor, body = loose.moment("time"), loose.text("actor"), loose.text("body")
    content = bytes_of(row.get("content_sha256"))
    if content is not None:
        return _Read(link, form or 0, None, lambda before: event_codec.chained(before, key, revision, content))
    if time is None or actor is None or body is None or form is None:
        return _Read(link, form or 0, None, None, "; ".join(finding.description for finding in found))
    try:
        event = event_codec.event_from_row(revision, time, actor, body)
    except _UNREADABLE as error:
        return _Read(link, form, None, None, f"{type(error).__name__}: {error}"[:200])
    if form == 1:
        return _Read(link, form, event, lambda before: event_codec.chained_1(before, key, revision, time, actor, body))
    digest = sha256(event_codec.content_of(time, actor, body))
    return _Read(link, form, event, lambda before: event_codec.chained(before, key, revision, digest))


def _base_of(key: FlowKey, row: Row) -> Base | None:
    link, body = bytes_of(row.get("hash")), bytes_of(row.get("body"))
    if link is None or body is None or len(link) != HASH_BYTES:
        return None
    try:
        if content_size(body) > MOST_BYTES:
            return None
        return codec.base_from_bytes(unpack(body), key.tenant, key.flow_id, link, BUILT_IN)
    except _UNREADABLE:
        return None


def _same(told: Base, base: Base, *, exact: bool) -> bool:
    if exact:
        return told == base
    flow = replace(told.flow, totals=base.flow.totals)
    return (flow, told.kept.versions, told.hash) == (base.flow, base.kept.versions, base.hash)


def _wants_base(event: Event) -> bool:
    return wants_base(event) and not any(isinstance(fact, EventLost) for fact in event.facts)


def _states(flow: Flow) -> list[PhaseState]:
    return [phase.state for child in flow.children for phase in child.phases]


def _forbidden(fact: PhaseChanged) -> str:
    definition = BUILT_IN.get(fact.child_type)
    return "" if definition is None or fact.after.name not in definition.position else forbidden(fact, definition)
