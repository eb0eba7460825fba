"""Filters and orders of lists: AIP-160 and AIP-132 text to frozen values, and those to SQL conditions.

``parse`` follows https://google.aip.dev/160: OR binds tighter than AND, terms side by side mean AND, ``*`` in the text of ``=`` and ``!=``
stands for any characters, ``:`` means "has". A comparison with something that a flow does not have (an ``end_time``, a label) does not
match, not even with ``!=``; ``NOT`` of it does. Bare literals and functions are refused.

Every value from the text becomes a bound parameter of a plain type (str, int, float, datetime), so that the statement can be compiled
once and run on the driver without SQLAlchemy's own conversions.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum, unique
from operator import eq, ge, gt, le, lt, ne
from typing import TypeAlias, TypeVar
from uuid import UUID

from lark import Lark, Token, Transformer, UnexpectedCharacters, UnexpectedInput, UnexpectedToken
from sqlalchemy import ColumnElement, String, Table, and_, cast, literal, not_, or_, true, tuple_
from sqlalchemy.dialects.postgresql import JSONB

from server.statemachine.errors import InvalidRequest, invalid
from server.statemachine.states import FlowStatus

MAX_CHARACTERS = 2000
MAX_COMPARISONS = 50
MAX_NESTING = 20
_MAX_INT64 = 2**63 - 1


@unique
class Operator(Enum):
    """What a comparison asks; the values are AIP-160's spelling."""

    EQUAL = "="
    NOT_EQUAL = "!="
    LESS = "<"
    LESS_OR_EQUAL = "<="
    GREATER = ">"
    GREATER_OR_EQUAL = ">="
    HAS = ":"


@dataclass(frozen=True, slots=True)
class Pattern:
    """A text with wildcards: the literal pieces between them, two at least."""

    pieces: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Comparison:
    """A field, or the label ``label`` if the field is ``labels``, against a value. HAS asks for presence and has no value."""

    field: str
    operator: Operator
    value: str | Pattern | int | float | datetime | None = None
    label: str | None = None


@dataclass(frozen=True, slots=True)
class Negation:
    """True where the operand is not."""

    operand: Expression


@dataclass(frozen=True, slots=True)
class Conjunction:
    """True where all operands are."""

    operands: tuple[Expression, ...]


@dataclass(frozen=True, slots=True)
class Disjunction:
    """True where at least one operand is."""

    operands: tuple[Expression, ...]


Expression: TypeAlias = Comparison | Negation | Conjunction | Disjunction


@dataclass(frozen=True, slots=True)
class Filter:
    """What a list is narrowed to; without an expression it is not narrowed."""

    expression: Expression | None = None


@unique
class _Kind(Enum):
    """What a field holds."""

    TEXT = "text"
    STATUS = "status"
    NUMBER = "number"
    INTEGER = "integer"
    TIME = "time"
    LABELS = "labels"
    NAMES = "names"


_FLOW_FIELDS = {
    "type": _Kind.TEXT,
    "status": _Kind.STATUS,
    "display_name": _Kind.TEXT,
    "progress_percent": _Kind.NUMBER,
    "revision": _Kind.INTEGER,
    "created_by": _Kind.TEXT,
    "create_time": _Kind.TIME,
    "update_time": _Kind.TIME,
    "end_time": _Kind.TIME,
    "labels": _Kind.LABELS,
}
# What can be told of an event without reading anything else.
_EVENT_FIELDS = {"type": _Kind.TEXT, "status": _Kind.STATUS, "phase": _Kind.NAMES, "labels": _Kind.LABELS}
_COLUMNS = {"progress_percent": "progress"}
_NULLABLE = frozenset({"end_time"})
_STATUSES = tuple(status.name for status in FlowStatus)

