"""`python -m examples.discovery.demo`: a service, a discovery, its report, and nothing left running. `make demo` runs this."""

from __future__ import annotations

import asyncio
import signal
from datetime import datetime
from pathlib import Path
from typing import Annotated
from uuid import uuid4

import typer
from rich.console import Console

from examples.discovery.__main__ import CLIENT_ACCOUNT_ID, ENGAGEMENT_ID, EXPECTED, SERVERS
from examples.discovery.approval import Decision
from examples.discovery.inventory import source_of
from examples.discovery.ledger import Caller
from examples.discovery.mapping import parse_correction
from examples.discovery.prompt import Prompt
from examples.discovery.screen import standard_console
from examples.discovery.service import ServiceError, running_service
from examples.discovery.session import Session, discover
from examples.discovery.steps import STEPS
from examples.discovery.worker import Assignment

PACE_ON_A_TERMINAL = 0.12


def main(
    csv: Annotated[Path, typer.Option(help="The inventory.")] = SERVERS,
    ask: Annotated[bool, typer.Option("--ask", help="Ask before the mapping is approved.")] = False,
    correction: Annotated[list[str] | None, typer.Option("--map", help="What a column is: COLUMN=FIELD, or COLUMN=-. Repeatable.")] = None,
    fail: Annotated[str, typer.Option(help="The phase that fails once, halfway, and is retried; or none.")] = "asset_creation",
    as_of: Annotated[datetime | None, typer.Option(formats=["%Y-%m-%d"], help="The day on which support is judged; default today.")] = None,
    pace: Annotated[float | None, typer.Option(min=0, max=10, help="Seconds to wait after each progress report.")] = None,
) -> None:
    """Runs a discovery from nothing: a service with a database of its own, the worker, the live view, the report."""
    console = standard_console()
    if fail not in (*STEPS, "none"):
        raise typer.BadParameter(f"{fail} is not a phase; the phases are {', '.join(STEPS)}, or none")
    try:
        source_of(csv)  # before a service is started for nothing
        corrections = dict(map(parse_correction, correction or ()))
        chosen_pace = pace if pace is not None else PACE_ON_A_TERMINAL if console.is_terminal else 0.0
        today = datetime.now().astimezone().date()
        assignment = Assignment(csv, as_of.date() if as_of else today, corrections, None if fail == "none" else fail, chosen_pace)
        asyncio.run(_demo(assignment, console, None if ask else Decision(True, "approved with --yes")))
    except (*EXPECTED, ServiceError) as error:
        typer.echo(f"demo: {error}", err=True)
        raise typer.Exit(1) from None
    except (KeyboardInterrupt, asyncio.CancelledError):
        typer.echo("demo: stopped; nothing was left running", err=True)
        raise typer.Exit(130) from None


async def _demo(assignment: Assignment, console: Console, decision: Decision | None) -> None:
    task = asyncio.current_task()
    assert task
    for number in (signal.SIGTERM, signal.SIGHUP):  # as Ctrl-C, which asyncio.run turns into a cancellation itself
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    console.print("Starting a service with a PostgreSQL of its own ...", style="dim")
    async with running_service() as address:
        console.print(f"It serves on {address}.", style="dim")
        caller = Caller(CLIENT_ACCOUNT_ID, ENGAGEMENT_ID, "demo")
        await discover(Session(address, caller, assignment, "", decision), console, uuid4, Prompt().line)
        console.print()
        console.print("Stopping the service ...", style="dim")
    console.print("The service has stopped; nothing was left running and its data is gone.", style="dim")


if __name__ == "__main__":
    typer.run(main)
