"""Statements written in Core, compiled once, and run as prepared text on the driver's own connection.

Core costs 450 us a call and the driver 100 (PERFORMANCE.md), so Core is the language and not the road.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

from sqlalchemy import CTE, ColumnElement, Select, Table, Text, bindparam, func, literal_column, select
from sqlalchemy.dialects.postgresql.asyncpg import dialect
from sqlalchemy.sql.expression import ClauseElement

from server.repository.table_parts import TENANT_KEY
from server.repository.tables import TENANTS_SETTING
from server.statemachine.values import Tenant

_DIALECT = dialect()  # type: ignore[no-untyped-call]


class Statement:
    """The text of a Core statement and the order of its parameters."""

    __slots__ = ("_names", "_preset", "text")

    def __init__(self, core: ClauseElement) -> None:
        compiled = core.compile(dialect=_DIALECT, compile_kwargs={"render_postcompile": True})
        self.text: str = str(compiled)
        self._names: tuple[str, ...] = tuple(compiled.positiontup or ())  # type: ignore[attr-defined]
        binds = compiled.binds  # type: ignore[attr-defined]
        # Without those that wait for a value: one that is forgotten must not become NULL.
        self._preset: dict[str, object] = {name: value for name, value in compiled.params.items() if not binds[name].required}

    def arguments(self, values: Mapping[str, object]) -> list[object]:
        """The values in the order of the text's placeholders; what Core bound itself is filled in."""
        preset = self._preset
        return [values[name] if name in values else preset[name] for name in self._names]


def named(tenants: Iterable[Tenant]) -> str:
    """The tenants as row level security reads them."""
    return ",".join(map(_named, tenants))


@lru_cache(maxsize=4096)
def _named(tenant: Tenant) -> str:
    return f"{tenant.client_account_id}/{tenant.engagement_id}"


def gate() -> CTE:
    """Names the tenants of the transaction within its first statement, so that row level security costs no round trip.

    The parameter is called ``tenants``. Every part of a statement that touches a tenant table must carry ``opened(gate)``.
    """
    setting = func.set_config(literal_column(f"'{TENANTS_SETTING}'"), bindparam("tenants", type_=Text), literal_column("true"))
    return select(setting.label("tenants")).cte("gate").prefix_with("MATERIALIZED")


def opened(name: CTE) -> ColumnElement[bool]:
    """A condition without columns: PostgreSQL tests it once, before it touches a row ("One-Time Filter"), and so opens the gate first."""
    return select(name.c.tenants).scalar_subquery().is_not(None)


def same_flow(one: Any, other: Any) -> list[ColumnElement[bool]]:
    """The conditions under which rows of two tables, or a table and a set of values, belong to the same flow of the same tenant."""
    return [one.c[key] == other.c[key] for key in (*TENANT_KEY, "flow_id")]


def mine(table: Table) -> list[ColumnElement[bool]]:
    """The conditions that pick one tenant's rows; the parameters are called as the columns."""
    return [table.c[key] == bindparam(key, type_=table.c[key].type) for key in TENANT_KEY]


def gated(query: Select[Any]) -> Select[Any]:
    """``query`` behind the gate."""
    return query.where(opened(gate()))
