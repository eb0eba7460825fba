"""Statements written in Core, compiled once, and run as prepared text on the driver's own connection.

Core costs 450 us a call and the driver 100 (PERFORMANCE.md), so Core is the language and not the road.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from sqlalchemy import ARRAY, CTE, ColumnElement, Select, TableValuedAlias, Text, bindparam, column, func, literal_column, select
from sqlalchemy.dialects.postgresql.asyncpg import dialect
from sqlalchemy.sql.expression import ClauseElement
from sqlalchemy.types import TypeEngine

from server.repository.table_parts import TENANT_KEY
from server.repository.tables import TENANTS_SETTING
from server.statemachine.values import Tenant

# What travels, column by column.
Columns = Mapping[str, TypeEngine[Any]]

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


def mine(table: Any) -> list[ColumnElement[bool]]:
    """The conditions that pick one tenant's rows; the parameters are called as the columns."""
    return [table.c[key] == bindparam(key, type_=table.c[key].type) for key in TENANT_KEY]


def of_tenant(tenant: Tenant) -> dict[str, object]:
    """The values of ``mine``."""
    return {"client_account_id": tenant.client_account_id, "engagement_id": tenant.engagement_id}


def mine_of(table: Any, other: Any) -> list[ColumnElement[bool]]:
    """The conditions under which a row of ``table`` is of the same tenant as one of ``other``."""
    return [table.c[key] == other.c[key] for key in TENANT_KEY]


def given(part: str, columns: Columns) -> TableValuedAlias:
    """Rows that the caller gives, as a table called ``part``."""
    arrays = [bindparam(f"{part}_{name}", type_=ARRAY(kind)) for name, kind in columns.items()]
    return func.unnest(*arrays).table_valued(*(column(name, kind) for name, kind in columns.items())).render_derived(name=part)


def given_values(part: str, columns: Iterable[str], rows: Iterable[Sequence[object]]) -> dict[str, object]:
    """The values of ``given``."""
    names = [f"{part}_{name}" for name in columns]
    found = list(zip(*rows, strict=True)) or [()] * len(names)
    return {name: list(values) for name, values in zip(names, found, strict=True)}


def gated(query: Select[Any]) -> Select[Any]:
    """``query`` behind the gate."""
    return query.where(opened(gate()))
