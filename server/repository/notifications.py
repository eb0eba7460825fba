"""Hints over PostgreSQL's LISTEN and NOTIFY: a connection of its own, probed, since a server that is gone says nothing."""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import AsyncGenerator
from contextlib import suppress
from typing import Any

import asyncpg

from server.repository.database import UNAVAILABLE, Database
from server.statemachine.errors import StoreUnavailable

CHANNEL = "flowledger_moved"
PROBE_SECONDS = 2.0
# Messages that wait to be told here at most; hints beyond are dropped.
WAITING = 1000


class Notifications:
    """Short messages to every process that listens on the same database."""

    name = "postgres"
    # A notification has less than 8,000 bytes, and base64 makes four of three.
    room = 5900

    def __init__(self, database: Database, url: str) -> None:
        """``url`` leads to PostgreSQL itself: a pooler that hands connections on after each transaction carries no notifications."""
        self._database, self._url = database, url

    async def publish(self, message: bytes) -> None:
        """Send the message. Raises StoreUnavailable."""
        await self._database.notify(CHANNEL, base64.b64encode(message).decode())

    async def messages(self) -> AsyncGenerator[bytes, None]:
        """Messages as they come. Raises StoreUnavailable."""
        heard: asyncio.Queue[str] = asyncio.Queue(WAITING)

        def notified(_: Any, __: int, ___: str, payload: object) -> None:
            with suppress(asyncio.QueueFull):
                heard.put_nowait(str(payload))

        connection: Any = None
        try:
            connection = await asyncpg.connect(self._url, timeout=PROBE_SECONDS, command_timeout=PROBE_SECONDS)
            await connection.add_listener(CHANNEL, notified)
            while True:
                try:
                    async with asyncio.timeout(PROBE_SECONDS):
                        payload = await heard.get()
                except TimeoutError:
                    await connection.fetchval("SELECT 1")
                    continue
                with suppress(binascii.Error, ValueError):  # anybody may notify
                    yield base64.b64decode(payload, validate=True)
        except (*UNAVAILABLE, asyncpg.PostgresError) as error:
            raise StoreUnavailable(f"PostgreSQL carries no notifications now ({type(error).__name__})") from error
        finally:
            if connection is not None:
                connection.terminate()
