"""The one statement that stores many commits of many flows: each flow is guarded by itself, and what hangs on it follows the guard.

    gate      names the tenants (row level security)
    asked     the flows' new rows, each with its place in the batch and the revision that it must still be at
    answered  request ids among them that were answered before: their flows are left alone
    moved     UPDATE flows ... WHERE revision = expected, or INSERT for new flows
    put_...   events, children, documents, activity and request ids of the flows in ``moved``, and of no other

Only the parts and columns that a batch needs are in its statement: a progress report sends neither labels nor documents. Where each part
has one row the values stand in the statement by themselves, which costs PostgreSQL a quarter less than arrays of one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import field
from functools import lru_cache
from types import MappingProxyType
from typing import Any

from sqlalchemy import (
    ARRAY,
    CTE,
    BigInteger,
    Double,
    Integer,
    LargeBinary,
    SmallInteger,
    Subquery,
    Table,
    TableValuedAlias,
    Text,
    bindparam,
    cast,
    column,
    exists,
    func,
    insert,
    literal_column,
    null,
    select,
    update,
)
from sqlalchemy import UUID as UUIDType
from sqlalchemy.dialects.postgresql import JSONB, TIMESTAMP
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.types import TypeEngine

from server.repository.statement import Statement, gate, opened, same_flow
from server.repository.tables import CUSTOM, FLOW_KEY, activity, children, documents, events, flows, requests
from server.statemachine.value import dataclass
from server.statemachine.values import FlowKey

Columns = Mapping[str, TypeEngine[Any]]
_U, _T, _B, _TIME, _I = UUIDType(), Text(), LargeBinary(), TIMESTAMP(timezone=True), BigInteger()
_PLACE: Columns = {"place": Integer()}

# What travels for each part, column by column. Arrays and JSON travel as text: unnest would flatten the first.
LEAN: Columns = MappingProxyType(
    {
        "revision": _I,
        "progress": Double(),
        "update_time": _TIME,
        "end_time": _TIME,
        "status": _T,
        "updated_by": _T,
        "current_child": _T,
        "current_phases": _T,
        "totals": _T,
        "head_hash": _B,
    }
)
WIDE: Columns = MappingProxyType({"hold": _T, "hold_reason": _T, "display_name": _T, "labels": _T, "delete_time": _TIME})
BIRTH: Columns = MappingProxyType({"type": _T, "created_by": _T, "create_time": _TIME})
_ASKED: Columns = {**_PLACE, **dict.fromkeys(FLOW_KEY, _U), "expected": _I}
_EVENT: Columns = {**_PLACE, "revision": _I, "time": _TIME, "actor": _T, "body": _T, "hash": _B}
_CHILD: Columns = {**_PLACE, "type": _T, "progress": Double(), "update_time": _TIME, "status": _T, "phases": _T}
_CHILD_BIRTH: Columns = {**_CHILD, "child_flow_id": _U, "create_time": _TIME, "definition_version": Integer()}
_DOCUMENT: Columns = {**_PLACE, "revision": _I, "size": Integer(), "name": _T, "child_type": _T, "sha256": _B, "body": _B}
_ACTIVITY: Columns = {
    **_PLACE,
    "sequence": _I,
    "time": _TIME,
    "kind": SmallInteger(),
    "slot": SmallInteger(),
    "actor": _T,
    "body": _T,
}
_REQUEST: Columns = {**_PLACE, "request_id": _U, "create_time": _TIME, "payload_hash": _B, "answer": _B}

Row = tuple[object, ...]
Given = TableValuedAlias | Subquery


@dataclass(frozen=False, slots=True)
class Batch:
    """The rows of many commits, part by part, each in the order of the part's columns; the first is the flow's place in ``keys``."""

    keys: list[FlowKey] = field(default_factory=list)
    wide: bool = False
    flows: list[Row] = field(default_factory=list)
    events: list[Row] = field(default_factory=list)
    children: dict[str, list[Row]] = field(default_factory=dict)
    born_children: dict[str, list[Row]] = field(default_factory=dict)
    documents: list[Row] = field(default_factory=list)
    activity: list[Row] = field(default_factory=list)
    requests: list[Row] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Stored:
    """What became of a batch: the flows that moved, and those left alone because a request of theirs had been answered before."""

    moved: frozenset[FlowKey]
    answered: frozenset[FlowKey]


@dataclass(frozen=True, slots=True)
class _Shape:
    """What a batch holds; one statement is made for each shape that comes along."""

    new: bool
    wide: bool
    lone: bool
    children: tuple[str, ...]
    born_children: tuple[str, ...]
    documents: bool
    activity: bool
    requests: bool


def child_table(child_type: str) -> str:
    """The key of the table that children of ``child_type`` live in."""
    return child_type if child_type in children else CUSTOM


def updating(batch: Batch) -> tuple[Statement, dict[str, object]]:
    """The statement that moves existing flows, and its values."""
    return _prepared(batch, _shape(batch, new=False))


def creating(batch: Batch) -> tuple[Statement, dict[str, object]]:
    """The statement that stores new flows, and its values; an id that is taken does not move."""
    return _prepared(batch, _shape(batch, new=True))


def outcome(batch: Batch, rows: Sequence[Any]) -> Stored:
    """What the statement's rows say."""
    moved = [batch.keys[place] for place, request_id in rows if request_id is None]
    answered = [batch.keys[place] for place, request_id in rows if request_id is not None]
    return Stored(frozenset(moved), frozenset(answered))