# After a comparator the lexer only looks for an ARGUMENT, so times and label keys need no quotes. Parentheses leave no node behind.
_GRAMMAR = r"""
    start: expression?
    ?expression: sequence (_AND sequence)*
    ?sequence: factor+
    ?factor: term (_OR term)*
    ?term: simple | (_NOT | _MINUS) simple -> negation
    ?simple: NAME COMPARATOR (ARGUMENT | STRING | FUNCTION) -> comparison
           | (NAME | STRING | FUNCTION) -> bare
           | "(" expression ")"

    _AND.3: /AND(?![^\s()"'])/
    _OR.3: /OR(?![^\s()"'])/
    _NOT.3: /NOT(?![^\s()"'])/
    _MINUS: "-"
    FUNCTION.2: /(?!(?:AND|OR|NOT)\()[^\s()"',=<>!:\-][^\s()"',=<>!:]*\(/
    NAME: /[^\s()"',=<>!:\-](?:[^\s()"',=<>!:.]|\.(?!["']))*(?:\.(?:"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'))?/s
    COMPARATOR: /<=|>=|!=|[=<>:]/
    ARGUMENT: /[^\s()"',=<>!:][^\s()"',=<>!]*/
    STRING: /"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'/s
    %ignore /[ \t\r\n]+/
"""
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"|\'(?:[^\'\\]|\\.)*\'', re.DOTALL)
_TEXT_PART = re.compile(r"\\(?P<escaped>.)|(?P<wildcard>\*)|(?P<plain>[^\\*]+)|(?P<alone>\\)", re.DOTALL)
_NUMBER = re.compile(r"[+-]?[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
_INTEGER = re.compile(r"[+-]?[0-9]{1,30}")
_RFC_3339 = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]+)?(?:[Zz]|[+-][0-9]{2}:[0-9]{2})")


def parse(text: str) -> Filter:
    """The filter that the text describes; of empty text, one that matches every flow.

    Raises InvalidRequest on ``filter`` that names the position (characters, from 1) and what may stand there, for: more than
    2,000 characters, 50 comparisons or 20 nested parentheses, a syntax error, an unknown field or status, a value of the wrong type.
    """
    return _parsed(text, _FLOWS)


def parse_events(text: str) -> Filter:
    """The filter of events that the text describes: over ``type``, ``status``, ``labels`` and ``phase``. Raises as ``parse`` does."""
    return _parsed(text, _EVENTS)


def _parsed(text: str, parser: Lark) -> Filter:
    if len(text) > MAX_CHARACTERS:
        raise invalid("filter", f"has {len(text)} characters, the limit is {MAX_CHARACTERS}")
    for position, character in enumerate(text, 1):
        if character == "\0" or "\ud800" <= character <= "\udfff":
            raise _wrong(position, f"U+{ord(character):04X} cannot be stored, so nothing has it")
    _check_nesting(text)
    try:
        # LALR: a stack and no recursion, and the transformer runs while it parses.
        expression: Expression | None = parser.parse(text)  # type: ignore[assignment]
    except UnexpectedInput as error:
        raise _syntax_error(text, error) from None
    comparisons = sum(1 for _ in _comparisons(expression)) if expression else 0
    if comparisons > MAX_COMPARISONS:
        raise invalid("filter", f"has {comparisons} comparisons, the limit is {MAX_COMPARISONS}")
    return Filter(expression)


def condition(filter: Filter, table: Table) -> ColumnElement[bool]:
    """The condition on a row of ``table`` (columns as the contract's fields, but ``progress``); true or false, never null."""
    return true() if filter.expression is None else _condition(filter.expression, table)


def _wrong(position: int, description: str) -> InvalidRequest:
    return invalid("filter", f"position {position}: {description}")


def _shown(text: str) -> str:
    return repr(str(text) if len(text) <= 40 else text[:40] + "...")


def _check_nesting(text: str) -> None:
    depth = 0
    # Strings are blanked, not cut out, so that positions stay.
    for position, character in enumerate(_STRING.sub(lambda found: " " * len(found[0]), text), 1):
        depth += (character == "(") - (character == ")")
        if depth > MAX_NESTING:
            raise _wrong(position, f"parentheses are nested deeper than {MAX_NESTING}")


