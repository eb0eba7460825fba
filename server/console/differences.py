"""What differs between two states of a flow, for people."""

from __future__ import annotations

from flowledger.v1 import event_pb2, flow_pb2, history_pb2
from rich.text import Text

from server.console.screen import Column, Screen, clean
from server.console.wording import size, state, status

LINES = 40


def show_diff(screen: Screen, diff: history_pb2.FlowDiff, most: int | None = None, sides: tuple[str, str] = ("", "")) -> None:
    """Both sides, phases as a table, then everything else line by line; ``most`` lines of those. ``sides`` says what is no revision."""
    if not diff.lines:
        screen.line("Nothing differs.")
        return
    before, after = (name or f"revision {number}" for name, number in zip(sides, (diff.from_revision, diff.to_revision), strict=True))
    screen.line(Text.assemble((f"{before} -> {after}", "bold"), *_moved(diff)))
    if diff.phases:
        screen.table((Column("phase"), Column("was"), Column("is"), Column("why")), [_phase(moved) for moved in diff.phases])
    told = ("status: ", "progress: ", "phase ")
    lines = [line for line in diff.lines if not line.startswith(told)]
    for line in lines if most is None else lines[:most]:
        screen.whole(_coloured(line))
    if most is not None and len(lines) > most:
        screen.line(f"... and {len(lines) - most} lines more", "dim")
    for document in diff.documents:
        if document.patch_omitted:
            name = f"{document.document}/{document.child_type}".rstrip("/")
            sizes = f"{size(document.from_size_bytes)} -> {size(document.to_size_bytes)}"
            screen.line(f"{name} differs too much to be shown ({sizes}): read both revisions", "yellow")


def _moved(diff: history_pb2.FlowDiff) -> tuple[str | Text, ...]:
    if diff.from_status == diff.to_status and diff.from_progress_percent == diff.to_progress_percent:
        return ":  ", status(diff.to_status), f" {diff.to_progress_percent:.1f} %, both"
    before, after = f" {diff.from_progress_percent:.1f} % -> ", f" {diff.to_progress_percent:.1f} %"
    return ":  ", status(diff.from_status), before, status(diff.to_status), after


def _phase(moved: event_pb2.PhaseChanged) -> tuple[str | Text, ...]:
    was, now = _stage(moved.from_state, moved.from_fraction), _stage(moved.to_state, moved.to_fraction)
    why = moved.failure.message or moved.reason
    retry = f"retry {moved.retry_count}" if moved.retry_count else ""
    return f"{moved.child_type}/{moved.phase}", was, now, ", ".join(filter(None, (retry, why)))


def _stage(at: flow_pb2.PhaseState.ValueType, fraction: float) -> Text:
    shown = state(at)
    return shown.append(f" {fraction:.0%}") if at == flow_pb2.PHASE_STATE_IN_PROGRESS else shown


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
