"""Signing anew what compaction left, when another key signs than did then: so that the old one can be given up some day."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import UUID as UUIDType
from sqlalchemy import BigInteger, Integer, LargeBinary, bindparam, func, literal_column, select, tuple_, update

from server.repository.admin_tables import erasures
from server.repository.chain import Anchor, Signs, Verifies
from server.repository.database import Database
from server.repository.history_tables import bases
from server.repository.statement import Columns, Statement, gate, given, given_values, mine, of_tenant, opened
from server.statemachine.values import FlowKey, Tenant

PAGE = 500

_NEW: Columns = {"flow_id": UUIDType(), "revision": BigInteger(), "before": LargeBinary(), "signature": LargeBinary()}


def _page() -> Statement:
    opener = gate()
    after: Any = tuple_(bindparam("flow_id", type_=UUIDType()), bindparam("revision", type_=BigInteger))
    erased: Any = select(literal_column("1")).where(opened(opener), *mine(erasures)).exists()
    columns = [bases.c.flow_id, bases.c.revision, bases.c.hash, bases.c.signature, func.sha256(bases.c.body), erased]
    found = select(*columns).where(opened(opener), *mine(bases), tuple_(bases.c.flow_id, bases.c.revision) > after)
    found = found.where(bases.c.signature.is_not(None)).order_by(bases.c.flow_id, bases.c.revision)
    return Statement(found.limit(bindparam("size", type_=Integer)))


def _renew() -> Statement:
    new = given("new", _NEW)
    # Compaction may have made another base there meanwhile: that one has its own signature.
    same = [bases.c[name] == new.c[name] for name in ("flow_id", "revision")]
    done = (
        update(bases)
        .values(signature=new.c.signature)
        .where(opened(gate()), *mine(bases), *same, bases.c.signature == new.c.before)
        .returning(bases.c.revision)
        .cte("done")
    )
    return Statement(select(func.count()).select_from(done))


_PAGE, _RENEW = _page(), _renew()


class Resigning:
    """Gives bases the present key's signature in the place of one of ours from before; what does not hold stays as it is."""

    def __init__(self, database: Database, sign: Signs, verifies: Verifies) -> None:
        self._database, self._sign, self._verifies = database, sign, verifies

    async def resign(self, tenant: Tenant, _: datetime | None = None) -> int:
        """How many bases of the tenant were signed anew: a job of the sweeper. Raises StoreUnavailable."""
        done, flow_id, revision = 0, UUID(int=0), 0
        while True:
            values = {**of_tenant(tenant), "flow_id": flow_id, "revision": revision, "size": PAGE}
            rows = await self._database.read([tenant], _PAGE, values)
            renewed = []
            for flow_id, revision, hash_, signature, body_sha256, erased in rows:
                anchor, key = Anchor(revision, hash_, signature, body_sha256), FlowKey(tenant, flow_id)
                present = anchor.signed(key, self._sign)
                if present != signature and anchor.holds(key, self._verifies, emptied=erased):
                    renewed.append((flow_id, revision, signature, present))
            if renewed:
                stored = await self._database.read([tenant], _RENEW, {**of_tenant(tenant), **given_values("new", _NEW, renewed)})
                done += stored[0][0]
            if len(rows) < PAGE:
                return done