def _syntax_error(text: str, error: UnexpectedInput) -> InvalidRequest:
    if isinstance(error, UnexpectedToken) and error.token.type == "$END":
        missing = "a value" if "ARGUMENT" in error.expected else "')'" if "RPAR" in error.expected else "a comparison"
        return _wrong(len(text) + 1, f"the filter ends where {missing} is missing")
    position = (error.pos_in_stream or 0) + 1
    at = str(error.token) if isinstance(error, UnexpectedToken) else text[position - 1]
    if at == "(" and isinstance(error, UnexpectedToken) and "ARGUMENT" in error.expected:
        return _wrong(position, "one value stands here; for several, repeat the field: (type = a OR type = b)")
    if isinstance(error, UnexpectedCharacters) and at in "\"'":
        return _wrong(position, "the quote that opens here is never closed")
    return _wrong(position, f'{_shown(at)} cannot stand here; a filter reads like: status = PAUSED AND labels.wave = "3"')


class _Builder(Transformer[Token, Expression | None]):
    """Makes the expression while the parser reads, and refuses what is well formed but has no meaning here."""

    def __init__(self, fields: Mapping[str, _Kind]) -> None:
        super().__init__()
        self._fields = fields
        self._known = ", ".join("labels.KEY" if name == "labels" else name for name in fields)

    def start(self, items: list[Expression]) -> Expression | None:
        return items[0] if items else None

    def expression(self, items: list[Expression]) -> Expression:
        return Conjunction(tuple(items))

    sequence = expression

    def factor(self, items: list[Expression]) -> Expression:
        return Disjunction(tuple(items))

    def negation(self, items: list[Expression]) -> Expression:
        return Negation(items[0])

    def bare(self, items: list[Token]) -> Expression:
        raise _wrong(_position(items[0]), f'{_shown(items[0])} stands alone: compare a field, as in display_name = "*words*"')

    def comparison(self, items: list[Token]) -> Expression:
        name, operator, argument = items
        field, dot, rest = name.partition(".")
        kind = self._fields.get(field)
        if kind is None or (dot and kind is not _Kind.LABELS):
            raise _wrong(_position(name), f"{_shown(name)} is not a field; the fields are {self._known}")
        if kind is _Kind.LABELS:
            return _label_comparison(name, _unquoted(name, rest) if dot else None, Operator(operator), argument)
        return _field_comparison(field, kind, Operator(operator), argument)


def _function(token: Token) -> Token:
    raise _wrong(_position(token), f"{_shown(token[:-1])} is called as a function, and there are none: compare a field, or leave a space")


def _position(token: Token) -> int:
    return (token.start_pos or 0) + 1


def _pieces(token: Token, written: str) -> tuple[str, ...]:
    """The text between wildcards; one piece if there are none. A backslash makes quotes, ``*`` and itself ordinary."""
    if written[0] not in "\"'":
        return tuple(written.split("*"))
    pieces = [""]
    for part in _TEXT_PART.finditer(written[1:-1]):
        if part["wildcard"]:
            pieces.append("")
        elif part["plain"]:
            pieces[-1] += part["plain"]
        elif part["escaped"] and part["escaped"] in "\"'\\*":
            pieces[-1] += part["escaped"]
        else:
            raise _wrong(_position(token), f"{_shown(part[0])} is no escape; there are \\\" \\' \\\\ and \\*")
    return tuple(pieces)


def _unquoted(token: Token, written: str) -> str:
    """The text without its quotes, with each ``*`` for itself."""
    return "*".join(_pieces(token, written)) if written else ""


def _text(token: Token, operator: Operator) -> str | Pattern:
    pieces = _pieces(token, token)
    if operator in (Operator.EQUAL, Operator.NOT_EQUAL) and len(pieces) > 1:
        return Pattern(pieces)
    return "*".join(pieces)


