"""The hash chain of a flow's events: whether one link follows from the one before, and what stands in where compaction cut it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import field
from datetime import datetime
from uuid import UUID

from server.repository import event_codec
from server.repository.table_parts import HASH_BYTES
from server.statemachine.audit import AuditBreak, BreakKind
from server.statemachine.document import sha256
from server.statemachine.value import dataclass
from server.statemachine.values import FlowKey

# Whether a signature is ours; and what makes one.
Verifies = Callable[[bytes, bytes], bool]
Signs = Callable[[bytes], bytes]

_ANCHOR = b"flowledger base 1\0"
_EMPTY = sha256(b"")


@dataclass(frozen=True, slots=True)
class Link:
    """An event as it is stored; one that was erased has nothing but the SHA-256 of what it said."""

    revision: int
    time: datetime
    actor: str
    body: str
    hash: bytes
    format: int
    content_sha256: bytes | None

    @property
    def erased(self) -> bool:
        """Whether what it said was erased."""
        return self.content_sha256 is not None

    def content(self) -> bytes | None:
        """The bytes that its hash was made of; None when they were erased."""
        if self.erased:
            return None
        if self.format == 1:
            return event_codec.content_of_1(self.revision, self.time, self.actor, self.body)
        return event_codec.content_of(self.time, self.actor, self.body)

    def follows(self, before: bytes, key: FlowKey, revision: int) -> bool:
        """Whether its hash is what it must be at that revision. Of one that was erased in format 1 that cannot be said: it may."""
        content = self.content()
        if self.format == 1:
            return content is None or self.hash == event_codec.chained_1(before, key, content)
        digest = self.content_sha256 if content is None else sha256(content)
        return self.format == 2 and digest is not None and self.hash == event_codec.chained(before, key, revision, digest)


@dataclass(frozen=True, slots=True)
class Anchor:
    """A base of what was compacted: it stands for all events up to its revision, if its signature is ours.

    The signature has two halves, over the event's hash alone and over what the base holds as well, so that the first still holds when
    the base is emptied because its tenant was erased.
    """

    revision: int
    hash: bytes
    signature: bytes | None
    body_sha256: bytes

    def signed(self, key: FlowKey, sign: Signs) -> bytes:
        """Its signature."""
        place = self._place(key)
        return sign(place) + sign(place + self.body_sha256)

    def holds(self, key: FlowKey, verifies: Verifies, *, emptied: bool = False) -> bool:
        """Whether it is as compaction left it, or but for what it held where that was ``emptied``."""
        if self.signature is None or len(self.signature) != 2 * HASH_BYTES:
            return False
        place, whole = self._place(key), self.signature[HASH_BYTES:]
        if not verifies(place, self.signature[:HASH_BYTES]):
            return False
        return (emptied and self.body_sha256 == _EMPTY) or verifies(place + self.body_sha256, whole)

    def _place(self, key: FlowKey) -> bytes:
        return b"".join((_ANCHOR, key, self.revision.to_bytes(8, "big"), self.hash))


@dataclass(frozen=False, slots=True)
class Walk:
    """How far a flow's chain has been followed, and what was found on the way."""

    key: FlowKey
    # Whether events may have been erased: those of a flow that stands must not.
    erasable: bool = False
    revision: int = 0
    hash: bytes = event_codec.NO_HASH
    events: int = 0
    erased: int = 0
    format: int = 1
    broken: AuditBreak | None = None
    # The hashes of revisions that somebody asked for.
    noted: dict[int, bytes] = field(default_factory=dict)
    asked: frozenset[int] = frozenset()

    def follow(self, links: Iterable[Link]) -> None:
        """Goes on along the links, which stand in the order of their revisions; ends where one is broken."""
        for link in links:
            expected = self.revision + 1
            if link.revision != expected:
                self.breaks(expected, BreakKind.MISSING, f"the event of revision {expected} is missing, the next one is {link.revision}")
            elif link.erased and not self.erasable:
                self.breaks(expected, BreakKind.CHANGED, "what the event said is gone, and nobody erased this tenant")
            elif link.format < self.format:
                self.breaks(
                    expected, BreakKind.CHANGED, f"the event claims to be of format {link.format}, and stands after one of {self.format}"
                )
            elif not link.follows(self.hash, self.key, expected):
                self.breaks(expected, BreakKind.CHANGED, "the event's hash does not follow from what it says and from the hash before it")
            if self.broken is not None:
                return
            self.revision, self.hash, self.format = expected, link.hash, link.format
            self.events += 1
            self.erased += link.erased
            if expected in self.asked:
                self.noted[expected] = link.hash

    def breaks(self, revision: int, kind: BreakKind, description: str) -> None:
        """Note where the chain is broken, unless it was broken before."""
        if self.broken is None:
            self.broken = AuditBreak(self.flow_id, revision, kind, description)

    def begin(self, anchor: Anchor) -> None:
        """Go on from what compaction left."""
        self.revision, self.hash = anchor.revision, anchor.hash

    @property
    def flow_id(self) -> UUID:
        """Whose chain it is."""
        return self.key.flow_id
