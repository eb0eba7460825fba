"""Flows kept in memory, fenced by revision: an older one never takes the place of a newer one."""

from __future__ import annotations

from collections import OrderedDict

from server.repository.flows import Head
from server.statemachine.values import FlowKey

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
