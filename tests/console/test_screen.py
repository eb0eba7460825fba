"""Tables fit the terminal that they are shown on, lose nothing in a pipe, and obey nobody's control codes."""

from __future__ import annotations

import pytest
from rich.cells import cell_len
from rich.text import Text

from server.console.screen import Cell, Column, clean, laid_out

COLUMNS = (Column("id"), Column("who", most=8), Column("rev", right=True), Column("what"))
LONG = "a long story of many words that goes on and on until nobody knows how it began"
ROWS: list[tuple[Cell, ...]] = [
    ("01a2131d-4e00-7449-88fa-26c901bd1906", "ada", "7", LONG),
    ("01a2131d-4e00-7449-88fa-26c901bd1907", "a worker of a long name", "1,234", Text("short", "red")),
    ("数据中心", "ada", "12", "數" * 60),
]


@pytest.mark.parametrize("width", [60, 72, 80, 100, 200])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    lines = list(laid_out(COLUMNS, ROWS, width))
    assert max(cell_len(line.plain.rstrip()) for line in lines) <= width


def test_what_is_narrower_than_its_fixed_columns_keeps_ids_in_one_piece() -> None:
    shown = [line.plain for line in laid_out(COLUMNS, ROWS, 30)]
    assert any(str(ROWS[0][0]) in line for line in shown)


def test_what_does_not_fit_beside_goes_below_and_nothing_of_it_is_lost() -> None:
    for width in (60, 80, 200):
        words = " ".join(line.plain for line in laid_out(COLUMNS, ROWS[:1], width)).split()
        assert set(LONG.split()) <= set(words)


def test_a_pipe_gets_one_line_for_each_row_and_all_of_it() -> None:
    lines = [line.plain for line in laid_out(COLUMNS, ROWS, None)]
    assert len(lines) == 1 + len(ROWS)
    assert lines[1].endswith(f"ada                          7  {LONG}")
    assert "a worker of a long name  1,234  short" in lines[2]
    assert {cell_len(line[: line.index(mark)]) for line, mark in zip(lines[1:], (LONG, "short", "數數"), strict=True)} == {70}


def test_an_empty_table_is_its_heading() -> None:
    assert [line.plain.split() for line in laid_out(COLUMNS, [], 80)] == [["id", "who", "rev", "what"]]


@pytest.mark.parametrize(
    ("told", "shown"),
    [
        ("plain – ünïcödé", "plain – ünïcödé"),
        ("two\nlines\tand more\r", "two lines and more "),
        ("\x1b[2Jgone\x07", "\\x1b[2Jgone\\x07"),
        ("reversed \u202e", "reversed \\u202e"),
        ("\x9b31m", "\\x9b31m"),
    ],
)
def test_nothing_that_a_caller_wrote_moves_the_cursor(told: str, shown: str) -> None:
    assert clean(told) == shown
    assert [line.plain for line in laid_out([Column("x")], [(told,)], None)][1] == shown
