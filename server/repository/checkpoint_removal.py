"""Removing checkpoints, and what only they held."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from functools import cache
from typing import Any
from uuid import UUID

import asyncpg
from sqlalchemy import ARRAY, BigInteger, bindparam, delete, exists, func, literal_column, select
from sqlalchemy import UUID as UUIDType

from server.repository.checkpoint_statements import LIMIT, Narrowed, conditions
from server.repository.checkpoint_tables import checkpoint_parts, checkpoints, sealed_contents
from server.repository.database import Database, undisturbed
from server.repository.requests import NO_FLOW, Reply, put_reply, reply_values
from server.repository.statement import Statement, gate, gated, mine, of_tenant, opened
from server.statemachine.value import dataclass
from server.statemachine.values import Tenant

_IDS: Any = bindparam("checkpoint_ids", type_=ARRAY(UUIDType()))


@dataclass(frozen=True, slots=True)
class Release:
    """What is free once some checkpoints are gone: contents that only they hold, and how many stored bytes those are."""

    contents: tuple[UUID, ...]
    stored: int


@cache
def _prunable(given: tuple[bool, ...]) -> Statement:
    """Those that are meant and not pinned, but for the newest ones of each flow."""
    opener = gate()
    newest = func.row_number().over(partition_by=checkpoints.c.flow_id, order_by=checkpoints.c.checkpoint_id.desc())
    ranked = select(checkpoints.c.checkpoint_id, checkpoints.c.pinned, newest.label("rank")).where(opened(opener), *conditions(given))
    found = ranked.subquery("ranked")
    query = select(found.c.checkpoint_id).where(~found.c.pinned, found.c.rank > bindparam("keep_newest", type_=BigInteger))
    return Statement(query.order_by(found.c.checkpoint_id).limit(LIMIT))


@cache
def _lock(given: tuple[bool, ...]) -> Statement:
    """Those that are still meant and not pinned: their owner may have kept one at the last moment."""
    query = select(checkpoints.c.checkpoint_id).where(
        *conditions(given), checkpoints.c.checkpoint_id == func.any(_IDS), ~checkpoints.c.pinned
    )
    return Statement(gated(query.order_by(checkpoints.c.checkpoint_id).with_for_update()))


_theirs = select(checkpoint_parts.c.content_id).where(*mine(checkpoint_parts), checkpoint_parts.c.checkpoint_id == func.any(_IDS))
_elsewhere = checkpoint_parts.alias("elsewhere")
_others = exists().where(
    *mine(_elsewhere), _elsewhere.c.content_id == sealed_contents.c.content_id, _elsewhere.c.checkpoint_id != func.all(_IDS)
)
_RELEASE = Statement(
    gated(
        select(sealed_contents.c.content_id, sealed_contents.c.stored).where(
            *mine(sealed_contents), sealed_contents.c.content_id.in_(_theirs), ~_others
        )
    )
)


@cache
def _delete(replied: bool) -> Statement:
    opener = gate()
    gone = (
        delete(checkpoints)
        .where(opened(opener), *mine(checkpoints), checkpoints.c.checkpoint_id == func.any(_IDS))
        .returning(checkpoints.c.checkpoint_id)
        .cte("gone")
    )
    query: Any = select(gone.c.checkpoint_id)
    if not replied:
        return Statement(query)
    always = select(literal_column("1").label("done")).where(opened(opener)).cte("always")
    return Statement(query.add_cte(put_reply(opener, always)))


class Removal:
    """Takes checkpoints away."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def prunable(self, tenant: Tenant, narrowed: Narrowed, keep_newest: int, limit: int) -> list[UUID]:
        """At most ``limit`` checkpoints that are meant and not pinned; of each flow the newest so many are left out."""
        values = {**narrowed.values(tenant), "keep_newest": keep_newest, "limit": limit}
        return [row[0] for row in await self._database.read([tenant], _prunable(narrowed.given), values)]

    async def release(self, tenant: Tenant, checkpoint_ids: Sequence[UUID]) -> Release:
        """What would be free without those checkpoints."""
        return _released(await self._database.read([tenant], _RELEASE, {**of_tenant(tenant), "checkpoint_ids": checkpoint_ids}))

    async def delete(
        self,
        tenant: Tenant,
        checkpoint_ids: Sequence[UUID],
        narrowed: Narrowed,
        now: datetime,
        reply: Callable[[int, Release], Reply | None],
    ) -> tuple[int, Release] | None:
        """Remove those of the checkpoints that are still meant and not pinned, with the reply: how many they were, and what is free now.

        None when the request was answered. The contents are left to ``Contents.remove``.
        """

        async def once() -> tuple[int, Release]:
            async with self._database.begin([tenant]) as transaction:
                asked = {**narrowed.values(tenant), "checkpoint_ids": checkpoint_ids}
                locked = [row[0] for row in await transaction.rows(_lock(narrowed.given), asked)]
                values = {**of_tenant(tenant), "checkpoint_ids": locked}
                released = _released(await transaction.rows(_RELEASE, values))
                told = reply(len(locked), released)
                await transaction.rows(_delete(told is not None), {**values, **reply_values(told, narrowed.flow_id or NO_FLOW, now)})
                return len(locked), released

        try:
            return await undisturbed(once)
        except asyncpg.UniqueViolationError:
            return None


def _released(rows: Sequence[Any]) -> Release:
    return Release(tuple(row[0] for row in rows), sum(row[1] for row in rows))
