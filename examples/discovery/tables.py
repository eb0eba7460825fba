"""Tables that read well on a terminal and, without borders, in a file."""

from __future__ import annotations

from rich import box
from rich.console import Console, JustifyMethod
from rich.table import Table


def table(console: Console, title: str, *columns: str) -> Table:
    """An empty table.

    A column name that begins with `>` is a column of numbers; one that begins with `~` is wrapped where the table is too wide.
    """
    shown = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD if console.is_terminal else None,
        show_edge=False,
        pad_edge=False,
        header_style="bold",
        padding=(0, 1, 0, 0) if console.is_terminal else (0, 2, 0, 0),
    )
    for column in columns:
        justify: JustifyMethod = "right" if column.startswith(">") else "left"
        shown.add_column(column.lstrip(">~"), justify=justify, no_wrap=not column.startswith("~"), overflow="ellipsis")
    return shown
