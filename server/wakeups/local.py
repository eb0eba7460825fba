"""Hints within one process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from server.statemachine.values import FlowKey

Heard = Callable[[FlowKey, int], None]


class LocalWakeups:
    """Hints within one process; ``relay`` is told of those that began here, for other processes."""

    def __init__(self) -> None:
        self._listeners: dict[FlowKey, set[asyncio.Event]] = {}
        self._told: list[Heard] = []
        self.relay: Heard | None = None

    def tell(self, heard: Heard) -> None:
        """Let ``heard`` know of every hint, whatever flow it is of."""
        self._told.append(heard)

    @contextmanager
    def hear(self, key: FlowKey) -> Iterator[asyncio.Event]:
        """A flag that is raised whenever the flow moved; clear it before reading, so that a hint that comes meanwhile is not lost."""
        moved = asyncio.Event()
        self._listeners.setdefault(key, set()).add(moved)
        try:
            yield moved
        finally:
            listeners = self._listeners[key]
            listeners.discard(moved)
            if not listeners:
                del self._listeners[key]

    def ring(self, key: FlowKey, revision: int) -> None:
        """The flow came to ``revision`` here: tell whoever listens, in other processes too."""
        self.heard(key, revision)
        if self.relay is not None:
            self.relay(key, revision)

    def heard(self, key: FlowKey, revision: int) -> None:
        """The flow came to ``revision`` somewhere: tell whoever listens here."""
        for moved in self._listeners.get(key, ()):
            moved.set()
        for told in self._told:
            told(key, revision)

    def ring_all(self) -> None:
        """Tell everybody, whatever they listen for."""
        for listeners in self._listeners.values():
            for moved in listeners:
                moved.set()
