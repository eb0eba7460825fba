"""The server's own limit for calls that come without a deadline."""

from __future__ import annotations

import asyncio

# How often overdue calls are looked for, as a part of the limit, and at least: a call may overrun by so much.
_PART, _MOST_SECONDS = 8, 1.0


class Deadlines:
    """Ends calls that take longer than ``seconds``.

    One timer for all of them: ``asyncio.timeout`` would set and take back one for each call, at ten times the cost.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._since: dict[asyncio.Task[object], float] = {}  # in the order in which they began, and so in which they are due
        self._overdue: set[asyncio.Task[object]] = set()
        self._looking: asyncio.TimerHandle | None = None

    def enter(self) -> asyncio.Task[object]:
        """The running task, limited from now on until ``leave``."""
        loop = asyncio.get_running_loop()
        task = asyncio.current_task(loop)
        assert task is not None
        self._since[task] = loop.time()
        if self._looking is None:
            self._looking = loop.call_later(min(self._seconds / _PART, _MOST_SECONDS), self._look)
        return task

    def ended(self, task: asyncio.Task[object]) -> bool:
        """Whether the cancellation that ``task`` caught is this limit's and no one else's."""
        if task not in self._overdue:
            return False
        self._overdue.discard(task)
        return task.uncancel() == 0

    def leave(self, task: asyncio.Task[object]) -> None:
        """The task's call has ended."""
        self._since.pop(task, None)
        self._overdue.discard(task)

    def _look(self) -> None:
        loop = asyncio.get_running_loop()
        oldest = loop.time() - self._seconds
        while self._since:
            task, since = next(iter(self._since.items()))
            if since > oldest:
                break
            del self._since[task]
            self._overdue.add(task)
            task.cancel()
        self._looking = loop.call_later(min(self._seconds / _PART, _MOST_SECONDS), self._look) if self._since else None
