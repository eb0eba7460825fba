"""The one statement that stores many commits of many flows: each flow is guarded by itself, and what hangs on it follows the guard.

    gate      names the tenants (row level security)
    asked     the flows' new rows, each with its place in the batch and the revision that it must still be at
    answered  request ids among them that were answered before: their flows are left alone
    moved     UPDATE flows ... WHERE revision = expected, or INSERT for new flows
    put_...   events, children, documents, activity and request ids of the flows in ``moved``, and of no other

Only the parts and columns that a batch needs are in its statement: a progress report sends neither labels nor documents. Where one flow
moves by one revision, what is one row stands in the statement by itself, which costs PostgreSQL a quarter less than arrays of one.
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
    and_,
    bindparam,
    case,
    cast,
    column,
    delete,
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

from server.repository.admin_tables import tenants
from server.repository.event_codec import FORMAT
from server.repository.history_tables import VersionKind, bases, document_versions
from server.repository.statement import Statement, gate, opened, same_flow
from server.repository.table_parts import FLOW_KEY, TENANT_KEY
from server.repository.tables import CUSTOM, activity, children, documents, events, flows, requests
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
BIRTH: Columns = MappingProxyType({"type": _T, "created_by": _T, "create_time": _TIME, "origin_flow_id": _U, "origin_revision": _I})
_ASKED: Columns = {**_PLACE, **dict.fromkeys(FLOW_KEY, _U), "expected": _I}
_EVENT: Columns = {**_PLACE, "revision": _I, "time": _TIME, "actor": _T, "body": _T, "hash": _B}
_CHILD: Columns = {**_PLACE, "type": _T, "progress": Double(), "update_time": _TIME, "status": _T, "phases": _T}
_CHILD_BIRTH: Columns = {**_CHILD, "child_flow_id": _U, "create_time": _TIME, "definition_version": Integer()}
_DOCUMENT: Columns = {
    **_PLACE,
    "revision": _I,
    "size": Integer(),
    "name": _T,
    "child_type": _T,
    "sha256": _B,
    "body": _B,
    "number": Integer(),
    # How the version before is made of this one, and which version that must be.
    "delta": _B,
    "delta_of": _I,
}
_VERSION: Columns = {
    **_PLACE,
    "revision": _I,
    "size": Integer(),
    "kind": SmallInteger(),
    "name": _T,
    "child_type": _T,
    "sha256": _B,
    "body": _B,
}
_GONE_DOCUMENT: Columns = {**_PLACE, "revision": _I, "name": _T, "child_type": _T}
_GONE_CHILD: Columns = {**_PLACE, "type": _T}
_BASE: Columns = {**_PLACE, "revision": _I, "hash": _B, "body": _B}
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

# Of a document's versions every so many one is kept whole, so that rebuilding any unpacks no more than so many.
WHOLE_EVERY = 64

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
    gone_children: dict[str, list[Row]] = field(default_factory=dict)
    versions: list[Row] = field(default_factory=list)
    gone_documents: list[Row] = field(default_factory=list)
    bases: list[Row] = field(default_factory=list)


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
    # The parts that have one row each of one commit; none where several commits go together.
    lone: frozenset[str]
    children: tuple[str, ...]
    born_children: tuple[str, ...]
    documents: bool
    activity: bool
    requests: bool
    gone_children: tuple[str, ...]
    versions: bool
    gone_documents: bool
    bases: bool


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
    return _Shape(
        new,
        batch.wide or new,
        _lone(batch),
        tuple(sorted(batch.children)),
        tuple(sorted(batch.born_children)),
        bool(batch.documents),
        bool(batch.activity),
        bool(batch.requests),
        tuple(sorted(batch.gone_children)),
        bool(batch.versions),
        bool(batch.gone_documents),
        bool(batch.bases),
    )


def _lone(batch: Batch) -> frozenset[str]:
    if len(batch.flows) > 1 or len(batch.events) > 1:
        return frozenset()
    return frozenset(part for part, rows in _rows(batch).items() if len(rows) == 1)


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
    for name in shape.gone_children:
        yield f"gone_{name}", _GONE_CHILD
    if shape.versions:
        yield "version", _VERSION
    if shape.gone_documents:
        yield "gone_document", _GONE_DOCUMENT
    if shape.bases:
        yield "base", _BASE


def _rows(batch: Batch) -> dict[str, list[Row]]:
    return {
        "asked": batch.flows,
        "event": batch.events,
        **{f"child_{name}": found for name, found in batch.children.items()},
        **{f"born_{name}": found for name, found in batch.born_children.items()},
        "document": batch.documents,
        "activity": batch.activity,
        "request": batch.requests,
        **{f"gone_{name}": found for name, found in batch.gone_children.items()},
        "version": batch.versions,
        "gone_document": batch.gone_documents,
        "base": batch.bases,
    }


def _prepared(batch: Batch, shape: _Shape) -> tuple[Statement, dict[str, object]]:
    rows = _rows(batch)
    statement, names = _statement(shape)
    values: dict[str, object] = {}
    for part, parameters in names:
        # A row may have more columns than the shape asks for: those of the wide shape stand last.
        values.update(zip(parameters, rows[part][0] if part in shape.lone else zip(*rows[part], strict=True), strict=False))
    return statement, values


@lru_cache(maxsize=512)
def _statement(shape: _Shape) -> tuple[Statement, tuple[tuple[str, tuple[str, ...]], ...]]:
    given = {part: (_alone if part in shape.lone else _given)(part, columns) for part, columns in _parts(shape)}
    opener, asked, request = gate(), given["asked"], given.get("request")
    answered = None if request is None else _answered(opener, asked, request)
    moved = (_created if shape.new else _moved)(opener, asked, answered, _columns(shape))
    parts = [_put("event", events, given["event"], _EVENT, moved, opener)]
    parts += [_changed(name, given[f"child_{name}"], moved, opener) for name in shape.children]
    parts += [_put(f"born_{name}", children[name], given[f"born_{name}"], _CHILD_BIRTH, moved, opener) for name in shape.born_children]
    if shape.new:
        parts.append(_known_tenants(asked, moved))
    if shape.documents:
        parts.append(_put("document", documents, given["document"], _DOCUMENT, moved, opener))
        if not shape.new:
            parts.append(_kept("document", given["document"], moved, opener))
    if shape.gone_documents:
        gone = given["gone_document"]
        parts += [_kept("gone_document", gone, moved, opener), _absent(gone, moved, opener), _removed(documents, gone, moved, opener)]
    parts += [_removed(children[name], given[f"gone_{name}"], moved, opener) for name in shape.gone_children]
    if shape.versions:
        parts.append(_put("version", document_versions, given["version"], _VERSION, moved, opener))
    if shape.bases:
        parts.append(_put("base", bases, given["base"], _BASE, moved, opener))
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


def _converted(given: Given | CTE, name: str) -> Any:
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
    if isinstance(given, Subquery):  # a row by itself, which is found by its whole key whatever PostgreSQL begins with
        source: Any = given
        theirs = [given.c.place == moved.c.place, *same_flow(table, moved), table.c.type == given.c.type]
    else:
        source = _named(f"child_{name}", given, moved, *changing)
        theirs = _theirs(table, source)
    return (
        update(table)
        .values({column: _converted(source, column) for column in changing})
        .where(opened(opener), *theirs)
        .returning(table.c.client_account_id)
        .cte(f"put_child_{name}")
    )


def _put(part: str, table: Table, given: Given, columns: Columns, moved: CTE, opener: CTE) -> CTE:
    """The rows of ``part`` whose flow moved, put into ``table``; documents and activity take the place of what is there."""
    own = [name for name in columns if name in table.c]
    if table is events:
        return _put_events(given, moved, opener)
    rows = select(*(moved.c[key] for key in FLOW_KEY), *(_converted(given, name) for name in own))
    rows = rows.where(opened(opener), given.c.place == moved.c.place)
    names = [*FLOW_KEY, *own]
    if table is not documents and table is not activity:
        return insert(table).from_select(names, rows).returning(table.c.client_account_id).cte(f"put_{part}")
    putting = upsert(table).from_select(names, rows)
    key = [item.name for item in table.primary_key.columns]
    replaced: dict[str, Any] = {name: putting.excluded[name] for name in own if name not in key}
    if table is documents:
        replaced["number"] = documents.c.number + putting.excluded.number
    return putting.on_conflict_do_update(index_elements=key, set_=replaced).returning(table.c.client_account_id).cte(f"put_{part}")


def _put_events(given: Given, moved: CTE, opener: CTE) -> CTE:
    own = [name for name in _EVENT if name != "place"]
    rows = select(*(moved.c[key] for key in FLOW_KEY), *(given.c[name] for name in own), literal_column(str(FORMAT)))
    rows = rows.where(opened(opener), given.c.place == moved.c.place)
    return insert(events).from_select([*FLOW_KEY, *own, "format"], rows).returning(events.c.client_account_id).cte("put_event")


def _known_tenants(asked: Given, moved: CTE) -> CTE:
    """Whose flows were made: the sweeper looks for tenants there."""
    rows = select(moved.c.client_account_id, moved.c.engagement_id, asked.c.create_time).where(asked.c.place == moved.c.place)
    putting = upsert(tenants).from_select([*TENANT_KEY, "create_time"], rows)
    return putting.on_conflict_do_nothing().returning(tenants.c.client_account_id).cte("put_tenant")


def _named(part: str, given: Given, moved: CTE, *columns: str) -> CTE:
    """What ``given`` names of the flows that moved, by its whole key.

    Materialized, so that PostgreSQL finds the rows by that key: joined step by step, it may begin with the name, which is no key at all.
    """
    names = [name for name in ("name", "child_type", "type", *columns) if name in given.c]
    rows = select(*(moved.c[key] for key in FLOW_KEY), *(given.c[name] for name in names)).where(given.c.place == moved.c.place)
    return rows.cte(f"named_{part}").prefix_with("MATERIALIZED")


def _theirs(table: Any, named: CTE) -> list[Any]:
    """The conditions that pick the documents, or the children, that are named."""
    own = [name for name in ("name", "child_type", "type") if name in named.c and name in table.c]
    return [*same_flow(table, named), *(table.c[name] == named.c[name] for name in own)]


def _kept(part: str, given: Given, moved: CTE, opener: CTE) -> CTE:
    """The present versions of documents that change or go, put with the earlier ones: as a delta where the caller made one of it."""
    whole: Any = literal_column(str(VersionKind.WHOLE.value))
    delta: Any = literal_column(str(VersionKind.DELTA.value))
    kind = whole
    body: Any = documents.c.body
    named = _named(part, given, moved, "delta", "delta_of")
    if "delta" in named.c:
        fits = and_(
            named.c.delta.is_not(None),
            named.c.delta_of == documents.c.revision,
            documents.c.number % literal_column(str(WHOLE_EVERY)) != literal_column("0"),
        )
        kind, body = case((fits, delta), else_=whole), case((fits, named.c.delta), else_=documents.c.body)
    same = ("revision", "size", "name", "child_type", "sha256")
    rows = select(*(documents.c[name] for name in (*FLOW_KEY, *same)), kind, body)
    rows = rows.where(opened(opener), *_theirs(documents, named))
    names = [*FLOW_KEY, *same, "kind", "body"]
    return insert(document_versions).from_select(names, rows).returning(document_versions.c.client_account_id).cte(f"keep_{part}")


def _absent(given: Given, moved: CTE, opener: CTE) -> CTE:
    """What says that a document was not there any more."""
    kind: Any = literal_column(str(VersionKind.ABSENT.value))
    nothing: tuple[Any, ...] = (literal_column("0"), kind, literal_column("decode(repeat('00', 32), 'hex')"))
    rows = select(
        *(moved.c[key] for key in FLOW_KEY), given.c.revision, given.c.name, given.c.child_type, *nothing, literal_column("''::bytea")
    )
    rows = rows.where(opened(opener), given.c.place == moved.c.place)
    names = [*FLOW_KEY, "revision", "name", "child_type", "size", "kind", "sha256", "body"]
    return insert(document_versions).from_select(names, rows).returning(document_versions.c.client_account_id).cte("put_absent")


def _removed(table: Table, given: Given, moved: CTE, opener: CTE) -> CTE:
    """The rows that ``given`` names, taken out of the table."""
    taken = delete(table).where(opened(opener), *_theirs(table, _named(f"remove_{table.name}", given, moved)))
    return taken.returning(table.c.client_account_id).cte(f"remove_{table.name}")
