"""What is stored of a flow, as it is: rows as the JSON text that PostgreSQL makes of them, so that nothing in them is in the way.

A row that the driver or our own codecs would refuse (an infinite time, a state that there is not, an array with holes) is text like any
other, and what a recovery puts aside is exactly this text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson
from sqlalchemy import CTE, BigInteger, Integer, Table, Text, bindparam, cast, func, literal_column, select, tuple_, union_all
from sqlalchemy import UUID as UUIDType
from sqlalchemy.sql.expression import ColumnElement

from server.repository.checkpoint_tables import checkpoints
from server.repository.database import Database, Transaction
from server.repository.history_tables import bases, document_versions
from server.repository.statement import Statement, gate, mine, of_tenant, opened
from server.repository.tables import activity, children, documents, events, flows
from server.statemachine.loose import Row
from server.statemachine.value import dataclass
from server.statemachine.values import FlowKey

_FLOW = bindparam("flow_id", type_=UUIDType())
# What a recovery may replace as a whole.
WHOLE_TABLES: tuple[Table, ...] = (flows, *children.values(), documents, activity)


def _json(table: Table) -> ColumnElement[str]:
    return cast(func.to_json(literal_column(table.name)), Text)


def _theirs(table: Any) -> list[ColumnElement[bool]]:
    return [*mine(table), table.c.flow_id == _FLOW]


def _whole() -> Statement:
    """Every row of the tables that hold the flow as it is, and where its history begins and ends."""
    opener = gate()
    rows: list[Any] = [
        select(literal_column(f"'{table.name}'").label("name"), _json(table)).where(opened(opener), *_theirs(table))
        for table in WHOLE_TABLES
    ]
    return Statement(union_all(*rows, *_spans(opener)))


def _spans(opener: CTE) -> list[Any]:
    """Where the history begins and ends, table by table."""
    return [
        select(
            literal_column(f"'{table.name}'"),
            cast(func.json_build_array(func.min(table.c.revision), func.max(table.c.revision), func.count()), Text),
        ).where(opened(opener), *_theirs(table))
        for table in (events, bases, document_versions, checkpoints)
    ]


_WHOLE = _whole()
_SPANS = Statement(union_all(*_spans(gate())))
_AFTER, _UPTO, _SIZE = bindparam("after", type_=BigInteger), bindparam("upto", type_=BigInteger), bindparam("size", type_=Integer)


def _paged(table: Any) -> Statement:
    """Rows after one revision and up to another, in order."""
    rows = select(table.c.revision, _json(table)).where(
        opened(gate()), *_theirs(table), table.c.revision > _AFTER, table.c.revision <= _UPTO
    )
    return Statement(rows.order_by(table.c.revision).limit(_SIZE))


_EVENTS, _BASES = _paged(events), _paged(bases)

_place = tuple_(document_versions.c.name, document_versions.c.child_type, document_versions.c.revision)
_before = tuple_(bindparam("name", type_=Text), bindparam("child_type", type_=Text), bindparam("revision", type_=BigInteger))
_VERSIONS = Statement(
    select(document_versions.c.name, document_versions.c.child_type, document_versions.c.revision, _json(document_versions))
    .where(opened(gate()), *_theirs(document_versions), _place < _before)
    .order_by(document_versions.c.name.desc(), document_versions.c.child_type.desc(), document_versions.c.revision.desc())
    .limit(_SIZE)
)
_EARLIEST = ("\U0010ffff", "\U0010ffff", 2**63 - 1)
# Pages small enough that a page of large versions still fits into memory many times over.
VERSIONS_PAGE = 32
LOG_PAGE = 1000
HIGHEST = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Span:
    """Where the rows of a table begin and end by revision, and how many there are; 0 without any."""

    first: int = 0
    last: int = 0
    count: int = 0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What is stored of a flow at one moment, its history left out: each table's rows as JSON text, and the spans of the others."""

    texts: Mapping[str, tuple[str, ...]]
    spans: Mapping[str, Span]

    @property
    def any(self) -> bool:
        """Whether anything is there."""
        return any(self.texts.values()) or any(span.count for span in self.spans.values())

    @property
    def size(self) -> int:
        """The bytes of all rows."""
        return sum(len(text) for texts in self.texts.values() for text in texts)

    def rows(self, table: str) -> list[Row]:
        """The table's rows; one that is no JSON for us (nested beyond measure) is without columns."""
        return [row_of(text) for text in self.texts[table]]


@dataclass(frozen=True, slots=True)
class Logged:
    """A row of the history: the revision that it is of, and its JSON text."""

    revision: int
    text: str


class Remains:
    """Reads what is stored, whatever state it is in."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def whole(self, key: FlowKey) -> Snapshot:
        """The flow as it is stored, of one moment."""
        return _snapshot(await self._database.read([key.tenant], _WHOLE, _of(key)))

    async def whole_within(self, transaction: Transaction, key: FlowKey) -> Snapshot:
        """The same within a transaction."""
        return _snapshot(await transaction.rows(_WHOLE, _of(key)))

    async def spans(self, key: FlowKey) -> Mapping[str, Span]:
        """Where the flow's history begins and ends."""
        return _snapshot(await self._database.read([key.tenant], _SPANS, _of(key))).spans

    async def events(self, key: FlowKey, after: int, upto: int, size: int = LOG_PAGE) -> list[Logged]:
        """At most ``size`` events after one revision and up to another, in order."""
        return await self._logged(_EVENTS, key, after, upto, size)

    async def bases(self, key: FlowKey, after: int, upto: int, size: int = LOG_PAGE) -> list[Logged]:
        """The same of bases."""
        return await self._logged(_BASES, key, after, upto, size)

    async def versions(self, key: FlowKey, before: tuple[str, str, int] = _EARLIEST) -> list[tuple[tuple[str, str, int], str]]:
        """A page of earlier versions of documents, by place and the newest first, after the last of the page before."""
        name, child_type, revision = before
        values = {**_of(key), "name": name, "child_type": child_type, "revision": revision, "size": VERSIONS_PAGE}
        return [((row[0], row[1], row[2]), row[3]) for row in await self._database.read([key.tenant], _VERSIONS, values)]

    async def _logged(self, statement: Statement, key: FlowKey, after: int, upto: int, size: int) -> list[Logged]:
        rows = await self._database.read([key.tenant], statement, {**_of(key), "after": after, "upto": upto, "size": size})
        return [Logged(revision, text) for revision, text in rows]


def row_of(text: str) -> Row:
    """The columns of a row; none of one that is nested beyond what can be read."""
    try:
        found = orjson.loads(text)
    except orjson.JSONDecodeError:
        return {}
    return found if isinstance(found, dict) else {}


def _of(key: FlowKey) -> dict[str, object]:
    return {**of_tenant(key.tenant), "flow_id": key.flow_id}


def _snapshot(rows: Sequence[Any]) -> Snapshot:
    texts: dict[str, list[str]] = {f"{table.name}": [] for table in WHOLE_TABLES}  # plain texts: SQLAlchemy's names are a kind of their own
    spans: dict[str, Span] = {}
    for name, text in rows:
        if name in texts:
            texts[name].append(text)
        else:
            first, last, count = orjson.loads(text)
            spans[name] = Span(first or 0, last or 0, count)
    return Snapshot({name: tuple(sorted(found)) for name, found in texts.items()}, spans)
