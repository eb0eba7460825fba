"""All of the operator's commands."""

from __future__ import annotations

import typer

from server.console import alerts, audit, checkpoints, history, rescue

NAMES = frozenset({"history", "diff", "checkpoint", "validate", "recover", "alerts", "audit"})


def add(to: typer.Typer) -> None:
    """Add them to the `flowledger` command."""
    for group in (history, checkpoints, rescue, alerts, audit):
        group.add(to)


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
add(app)
