"""Texts of large documents kept in memory, so that the version before a new one can be stored as what differs from it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from types import MappingProxyType

from server.statemachine.values import DocumentPlace, FlowKey

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
