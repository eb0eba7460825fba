"""The audit chain, followed link by link through a history in which any event, and any hash, may be wrong."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum, unique

from server.repository.event_codec import NO_HASH


@unique
class Link(Enum):
    """What an event's hash says of it."""

    # It follows from the event before.
    FOLLOWS = "follows"
    # It does not: the event, its hash or the one before was changed.
    BROKEN = "broken"
    # There is nothing that it could follow from: what was before is not known.
    UNKNOWN = "unknown"


class DoubtfulChain:
    """Where the chain has come to.

    An event whose hash does not fit may have been changed, or only its hash: the next event's hash tells which, since it was made of the
    right one. ``proved`` has the right hashes that were found out so, by revision.
    """

    def __init__(self) -> None:
        self._before: tuple[bytes, ...] = (NO_HASH,)
        self._certain = True
        self._doubted: tuple[int, frozenset[bytes]] | None = None
        self.proved: dict[int, bytes] = {}

    def restart(self, *before: bytes, certain: bool = True) -> None:
        """Go on from a hash that is known by other means, or from nowhere; an uncertain one may not be what the next follows."""
        self._before, self._certain, self._doubted = before, certain, None

    def follow(self, revision: int, stored: bytes | None, made: Callable[[bytes], bytes]) -> tuple[Link, bool]:
        """What the event's hash says of it, and whether it proves the event before, if that was in doubt.

        ``made`` is the hash that the event has after a given one.
        """
        found = next((before for before in self._before if made(before) == stored), None)
        proven = self.proves(found)
        if found is not None and stored is not None:
            self.restart(stored)
            return Link.FOLLOWS, proven
        own = () if stored is None else (stored,)
        if not self._before or not self._certain:
            self.restart(*own)
            return Link.UNKNOWN, proven
        links = frozenset(map(made, self._before))
        self._before, self._doubted = (*links, *own), (revision, links)
        return Link.BROKEN, proven

    def proves(self, link: bytes | None) -> bool:
        """Whether ``link``, which is known to be right, is what the event in doubt must have."""
        if self._doubted is None or link not in self._doubted[1] or link is None:
            return False
        self.proved[self._doubted[0]] = link
        self.restart(link)
        return True

    @property
    def links(self) -> tuple[bytes, ...]:
        """The hashes that the next event may follow."""
        return self._before
