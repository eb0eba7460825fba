"""The tenants' data keys, wrapped: version 0 is a tenant's identity key, the newest of the others seals."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from functools import cache
from typing import Any

import asyncpg
from sqlalchemy import (
    ARRAY,
    CTE,
    Integer,
    LargeBinary,
    Text,
    bindparam,
    delete,
    exists,
    func,
    insert,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import insert as upsert

from server.repository.checkpoint_tables import checkpoints, sealed_chunks, tenant_keys
from server.repository.database import Database
from server.repository.requests import NO_FLOW, Reply, put_reply, reply_values
from server.repository.statement import Columns, Statement, gate, gated, given, given_values, mine, of_tenant, opened
from server.repository.table_parts import TENANT_KEY, TIME
from server.statemachine.value import dataclass
from server.statemachine.values import Tenant

IDENTITY = 0


@dataclass(frozen=True, slots=True)
class KeyRow:
    """One data key as it is stored."""

    version: int
    kek_id: str
    wrapped: bytes


def held(opener: CTE) -> CTE:
    """The key that something was sealed with, held until the statement has ended; no row when it may seal no longer.

    By what is wrapped and not by the version alone: a tenant that was erased begins again with version 1. The parameters are called
    ``sealed_version`` and ``sealed_wrapped``.
    """
    newer = tenant_keys.alias("newer")
    version = bindparam("sealed_version", type_=Integer)
    found = select(tenant_keys.c.version).where(
        opened(opener),
        *mine(tenant_keys),
        tenant_keys.c.version == version,
        tenant_keys.c.wrapped == bindparam("sealed_wrapped", type_=LargeBinary),
        ~exists().where(opened(opener), *mine(newer), newer.c.version > version),
    )
    return found.with_for_update(read=True, key_share=True, of=tenant_keys).cte("held")


def held_values(row: KeyRow) -> dict[str, object]:
    """The values of ``held``."""
    return {"sealed_version": row.version, "sealed_wrapped": row.wrapped}


_COLUMNS = [tenant_keys.c.version, tenant_keys.c.kek_id, tenant_keys.c.wrapped]
_ALL = Statement(gated(select(*_COLUMNS).where(*mine(tenant_keys)).order_by(tenant_keys.c.version)))

_opener = gate()
_KEY: Columns = {"version": Integer(), "kek_id": Text(), "wrapped": LargeBinary()}
_given = given("key", _KEY)
_rows = select(
    *(bindparam(key, type_=tenant_keys.c[key].type) for key in TENANT_KEY),
    _given.c.version,
    bindparam("create_time", type_=TIME),
    _given.c.kek_id,
    _given.c.wrapped,
).where(opened(_opener))
_ADD = Statement(
    upsert(tenant_keys)
    .from_select([*TENANT_KEY, "version", "create_time", "kek_id", "wrapped"], _rows)
    .on_conflict_do_nothing()
    .returning(tenant_keys.c.version)
)
_exchange_opener = gate()
_EXCHANGE = Statement(
    update(tenant_keys)
    .values(kek_id=bindparam("new_kek_id", type_=Text), wrapped=bindparam("new_wrapped", type_=LargeBinary))
    .where(
        opened(_exchange_opener),
        *mine(tenant_keys),
        tenant_keys.c.version == bindparam("at_version", type_=Integer),
        tenant_keys.c.wrapped == bindparam("old_wrapped", type_=LargeBinary),
    )
    .returning(tenant_keys.c.version)
)
_old_opener = gate()
_newest = select(func.max(tenant_keys.c.version)).where(opened(_old_opener), *mine(tenant_keys)).scalar_subquery()
# Locked first and looked at again after that: what was sealed meanwhile is seen, and nothing more can be sealed.
_OLD = Statement(
    select(tenant_keys.c.version)
    .where(opened(_old_opener), *mine(tenant_keys), tenant_keys.c.version > IDENTITY, tenant_keys.c.version < _newest)
    .order_by(tenant_keys.c.version)
    .with_for_update()
)
_destroy_opener = gate()
_DESTROY = Statement(
    delete(tenant_keys)
    .where(
        opened(_destroy_opener),
        *mine(tenant_keys),
        tenant_keys.c.version == func.any(bindparam("versions", type_=ARRAY(Integer))),
        ~exists().where(*mine(checkpoints), checkpoints.c.key_version == tenant_keys.c.version),
        ~exists().where(*mine(sealed_chunks), sealed_chunks.c.key_version == tenant_keys.c.version),
    )
    .returning(tenant_keys.c.version)
)


@cache
def _rotate(replied: bool) -> Statement:
    opener = gate()
    row = select(
        *(bindparam(key, type_=tenant_keys.c[key].type) for key in TENANT_KEY),
        bindparam("version", type_=Integer),
        bindparam("create_time", type_=TIME),
        bindparam("kek_id", type_=Text),
        bindparam("wrapped", type_=LargeBinary),
    ).where(opened(opener))
    added = insert(tenant_keys).from_select([*TENANT_KEY, "version", "create_time", "kek_id", "wrapped"], row)
    put = added.returning(tenant_keys.c.version).cte("put_key")
    query: Any = select(put.c.version)
    return Statement(query.add_cte(put_reply(opener, put)) if replied else query)


class Keys:
    """What is stored of the tenants' data keys."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def all(self, tenant: Tenant) -> list[KeyRow]:
        """The tenant's keys by their versions."""
        return [KeyRow(*row) for row in await self._database.read([tenant], _ALL, of_tenant(tenant))]

    async def add(self, tenant: Tenant, rows: Sequence[KeyRow], now: datetime) -> None:
        """Store the keys; a version that is there already stays as it is."""
        values = {
            **of_tenant(tenant),
            **given_values("key", _KEY, [(row.version, row.kek_id, row.wrapped) for row in rows]),
            "create_time": now,
        }
        await self._database.write([tenant], _ADD, values)

    async def rotate(self, tenant: Tenant, row: KeyRow, now: datetime, reply: Reply | None) -> bool:
        """Store the new key with the reply; False when there is a key of that version, or the request was answered."""
        values = {
            **of_tenant(tenant),
            "version": row.version,
            "kek_id": row.kek_id,
            "wrapped": row.wrapped,
            "create_time": now,
            **reply_values(reply, NO_FLOW, now),
        }
        try:
            await self._database.write([tenant], _rotate(reply is not None), values)
        except asyncpg.UniqueViolationError:
            return False
        return True

    async def exchange(self, tenant: Tenant, old: KeyRow, new: KeyRow) -> bool:
        """Put the key, wrapped anew, in the place of what it was; False when it was not that any more."""
        values = {
            **of_tenant(tenant),
            "at_version": old.version,
            "old_wrapped": old.wrapped,
            "new_kek_id": new.kek_id,
            "new_wrapped": new.wrapped,
        }
        return bool(await self._database.write([tenant], _EXCHANGE, values))

    async def destroy_unused(self, tenant: Tenant) -> list[int]:
        """Destroy the old keys that seal nothing any more; their versions."""
        async with self._database.begin([tenant]) as transaction:
            old = [row[0] for row in await transaction.rows(_OLD, of_tenant(tenant))]
            if not old:
                return []
            return [row[0] for row in await transaction.rows(_DESTROY, {**of_tenant(tenant), "versions": old})]
