"""Letting more come before a statement is sent."""

from __future__ import annotations

import asyncio
from collections.abc import Sized
from math import ceil

# How many turns of the event loop may pass without anything new. gRPC hands calls over one at a time, about one a turn, and a
# statement costs as much as several turns; a turn with nothing to do costs some microseconds, so that a lone caller hardly waits.
QUIET_TURNS = 12


async def gathered(waiting: Sized, enough: int) -> None:
    """Returns when nothing new has come for some turns of the event loop, or ``enough`` wait. No timer: a turn is over when its work is."""
    seen, quiet = len(waiting), 0
    while quiet < QUIET_TURNS and seen < enough:
        await asyncio.sleep(0)
        quiet = quiet + 1 if len(waiting) <= seen else 0
        seen = len(waiting)


class Crowd:
    """How many callers there were at a time of late: more than that need not be waited for, and a lone one waits for nobody."""

    __slots__ = ("_callers", "_most", "_usual")

    # What is left of a larger crowd with each statement.
    _FADING = 0.97

    def __init__(self) -> None:
        self._callers = self._most = 0
        self._usual = 1.0

    def come(self) -> None:
        """One more waits for an answer."""
        self._callers += 1
        self._most = max(self._most, self._callers)

    def go(self) -> None:
        """One has it, or has given up."""
        self._callers -= 1

    async def gathered(self, waiting: Sized, most: int) -> None:
        """Returns when as many wait as are to be expected, or ``most``, or nothing new has come for some turns of the event loop."""
        await gathered(waiting, min(most, ceil(self._usual)))
        self._usual = max(self._most, self._usual * self._FADING)
        self._most = self._callers
