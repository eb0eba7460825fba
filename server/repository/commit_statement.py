"""The one statement that stores many commits of many flows: each flow is guarded by itself, and what hangs on it follows the guard.

gate      names the tenants (row level security)
asked     the flows' new rows, with the revision each must still be at
answered  request ids among them that were answered before: their flows are left alone
moved     UPDATE flows ... WHERE revision = expected, or INSERT for new flows
...       events, children, documents, activity and request ids of the flows in ``moved``, and of no other
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any
from uuid import UUID

from sqlalchemy import (
    ARRAY,
    CTE,
    BigInteger,
    Double,
    Integer,
    LargeBinary,
    SmallInteger,
    Table,
    TableValuedAlias,
    Text,
    bindparam,
    cast,
    column,
    exists,
    func,
    literal,
    select,
    update,
)
from sqlalchemy import UUID as UUIDType
from sqlalchemy.dialects.postgresql import JSONB, TIMESTAMP, insert
from sqlalchemy.types import TypeEngine

from server.repository.statement import Statement, gate, opened, same_flow
from server.repository.tables import CUSTOM, FLOW_KEY, activity, children, documents, events, flows, requests
from server.statemachine.values import Tenant

_U, _T, _B, _TIME = UUIDType(), Text(), LargeBinary(), TIMESTAMP(timezone=True)
_KEY: dict[str, TypeEngine[Any]] = dict.fromkeys(FLOW_KEY, _U)

# What travels for each part, column by column. Arrays and JSON travel as text: unnest would flatten the first.
_FLOW = {
    **_KEY,
    "expected": BigInteger(),
    "revision": BigInteger(),
    "progress": Double(),
    "update_time": _TIME,
    "end_time": _TIME,
    "delete_time": _TIME,
    "status": _T,
    "hold": _T,
    "hold_reason": _T,
    "display_name": _T,
    "updated_by": _T,
    "current_child": _T,
    "current_phases": _T,
    "labels": _T,
    "totals": _T,
    "head_hash": _B,
    "type": _T,
    "created_by": _T,
    "create_time": _TIME,
}
_BIRTH = ("type", "created_by", "create_time")
_EVENT = {**_KEY, "revision": BigInteger(), "time": _TIME, "actor": _T, "body": _T, "hash": _B}
_CHILD = {
    **_KEY,
    "child_flow_id": _U,
    "progress": Double(),
    "create_time": _TIME,
    "update_time": _TIME,
    "definition_version": Integer(),
    "type": _T,
    "status": _T,
    "phases": _T,
}
_DOCUMENT = {
    **_KEY,
    "revision": BigInteger(),
    "size": Integer(),
    "name": _T,
    "child_type": _T,
    "sha256": _B,
    "body": _B,
}
_ACTIVITY = {
    **_KEY,
    "sequence": BigInteger(),
    "time": _TIME,
    "kind": SmallInteger(),
    "slot": SmallInteger(),
    "actor": _T,
    "body": _T,
}
_REQUEST = {**_KEY, "request_id": _U, "create_time": _TIME, "payload_hash": _B, "answer": _B}

Row = tuple[object, ...]


@dataclass(slots=True)
class Batch:
    """The rows of many commits, part by part, each in the order of the part's columns."""

    flows: list[Row] = field(default_factory=list)
    events: list[Row] = field(default_factory=list)
    children: dict[str, list[Row]] = field(default_factory=dict)
    documents: list[Row] = field(default_factory=list)
    activity: list[Row] = field(default_factory=list)
    requests: list[Row] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Stored:
    """What became of a batch: the flows that moved, and the request ids that had been answered before."""

    moved: frozenset[tuple[Tenant, UUID]]
    answered: tuple[tuple[Tenant, UUID, UUID], ...]  # tenant, flow, request


def child_table(child_type: str) -> str:
    """The key of the table that children of ``child_type`` live in."""
    return child_type if child_type in children else CUSTOM


def updating(batch: Batch) -> tuple[Statement, dict[str, object]]:
    """The statement that moves existing flows, and its values."""
    return _statement(False, *_shape(batch)), _values(batch)


def creating(batch: Batch) -> tuple[Statement, dict[str, object]]:
    """The statement that stores new flows, and its values; an id that is taken does not move."""
    return _statement(True, *_shape(batch)), _values(batch)


def outcome(rows: Sequence[Any]) -> Stored:
    """What the statement's rows say."""
    moved, answered = [], []
    for account, engagement, flow_id, request_id in rows:
        tenant = Tenant(account, engagement)
        if request_id is None:
            moved.append((tenant, flow_id))
        else:
            answered.append((tenant, flow_id, request_id))
    return Stored(frozenset(moved), tuple(answered))


