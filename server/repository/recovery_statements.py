"""The statements that carry out a recovery: each writes whole rows of one flow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import UUID as UUIDType
from sqlalchemy import Text, and_, bindparam, cast, delete, exists, insert, literal_column, select, update
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.dialects.postgresql import insert as upsert

from server.repository import event_codec
from server.repository.admin_tables import quarantine
from server.repository.history_tables import VersionKind, bases, document_versions
from server.repository.statement import Columns, Statement, gate, given, mine, opened
from server.repository.table_parts import FLOW_KEY
from server.repository.tables import activity, children, documents, events, flows, requests

# The next version of a document is then kept whole: nobody knows how long the chain of the versions before is.
NUMBER = 64

_FLOW = bindparam("flow_id", type_=UUIDType())


def _theirs(table: Any) -> list[Any]:
    return [*mine(table), table.c.flow_id == _FLOW]


def _key() -> list[Any]:
    return [bindparam(name, type_=UUIDType()) for name in FLOW_KEY]


def _value(table: Any, name: str) -> Any:
    kind = table.c[name].type
    value = bindparam(f"to_{name}", type_=Text() if isinstance(kind, JSONB) else kind)
    return cast(value, JSONB) if isinstance(kind, JSONB) else value


def _own(table: Any) -> list[str]:
    return [column.name for column in table.c if column.name not in FLOW_KEY]


def _one(table: Any) -> Statement:
    """One new row with all its columns."""
    rows = select(*_key(), *(_value(table, name) for name in _own(table))).where(opened(gate()))
    return Statement(insert(table).from_select([*FLOW_KEY, *_own(table)], rows))


def _many(table: Any, columns: Columns, constants: Mapping[str, str] = {}) -> Statement:
    """Rows of one flow, in the place of those that are there; ``constants`` are the same in all of them."""
    rows = given("rows", columns)
    names = [*FLOW_KEY, *columns, *constants]
    values = [*_key(), *(rows.c[name] for name in columns), *map(literal_column, constants.values())]
    putting = upsert(table).from_select(names, select(*values).where(opened(gate())))
    key = [column.name for column in table.primary_key.columns]
    setting = {name: putting.excluded[name] for name in (*columns, *constants) if name not in key}
    return Statement(putting.on_conflict_do_update(index_elements=key, set_=setting))


def _types(table: Any, *names: str) -> Columns:
    return {name: table.c[name].type for name in names}


LOCK = Statement(select(flows.c.flow_id).where(opened(gate()), *_theirs(flows)).with_for_update(of=flows))
NEW_FLOW = _one(flows)
FLOW_ROW = Statement(update(flows).values({name: _value(flows, name) for name in _own(flows)}).where(opened(gate()), *_theirs(flows)))
CHILD_ROWS = {domain: _one(table) for domain, table in children.items()}
WITHOUT = {table.name: Statement(delete(table).where(opened(gate()), *_theirs(table))) for table in (*children.values(), activity)}
ENTRY = _types(activity, "sequence", "time", "kind", "slot", "actor", "body")
ENTRIES = _many(activity, ENTRY)
EVENT = _types(events, "revision", "time", "actor", "body", "hash")
_told = given("rows", EVENT)
EVENTS = Statement(
    insert(events).from_select(
        [*FLOW_KEY, *EVENT, "format"],
        select(*_key(), *(_told.c[name] for name in EVENT), literal_column(str(event_codec.FORMAT))).where(opened(gate())),
    )
)
_spoilt = given("spoilt", _types(events, "revision"))
UNTOLD = Statement(
    delete(events).where(
        opened(gate()), *_theirs(events), exists(select(_spoilt.c.revision).where(_spoilt.c.revision == events.c.revision))
    )
)
BASE = _types(bases, "revision", "hash", "body")
BASES = _many(bases, BASE)
DOCUMENT = _types(documents, "revision", "size", "name", "child_type", "sha256", "body")
DOCUMENTS = _many(documents, DOCUMENT, {"number": str(NUMBER)})
ABSENT = _types(document_versions, "revision", "name", "child_type")
ABSENCES = _many(
    document_versions,
    ABSENT,
    {"size": "0", "kind": str(VersionKind.ABSENT.value), "sha256": "decode(repeat('00', 32), 'hex')", "body": "''::bytea"},
)


def _of_places() -> tuple[Any, Any]:
    """Places of documents as rows, and the condition that a document is one of them."""
    places = given("places", _types(documents, "name", "child_type"))
    return places, and_(documents.c.name == places.c.name, documents.c.child_type == places.c.child_type)


def _keeping() -> Statement:
    """The present versions of some documents, put with the earlier ones."""
    places, same = _of_places()
    own = [*FLOW_KEY, "revision", "size", "name", "child_type", "sha256", "body"]
    rows = select(*(documents.c[name] for name in own), literal_column(str(VersionKind.WHOLE.value)))
    rows = rows.where(opened(gate()), *_theirs(documents), exists(select(places.c.name).where(same)))
    return Statement(upsert(document_versions).from_select([*own, "kind"], rows).on_conflict_do_nothing())


def _leaving() -> Statement:
    """Without any document but these."""
    places, same = _of_places()
    return Statement(delete(documents).where(opened(gate()), *_theirs(documents), ~exists(select(places.c.name).where(same))))


KEEP, LEAVE = _keeping(), _leaving()
_fixed = given("fixed", _types(events, "revision", "hash"))
HASHES = Statement(
    update(events).values(hash=_fixed.c.hash).where(opened(gate()), *_theirs(events), events.c.revision == _fixed.c.revision)
)
QUARANTINED = ("quarantine_id", "create_time", "actor", "reason", "body")
QUARANTINE = Statement(
    insert(quarantine).from_select(
        [*FLOW_KEY, *QUARANTINED],
        select(*_key(), *(bindparam(f"to_{name}", type_=quarantine.c[name].type) for name in QUARANTINED)).where(opened(gate())),
    )
)
REQUESTED = ("request_id", "create_time", "payload_hash", "answer")
REQUEST = Statement(
    insert(requests).from_select(
        [*FLOW_KEY, *REQUESTED],
        select(*_key(), *(bindparam(f"to_{name}", type_=requests.c[name].type) for name in REQUESTED)).where(opened(gate())),
    )
)
