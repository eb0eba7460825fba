"""Where everything is shown: tables and colours on a terminal, plain aligned lines in a pipe, JSON for programs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from google.protobuf.json_format import MessageToJson
from google.protobuf.message import Message
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

# A last column with less room than this goes below its row.
LEAST_ROOM = 20
ROOMY = 100
GAP = "  "


@dataclass(frozen=True)
class Column:
    """One column of a table. On a terminal what is longer than ``most`` is cut; in a pipe nothing is."""

    name: str
    right: bool = False
    most: int | None = None


Cell = str | Text


class Screen:
    """Standard output."""

    def __init__(self, console: Console, json: bool) -> None:
        self._console, self.json = console, json

    @property
    def terminal(self) -> bool:
        """Whether somebody looks."""
        return self._console.is_terminal and not self.json

    @property
    def narrow(self) -> bool:
        """Whether every column counts."""
        return self.terminal and self._console.width < ROOMY

    def document(self, message: Message) -> None:
        """The message as proto JSON, with every field, so that programs need not know defaults."""
        self._json(message, 2)

    def documents(self, messages: Iterable[Message]) -> None:
        """The messages as proto JSON, one a line."""
        for message in messages:
            self._json(message, None)

    def line(self, text: Cell = "", style: str = "") -> None:
        """One paragraph, wrapped between words where somebody reads it."""
        shown = text if isinstance(text, Text) else Text(clean(text), style)
        if self._console.is_terminal:
            self._console.print(shown)
        else:
            self._plain(shown)

    def whole(self, text: Text) -> None:
        """One line in one piece, to be copied or found."""
        if self._console.is_terminal:
            self._console.print(text, soft_wrap=True)
        else:
            self._plain(text)

    def hint(self, what: str, command: str) -> None:
        """What can be done next, and the command for it, on a line of its own and in one piece."""
        self.line(f"{what}:")
        self.whole(Text.assemble("  ", (command, "bold")))

    def table(self, columns: Sequence[Column], rows: Sequence[Sequence[Cell]]) -> None:
        """Rows below their columns' names. The last column takes what room is left and is wrapped in it."""
        for text in laid_out(columns, rows, self._console.width if self._console.is_terminal else None):
            self.whole(text)

    @contextmanager
    def waiting(self) -> Iterator[Callable[[str], None]]:
        """A line that can be told how far something has come, gone at the end; only a terminal has one."""
        if not self.terminal:
            yield lambda _: None
            return
        with self._console.status("...") as status:
            yield lambda text: status.update(clean(text))

    def _json(self, message: Message, indent: int | None) -> None:
        print(MessageToJson(message, always_print_fields_with_no_presence=True, indent=indent, ensure_ascii=False), flush=True)  # noqa: T201

    def _plain(self, text: Text) -> None:
        print(text.plain.rstrip(), flush=True)  # noqa: T201 - rich would cut or pad it


def standard_screen(json: bool) -> Screen:
    """Standard output as it is; NO_COLOR and COLUMNS are honoured."""
    # Asked directly: FORCE_COLOR must not put control codes into a file.
    return Screen(Console(force_terminal=sys.stdout.isatty(), highlight=False, emoji=False, markup=False), json)


def clean(text: str) -> str:
    """The text in one line, with nothing in it that a terminal would obey: what callers named their flows is not to be trusted."""
    if text.isprintable():
        return text
    return "".join(character if character.isprintable() else _shown(character) for character in text)


def _shown(character: str) -> str:
    return " " if character.isspace() else f"\\x{ord(character):02x}" if ord(character) < 256 else f"\\u{ord(character):04x}"


def laid_out(columns: Sequence[Column], rows: Sequence[Sequence[Cell]], width: int | None) -> Iterator[Text]:
    """The lines of a table for a terminal of that width; None cuts and wraps nothing."""
    names = [Text(column.name, "bold") for column in columns]
    cells = [[_cell(cell, column, width) for cell, column in zip(row, columns, strict=True)] for row in rows]
    widths = [max(map(_width, (names[at], *(row[at] for row in cells)))) for at in range(len(columns) - 1)]
    indent = sum(widths) + len(GAP) * len(widths)
    longest = max((_width(row[-1]) for row in cells), default=0)
    beside = width is None or width - indent >= min(LEAST_ROOM, longest)
    heading = names if beside else [*names[:-1], Text()]
    for *fixed, last in (heading, *cells):
        head = Text()
        for column, room, cell in zip(columns, widths, fixed, strict=False):
            spare = " " * (room - _width(cell))
            head.append_text(Text.assemble(spare, cell, GAP) if column.right else Text.assemble(cell, spare, GAP))
        if width is None:
            yield head.append_text(last)
            continue
        hang = indent if beside else 2 * len(GAP)
        pieces = list(last.wrap(_WRAPPING, max(8, width - hang), overflow="fold"))
        if beside:
            head.append_text(pieces.pop(0) if pieces else Text())
        yield head
        yield from (Text.assemble(" " * hang, piece) for piece in pieces if piece.plain)


def _cell(cell: Cell, column: Column, width: int | None) -> Text:
    text = cell.copy() if isinstance(cell, Text) else Text(clean(cell))
    if width is not None and column.most is not None:
        text.truncate(column.most, overflow="ellipsis")
    return text


def _width(text: Text) -> int:
    return cell_len(text.plain)


_WRAPPING = Console(width=200)  # rich wants one to wrap text; nothing is printed on it