def _shape(batch: Batch) -> tuple[tuple[str, ...], bool, bool, bool]:
    return tuple(sorted(batch.children)), bool(batch.documents), bool(batch.activity), bool(batch.requests)


def _values(batch: Batch) -> dict[str, object]:
    parts: list[tuple[str, dict[str, TypeEngine[Any]], list[Row]]] = [
        ("asked", _FLOW, batch.flows),
        ("event", _EVENT, batch.events),
        *((f"child_{name}", _CHILD, rows) for name, rows in batch.children.items()),
        ("document", _DOCUMENT, batch.documents),
        ("activity", _ACTIVITY, batch.activity),
        ("request", _REQUEST, batch.requests),
    ]
    return {
        f"{part}_{name}": values
        for part, columns, rows in parts
        if rows
        for name, values in zip(columns, zip(*rows, strict=True), strict=True)
    }


def _given(part: str, columns: dict[str, TypeEngine[Any]]) -> TableValuedAlias:
    arrays = [bindparam(f"{part}_{name}", type_=ARRAY(kind)) for name, kind in columns.items()]
    return func.unnest(*arrays).table_valued(*(column(name, kind) for name, kind in columns.items())).render_derived(name=part)


@lru_cache(maxsize=512)
def _statement(new: bool, domains: tuple[str, ...], with_documents: bool, with_activity: bool, with_requests: bool) -> Statement:
    opener = gate()
    asked = _given("asked", _FLOW)
    request = _given("request", _REQUEST)
    answered = (
        select(*(request.c[key] for key in FLOW_KEY), request.c.request_id)
        .where(
            opened(opener),
            requests.c.client_account_id == request.c.client_account_id,
            requests.c.engagement_id == request.c.engagement_id,
            requests.c.request_id == request.c.request_id,
        )
        .cte("answered")
    )
    fresh = [~exists().where(*same_flow(answered, asked))] if with_requests else []
    moved = _created(opener, asked, fresh) if new else _moved(opener, asked, fresh)
    parts = [_follow("event", events, _EVENT, moved)]
    parts += [_follow(f"child_{name}", children[name], _CHILD, moved) for name in domains]
    if with_documents:
        parts.append(_follow("document", documents, _DOCUMENT, moved))
    if with_activity:
        parts.append(_follow("activity", activity, _ACTIVITY, moved))
    if with_requests:
        parts.append(_follow("request", requests, _REQUEST, moved))
    query: Any = select(*(moved.c[key] for key in FLOW_KEY), literal(None, _U).label("request_id"))
    if with_requests:
        query = query.union_all(select(*(answered.c[key] for key in FLOW_KEY), answered.c.request_id))
    return Statement(query.add_cte(*parts))


def _converted(asked: Any, name: str) -> Any:
    value = asked.c[name]
    match name:
        case "current_phases":
            return func.string_to_array(value, ",")
        case "totals":
            return cast(func.string_to_array(value, ","), ARRAY(BigInteger))
        case "labels" | "phases":
            return cast(value, JSONB)
        case _:
            return value


def _moved(opener: CTE, asked: TableValuedAlias, fresh: list[Any]) -> CTE:
    changing = [name for name in _FLOW if name not in (*FLOW_KEY, *_BIRTH, "expected")]
    return (
        update(flows)
        .values({name: _converted(asked, name) for name in changing})
        .where(opened(opener), *same_flow(flows, asked), flows.c.revision == asked.c.expected, *fresh)
        .returning(*(flows.c[key] for key in FLOW_KEY))
        .cte("moved")
    )


def _created(opener: CTE, asked: TableValuedAlias, fresh: list[Any]) -> CTE:
    names = [name for name in _FLOW if name != "expected"]
    rows = select(*(_converted(asked, name) for name in names)).where(opened(opener), *fresh)
    return insert(flows).from_select(names, rows).on_conflict_do_nothing().returning(*(flows.c[key] for key in FLOW_KEY)).cte("moved")


def _follow(part: str, table: Table, columns: dict[str, TypeEngine[Any]], moved: CTE) -> CTE:
    """The rows of ``part`` whose flow moved, put into ``table``; what can be there already is replaced."""
    given = _given(part, columns)
    rows = select(*(_converted(given, name) for name in columns)).where(*same_flow(given, moved))
    putting = insert(table).from_select(list(columns), rows)
    key = [item.name for item in table.primary_key.columns]
    if table is not events and table is not requests:
        replaced = {name: putting.excluded[name] for name in columns if name not in key}
        putting = putting.on_conflict_do_update(index_elements=key, set_=replaced)
    return putting.returning(table.c.client_account_id).cte(f"put_{part}")
