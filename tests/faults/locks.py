"""Holds a flow's row, so that a commit is on its way for as long as a test needs it to be."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg

SECONDS = 10.0


@asynccontextmanager
async def held(url: str, flow_id: str) -> AsyncIterator[None]:
    """While the block lasts no commit of the flow can reach the disk."""
    holder = await asyncpg.connect(url)
    try:
        async with holder.transaction():
            await holder.execute("SELECT FROM flows WHERE flow_id = $1 FOR UPDATE", flow_id)
            yield
    finally:
        await holder.close()


async def blocked(url: str, number: int) -> None:
    """Returns once so many transactions wait for a lock of that database."""
    watcher = await asyncpg.connect(url)
    waiting = (
        "SELECT count(DISTINCT pid) FROM pg_locks JOIN pg_stat_activity USING (pid) WHERE NOT granted AND datname = current_database()"
    )
    try:
        async with asyncio.timeout(SECONDS):
            while await watcher.fetchval(waiting) < number:  # noqa: ASYNC110 - PostgreSQL gives no signal
                await asyncio.sleep(0.01)
    finally:
        await watcher.close()
