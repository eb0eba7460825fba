"""Flows as they are sent, kept in memory: a reader that knows the flow's revision needs nothing else of the database."""

from __future__ import annotations

from collections import OrderedDict
from typing import Protocol

from server.statemachine.value import dataclass
from server.statemachine.values import FlowKey

# Which view of a flow, and its documents' form, as the contract numbers them.
ViewName = tuple[int, int]
# What an entry takes besides its bytes, about.
_ENTRY_BYTES = 400


@dataclass(frozen=True, slots=True)
class CachedView:
    """A flow as it is sent, the revision that it shows, and when that was known to be current (seconds of the loop's clock)."""

    revision: int
    answer: bytes
    time: float


class SharedViews(Protocol):
    """Views that several processes share. Whatever goes wrong with it, it knows nothing and takes nothing, and is quick about that."""

    async def get(self, key: FlowKey, name: ViewName, least: int) -> CachedView | None:
        """The view, if one of revision ``least`` or newer is known."""

    def put(self, key: FlowKey, name: ViewName, view: CachedView) -> None:
        """Share the view, some time soon, unless a newer one is shared."""


class Views:
    """The newest known views of this process, those that nobody asked for the longest dropped first."""

    def __init__(self, max_bytes: int) -> None:
        self._room, self._size = max_bytes, 0
        self._flows: OrderedDict[FlowKey, dict[ViewName, CachedView]] = OrderedDict()
        # The newest revision that was heard of, for flows that are kept.
        self._heard: dict[FlowKey, int] = {}

    def get(self, key: FlowKey, name: ViewName) -> CachedView | None:
        """The newest view known, and not known to be behind; None when there is none."""
        views = self._flows.get(key)
        view = None if views is None else views.get(name)
        if view is None or view.revision < self._heard.get(key, 0):
            return None
        self._flows.move_to_end(key)
        return view

    def put(self, key: FlowKey, name: ViewName, view: CachedView) -> None:
        """Keep the view unless a newer one is kept or was heard of."""
        size = len(view.answer) + _ENTRY_BYTES
        if size > self._room // 4 or view.revision < self._heard.get(key, 0):
            return
        views = self._flows.setdefault(key, {})
        known = views.get(name)
        if known is not None:
            if known.revision > view.revision or (known.revision == view.revision and known.time >= view.time):
                return
            self._size -= len(known.answer) + _ENTRY_BYTES
        views[name] = view
        self._size += size
        self._flows.move_to_end(key)
        while self._size > self._room:
            self._drop(next(iter(self._flows)))

    def heard(self, key: FlowKey, revision: int) -> None:
        """The flow has come to ``revision``: what shows an older one is behind."""
        views = self._flows.get(key)
        if views is None or revision <= self._heard.get(key, 0):
            return
        self._heard[key] = revision
        if all(view.revision < revision for view in views.values()):
            self._drop(key)

    def _drop(self, key: FlowKey) -> None:
        for view in self._flows.pop(key).values():
            self._size -= len(view.answer) + _ENTRY_BYTES
        self._heard.pop(key, None)
