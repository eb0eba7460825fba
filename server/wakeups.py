"""Hints that a flow moved. They may be lost, late or doubled; they hold no data, so that nothing can be wrong about them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from server.statemachine.values import FlowKey


class LocalWakeups:
    """Hints within one process."""

    def __init__(self) -> None:
        self._listeners: dict[FlowKey, set[asyncio.Event]] = {}
        self._told: list[Callable[[FlowKey], None]] = []

    def tell(self, heard: Callable[[FlowKey], None]) -> None:
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

    def ring(self, key: FlowKey) -> None:
        """Tell whoever listens that the flow moved."""
        for moved in self._listeners.get(key, ()):
            moved.set()
        for told in self._told:
            told(key)

    def ring_all(self) -> None:
        """Tell everybody, whatever they listen for."""
        for listeners in self._listeners.values():
            for moved in listeners:
                moved.set()
