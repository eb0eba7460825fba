"""Server inventories as people export them: CSV in any of its dialects."""

from __future__ import annotations

import csv
import hashlib
import io
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

SEPARATORS = (",", ";", "\t", "|")
SEPARATOR_NAMES = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}
MAX_FILE_BYTES = 16 * 1024 * 1024
_BOMS = ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))


class InventoryError(ValueError):
    """The inventory cannot be used; the text says what to change."""


@dataclass(frozen=True, slots=True)
class Source:
    """Which file an inventory came from."""

    file: str
    sha256: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Inventory:
    """An inventory as text: every row has one cell for each column."""

    source: Source
    encoding: str
    separator: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...]


def source_of(path: Path) -> Source:
    """What identifies the file at ``path``; InventoryError when it cannot be read or is larger than MAX_FILE_BYTES."""
    content = _content(path)
    return Source(path.name, hashlib.sha256(content).hexdigest(), len(content))


def read_inventory(path: Path) -> Inventory:
    """The inventory at ``path``, with a note for whatever was odd about it; InventoryError when it holds no servers."""
    content = _content(path)
    text, encoding, notes = _text(content, path.name)
    text, stated = _stated_separator(text)
    separator = stated or _separator(text)
    try:
        lines = [tuple(cell.strip() for cell in line) for line in csv.reader(io.StringIO(text, newline=""), delimiter=separator)]
    except csv.Error as error:
        raise InventoryError(f"{path.name} is not readable as CSV: {error}") from None
    filled = [line for line in lines if any(line)]
    if blank := len(lines) - len(filled):
        notes.append(f"{_count(blank, 'blank line')} skipped")
    filled = _without_title(filled, notes)
    if len(filled) < 2:
        raise InventoryError(f"{path.name} has no rows under its header")
    header, body = filled[0], filled[1:]
    repeated = sum(line == header for line in body)
    if repeated:
        notes.append(f"the header stands {repeated + 1} times; its repetitions were skipped")
        body = [line for line in body if line != header]
    if not body:
        raise InventoryError(f"{path.name} has no rows under its header")
    columns = _columns(header, max(map(len, body)), notes)
    rows = _rows(body, len(columns), len(header), notes)
    source = Source(path.name, hashlib.sha256(content).hexdigest(), len(content))
    return Inventory(source, encoding, separator, columns, rows, tuple(notes))


def _content(path: Path) -> bytes:
    try:
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise InventoryError(f"{path.name} has {size:,} bytes; at most {MAX_FILE_BYTES:,} are read: split it")
        return path.read_bytes()
    except OSError as error:
        raise InventoryError(f"{path} cannot be read: {error.strerror}") from None


def _text(content: bytes, name: str) -> tuple[str, str, list[str]]:
    encoding, notes = "utf-8", []
    for bom, codec in _BOMS:
        if content.startswith(bom):
            encoding = codec
            notes.append("the file begins with a byte order mark")
            break
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        if encoding != "utf-8":
            raise InventoryError(f"{name} begins like {encoding} but is not: {error.reason} at byte {error.start:,}") from None
        # What is not UTF-8 came from an older Windows or Unix; latin-1 reads every byte, and differs only in quotes and dashes.
        encoding = "latin-1"
        text = content.decode(encoding)
        notes.append("the file is not UTF-8 and was read as latin-1")
    if "\0" in text:
        raise InventoryError(f"{name} is not a text file: it contains the character U+0000")
    return text, encoding.removesuffix("-sig"), notes


def _stated_separator(text: str) -> tuple[str, str | None]:
    """Spreadsheets write the separator as a first line of its own: `sep=;`."""
    found = re.match(r"sep=([,;|\t])\r?\n", text, re.IGNORECASE)
    return (text[found.end() :], found[1]) if found else (text, None)


def _separator(text: str) -> str:
    """The separator by which the first lines have most columns and agree best on how many."""
    best, best_score = ",", 0.0
    for separator in SEPARATORS:
        try:
            sample = [
                len(line)
                for line, _ in zip(csv.reader(io.StringIO(text, newline=""), delimiter=separator), range(60), strict=False)
                if line
            ]
        except csv.Error:
            continue
        if not sample:
            continue
        width, agreeing = Counter(sample).most_common(1)[0]
        score = (width - 1) * agreeing / len(sample)
        if score > best_score:
            best, best_score = separator, score
    return best


def _without_title(lines: list[tuple[str, ...]], notes: list[str]) -> list[tuple[str, ...]]:
    """Exports like to put a title above the header: a line with one filled cell above lines with several."""
    wide = next((at for at, line in enumerate(lines) if sum(map(bool, line)) > 1), 0)
    if wide:
        notes.append(f"{_count(wide, 'line')} above the header skipped")
    return lines[wide:]


def _columns(header: tuple[str, ...], width: int, notes: list[str]) -> tuple[str, ...]:
    names: list[str] = []
    for at in range(max(width, len(header))):
        name = header[at] if at < len(header) else f"surplus {at + 1 - len(header)}"
        if not name:
            name = f"column {at + 1}"
            notes.append(f"column {at + 1} has no name")
        if name in names:
            notes.append(f"the column name {name!r} stands more than once")
            name = next(candidate for n in range(2, width + 3) if (candidate := f"{name} ({n})") not in names)
        names.append(name)
    return tuple(names)


def _rows(body: list[tuple[str, ...]], width: int, header_width: int, notes: list[str]) -> tuple[tuple[str, ...], ...]:
    if short := sum(len(line) < header_width for line in body):
        notes.append(f"{_count(short, 'row')} shorter than the header; the missing cells count as blank")
    if long := sum(len(line) > header_width for line in body):
        notes.append(f"{_count(long, 'row')} longer than the header; the rest is kept in surplus columns")
    return tuple(line + ("",) * (width - len(line)) for line in body)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
