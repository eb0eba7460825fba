"""How long to try, and how long to wait in between."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import grpc

from flowledger_client.errors import FlowledgerError


@dataclass(frozen=True)
class Patience:
    """How long calls and watches go on trying, in seconds."""

    # A call, with all its tries, unless it is given a timeout of its own.
    call: float = 30.0
    # One try of a call: a server that hangs must not use up all of the call's time.
    attempt: float = 10.0
    # A watch, from the moment on which the service went away; None is for ever.
    watch: float | None = 300.0


class Backoff:
    """Pauses that double up to a bound, each longer or shorter by up to a half, so that clients do not come back all at once."""

    def __init__(self, chance: Callable[[], float], first: float = 0.1, most: float = 2.0) -> None:
        """``chance`` is a number from 0 to 1, another one each time; times are in seconds."""
        self._chance, self._first, self._most = chance, first, most
        self._next = first

    def pause(self, at_least: float = 0.0) -> float:
        """How long to wait now; ``at_least`` is what the server asked for."""
        pause = self._next * (0.5 + self._chance())
        self._next = min(2 * self._next, self._most)
        return max(pause, at_least)

    def rest(self) -> None:
        """What was waited for has come: begin with the shortest pause next time."""
        self._next = self._first


class Tries:
    """The tries of one call."""

    def __init__(self, timeout: float, attempt: float, backoff: Backoff, clock: Callable[[], float]) -> None:
        """``timeout`` seconds are for all of them, ``attempt`` for each."""
        self._attempt, self._backoff, self._clock = attempt, backoff, clock
        self._end = clock() + timeout
        self._told: FlowledgerError | None = None

    @property
    def seconds(self) -> float:
        """How long the next one may take."""
        return max(0.0, min(self._attempt, self._end - self._clock()))

    def pause(self, failure: FlowledgerError) -> float | None:
        """How long to wait before the next one; None when there is to be none."""
        if failure.reason:
            self._told = failure
        if not failure.passing and failure.code is not grpc.StatusCode.DEADLINE_EXCEEDED:
            return None
        pause = self._backoff.pause(failure.retry_seconds)
        return pause if self._clock() + pause < self._end else None

    def verdict(self, failure: FlowledgerError) -> FlowledgerError:
        """What to tell when ``failure`` is the last: why the server would not, rather than that time was short for one more."""
        return self._told if self._told is not None and failure.code is grpc.StatusCode.DEADLINE_EXCEEDED else failure