def _shape(batch: Batch, *, new: bool) -> _Shape:
    parts = [*batch.children.values(), *batch.born_children.values(), batch.documents, batch.activity, batch.requests]
    return _Shape(
        new,
        batch.wide or new,
        len(batch.flows) == 1 and len(batch.events) == 1 and all(len(part) <= 1 for part in parts),
        tuple(sorted(batch.children)),
        tuple(sorted(batch.born_children)),
        bool(batch.documents),
        bool(batch.activity),
        bool(batch.requests),
    )


def _columns(shape: _Shape) -> Columns:
    return {**_ASKED, **LEAN, **(WIDE if shape.wide else {}), **(BIRTH if shape.new else {})}


def _parts(shape: _Shape) -> Iterator[tuple[str, Columns]]:
    yield "asked", _columns(shape)
    yield "event", _EVENT
    for name in shape.children:
        yield f"child_{name}", _CHILD
    for name in shape.born_children:
        yield f"born_{name}", _CHILD_BIRTH
    if shape.documents:
        yield "document", _DOCUMENT
    if shape.activity:
        yield "activity", _ACTIVITY
    if shape.requests:
        yield "request", _REQUEST


def _prepared(batch: Batch, shape: _Shape) -> tuple[Statement, dict[str, object]]:
    rows: dict[str, list[Row]] = {
        "asked": batch.flows,
        "event": batch.events,
        **{f"child_{name}": found for name, found in batch.children.items()},
        **{f"born_{name}": found for name, found in batch.born_children.items()},
        "document": batch.documents,
        "activity": batch.activity,
        "request": batch.requests,
    }
    statement, names = _statement(shape)
    values: dict[str, object] = {}
    for part, parameters in names:
        # A row may have more columns than the shape asks for: those of the wide shape stand last.
        values.update(zip(parameters, rows[part][0] if shape.lone else zip(*rows[part], strict=True), strict=False))
    return statement, values


@lru_cache(maxsize=512)
def _statement(shape: _Shape) -> tuple[Statement, tuple[tuple[str, tuple[str, ...]], ...]]:
    given = {part: (_alone if shape.lone else _given)(part, columns) for part, columns in _parts(shape)}
    opener, asked, request = gate(), given["asked"], given.get("request")
    answered = None if request is None else _answered(opener, asked, request)
    moved = (_created if shape.new else _moved)(opener, asked, answered, _columns(shape))
    parts = [_put("event", events, given["event"], _EVENT, moved, opener)]
    parts += [_changed(name, given[f"child_{name}"], moved, opener) for name in shape.children]
    parts += [_put(f"born_{name}", children[name], given[f"born_{name}"], _CHILD_BIRTH, moved, opener) for name in shape.born_children]
    if shape.documents:
        parts.append(_put("document", documents, given["document"], _DOCUMENT, moved, opener))
    if shape.activity:
        parts.append(_put("activity", activity, given["activity"], _ACTIVITY, moved, opener))
    if request is not None:
        parts.append(_put("request", requests, request, _REQUEST, moved, opener))
    query: Any = select(moved.c.place, cast(null(), _U).label("request_id"))
    if answered is not None:
        query = query.union_all(select(answered.c.place, answered.c.request_id))
    names = tuple((part, tuple(f"{part}_{name}" for name in columns)) for part, columns in _parts(shape))
    return Statement(query.add_cte(*parts)), names


