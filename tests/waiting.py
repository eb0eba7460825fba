"""Waiting for what no signal tells of."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from tests.tenancy import PATIENCE

LOOK_SECONDS = 0.01


async def until(condition: Callable[[], object]) -> None:
    """Returns once the condition holds; TimeoutError when it does not in time."""
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110 - that is what this is for
            await asyncio.sleep(LOOK_SECONDS)


async def eventually(condition: Callable[[], Awaitable[object]]) -> None:
    """Returns once what the condition comes to holds; TimeoutError when it does not in time."""
    async with asyncio.timeout(PATIENCE):
        while not await condition():  # noqa: ASYNC110 - that is what this is for
            await asyncio.sleep(LOOK_SECONDS)
