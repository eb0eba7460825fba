"""Reads by key, gathered: the keys that come while one read is out go together with the next.

Every key is asked for after its caller asked, so that a caller sees whatever was committed before. Rows are handed to their callers
as they are: what cannot be read of one flow is that flow's caller's error alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, TypeVar
from uuid import UUID

from server.repository.database import Database, Line
from server.repository.statement import Statement
from server.statemachine.values import Tenant

Key = tuple[Tenant, UUID]
Read = TypeVar("Read")

KEYS = 64  # one read's keys at most; what it returns must not grow without bound


def key_values(keys: Sequence[Key]) -> Mapping[str, object]:
    """The keys as the parameters of a statement that joins them."""
    return {
        "key_client_account_id": [tenant.client_account_id for tenant, _ in keys],
        "key_engagement_id": [tenant.engagement_id for tenant, _ in keys],
        "key_flow_id": [flow_id for _, flow_id in keys],
    }


class Gathered(Generic[Read]):
    """One kind of read. The statement's first three columns are the key."""

    def __init__(self, database: Database, statement: Statement, decode: Callable[[Any], Read], lanes: int) -> None:
        """``lanes`` reads at most are out at a time."""
        self._statement, self._decode = statement, decode
        self._idle = [database.line() for _ in range(lanes)]
        self._waiting: dict[Key, list[asyncio.Future[Any]]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def get(self, key: Key) -> Read | None:
        """What is read of the key; None when there is nothing. Raises StoreUnavailable."""
        found = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(key, []).append(found)
        if self._idle:
            lane = asyncio.create_task(self._lane(self._idle.pop()), name="reads")
            self._tasks.add(lane)
            lane.add_done_callback(self._tasks.discard)
        row = await found
        return None if row is None else self._decode(row)

    async def _lane(self, line: Line) -> None:
        try:
            while self._waiting:
                keys = list(self._waiting)[:KEYS]
                await self._read(line, {key: self._waiting.pop(key) for key in keys})
        finally:
            self._idle.append(line)

    async def _read(self, line: Line, asked: Mapping[Key, list[asyncio.Future[Any]]]) -> None:
        try:
            keys = list(asked)
            rows = await line.send({tenant for tenant, _ in keys}, self._statement, key_values(keys))
            found = {(Tenant(row[0], row[1]), row[2]): row for row in rows}
        except BaseException as error:  # handed to the callers, who wait for this lane and for nothing else
            for waiting in asked.values():
                for future in waiting:
                    if not future.done():
                        future.set_exception(error if isinstance(error, Exception) else asyncio.CancelledError())
            if not isinstance(error, Exception):
                raise
            return
        for key, waiting in asked.items():
            for future in waiting:
                if not future.done():
                    future.set_result(found.get(key))
