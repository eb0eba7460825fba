"""Letting more come before a statement is sent."""

from __future__ import annotations

import asyncio
from collections.abc import Sized

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
