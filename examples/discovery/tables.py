"""Tables that read well on a terminal and, without borders, in a file."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table


def table(console: Console, title: str, *columns: str) -> Table:
    """An empty table; a column name that begins with `>` is a column of numbers."""
    shown = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD if console.is_terminal else None,
        pad_edge=False,
        header_style="bold",
        padding=(0, 2, 0, 0) if not console.is_terminal else (0, 1),
    )
    for at, column in enumerate(columns):
        # Numbers and the first column are whole; of the rest the last gives way first.
        numeric, last = column.startswith(">"), at == len(columns) - 1 > 0
        shown.add_column(column.removeprefix(">"), justify="right" if numeric else "left", no_wrap=not last, overflow="ellipsis")
    return shown
