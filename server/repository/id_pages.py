"""Going through ids in their order, page by page."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from uuid import UUID

from server.repository.database import Database
from server.repository.statement import Statement, of_tenant
from server.statemachine.values import Tenant

FIRST_ID, LAST_ID = UUID(int=0), UUID(int=(1 << 128) - 1)


def following(known: UUID) -> UUID | None:
    """The id after that one; None after the last of all."""
    return None if known == LAST_ID else UUID(int=known.int + 1)


async def ids(database: Database, tenant: Tenant, statement: Statement, values: Mapping[str, object], size: int) -> AsyncIterator[UUID]:
    """The ids that the statement returns, ``size`` at a time, from the parameter ``first`` on. Raises StoreUnavailable."""
    first: UUID | None = FIRST_ID
    while first is not None:
        rows = await database.read([tenant], statement, {**of_tenant(tenant), **values, "first": first, "size": size})
        for row in rows:
            yield row[0]
        first = following(rows[-1][0]) if len(rows) == size else None
