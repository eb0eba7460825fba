"""How much was done so far."""

from __future__ import annotations

import asyncio

ROUND_SECONDS = 60.0


class Progress:
    """Counts what was acknowledged, so that a fault comes while there is work and not after a time."""

    def __init__(self) -> None:
        self.count = 0
        self._moved = asyncio.Event()

    def __call__(self) -> None:
        self.count += 1
        self._moved.set()

    async def more(self, count: int) -> None:
        """Returns after so many more."""
        wanted = self.count + count
        async with asyncio.timeout(ROUND_SECONDS):
            while self.count < wanted:
                self._moved.clear()
                await self._moved.wait()
