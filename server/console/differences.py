"""What differs between two states of a flow, for people."""

from __future__ import annotations

from flowledger.v1 import history_pb2
from rich.text import Text

from server.console.screen import Column, Screen, clean
from server.console.wording import size, state, status

LINES = 40


def show_diff(screen: Screen, diff: history_pb2.FlowDiff, most: int | None = None) -> None:
    """Both sides, phases as a table, then everything else line by line; ``most`` lines of those."""
    if not diff.lines:
        screen.line("Nothing differs.")
        return
    screen.line(Text.assemble((f"{_side(diff.from_revision)} -> {_side(diff.to_revision)}", "bold"), *_moved(diff)))
    if diff.phases:
        columns = Column("phase"), Column("was"), Column("is"), Column("")
        rows = [
            (
                f"{moved.child_type}/{moved.phase}",
                state(moved.from_state),
                state(moved.to_state),
                _fractions(moved.from_fraction, moved.to_fraction),
            )
            for moved in diff.phases
        ]
        screen.table(columns, rows)
    told = ("status: ", "progress: ", "phase ")
    lines = [line for line in diff.lines if not line.startswith(told)]
    for line in lines if most is None else lines[:most]:
        screen.line(_coloured(line))
    if most is not None and len(lines) > most:
        screen.line(f"... and {len(lines) - most} lines more", "dim")
    for document in diff.documents:
        if document.patch_omitted:
            name = f"{document.document}/{document.child_type}".rstrip("/")
            sizes = f"{size(document.from_size_bytes)} -> {size(document.to_size_bytes)}"
            screen.line(f"{name} differs too much to be shown ({sizes}): read both revisions", "yellow")


def _side(revision: int) -> str:
    return f"revision {revision}" if revision else "something that is no revision"


def _moved(diff: history_pb2.FlowDiff) -> tuple[str | Text, ...]:
    if diff.from_status == diff.to_status and diff.from_progress_percent == diff.to_progress_percent:
        return ":  ", status(diff.to_status), f" {diff.to_progress_percent:.1f} %, both"
    before, after = f" {diff.from_progress_percent:.1f} % -> ", f" {diff.to_progress_percent:.1f} %"
    return ":  ", status(diff.from_status), before, status(diff.to_status), after


def _fractions(before: float, after: float) -> str:
    return f"{before:.0%} -> {after:.0%}" if before != after else ""


def _coloured(line: str) -> Text:
    """What is before the colon in bold, what was in red and what is in green."""
    text = Text(clean(line))
    head, colon, change = text.plain.partition(": ")
    if colon:
        text.stylize("bold", 0, len(head))
        was, arrow, _ = change.partition(" -> ")
        if arrow:
            at = len(head) + len(colon)
            text.stylize("red", at, at + len(was))
            text.stylize("green", at + len(was) + len(arrow))
    return text
