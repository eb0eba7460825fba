"""The console that everything is shown on."""

from __future__ import annotations

import os
import sys

from rich.console import Console

PLAIN_WIDTH = 80


def standard_console() -> Console:
    """Colours and movement on a terminal; plain lines of 80 columns, or of COLUMNS, anywhere else. NO_COLOR is honoured."""
    terminal = sys.stdout.isatty()  # asked directly: FORCE_COLOR must not put control codes into a file
    width = None if terminal else int(os.environ.get("COLUMNS") or PLAIN_WIDTH)
    return Console(force_terminal=terminal, width=width, highlight=False, emoji=False, no_color=True if "NO_COLOR" in os.environ else None)
