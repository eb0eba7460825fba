"""Reads, gathered: what is asked while one read is out goes together with the next, and what many ask alike is read once.

A read begins after everybody whom it serves has asked, so that each sees whatever was committed before.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, TypeVar
from uuid import UUID

from sqlalchemy import ARRAY, BigInteger, Integer, TableValuedAlias, bindparam, column, func
from sqlalchemy import UUID as UUIDType
from sqlalchemy.types import TypeEngine

from server.repository.database import Database, Line
from server.repository.gathering import gathered
from server.repository.statement import Statement
from server.repository.tables import FLOW_KEY
from server.statemachine.values import Tenant

Key = tuple[Tenant, UUID]
Read = TypeVar("Read")

ASKED = 64  # what one read serves at most: its answer must not grow without bound


def wanted(*numbers: str) -> TableValuedAlias:
    """What is asked, as a table for the statement to join: its place, the key of a flow, and further numbers by name."""
    columns: dict[str, TypeEngine[Any]] = {
        "place": Integer(),
        **dict.fromkeys(FLOW_KEY, UUIDType()),
        **dict.fromkeys(numbers, BigInteger()),
    }
    arrays = [bindparam(f"wanted_{name}", type_=ARRAY(kind)) for name, kind in columns.items()]
    return func.unnest(*arrays).table_valued(*(column(name, kind) for name, kind in columns.items())).render_derived(name="wanted")


def wanted_values(asked: Sequence[tuple[Tenant, UUID, *tuple[int, ...]]], *numbers: str) -> Mapping[str, object]:
    """The values of ``wanted``."""
    return {
        "wanted_place": list(range(len(asked))),
        "wanted_client_account_id": [one[0].client_account_id for one in asked],
        "wanted_engagement_id": [one[0].engagement_id for one in asked],
        "wanted_flow_id": [one[1] for one in asked],
        **{f"wanted_{name}": [one[2 + at] for one in asked] for at, name in enumerate(numbers)},
    }


class Gathered(Generic[Read]):
    """One kind of read. Its statement joins ``wanted`` and returns the place first, at most one row for each."""

    def __init__(self, database: Database, statement: Statement, decode: Callable[[Any], Read], *numbers: str) -> None:
        """``decode`` makes the answer of a row; ``numbers`` are what is asked besides the key."""
        self._statement, self._decode, self._numbers = statement, decode, numbers
        self._line = database.line()
        self._reading: asyncio.Task[None] | None = None
        self._waiting: dict[tuple[Any, ...], list[asyncio.Future[Any]]] = {}

    async def get(self, tenant: Tenant, flow_id: UUID, *numbers: int) -> Read | None:
        """What is read; None when there is no such flow. Raises StoreUnavailable."""
        found: asyncio.Future[Read | None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault((tenant, flow_id, *numbers), []).append(found)
        if self._reading is None:
            self._reading = asyncio.create_task(self._read_all(self._line), name="reads")
        return await found

    async def _read_all(self, line: Line) -> None:
        try:
            while self._waiting:
                await gathered(self._waiting, ASKED)
                asked = list(self._waiting)[:ASKED]
                await self._read(line, {one: self._waiting.pop(one) for one in asked})
        finally:
            self._reading = None  # in the same step as the last look at what waits, so that nothing falls in between

    async def _read(self, line: Line, asked: Mapping[tuple[Any, ...], list[asyncio.Future[Any]]]) -> None:
        try:
            keys = list(asked)
            rows = await line.send({one[0] for one in keys}, self._statement, wanted_values(keys, *self._numbers))
            found = {keys[row[0]]: row for row in rows}
        except Exception as error:  # noqa: BLE001 - a supervised loop: those who wait for it are told
            for waiting in asked.values():
                _tell(waiting, error)
        else:
            for one, waiting in asked.items():
                answer: Read | Exception | None
                try:
                    answer = self._decode(found[one]) if one in found else None
                except Exception as error:  # noqa: BLE001 - what cannot be read of one flow is not its neighbours' error
                    answer = error
                _tell(waiting, answer)
        finally:
            for waiting in asked.values():  # a loop that is stopped leaves nobody waiting
                for future in waiting:
                    future.cancel()


def _tell(waiting: Sequence[asyncio.Future[Any]], answer: object) -> None:
    for future in waiting:
        if not future.done():
            if isinstance(answer, Exception):
                future.set_exception(answer)
            else:
                future.set_result(answer)
