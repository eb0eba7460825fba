"""What has to do with Redis ends when it is told to."""

from __future__ import annotations

import asyncio

from server.redis_link import ended


async def test_a_task_that_takes_being_cancelled_for_a_broken_connection_is_ended_all_the_same() -> None:
    swallowed = [0]

    async def stubborn() -> None:
        while True:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                swallowed[0] += 1
                if swallowed[0] > 2:
                    raise

    async def faulty() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            raise ConnectionError

    tasks = [asyncio.create_task(stubborn()), asyncio.create_task(faulty())]
    await asyncio.sleep(0)
    await ended(tasks)
    assert all(task.done() for task in tasks)
    assert swallowed == [3]
    await ended([])
