"""Flows kept in memory, fenced by revision: an older one never takes the place of a newer one."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from types import MappingProxyType

from server.repository.flows import Head
from server.statemachine.values import DocumentPlace, FlowKey

# A head with seven phases measures about this much; the bound on memory is a bound on their number.
HEAD_BYTES = 6 * 1024


class Heads:
    """The newest known heads, the least recently used dropped first.

    What it answers may be behind the database, since other processes write too: a commit built on it is guarded by the row itself.
    """

    def __init__(self, max_bytes: int) -> None:
        self._room = max(1, max_bytes // HEAD_BYTES)
        self._heads: OrderedDict[FlowKey, Head] = OrderedDict()

    def get(self, key: FlowKey) -> Head | None:
        """The newest head known; None when none is."""
        head = self._heads.get(key)
        if head is not None:
            self._heads.move_to_end(key)
        return head

    def put(self, key: FlowKey, head: Head) -> None:
        """Remember the head unless a newer one is known."""
        known = self._heads.get(key)
        if known is not None and known.flow.revision >= head.flow.revision:
            return
        self._heads[key] = head
        self._heads.move_to_end(key)
        if len(self._heads) > self._room:
            self._heads.popitem(last=False)

    def drop(self, key: FlowKey) -> None:
        """Forget the head: it proved to be behind, or nobody knows whether its commit happened."""
        self._heads.pop(key, None)


# Below this a whole copy of a document's earlier version costs less than looking for what differs.
DELTA_LEAST = 16 * 1024


class Texts:
    """The newest known texts of large documents, so that the version before a new one can be kept as what differs from it.

    What it answers may be behind the database: each text comes with the revision that it is of, and the statement that relies on it
    checks that.
    """

    def __init__(self, max_bytes: int) -> None:
        self._room = max_bytes
        self._size = 0
        self._texts: OrderedDict[FlowKey, dict[DocumentPlace, tuple[int, bytes]]] = OrderedDict()

    def get(self, key: FlowKey) -> Mapping[DocumentPlace, tuple[int, bytes]]:
        """The flow's texts that are known, each with its revision."""
        known = self._texts.get(key)
        if known is None:
            return _NO_TEXTS
        self._texts.move_to_end(key)
        return known

    def put(self, key: FlowKey, place: DocumentPlace, revision: int, text: bytes) -> None:
        """Remember the text if it is large enough to be worth it."""
        if len(text) < DELTA_LEAST or len(text) > self._room // 4:
            if key in self._texts:
                self.drop(key)
            return
        # A new mapping, since the one before may be in somebody's hands.
        known = {**self._texts.get(key, {}), place: (revision, text)}
        self.drop(key)
        self._texts[key] = known
        self._size += _size(known)
        while self._size > self._room:
            self.drop(next(iter(self._texts)))

    def drop(self, key: FlowKey) -> None:
        """Forget the flow's texts."""
        known = self._texts.pop(key, None)
        if known is not None:
            self._size -= _size(known)


_NO_TEXTS: Mapping[DocumentPlace, tuple[int, bytes]] = MappingProxyType({})


def _size(texts: Mapping[DocumentPlace, tuple[int, bytes]]) -> int:
    return sum(len(text) for _, text in texts.values())
