"""`python -m examples.discovery`: discovers an inventory with a service that runs already."""

from __future__ import annotations

import asyncio
from datetime import datetime
from pathlib import Path
from typing import Annotated
from uuid import UUID, uuid4

import typer

from examples.discovery.approval import Decision, NobodyToAsk
from examples.discovery.document import DocumentError
from examples.discovery.inventory import InventoryError
from examples.discovery.ledger import Caller, CallFailed
from examples.discovery.mapping import parse_correction
from examples.discovery.prompt import Prompt
from examples.discovery.screen import standard_console
from examples.discovery.session import Session, discover, watch
from examples.discovery.steps import STEPS
from examples.discovery.worker import Assignment, DiscoveryStopped

SERVERS = Path(__file__).with_name("servers.csv")
# The tenant of the examples. A service in `trusted` mode believes what the caller says.
CLIENT_ACCOUNT_ID = UUID("0197f000-0000-7000-8000-000000000001")
ENGAGEMENT_ID = UUID("0197f000-0000-7000-8000-000000000002")
EXPECTED = (DiscoveryStopped, NobodyToAsk, CallFailed, InventoryError, DocumentError)


def main(
    address: Annotated[str, typer.Option(help="Where the service listens, HOST:PORT.")],
    csv: Annotated[Path, typer.Option(help="The inventory.")] = SERVERS,
    yes: Annotated[bool, typer.Option("--yes", help="Approve the mapping without being asked.")] = False,
    reject: Annotated[str, typer.Option(help="Reject the mapping for this reason without being asked.")] = "",
    correction: Annotated[
        list[str] | None, typer.Option("--map", help="What a column is: COLUMN=FIELD, or COLUMN=- for none. Repeatable.")
    ] = None,
    fail: Annotated[str, typer.Option(help="Let this phase fail once, in the middle, and be retried.")] = "",
    flow_id: Annotated[str, typer.Option(help="Go on with this flow instead of beginning one.")] = "",
    watch_only: Annotated[str, typer.Option("--watch", metavar="FLOW_ID", help="Only show this flow.")] = "",
    as_of: Annotated[datetime | None, typer.Option(formats=["%Y-%m-%d"], help="The day on which support is judged; default today.")] = None,
    pace: Annotated[
        float, typer.Option(min=0, max=10, help="Seconds to wait after each progress report, to have something to watch.")
    ] = 0.0,
    client_account: Annotated[UUID, typer.Option(help="The tenant's client account.")] = CLIENT_ACCOUNT_ID,
    engagement: Annotated[UUID, typer.Option(help="The tenant's engagement.")] = ENGAGEMENT_ID,
    user: Annotated[str, typer.Option(help="Who works and approves.")] = "discovery-worker",
) -> None:
    """Discovers a server inventory: imports, maps, cleanses, counts, and finds out what is odd about it."""
    console = standard_console()
    caller = Caller(client_account, engagement, user)
    if fail and fail not in STEPS:
        raise typer.BadParameter(f"{fail} is not a phase; the phases are {', '.join(STEPS)}")
    try:
        if watch_only:
            asyncio.run(watch(address, caller, watch_only, console, uuid4))
            return
        corrections = dict(map(parse_correction, correction or ()))
        assignment = Assignment(csv, as_of.date() if as_of else datetime.now().astimezone().date(), corrections, fail or None, pace)
        session = Session(address, caller, assignment, flow_id, decision_of(yes, reject))
        asyncio.run(discover(session, console, uuid4, Prompt().line))
    except EXPECTED as error:
        typer.echo(f"discovery: {error}", err=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        typer.echo("discovery: stopped", err=True)
        raise typer.Exit(130) from None


def decision_of(yes: bool, reject: str) -> Decision | None:
    """What was decided beforehand; None when a person is to be asked."""
    if yes and reject:
        raise typer.BadParameter("--yes and --reject exclude each other")
    if yes:
        return Decision(True, "approved with --yes")
    return Decision(False, reject) if reject else None


if __name__ == "__main__":
    typer.run(main)
