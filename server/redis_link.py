"""Connections to Redis that never hold anybody up: short time-outs, no second tries."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

# The library's own defaults are ten tries of five seconds (EXAMPLES, trap 28).
CALL_SECONDS = 0.1
LISTEN_SECONDS = 5.0
CONNECTIONS = 16
# How often, and after how many seconds, a task is told again to end.
AGAIN, AGAIN_SECONDS = 20, 0.25


@dataclass(frozen=True, slots=True)
class RedisLink:
    """``calls`` is for commands, ``listening`` for a subscription; neither connects before it is used."""

    calls: Redis
    listening: Redis


@asynccontextmanager
async def linked(url: str, call_seconds: float = CALL_SECONDS) -> AsyncIterator[RedisLink]:
    """The connections while the block lasts; a command takes at most ``call_seconds``."""

    def client(seconds: float, connections: int) -> Redis:
        made: Redis = Redis.from_url(
            url,
            socket_timeout=seconds,
            socket_connect_timeout=seconds,
            max_connections=connections,
            retry=Retry(NoBackoff(), 0),
            retry_on_error=[],
            health_check_interval=0,
            client_name="flowledger",
        )
        return made

    link = RedisLink(client(call_seconds, CONNECTIONS), client(LISTEN_SECONDS, 2))
    try:
        yield link
    finally:
        await link.calls.aclose()
        await link.listening.aclose()


async def ended(tasks: Iterable[asyncio.Task[None]]) -> None:
    """End the tasks, and return when they have ended.

    Told once is not enough: whoever is amid a call to Redis when it breaks takes that for what was wrong with the connection.
    """
    left = set(tasks)
    for _ in range(AGAIN):
        for task in left:
            task.cancel()
        if left:
            done, left = await asyncio.wait(left, timeout=AGAIN_SECONDS)
            await asyncio.gather(*done, return_exceptions=True)
