"""Filters and orders: what they mean, what SQL they become, and that any text gives one or a refusal.

``ROWS`` and ``CASES`` say what each filter selects; they are for a run against PostgreSQL as well.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, timezone
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import BigInteger, Column, ColumnElement, DateTime, Double, MetaData, Table, Text, Uuid
from sqlalchemy.dialects.postgresql import JSONB, asyncpg

from server.repository.filter import (
    MAX_CHARACTERS,
    MAX_COMPARISONS,
    MAX_NESTING,
    NEWEST_FIRST,
    Comparison,
    Conjunction,
    Direction,
    Disjunction,
    Filter,
    Negation,
    Operator,
    Order,
    Pattern,
    after,
    condition,
    parse,
    parse_order,
    sorting,
)
from server.statemachine.errors import InvalidRequest
from server.statemachine.states import FlowStatus

FLOWS = Table(
    "flows",
    MetaData(),
    Column("flow_id", Uuid, primary_key=True),
    Column("type", Text, nullable=False),
    Column("status", Text, nullable=False),
    Column("display_name", Text, nullable=False),
    Column("created_by", Text, nullable=False),
    Column("progress", Double, nullable=False),
    Column("revision", BigInteger, nullable=False),
    Column("create_time", DateTime(timezone=True), nullable=False),
    Column("update_time", DateTime(timezone=True), nullable=False),
    Column("end_time", DateTime(timezone=True)),
    Column("labels", JSONB, nullable=False),
)


@dataclass(frozen=True, slots=True)
class Row:
    """What a filter can see of a flow."""

    type: str
    status: str
    display_name: str
    created_by: str
    progress: float
    revision: int
    create_time: datetime
    update_time: datetime
    end_time: datetime | None
    labels: Mapping[str, str] = field(hash=False)


def _on(day: int) -> datetime:
    return datetime(2026, 1, day, tzinfo=UTC)


ROWS = {
    "a": Row("migration", "PAUSED", "Move the database", "ann", 30.5, 4, _on(1), _on(5), None, {"wave": "3", "app.io/tier": "db"}),
    "b": Row("discovery", "COMPLETED", "100% done", "bob", 100.0, 9, _on(2), _on(6), _on(6), {"wave": "4"}),
    "c": Row("discovery", "FAILED", "100 done*", "ann", 0.0, 2**40, _on(3), _on(7), _on(7), {}),
    "d": Row("migration", "ACTIVE", "", "O'Neil", 50.0, 5, _on(4), _on(4), None, {"wave": "", "odd key": "x_y"}),
}

# The filter, and the rows that it selects.
CASES = [
    ("", "abcd"),
    ("   ", "abcd"),
    ("type = migration", "ad"),
    ("type = 'migration'", "ad"),
    ("type != migration", "bc"),
    ("status = PAUSED", "a"),
    ("status = FLOW_STATUS_PAUSED", "a"),
    ('status != "PAUSED"', "bcd"),
    ("display_name = 'Move the database'", "a"),
    ("display_name = ''", "d"),
    ("display_name = Move*", "a"),
    ("display_name = '*database'", "a"),
    ("display_name = '*the*'", "a"),
    ("display_name = 'M*t*e'", "a"),
    ("display_name != '*done*'", "ad"),
    ("display_name = *", "abcd"),
    ("display_name = '100%*'", "b"),
    ("display_name = '100 done\\*'", "c"),
    ("display_name = '1_0*'", ""),
    ('created_by = "O\'Neil"', "d"),
    ("created_by = 'O\\'Neil'", "d"),
    ("created_by < bob AND created_by >= ann", "ac"),
    ("progress_percent >= 30.5", "abd"),
    ("progress_percent < 3.05e1", "c"),
    ("progress_percent > -1", "abcd"),
    ("revision = 1099511627776", "c"),
    ("revision <= 5", "ad"),
    ('create_time > "2026-01-02T00:00:00Z"', "cd"),
    ("create_time >= 2026-01-02T01:00:00.000000001+01:00", "bcd"),
    ("create_time = 2026-01-02t00:00:00z", "b"),
    ("update_time < 2026-01-05T00:00:00-00:00", "d"),
    ("end_time > 2026-01-06T00:00:00Z", "c"),
    ("NOT end_time > 2026-01-06T00:00:00Z", "abd"),
    ("-end_time > 2026-01-06T00:00:00Z", "abd"),
    ("end_time != 2026-01-06T00:00:00Z", "c"),
    ("NOT end_time != 2026-01-06T00:00:00Z", "abd"),
    ("NOT (NOT end_time != 2026-01-06T00:00:00Z)", "c"),
    ("end_time:*", "bc"),
    ("NOT end_time:*", "ad"),
    ('labels.wave = "3"', "a"),
    ("labels.wave = 3", "a"),
    ("labels.wave:3", "a"),
    ("labels.wave = ''", "d"),
    ('labels.wave != "3"', "bd"),
    ('NOT labels.wave = "3"', "bcd"),
    ('NOT labels.wave != "3"', "ac"),
    ("labels.wave >= 3", "ab"),
    ("NOT labels.wave >= 3", "cd"),
    ("labels.wave = *", "abd"),
    ("labels.wave != '3*'", "bd"),
    ("NOT labels.wave = '3*'", "bcd"),
    ("labels:wave", "abd"),
    ("labels.wave:*", "abd"),
    ("NOT labels:wave", "c"),
    ("labels:*", "abd"),
    ("labels.app.io/tier = db", "a"),
    ("labels:app.io/tier", "a"),
    ('labels."odd key" = "x_y"', "d"),
    ("labels.'odd key' = '*_y'", "d"),
    ('labels:"odd key"', "d"),
    ("labels.nothing = 3", ""),
    # OR binds tighter than AND, and terms side by side mean AND.
    ("type = migration AND status = PAUSED OR status = FAILED", "a"),
    ("(type = migration AND status = PAUSED) OR status = FAILED", "ac"),
    ("status = FAILED OR status = PAUSED AND type = migration", "a"),
    ("type = discovery created_by = ann", "c"),
    ("type = discovery created_by = ann OR created_by = bob", "bc"),
    ("type = discovery\n\t(created_by = ann)", "c"),
    ("type = discovery -created_by = ann", "b"),
    ("NOT type = migration OR status = PAUSED", "abc"),
    ("NOT (type = migration OR status = FAILED)", "b"),
    ("NOT(type = migration)AND(created_by=bob)", "b"),
    ("((((type=migration))))", "ad"),
]


def _sql(clause: ColumnElement[bool] | ColumnElement[object]) -> tuple[str, Mapping[str, object]]:
    compiled = clause.compile(dialect=asyncpg.dialect())  # type: ignore[no-untyped-call]
    return str(compiled), compiled.params


def _refusal(text: str) -> str:
    with pytest.raises(InvalidRequest) as caught:
        parse(text)
    assert [violation.field for violation in caught.value.violations] == ["filter"]
    assert len(str(caught.value)) < 1000
    return caught.value.violations[0].description


@pytest.mark.parametrize(("text", "rows"), CASES)
def test_a_filter_of_the_list_becomes_sql(text: str, rows: str) -> None:
    assert set(rows) <= ROWS.keys()
    assert _sql(condition(parse(text), FLOWS))[0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", Filter()),
        (
            "type = a AND type = b OR type = c",
            Filter(
                Conjunction(
                    (
                        Comparison("type", Operator.EQUAL, "a"),
                        Disjunction((Comparison("type", Operator.EQUAL, "b"), Comparison("type", Operator.EQUAL, "c"))),
                    )
                )
            ),
        ),
        ("- status = FLOW_STATUS_ACTIVE", Filter(Negation(Comparison("status", Operator.EQUAL, "ACTIVE")))),
        ("display_name = 'a*b'", Filter(Comparison("display_name", Operator.EQUAL, Pattern(("a", "b"))))),
        ("display_name < 'a*b'", Filter(Comparison("display_name", Operator.LESS, "a*b"))),
        ("display_name = 'a\\*\\\\\\\"'", Filter(Comparison("display_name", Operator.EQUAL, 'a*\\"'))),
        ("labels.'a.\"b' : c", Filter(Comparison("labels", Operator.EQUAL, "c", 'a."b'))),
        ("revision != -7", Filter(Comparison("revision", Operator.NOT_EQUAL, -7))),
        ("type = AND", Filter(Comparison("type", Operator.EQUAL, "AND"))),
        ("type = ANDROID", Filter(Comparison("type", Operator.EQUAL, "ANDROID"))),
        (
            "update_time<=2026-01-01T00:00:00.1234567+05:30",
            Filter(
                Comparison(
                    "update_time",
                    Operator.LESS_OR_EQUAL,
                    datetime(2026, 1, 1, 0, 0, 0, 123456, tzinfo=timezone(timedelta(hours=5, minutes=30))),
                )
            ),
        ),
    ],
)
def test_a_filter_reads_as_the_standard_says(text: str, expected: Filter) -> None:
    assert parse(text) == expected


@pytest.mark.parametrize("status", FlowStatus)
def test_every_status_is_known_by_both_its_names(status: FlowStatus) -> None:
    assert parse(f"status = {status.name}") == parse(f"status = FLOW_STATUS_{status.name}")


@pytest.mark.parametrize(
    ("text", "sql", "values"),
    [
        ("labels.wave = 3", "flows.labels @> CAST($1::VARCHAR AS JSONB)", ['{"wave": "3"}']),
        ("labels:wave", "flows.labels ? $1::VARCHAR", ["wave"]),
        ("labels.wave > 3", "(flows.labels ? $1::VARCHAR) AND (flows.labels ->> $2::VARCHAR) > $3::VARCHAR", ["wave", "wave", "3"]),
        ("progress_percent = 5", "flows.progress = $1::FLOAT", [5.0]),
        ("display_name = '*50%_!'", "flows.display_name LIKE $1::VARCHAR ESCAPE '!'", ["%50!%!_!!"]),
        (
            "NOT end_time < 2026-01-01T00:00:00Z",
            "NOT (flows.end_time IS NOT NULL AND flows.end_time < $1::TIMESTAMP WITH TIME ZONE)",
            [_on(1)],
        ),
    ],
)
def test_conditions_are_ones_that_an_index_can_serve(text: str, sql: str, values: list[object]) -> None:
    compiled, parameters = _sql(condition(parse(text), FLOWS))
    assert compiled == sql
    assert list(parameters.values()) == values


@pytest.mark.parametrize(
    ("text", "position", "why"),
    [
        ("nothing = 1", 1, "the fields are type, status, display_name, progress_percent"),
        ("type = a AND Status = PAUSED", 14, "'Status' is not a field"),
        ("type.name = a", 1, "not a field"),
        ("42 = 42", 1, "not a field"),
        ("Hugo", 1, "stands alone"),
        ("type = a 'Victor Hugo'", 10, "stands alone"),
        ("NOT type", 5, "stands alone"),
        ("NOT NOT type = a", 5, "stands alone"),
        ("type = a AND AND type = b", 14, "stands alone"),
        ("regex(type, 'a')", 1, "function"),
        ("type = lower('a')", 8, "function"),
        ("type = (a OR b)", 8, "repeat the field"),
        ("type == a", 7, "cannot stand here"),
        ("= a", 1, "cannot stand here"),
        ("type = a)", 9, "cannot stand here"),
        ("type = a, type = b", 9, "cannot stand here"),
        ("type\u00a0= a", 5, "cannot stand here"),
        ("()", 2, "cannot stand here"),
        ("type =", 7, "a value is missing"),
        ("(type = a", 10, "')' is missing"),
        ("type = a OR", 12, "a comparison is missing"),
        ("NOT", 4, "a comparison is missing"),
        ("type = 'a", 8, "never closed"),
        ('type = "a\\"', 8, "never closed"),
        ("type = 'a\\n'", 8, "no escape"),
        ("type:a", 6, "compare type by ="),
        ("end_time:2026-01-01T00:00:00Z", 10, "compare end_time by ="),
        ("labels = a", 1, "labels.wave"),
        ("labels. = a", 1, "key is missing"),
        ('labels."" = a', 1, "key is missing"),
        ("status = WAITING", 10, "INITIALIZED, DATA_GATHERING, DISCOVERY"),
        ("status = paused", 10, "not a status"),
        ("status = FLOW_STATUS_UNSPECIFIED", 10, "not a status"),
        ("status = PAUSE*", 10, "not a status"),
        ("status > PAUSED", 10, "no order"),
        ("revision = 1.5", 12, "not an integer"),
        ("revision = 9223372036854775808", 12, "9223372036854775807"),
        ("revision = ١", 12, "not an integer"),
        ("progress_percent = half", 20, "not a number"),
        ("progress_percent < 1e999", 20, "not a number"),
        ("progress_percent < NaN", 20, "not a number"),
        ("create_time > yesterday", 15, "RFC 3339"),
        ("create_time > 2026-01-01", 15, "RFC 3339"),
        ("create_time > 2026-01-01T00:00:00", 15, "offset"),
        ("create_time > 2026-02-30T00:00:00Z", 15, "RFC 3339"),
        ("create_time > 0001-01-01T00:00:00+14:00", 15, "RFC 3339"),
        ("create_time > 9999-12-31T23:59:59-01:00", 15, "RFC 3339"),
        ("create_time > 2026-W01-1T00:00:00Z", 15, "RFC 3339"),
        ("type = 'a\0b'", 10, "U+0000"),
        ("type = \ud800", 8, "U+D800"),
    ],
)
def test_a_refusal_names_the_position_and_the_remedy(text: str, position: int, why: str) -> None:
    description = _refusal(text)
    assert description.startswith(f"position {position}: ")
    assert why in description


def test_a_filter_has_limits_and_is_taken_up_to_them() -> None:
    at_most = "type = '" + "x" * (MAX_CHARACTERS - 9) + "'"
    assert parse(at_most)
    assert str(MAX_CHARACTERS) in _refusal(at_most + " ")
    assert parse(" AND ".join(["type=a"] * MAX_COMPARISONS))
    assert "51 comparisons" in _refusal(" ".join(["type=a"] * (MAX_COMPARISONS + 1)))
    assert parse("(" * MAX_NESTING + "type=a" + ")" * MAX_NESTING)
    assert "nested deeper than 20" in _refusal("NOT (" * (MAX_NESTING + 1) + "type=a" + ")" * (MAX_NESTING + 1))
    assert parse(f"type = '{'(' * 100}'")


def test_the_widest_and_deepest_filter_compiles_with_little_stack() -> None:
    text = "NOT (type=a OR " * MAX_NESTING + "type=a" + ")" * MAX_NESTING
    depth = 0
    frame = sys._getframe()
    while frame.f_back:
        frame, depth = frame.f_back, depth + 1
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(depth + 400)  # the default is 1,000, of which a server's own frames take few
    try:
        sql, parameters = _sql(condition(parse(text), FLOWS))
    finally:
        sys.setrecursionlimit(before)
    assert sql.count("flows.type") == len(parameters) == MAX_NESTING + 1


@given(st.text(max_size=200) | st.text(alphabet="()'\"\\ =<>!:.*-,aANDORT\n", max_size=MAX_CHARACTERS))
def test_any_text_is_a_filter_or_refused(text: str) -> None:
    try:
        parsed = parse(text)
    except InvalidRequest:
        return
    assert _sql(condition(parsed, FLOWS))[0]


_words = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)


def _quoted(text: str) -> str:
    return '"' + "".join("\\" + character if character in '"\\*' else character for character in text) + '"'


_leaves = st.one_of(
    st.builds(lambda name, sign, text: f"{name} {sign} {_quoted(text)}", st.sampled_from(["type", "display_name", "labels.a.b"]),
              st.sampled_from(["=", "!=", "<", ">="]), _words),
    st.builds(lambda key, text: f"labels.{_quoted(key)} = {_quoted(text)}", _words.filter(bool), _words),
    st.builds(lambda key: f"labels:{_quoted(key)}", _words),
    st.builds(lambda number: f"revision >= {number}", st.integers(-(2**63) + 1, 2**63 - 1)),
    st.builds(lambda number: f"progress_percent<{number!r}", st.floats(allow_nan=False, allow_infinity=False)),
    st.builds(lambda time: f"end_time > {time.isoformat()}Z", st.datetimes()),
    st.builds(lambda status: f"status = {status.name}", st.sampled_from(FlowStatus)),
)  # fmt: skip
_filters = st.recursive(
    _leaves,
    lambda inner: st.one_of(
        st.builds(lambda left, word, right: f"({left}){word}({right})", inner, st.sampled_from([" ", " AND ", " OR ", "AND", "OR"]), inner),
        st.builds(lambda word, operand: f"{word}({operand})", st.sampled_from(["NOT ", "-", "NOT"]), inner),
    ),
    max_leaves=6,
)


@given(_filters)
def test_every_filter_of_the_grammar_is_taken(text: str) -> None:
    assert len(text) <= MAX_CHARACTERS
    assert _sql(condition(parse(text), FLOWS))[0]


@given(_words)
def test_text_comes_back_as_it_was_quoted(text: str) -> None:
    assert parse(f"display_name = {_quoted(text)}") == Filter(Comparison("display_name", Operator.EQUAL, text))


@given(_words.map(lambda word: f"zq{word}zq"))
def test_no_text_of_the_user_is_in_the_sql(text: str) -> None:
    everywhere = " ".join(
        f"{name} {sign} {value}"
        for name in ("type", f"labels.{_quoted(text)}")
        for sign in ("=", "!=", "<")
        for value in (_quoted(text), _quoted(text)[:-1] + '*"')
    )
    sql, parameters = _sql(condition(parse(f"{everywhere} labels:{_quoted(text)} create_time > 2026-01-01T00:00:00Z"), FLOWS))
    assert "zq" not in sql
    assert "2026" not in sql
    assert len(parameters) > 12
    assert all(isinstance(value, str | datetime) for value in parameters.values())


@pytest.mark.parametrize(
    ("text", "order"),
    [
        ("", Order("create_time", Direction.DESCENDING)),
        ("create_time", Order("create_time", Direction.ASCENDING)),
        ("create_time desc", NEWEST_FIRST),
        ("  update_time   desc ", Order("update_time", Direction.DESCENDING)),
        ("display_name asc", Order("display_name", Direction.ASCENDING)),
    ],
)
def test_an_order_is_one_field_and_a_direction(text: str, order: Order) -> None:
    assert parse_order(text) == order


@pytest.mark.parametrize(
    "text", ["revision", "create_time DESC", "create_time, update_time", "create_time desc desc", "desc", "1", "x" * 9999]
)
def test_another_order_is_refused_with_the_choices(text: str) -> None:
    with pytest.raises(InvalidRequest, match="create_time, update_time, display_name") as caught:
        parse_order(text)
    assert [violation.field for violation in caught.value.violations] == ["order_by"]
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(("text", "word", "sign"), [("create_time", "ASC", ">"), ("", "DESC", "<")])
def test_a_page_goes_on_by_one_row_comparison_in_the_lists_order(text: str, word: str, sign: str) -> None:
    order = parse_order(text)
    sql, parameters = _sql(after(order, FLOWS, _on(3), UUID(int=7)))
    assert sql == f"(flows.create_time, flows.flow_id) {sign} ($1::TIMESTAMP WITH TIME ZONE, $2::UUID)"
    assert list(parameters.values()) == [_on(3), UUID(int=7)]
    assert [_sql(term)[0] for term in sorting(order, FLOWS)] == [f"flows.create_time {word}", f"flows.flow_id {word}"]


def test_a_page_by_name_compares_the_name() -> None:
    sql, parameters = _sql(after(parse_order("display_name"), FLOWS, "O'Neil", UUID(int=7)))
    assert sql == "(flows.display_name, flows.flow_id) > ($1::VARCHAR, $2::UUID)"
    assert list(parameters.values()) == ["O'Neil", UUID(int=7)]
