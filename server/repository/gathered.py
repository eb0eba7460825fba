"""Reads, gathered: what is asked while one read is out goes together with the next, and what many ask alike is read once.

A read begins after everybody whom it serves has asked, so that each sees whatever was committed before.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Generic, TypeVar

from sqlalchemy import ARRAY, BigInteger, Integer, TableValuedAlias, bindparam, column, func
from sqlalchemy import UUID as UUIDType
from sqlalchemy.types import TypeEngine

from server.repository.database import Database, Line
from server.repository.gathering import Crowd
from server.repository.statement import Statement
from server.repository.table_parts import FLOW_KEY
from server.statemachine.values import FlowKey, Tenant

Read = TypeVar("Read")
# The flow, then the numbers.
_Asked = tuple[Any, ...]

TENANT_BYTES = 32

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


def wanted_values(keys: Sequence[FlowKey], numbers: Mapping[str, Sequence[int]] = MappingProxyType({})) -> dict[str, object]:
    """The values of ``wanted``; ``numbers`` has one for each key, by name."""
    tenants = [key.tenant for key in keys]
    return {
        "wanted_place": list(range(len(keys))),
        "wanted_client_account_id": [tenant.client_account_id for tenant in tenants],
        "wanted_engagement_id": [tenant.engagement_id for tenant in tenants],
        "wanted_flow_id": [key.flow_id for key in keys],
        **{f"wanted_{name}": values for name, values in numbers.items()},
    }


def tenants_of(keys: Iterable[FlowKey]) -> Iterable[Tenant]:
    """Whose flows they are, each tenant once."""
    return {key[:TENANT_BYTES]: key.tenant for key in keys}.values()


class Gathered(Generic[Read]):
    """One kind of read. Its statement joins ``wanted`` and returns the place first, at most one row for each."""

    def __init__(self, database: Database, statement: Statement, decode: Callable[[Any], Read], *numbers: str) -> None:
        """``decode`` makes the answer of a row; ``numbers`` are what is asked besides the key."""
        self._statement, self._decode, self._numbers = statement, decode, numbers
        self._line = database.line()
        self._crowd = Crowd()
        self._reading: asyncio.Task[None] | None = None
        self._waiting: dict[_Asked, list[asyncio.Future[Any]]] = {}

    async def get(self, key: FlowKey, *numbers: int) -> Read | None:
        """What is read; None when there is no such flow. Raises StoreUnavailable."""
        found: asyncio.Future[Read | None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault((key, *numbers), []).append(found)
        if self._reading is None:
            self._reading = asyncio.create_task(self._read_all(self._line), name="reads")
        self._crowd.come()
        try:
            return await found
        finally:
            self._crowd.go()

    async def _read_all(self, line: Line) -> None:
        try:
            while self._waiting:
                await self._crowd.gathered(self._waiting, ASKED)
                asked = list(self._waiting)[:ASKED]
                await self._read(line, {one: self._waiting.pop(one) for one in asked})
        finally:
            self._reading = None  # in the same step as the last look at what waits, so that nothing falls in between

    async def _read(self, line: Line, asked: Mapping[_Asked, list[asyncio.Future[Any]]]) -> None:
        try:
            keys = [one[0] for one in asked]
            numbers = {name: [one[at] for one in asked] for at, name in enumerate(self._numbers, 1)}
            rows = await line.send(tenants_of(keys), self._statement, wanted_values(keys, numbers))
            found = {row[0]: row for row in rows}
        except Exception as error:  # noqa: BLE001 - a supervised loop: those who wait for it are told
            for waiting in asked.values():
                _tell(waiting, error)
        else:
            for place, waiting in enumerate(asked.values()):
                answer: Read | Exception | None
                try:
                    answer = self._decode(found[place]) if place in found else None
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
