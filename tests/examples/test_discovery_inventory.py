"""Reading inventories in the dialects that people export."""

from __future__ import annotations

from pathlib import Path

import pytest

from examples.discovery.inventory import InventoryError, read_inventory
from tests.examples.inventories import CLOUD, CMDB, DATA, FEDORA, HYPERVISOR, NAMES


@pytest.mark.parametrize(
    ("path", "encoding", "separator", "columns", "rows"),
    [
        (FEDORA, "utf-8", ",", 15, 371),
        (HYPERVISOR, "utf-8", ";", 10, 6),
        (CLOUD, "utf-8", "\t", 11, 7),
        (CMDB, "latin-1", ";", 10, 8),
        (NAMES, "utf-8", ",", 2, 2),
    ],
    ids=lambda value: value.name if isinstance(value, Path) else None,
)
def test_encoding_separator_and_shape_are_found(path: Path, encoding: str, separator: str, columns: int, rows: int) -> None:
    inventory = read_inventory(path)
    assert (inventory.encoding, inventory.separator, len(inventory.columns), len(inventory.rows)) == (encoding, separator, columns, rows)
    assert all(len(row) == columns for row in inventory.rows)


def test_a_title_line_and_a_byte_order_mark_are_told_of() -> None:
    notes = "; ".join(read_inventory(HYPERVISOR).notes)
    assert "byte order mark" in notes
    assert "1 line above the header skipped" in notes


def test_a_quoted_cell_keeps_its_line_break_separator_and_quotes() -> None:
    inventory = read_inventory(HYPERVISOR)
    notes = [row[inventory.columns.index("Annotation")] for row in inventory.rows]
    assert notes[0] == 'Web shop; behind the "old" balancer'
    assert notes[2].splitlines() == ["Owner: data team", "moved in 2024"]


def test_latin_1_letters_arrive_whole() -> None:
    assert "München" in {row[4] for row in read_inventory(CMDB).rows}


def test_a_repeated_header_and_short_rows_are_told_of() -> None:
    inventory = read_inventory(CMDB)
    assert any("header stands 2 times" in note for note in inventory.notes)
    assert any("1 row shorter" in note for note in inventory.notes)
    assert inventory.rows[-1] == ("", "kurz", "virt-1", "", "", "", "", "", "", "")


def test_a_spreadsheets_separator_line_is_believed(tmp_path: Path) -> None:
    path = tmp_path / "excel.csv"
    path.write_bytes(b"sep=;\r\nhost;os\r\na,b;Debian 12\r\n")
    inventory = read_inventory(path)
    assert (inventory.columns, inventory.rows) == (("host", "os"), (("a,b", "Debian 12"),))


def test_nameless_double_and_surplus_columns_get_names(tmp_path: Path) -> None:
    path = tmp_path / "odd.csv"
    path.write_text("name,,name\na,b,c,d\n")
    assert read_inventory(path).columns == ("name", "column 2", "name (2)", "surplus 1")


def test_utf_16_is_read(tmp_path: Path) -> None:
    path = tmp_path / "windows.csv"
    path.write_bytes("host;ort\nä1;Köln\n".encode("utf-16"))
    assert read_inventory(path).rows == (("ä1", "Köln"),)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("header_only.csv", "has no rows under its header"),
        ("binary.csv", "not a text file"),
        ("missing.csv", "cannot be read"),
    ],
)
def test_a_file_that_is_no_inventory_is_refused_with_a_sentence(name: str, sentence: str) -> None:
    with pytest.raises(InventoryError, match=sentence):
        read_inventory(DATA / name)


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "empty.csv"
    path.write_bytes(b"")
    with pytest.raises(InventoryError, match="has no rows"):
        read_inventory(path)