def _label_comparison(name: Token, key: str | None, operator: Operator, argument: Token) -> Comparison:
    if key is None:
        if operator is not Operator.HAS:
            raise _wrong(_position(name), 'labels are compared one by one, as in labels.wave = "3"; labels:wave asks whether there is one')
        return Comparison("labels", Operator.HAS, label=None if argument == "*" else _unquoted(argument, argument))
    if not key:
        raise _wrong(_position(name), "the label's key is missing after labels.")
    if operator is Operator.HAS:
        if argument == "*":
            return Comparison("labels", Operator.HAS, label=key)
        operator = Operator.EQUAL  # AIP-160: m.foo:42 is true if m.foo is 42
    return Comparison("labels", operator, _text(argument, operator), label=key)


def _field_comparison(field: str, kind: _Kind, operator: Operator, argument: Token) -> Comparison:
    if kind is _Kind.NAMES and operator is Operator.HAS and argument != "*":
        operator = Operator.EQUAL  # AIP-160: r:42 is true if r holds 42
    if operator is Operator.HAS and kind is not _Kind.NAMES and (field not in _NULLABLE or argument != "*"):
        raise _wrong(_position(argument), f"':' asks for labels, and end_time:* for an end; compare {field} by =")
    if kind is _Kind.STATUS and operator not in (Operator.EQUAL, Operator.NOT_EQUAL):
        raise _wrong(_position(argument), f"statuses have no order: compare status by = or !=, not by {operator.value}")
    if operator is Operator.HAS:
        return Comparison(field, operator)
    is_text = kind in (_Kind.TEXT, _Kind.NAMES)
    return Comparison(field, operator, _text(argument, operator) if is_text else _typed(field, kind, argument))


def _typed(field: str, kind: _Kind, argument: Token) -> str | int | float | datetime:
    written = _unquoted(argument, argument)
    if kind is _Kind.STATUS:
        status = written.removeprefix("FLOW_STATUS_")
        if status in _STATUSES:
            return status
        expected = f"a status; the statuses are {', '.join(_STATUSES)}"
    elif kind is _Kind.INTEGER:
        if _INTEGER.fullmatch(written) and -_MAX_INT64 <= int(written) <= _MAX_INT64:
            return int(written)
        expected = f"an integer up to {_MAX_INT64}, which {field} is compared with"
    elif kind is _Kind.NUMBER:
        if _NUMBER.fullmatch(written) and math.isfinite(float(written)):
            return float(written)
        expected = f"a number, which {field} is compared with"
    else:
        if _RFC_3339.fullmatch(written):
            try:
                return datetime.fromisoformat(written.upper()).astimezone(UTC)
            except (ValueError, OverflowError):  # a 30th of February, or a time that is out of range in UTC
                pass
        expected = 'an RFC 3339 time with its offset, as in "2026-01-01T00:00:00Z"'
    raise _wrong(_position(argument), f"{_shown(written)} is not {expected}")


def _parser(fields: Mapping[str, _Kind]) -> Lark:
    return Lark(_GRAMMAR, parser="lalr", transformer=_Builder(fields), lexer_callbacks={"FUNCTION": _function})


_FLOWS, _EVENTS = _parser(_FLOW_FIELDS), _parser(_EVENT_FIELDS)


def _comparisons(expression: Expression) -> Iterator[Comparison]:
    pending = [expression]
    while pending:
        node = pending.pop()
        if isinstance(node, Comparison):
            yield node
        elif isinstance(node, Negation):
            pending.append(node.operand)
        else:
            pending.extend(node.operands)


def _condition(expression: Expression, table: Table) -> ColumnElement[bool]:
    if isinstance(expression, Comparison):
        return _label_condition(expression, table) if expression.field == "labels" else _field_condition(expression, table)
    if isinstance(expression, Negation):
        return not_(_condition(expression.operand, table))
    operands = [_condition(operand, table) for operand in expression.operands]
    return and_(*operands) if isinstance(expression, Conjunction) else or_(*operands)