def _given(part: str, columns: Columns) -> TableValuedAlias:
    arrays = [bindparam(f"{part}_{name}", type_=ARRAY(kind)) for name, kind in columns.items()]
    return func.unnest(*arrays).table_valued(*(column(name, kind) for name, kind in columns.items())).render_derived(name=part)


def _alone(part: str, columns: Columns) -> Subquery:
    return select(*(bindparam(f"{part}_{name}", type_=kind).label(name) for name, kind in columns.items())).subquery(part)


def _converted(given: Given, name: str) -> Any:
    value = given.c[name]
    match name:
        case "current_phases":
            return func.string_to_array(value, literal_column("','"))
        case "totals":
            return cast(func.string_to_array(value, literal_column("','")), ARRAY(BigInteger))
        case "labels" | "phases":
            return cast(value, JSONB)
        case _:
            return value


def _answered(opener: CTE, asked: Given, request: Given) -> CTE:
    return (
        select(request.c.place, request.c.request_id)
        .where(
            opened(opener),
            asked.c.place == request.c.place,
            requests.c.client_account_id == asked.c.client_account_id,
            requests.c.engagement_id == asked.c.engagement_id,
            requests.c.request_id == request.c.request_id,
        )
        .cte("answered")
    )


def _fresh(asked: Given, answered: CTE | None) -> list[Any]:
    return [] if answered is None else [~exists().where(answered.c.place == asked.c.place)]


def _moved(opener: CTE, asked: Given, answered: CTE | None, columns: Columns) -> CTE:
    changing = [name for name in columns if name not in _ASKED]
    return (
        update(flows)
        .values({name: _converted(asked, name) for name in changing})
        .where(opened(opener), *same_flow(flows, asked), flows.c.revision == asked.c.expected, *_fresh(asked, answered))
        .returning(asked.c.place, *(flows.c[key] for key in FLOW_KEY))
        .cte("moved")
    )


def _created(opener: CTE, asked: Given, answered: CTE | None, columns: Columns) -> CTE:
    names = [name for name in columns if name not in ("place", "expected")]
    rows = select(*(_converted(asked, name) for name in names)).where(opened(opener), *_fresh(asked, answered))
    stored = upsert(flows).from_select(names, rows).on_conflict_do_nothing().returning(*(flows.c[key] for key in FLOW_KEY)).cte("stored")
    # INSERT can return only what it stored: the place in the batch is found again by the key.
    return select(asked.c.place, *(stored.c[key] for key in FLOW_KEY)).where(*same_flow(stored, asked)).cte("moved")


def _changed(name: str, given: Given, moved: CTE, opener: CTE) -> CTE:
    """The children of moved flows that were there before."""
    table = children[name]
    changing = [column for column in _CHILD if column not in ("place", "type")]
    return (
        update(table)
        .values({column: _converted(given, column) for column in changing})
        .where(opened(opener), given.c.place == moved.c.place, *same_flow(table, moved), table.c.type == given.c.type)
        .returning(table.c.client_account_id)
        .cte(f"put_child_{name}")
    )


def _put(part: str, table: Table, given: Given, columns: Columns, moved: CTE, opener: CTE) -> CTE:
    """The rows of ``part`` whose flow moved, put into ``table``; documents and activity take the place of what is there."""
    own = [name for name in columns if name != "place"]
    rows = select(*(moved.c[key] for key in FLOW_KEY), *(_converted(given, name) for name in own))
    rows = rows.where(opened(opener), given.c.place == moved.c.place)
    names = [*FLOW_KEY, *own]
    if table is not documents and table is not activity:
        return insert(table).from_select(names, rows).returning(table.c.client_account_id).cte(f"put_{part}")
    putting = upsert(table).from_select(names, rows)
    key = [item.name for item in table.primary_key.columns]
    replaced = {name: putting.excluded[name] for name in own if name not in key}
    return putting.on_conflict_do_update(index_elements=key, set_=replaced).returning(table.c.client_account_id).cte(f"put_{part}")
