"""When calls must have ended: a moment before their caller's deadline, or by the server's own limit if they come without one."""

from __future__ import annotations

import asyncio

# How often overdue calls are looked for, in seconds; a call may overrun by twice as much.
TICK_SECONDS = 0.025
# How long before its caller gives up a call is ended, so that the caller still hears why: at least, as a part of the whole, and at most.
LEAST_SPARE, SPARE_PART, MOST_SPARE = 2 * TICK_SECONDS, 0.1, 0.25


class Deadlines:
    """Ends calls that take too long.

    One timer for all of them: ``asyncio.timeout`` would set and take back one for each call, at ten times the cost.
    """

    def __init__(self, seconds: float) -> None:
        """``seconds`` is for calls without a deadline."""
        self._seconds = seconds
        self._due: dict[asyncio.Task[object], int] = {}
        self._ticks: dict[int, set[asyncio.Task[object]]] = {}
        self._overdue: set[asyncio.Task[object]] = set()
        self._looked = 0  # the last tick whose calls were ended
        self._looking: asyncio.TimerHandle | None = None

    def enter(self, remaining: float | None) -> asyncio.Task[object]:
        """The running task, limited from now on until ``leave``; ``remaining`` is what its caller's deadline leaves, in seconds."""
        loop = asyncio.get_running_loop()
        task = asyncio.current_task(loop)
        assert task is not None
        now = loop.time()
        limit = self._seconds if remaining is None else remaining - min(LEAST_SPARE + SPARE_PART * remaining, MOST_SPARE)
        if self._looking is None:
            self._looked = int(now / TICK_SECONDS)
            self._looking = loop.call_later(TICK_SECONDS, self._look)
        tick = max(int((now + limit) / TICK_SECONDS), self._looked + 1)
        self._due[task] = tick
        self._ticks.setdefault(tick, set()).add(task)
        return task

    def ended(self, task: asyncio.Task[object]) -> bool:
        """Whether the cancellation that ``task`` caught is this limit's and no one else's."""
        if task not in self._overdue:
            return False
        self._overdue.discard(task)
        return task.uncancel() == 0

    def leave(self, task: asyncio.Task[object]) -> None:
        """The task's call has ended."""
        tick = self._due.pop(task, None)
        if tick is None:
            self._overdue.discard(task)
            return
        tasks = self._ticks[tick]
        tasks.discard(task)
        if not tasks:
            del self._ticks[tick]

    def _look(self) -> None:
        loop = asyncio.get_running_loop()
        last, self._looked = self._looked, int(loop.time() / TICK_SECONDS)
        # Whichever is shorter: the loop may have stood still for long.
        ticks = range(last + 1, self._looked + 1)
        for tick in ticks if len(ticks) < len(self._ticks) else sorted(tick for tick in self._ticks if tick <= self._looked):
            for task in self._ticks.pop(tick, ()):
                del self._due[task]
                self._overdue.add(task)
                task.cancel()
        self._looking = loop.call_later(TICK_SECONDS, self._look) if self._ticks else None
