"""Which tenants there are: for what goes through all of them."""

from __future__ import annotations

from collections.abc import AsyncIterator

from sqlalchemy import UUID as UUIDType
from sqlalchemy import Integer, bindparam, select, tuple_

from server.repository.admin_tables import tenants
from server.repository.database import Database
from server.repository.statement import Statement, gated
from server.repository.table_parts import TENANT_KEY
from server.statemachine.values import Tenant

PAGE = 500

_after = tuple_(*(bindparam(f"after_{key}", type_=UUIDType()) for key in TENANT_KEY))
_PAGE = Statement(
    gated(
        select(*(tenants.c[key] for key in TENANT_KEY))
        .where(tuple_(*(tenants.c[key] for key in TENANT_KEY)) > _after)
        .order_by(*(tenants.c[key] for key in TENANT_KEY))
        .limit(bindparam("size", type_=Integer))
    )
)
_FIRST = Statement(
    gated(
        select(*(tenants.c[key] for key in TENANT_KEY))
        .order_by(*(tenants.c[key] for key in TENANT_KEY))
        .limit(bindparam("size", type_=Integer))
    )
)


async def all_tenants(database: Database) -> AsyncIterator[Tenant]:
    """Every tenant that ever made a flow, in the order of their ids. Raises StoreUnavailable."""
    rows = await database.read([], _FIRST, {"size": PAGE})
    while rows:
        for row in rows:
            yield Tenant(*row)
        if len(rows) < PAGE:
            return
        last = dict(zip((f"after_{key}" for key in TENANT_KEY), rows[-1], strict=True))
        rows = await database.read([], _PAGE, {**last, "size": PAGE})
