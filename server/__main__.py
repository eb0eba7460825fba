"""The `flowledger` command, also `python -m server`."""

from __future__ import annotations

import sys

from server.console import commands


def main() -> None:
    """Run the command line."""
    if sys.argv[1:2] and sys.argv[1] in commands.NAMES:
        # The service takes seconds to import on a busy machine, and whoever only looks at a flow need not wait for that.
        commands.app()
        return
    from server import cli  # noqa: PLC0415

    commands.add(cli.app)
    cli.main()


if __name__ == "__main__":
    main()
