"""Forgetting old request ids.

An id outlives the flow that it was for: as long as the flow can still be changed, a repeat that comes late must not be taken for a new
request. So an id goes when it is old and its flow is not there, or has ended or been deleted, and rested, for as long.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import UUID as UUIDType
from sqlalchemy import Integer, and_, bindparam, delete, func, literal_column, or_, select

from server.repository.database import Database
from server.repository.id_pages import FIRST_ID, following
from server.repository.statement import Statement, gate, mine, of_tenant, opened
from server.repository.table_parts import TIME
from server.repository.tables import flows, requests
from server.statemachine.values import Tenant

# So many ids are looked at in one transaction.
PAGE = 2000


def _forget() -> Statement:
    opener = gate()
    before: Any = bindparam("before", type_=TIME)
    page = (
        select(requests.c.request_id, requests.c.flow_id, requests.c.create_time)
        .where(opened(opener), *mine(requests), requests.c.request_id >= bindparam("first", type_=UUIDType()))
        .order_by(requests.c.request_id)
        .limit(bindparam("size", type_=Integer))
        .cte("page")
        .prefix_with("MATERIALIZED")
    )
    rested = and_(func.coalesce(flows.c.end_time, flows.c.delete_time) < before, flows.c.update_time < before)
    lively: Any = select(literal_column("1")).where(*mine(flows), flows.c.flow_id == page.c.flow_id, or_(rested.is_(None), ~rested))
    gone = (
        delete(requests)
        .where(
            opened(opener),
            *mine(requests),
            requests.c.request_id == page.c.request_id,
            page.c.create_time < before,
            ~lively.correlate(page).exists(),
        )
        .returning(requests.c.request_id)
        .cte("gone")
    )
    last = select(page.c.request_id).order_by(page.c.request_id.desc()).limit(1).scalar_subquery()
    counted = [select(func.count()).select_from(one).scalar_subquery() for one in (page, gone)]
    return Statement(select(last, *counted))


_FORGET = _forget()


async def forget(database: Database, tenant: Tenant, before: datetime) -> int:
    """How many of the tenant's request ids from before that time were forgotten. Raises StoreUnavailable."""
    forgotten = 0
    first: UUID | None = FIRST_ID
    while first is not None:
        values = {**of_tenant(tenant), "before": before, "first": first, "size": PAGE}
        last, looked_at, gone = (await database.read([tenant], _FORGET, values))[0]
        forgotten += int(gone)
        first = following(last) if looked_at == PAGE else None
    return forgotten
