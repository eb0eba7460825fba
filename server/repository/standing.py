"""Flows that may be stuck, of those that somebody could bring on: not ended, not paused, not deleted."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from sqlalchemy import UUID as UUIDType
from sqlalchemy import Integer, Text, and_, bindparam, cast, func, literal_column, select

from server.repository.database import Database
from server.repository.statement import Statement, gated, mine, of_tenant, same_flow
from server.repository.table_parts import TIME
from server.repository.tables import activity, children, flows
from server.statemachine.graphs import BUILT_IN
from server.statemachine.states import FlowHold
from server.statemachine.stuck import WATCHED
from server.statemachine.values import ActivityKind, Tenant

PAGE = 500
_FIRST = UUID(int=0)

_states = " || ".join(f'@.state == "{state.name}"' for state in sorted(WATCHED, key=lambda state: state.value))
# Times are compared as texts: one that makes no sense must not be in the way of the others. Precise enough to find what may be stuck.
_STANDING = f"'$[*] ? (({_states}) && @.state_time < $before)'"
_AFTER, _SIZE = bindparam("after", type_=UUIDType()), bindparam("size", type_=Integer)
_LIVE = (
    flows.c.hold == literal_column(f"'{FlowHold.NONE.name}'"),
    flows.c.end_time.is_(None),
    flows.c.delete_time.is_(None),
)


def _candidates(table: Any) -> Statement:
    given = func.jsonb_build_object(literal_column("'before'"), bindparam("before", type_=Text))
    query = (
        select(table.c.flow_id, cast(table.c.phases, Text))
        .join(flows, and_(*same_flow(flows, table)))
        .where(
            *mine(table),
            *mine(flows),
            *_LIVE,
            table.c.flow_id > _AFTER,
            func.jsonb_path_exists(table.c.phases, literal_column(_STANDING), given),
        )
    )
    return Statement(gated(query.order_by(table.c.flow_id).limit(_SIZE)))


_CANDIDATES = {domain: _candidates(children[domain]) for domain in BUILT_IN}
_since = bindparam("since", type_=TIME)
_RETRIED = Statement(
    gated(
        select(flows.c.flow_id, func.array_agg(activity.c.body))
        .join(activity, and_(*same_flow(activity, flows)))
        .where(
            *mine(flows),
            *mine(activity),
            *_LIVE,
            flows.c.update_time >= _since,
            flows.c.flow_id > _AFTER,
            activity.c.kind == literal_column(str(ActivityKind.RETRY.value)),
            activity.c.time >= _since,
        )
        .group_by(flows.c.flow_id)
        .having(func.count() >= bindparam("least", type_=Integer))
        .order_by(flows.c.flow_id)
        .limit(_SIZE)
    )
)


class Standing:
    """Finds flows that may be stuck."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def still(self, tenant: Tenant, domain: str, before: datetime) -> AsyncIterator[tuple[UUID, str]]:
        """Flows with a phase of the domain that has been in its state since before then, and the child's phases as they are stored."""
        text = before.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        async for flow_id, phases in self._pages(tenant, _CANDIDATES[domain], {"before": text}):
            yield flow_id, phases

    async def retried(self, tenant: Tenant, since: datetime, least: int) -> AsyncIterator[tuple[UUID, list[str]]]:
        """Flows with at least so many retries since then, and the entries that tell of them as they are stored."""
        async for flow_id, bodies in self._pages(tenant, _RETRIED, {"since": since, "least": least}):
            yield flow_id, bodies

    async def _pages(self, tenant: Tenant, statement: Statement, values: dict[str, object]) -> AsyncIterator[Any]:
        after = _FIRST
        while True:
            given = {**of_tenant(tenant), **values, "after": after, "size": PAGE}
            page = await self._database.read([tenant], statement, given)
            for row in page:
                yield row
            if len(page) < PAGE:
                return
            after = page[-1][0]
