"""A breaker: what fails again and again is left alone for a while."""

from __future__ import annotations

from collections.abc import Callable

# So many failures in a row open it, and so many seconds it stays open at first and at most.
FAILURES = 3
FIRST_SECONDS, MOST_SECONDS = 0.5, 15.0


class Breaker:
    """Says whether to try: yes until it opens, then no for some time, then one try that decides."""

    def __init__(self, clock: Callable[[], float], tell: Callable[[bool], None] = lambda _: None) -> None:
        """``clock`` gives seconds; ``tell`` hears when it opens (True) and when it closes."""
        self._clock, self._tell = clock, tell
        self._failures = 0
        self._until = 0.0
        self._pause = FIRST_SECONDS
        self.is_open = False

    def allows(self) -> bool:
        """Whether to try now. Whoever is told yes reports what became of it."""
        if not self.is_open:
            return True
        now = self._clock()
        if now < self._until:
            return False
        self._until = now + self._pause  # one at a time
        return True

    def succeeded(self) -> None:
        """The try went well."""
        self._failures, self._pause = 0, FIRST_SECONDS
        if self.is_open:
            self.is_open = False
            self._tell(False)

    def failed(self) -> None:
        """The try went wrong."""
        self._failures += 1
        if self.is_open:
            self._pause = min(self._pause * 2, MOST_SECONDS)
        elif self._failures >= FAILURES:
            self.is_open = True
            self._tell(True)
        self._until = self._clock() + self._pause
