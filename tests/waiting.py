"""Waiting for what no signal tells of."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from tests.tenancy import PATIENCE

LOOK_SECONDS = 0.01


async def until(condition: Callable[[], object], seconds: float = PATIENCE) -> None:
    """Returns once the condition holds; TimeoutError when it does not in time."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - that is what this is for
            await asyncio.sleep(LOOK_SECONDS)
