"""README's tables are the code's tables."""

from __future__ import annotations

import re

from server import settings
from server.services.boundary import CODES
from tests.contract.source_tree import ROOT


def tables(text: str) -> list[list[dict[str, str]]]:
    """Every markdown table as rows by column, cells without emphasis; columns are in lower case."""
    found: list[list[dict[str, str]]] = []
    header: list[str] = []
    for line in text.splitlines():
        if not line.lstrip().startswith("|"):
            header = []
            continue
        cells = [cell.replace(r"\|", "|").replace("`", "").replace("*", "").strip() for cell in re.split(r"(?<!\\)\|", line.strip())[1:-1]]
        if not header:
            header = [cell.lower() for cell in cells]
            found.append([])
        elif not all(re.fullmatch(r":?-+:?", cell) for cell in cells):
            found[-1].append(dict(zip(header, cells, strict=True)))
    return found


def rows(*columns: str) -> list[dict[str, str]]:
    """The rows of README's one table that has these columns."""
    text = (ROOT / "README.md").read_text("utf-8")
    matching = [table for table in tables(text) if table and set(columns) <= set(table[0])]
    assert len(matching) == 1, f"README.md has one table with the columns {' | '.join(columns)}"
    return matching[0]


def test_readme_lists_every_reason_of_an_error_once_with_its_code() -> None:
    told = [(reason, row["code"]) for row in rows("code", "reason") for reason in re.findall(r"[A-Z][A-Z_]+", row["reason"])]
    assert sorted(told) == sorted((reason, code.name) for reason, code in CODES.items())


def test_readme_lists_every_setting_in_order() -> None:
    told = [(row["variable"], row["default"], row["meaning"]) for row in rows("variable", "default", "meaning")]
    plain = [
        tuple(cell.replace("`", "").replace("*", "").strip() for cell in (row.variable, row.default, row.meaning))
        for row in settings.rows()
    ]
    assert told == plain


def test_a_table_is_read_as_it_is_written() -> None:
    text = "| A | b |\n|---|:-:|\n| `X` | one \\| two |\n\nno table\n| A |\n|---|\n| **y** |"
    assert tables(text) == [[{"a": "X", "b": "one | two"}], [{"a": "y"}]]
