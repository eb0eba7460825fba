"""Tenants' policies: read once in a while, since every commit may ask for one."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from typing import Any

import asyncpg
from sqlalchemy import BigInteger, bindparam, select
from sqlalchemy.dialects.postgresql import insert as upsert

from server.repository.admin_tables import policies
from server.repository.database import Database
from server.repository.requests import NO_FLOW, Answered, Reply, answered, put_reply, reply_values
from server.repository.statement import Statement, gate, gated, mine, of_tenant, opened
from server.repository.table_parts import TENANT_KEY
from server.statemachine.errors import EtagChanged, StoreUnavailable
from server.statemachine.policy import Policy
from server.statemachine.states import PhaseState
from server.statemachine.values import Tenant

# A policy that was read is taken for current for so long.
FRESH_SECONDS = 5.0
REMEMBERED = 4096
_ATTEMPTS = 10

_COLUMNS = (
    "etag",
    "keep_revisions",
    "keep_seconds",
    "keep_last_good",
    "keep_terminal",
    "checkpoint_before",
    "auto_seconds",
    "update_time",
    "updated_by",
)
_GET = Statement(gated(select(*(policies.c[name] for name in _COLUMNS)).where(*mine(policies))))


def _putting(replied: bool) -> Statement:
    opener = gate()
    values = [bindparam(name, type_=policies.c[name].type) for name in (*TENANT_KEY, *_COLUMNS)]
    putting = upsert(policies).from_select([*TENANT_KEY, *_COLUMNS], select(*values).where(opened(opener)))
    stored = (
        putting.on_conflict_do_update(
            index_elements=TENANT_KEY,
            set_={name: putting.excluded[name] for name in _COLUMNS},
            where=policies.c.etag == bindparam("known", type_=BigInteger),
        )
        .returning(policies.c.etag)
        .cte("stored")
    )
    query: Any = select(stored.c.etag)
    return Statement(query.add_cte(put_reply(opener, stored)) if replied else query)


_PUT, _PUT_WITH_REPLY = _putting(False), _putting(True)


class Policies:
    """What tenants want kept."""

    def __init__(self, database: Database, clock: Callable[[], float]) -> None:
        """``clock`` tells seconds that only ever go forward."""
        self._database, self._clock = database, clock
        self._known: OrderedDict[Tenant, tuple[float, Policy]] = OrderedDict()
        self._reading: dict[Tenant, asyncio.Task[Policy]] = {}

    async def policy_of(self, tenant: Tenant) -> Policy:
        """The tenant's policy as it was a few seconds ago at most. Raises StoreUnavailable."""
        known = self._known.get(tenant)
        if known is not None and self._clock() - known[0] < FRESH_SECONDS:
            return known[1]
        reading = self._reading.get(tenant)
        if reading is None:  # all who ask meanwhile wait for the same
            reading = self._reading[tenant] = asyncio.create_task(self.get(tenant), name="policy")
            reading.add_done_callback(partial(self._read, tenant))
        return await asyncio.shield(reading)

    async def get(self, tenant: Tenant) -> Policy:
        """The tenant's policy as it is."""
        asked = self._clock()
        rows = await self._database.read([tenant], _GET, of_tenant(tenant))
        policy = _policy(rows[0]) if rows else Policy()
        self._remember(tenant, asked, policy)
        return policy

    async def put(
        self, tenant: Tenant, wanted: Policy, expected: int, occasion: tuple[str, datetime], reply: Callable[[Policy], Reply | None]
    ) -> Policy | Answered:
        """The policy as it then is, or what the same request was answered before; ``expected`` 0 means whatever etag is current.

        ``occasion`` is who sets it, and when. Raises EtagChanged, RequestIdReused, StoreUnavailable.
        """
        actor, now = occasion
        for _ in range(_ATTEMPTS):
            current = (await self.get(tenant)).etag
            made = replace(wanted, etag=current + 1, update_time=now, updated_by=actor)
            told = reply(made)
            if told is not None and (before := await answered(self._database, tenant, told)):
                return before
            if expected and expected != current:
                raise EtagChanged("the policy", expected, current)
            values = {**of_tenant(tenant), **_values(made), "known": current, **reply_values(told, NO_FLOW, now)}
            try:
                stored = await self._database.read([tenant], _PUT if told is None else _PUT_WITH_REPLY, values)
            except asyncpg.UniqueViolationError:
                continue  # a twin was first: its answer is found now
            if stored:
                self._remember(tenant, self._clock(), made)
                return made
        raise StoreUnavailable(f"others set the policy in each of {_ATTEMPTS} attempts: retry in a moment")

    def _read(self, tenant: Tenant, reading: asyncio.Task[Policy]) -> None:
        self._reading.pop(tenant, None)
        if not reading.cancelled():
            reading.exception()  # whoever waited for it was told; perhaps nobody did any more

    def _remember(self, tenant: Tenant, asked: float, policy: Policy) -> None:
        known = self._known.get(tenant)
        if known is not None and known[1].etag > policy.etag:  # a read that was overtaken by a change
            return
        self._known[tenant] = asked, policy
        self._known.move_to_end(tenant)
        if len(self._known) > REMEMBERED:
            self._known.popitem(last=False)


def _values(policy: Policy) -> dict[str, object]:
    return {
        "etag": policy.etag,
        "keep_revisions": policy.keep_revisions,
        "keep_seconds": policy.keep_duration.total_seconds(),
        "keep_last_good": policy.keep_last_good,
        "keep_terminal": policy.keep_terminal,
        "checkpoint_before": sorted(state.name for state in policy.checkpoint_before),
        "auto_seconds": policy.auto_checkpoint_ttl.total_seconds(),
        "update_time": policy.update_time,
        "updated_by": policy.updated_by,
    }


def _policy(row: Sequence[Any]) -> Policy:
    etag, revisions, seconds, last_good, terminal, before, auto, update_time, updated_by = row
    return Policy(
        revisions,
        timedelta(seconds=seconds),
        last_good,
        terminal,
        frozenset(PhaseState[name] for name in before),
        timedelta(seconds=auto),
        etag,
        update_time,
        updated_by,
    )
