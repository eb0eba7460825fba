"""Alerts: each raised once, counted in the order of their commits, so that a watch misses none."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from hashlib import sha256
from typing import Any
from uuid import UUID

import asyncpg
from sqlalchemy import UUID as UUIDType
from sqlalchemy import BigInteger, Integer, LargeBinary, Text, bindparam, func, literal_column, or_, select
from sqlalchemy.dialects.postgresql import insert

from server.repository.admin_tables import alerts
from server.repository.database import Database
from server.repository.statement import Statement, gate, gated, mine, of_tenant, opened
from server.repository.table_parts import TENANT_KEY, TIME
from server.statemachine.alert import Alert, AlertKind, AlertSeverity
from server.statemachine.errors import StoreUnavailable
from server.statemachine.value import dataclass
from server.statemachine.values import Tenant

ATTEMPTS = 20

_earlier = alerts.alias("earlier")
_GIVEN: dict[str, Any] = {
    "alert_id": UUIDType(),
    "flow_id": UUIDType(),
    "checkpoint_id": UUIDType(),
    "create_time": TIME,
    "kind": Text(),
    "severity": Text(),
    "child_type": Text(),
    "phase": Text(),
    "message": Text(),
    "fingerprint": LargeBinary(),
}
_opener = gate()
_last: Any = select(func.max(_earlier.c.number)).where(opened(_opener), *mine(_earlier)).scalar_subquery()
_RAISE = Statement(
    insert(alerts)
    .from_select(
        [*TENANT_KEY, *_GIVEN, "number"],
        select(
            *(bindparam(name, type_=UUIDType()) for name in TENANT_KEY),
            *(bindparam(name, type_=kind) for name, kind in _GIVEN.items()),
            func.coalesce(_last, literal_column("0")) + literal_column("1"),
        ).where(opened(_opener)),
    )
    .on_conflict_do_nothing(index_elements=[*TENANT_KEY, "fingerprint"])
    .returning(alerts.c.number)
)

_READ = (
    alerts.c.number,
    alerts.c.alert_id,
    alerts.c.kind,
    alerts.c.severity,
    alerts.c.create_time,
    alerts.c.message,
    alerts.c.flow_id,
    alerts.c.child_type,
    alerts.c.phase,
    alerts.c.checkpoint_id,
)


def _if_asked(name: str) -> Any:
    column = alerts.c[name]
    asked = bindparam(f"asked_{name}", type_=column.type)
    return or_(asked.is_(None), column == asked)


_SIZE = bindparam("size", type_=Integer)
_NUMBER: Any = bindparam("from_number", type_=BigInteger)
_PAGE = Statement(
    gated(
        select(*_READ)
        .where(*mine(alerts), *map(_if_asked, ("flow_id", "kind", "severity")), or_(_NUMBER.is_(None), alerts.c.number < _NUMBER))
        .order_by(alerts.c.number.desc())
        .limit(_SIZE)
    )
)
_AFTER = Statement(gated(select(*_READ).where(*mine(alerts), alerts.c.number > _NUMBER).order_by(alerts.c.number).limit(_SIZE)))
_FIND = Statement(gated(select(alerts.c.number).where(*mine(alerts), alerts.c.alert_id == bindparam("alert_id", type_=UUIDType()))))
_SINCE = Statement(
    gated(
        select(func.min(alerts.c.number).filter(alerts.c.create_time >= bindparam("since", type_=TIME)), func.max(alerts.c.number)).where(
            *mine(alerts)
        )
    )
)


@dataclass(frozen=True, slots=True)
class Numbered:
    """An alert as it was stored, and its number among its tenant's; its subject is not kept."""

    number: int
    alert: Alert


class Alerts:
    """What was raised."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def put(self, tenant: Tenant, alert: Alert) -> bool:
        """Store the alert; False when the same thing was told before. Raises StoreUnavailable."""
        values = {
            **of_tenant(tenant),
            "alert_id": alert.alert_id,
            "flow_id": alert.flow_id,
            "checkpoint_id": alert.checkpoint_id,
            "create_time": alert.create_time,
            "kind": alert.kind.name,
            "severity": alert.severity.name,
            "child_type": alert.child_type,
            "phase": alert.phase,
            "message": alert.message,
            "fingerprint": sha256(f"{alert.kind.name}\0{alert.subject}".encode()).digest(),
        }
        for _ in range(ATTEMPTS):
            try:
                return bool(await self._database.read([tenant], _RAISE, values))
            except asyncpg.UniqueViolationError:
                continue  # another one took the number, and has been committed: the next is free
        raise StoreUnavailable(f"others raised alerts in each of {ATTEMPTS} attempts")

    async def page(
        self,
        tenant: Tenant,
        flow_id: UUID | None,
        kind: AlertKind | None,
        severity: AlertSeverity | None,
        before: int | None,
        size: int,
    ) -> list[Numbered]:
        """At most ``size`` alerts that match, the newest first, of those before number ``before``."""
        values = {
            **of_tenant(tenant),
            "asked_flow_id": flow_id,
            "asked_kind": None if kind is None else kind.name,
            "asked_severity": None if severity is None else severity.name,
            "from_number": before,
            "size": size,
        }
        return _numbered(await self._database.read([tenant], _PAGE, values))

    async def after(self, tenant: Tenant, number: int, size: int) -> list[Numbered]:
        """At most ``size`` alerts after that number, in the order in which they were committed."""
        return _numbered(await self._database.read([tenant], _AFTER, {**of_tenant(tenant), "from_number": number, "size": size}))

    async def number_of(self, tenant: Tenant, alert_id: UUID) -> int | None:
        """The alert's number; None when the tenant has no such alert."""
        rows = await self._database.read([tenant], _FIND, {**of_tenant(tenant), "alert_id": alert_id})
        return rows[0][0] if rows else None

    async def before(self, tenant: Tenant, since: datetime) -> int:
        """The number after which the alerts that were raised since then begin."""
        first, last = (await self._database.read([tenant], _SINCE, {**of_tenant(tenant), "since": since}))[0]
        return int(first - 1 if first is not None else last or 0)


def _numbered(rows: Sequence[Any]) -> list[Numbered]:
    return [
        Numbered(
            number,
            Alert(alert_id, AlertKind[kind], AlertSeverity[severity], create_time, message, "", flow_id, child_type, phase, checkpoint_id),
        )
        for number, alert_id, kind, severity, create_time, message, flow_id, child_type, phase, checkpoint_id in rows
    ]