OPERATORS = {
    Operator.EQUAL: eq,
    Operator.NOT_EQUAL: ne,
    Operator.LESS: lt,
    Operator.LESS_OR_EQUAL: le,
    Operator.GREATER: gt,
    Operator.GREATER_OR_EQUAL: ge,
}
_T = TypeVar("_T")


def _compared(column: ColumnElement[_T], comparison: Comparison) -> ColumnElement[bool]:
    if isinstance(comparison.value, Pattern):
        pattern = "%".join(re.sub(r"([!%_])", r"!\1", piece) for piece in comparison.value.pieces)
        like = column.like(literal(pattern, String), escape="!")
        return not_(like) if comparison.operator is Operator.NOT_EQUAL else like
    compared: ColumnElement[bool] = OPERATORS[comparison.operator](column, literal(comparison.value, column.type))
    return compared


def _field_condition(comparison: Comparison, table: Table) -> ColumnElement[bool]:
    column = table.c[_COLUMNS.get(comparison.field, comparison.field)]
    if comparison.operator is Operator.HAS:
        return column.is_not(None)
    compared = _compared(column, comparison)
    # Not by coalesce or IS TRUE, which would keep an index from being used.
    return and_(column.is_not(None), compared) if comparison.field in _NULLABLE else compared


def _label_condition(comparison: Comparison, table: Table) -> ColumnElement[bool]:
    labels = cast(table.c.labels, JSONB) if not isinstance(table.c.labels.type, JSONB) else table.c.labels
    if comparison.label is None:
        return labels != cast(literal("{}", String), JSONB)
    has = labels.op("?", is_comparison=True)(literal(comparison.label, String))
    if comparison.operator is Operator.HAS:
        return has
    if comparison.operator is Operator.EQUAL and isinstance(comparison.value, str):
        pair = json.dumps({comparison.label: comparison.value}, ensure_ascii=False)
        return labels.op("@>", is_comparison=True)(cast(literal(pair, String), JSONB))
    value: ColumnElement[str] = labels.op("->>", return_type=String())(literal(comparison.label, String))
    return and_(has, _compared(value, comparison))


@unique
class Direction(Enum):
    """Which end of an order comes first; the values are AIP-132's spelling."""

    ASCENDING = "asc"
    DESCENDING = "desc"


@dataclass(frozen=True, slots=True)
class Order:
    """What a list is sorted by; flows that are equal in it follow their ``flow_id`` in the same direction."""

    column: str
    direction: Direction


_ORDERED = ("create_time", "update_time", "display_name")
NEWEST_FIRST = Order("create_time", Direction.DESCENDING)


def parse_order(text: str) -> Order:
    """The order that the text describes (AIP-132); of empty text, the newest flow first. InvalidRequest on ``order_by`` otherwise."""
    words = text.split()
    if not words:
        return NEWEST_FIRST
    direction = words[1] if len(words) > 1 else "asc"
    if len(words) > 2 or words[0] not in _ORDERED or direction not in ("asc", "desc"):
        raise invalid("order_by", f"{_shown(text)} is not one of {', '.join(_ORDERED)}, alone (ascending) or followed by asc or desc")
    return Order(words[0], Direction(direction))


def sorting(order: Order, table: Table) -> tuple[ColumnElement[object], ColumnElement[object]]:
    """The ORDER BY terms of ``order``: its column, then ``flow_id``."""
    columns = (table.c[order.column], table.c.flow_id)
    if order.direction is Direction.DESCENDING:
        return columns[0].desc(), columns[1].desc()
    return columns[0].asc(), columns[1].asc()


def after(order: Order, table: Table, value: str | datetime, flow_id: UUID) -> ColumnElement[bool]:
    """Whether a row comes after the one with this value in the order's column and this ``flow_id``; one row comparison, for the index."""
    column = table.c[order.column]
    row = tuple_(column, table.c.flow_id)
    last = tuple_(literal(value, column.type), literal(flow_id, table.c.flow_id.type))
    return row < last if order.direction is Direction.DESCENDING else row > last
