"""The connections to PostgreSQL: lent for a statement or a transaction, or kept by whoever sends one after another."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, TypeAlias

import asyncpg
from asyncpg.pool import PoolConnectionProxy

PoolConnection: TypeAlias = "PoolConnectionProxy[Any]"


class Connections:
    """A pool, and what is kept of it.

    The pool's hand-over costs a lone caller as much as a small statement. So a keeper's connection stays with it, unused, until the pool
    has none left for somebody else: then that of the keeper that has been idle longest is lent instead.
    """

    def __init__(self, pool: asyncpg.Pool[Any], patience: float) -> None:
        """``patience`` is how long to wait for a free connection, in seconds."""
        self._pool, self._patience = pool, patience
        self._lent = 0  # by the pool, whether in use or kept; of late, those who wait for one
        self._kept: dict[object, PoolConnection] = {}  # the longest idle first
        self._returning: set[asyncio.Task[None]] = set()  # the loop itself holds tasks only weakly

    def use(self) -> dict[str, int]:
        """How many connections are in use and idle, and how many there may be at most."""
        open_ones, kept = self._pool.get_size(), len(self._kept)
        idle = self._pool.get_idle_size() + kept
        return {"in_use": open_ones - idle, "idle": idle, "most": self._pool.get_max_size()}

    async def lend(self) -> PoolConnection:
        """A free connection. Raises TimeoutError when none comes free in time."""
        while self._kept and self._lent >= self._pool.get_max_size():
            connection = self._kept.pop(next(iter(self._kept)))
            if not _lost(connection):
                return connection
            await self.take_back(connection)
        self._lent += 1
        try:
            return await self._pool.acquire(timeout=self._patience)
        except BaseException:
            self._lent -= 1
            raise

    async def take_back(self, connection: PoolConnection) -> None:
        """Return a connection to the pool; a broken one is replaced."""
        self._lent -= 1
        await self._pool.release(connection)

    async def resume(self, keeper: object) -> PoolConnection:
        """The connection that was kept for ``keeper``, or another one. Raises TimeoutError when none comes free in time."""
        connection = self._kept.pop(keeper, None)
        if connection is not None:
            if not _lost(connection):
                return connection
            await self.take_back(connection)
        return await self.lend()

    async def keep(self, keeper: object, connection: PoolConnection) -> None:
        """``keeper`` does not need its connection for now: it stays with it, unless somebody waits for one."""
        if self._lent > self._pool.get_max_size():
            await self.take_back(connection)
        else:
            self._kept[keeper] = connection

    @asynccontextmanager
    async def lent(self) -> AsyncIterator[PoolConnection]:
        """A connection while the block lasts."""
        connection = await self.lend()
        try:
            yield connection
        except asyncio.CancelledError:
            # PostgreSQL is asked to stop what it does for nobody, and may take its time to answer: the caller does not wait for that.
            returning = asyncio.create_task(self.take_back(connection), name="take back")
            self._returning.add(returning)
            returning.add_done_callback(self._returned)
            raise
        except BaseException as error:
            await self.take_back_after(connection, error)
            raise
        await self.take_back(connection)

    async def take_back_after(self, connection: PoolConnection, error: BaseException) -> None:
        """Return a connection on which something failed: the pool looks after its state."""
        if isinstance(error, TimeoutError):
            connection.terminate()  # nobody answers there: callers must not wait until somebody has been asked to stop
        await self.take_back(connection)

    def _returned(self, returning: asyncio.Task[None]) -> None:
        self._returning.discard(returning)
        if not returning.cancelled():
            returning.exception()  # the pool replaces what cannot be used again: nobody needs to be told

    async def give_up_kept(self) -> None:
        """Return what is kept to the pool."""
        while self._kept:
            await self.take_back(self._kept.pop(next(iter(self._kept))))


def _lost(connection: PoolConnection) -> bool:
    try:
        return connection.is_closed()
    except asyncpg.InterfaceError:  # it broke while nobody used it, and the pool took it back by itself
        return True
