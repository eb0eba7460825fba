"""`python -m examples.discovery.recovery`: a discovery that is killed, damaged, recovered and finished. `make demo-recovery` runs this."""

from __future__ import annotations

import asyncio
import os
import shlex
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Annotated
from uuid import UUID, uuid4

import asyncpg
import typer
from flowledger.v1 import change_pb2, event_pb2, flow_pb2
from flowledger_client import AsyncClient
from flowledger_client import Caller as ClientCaller
from rich.console import Console
from rich.rule import Rule

from examples.discovery.__main__ import CLIENT_ACCOUNT_ID, ENGAGEMENT_ID, EXPECTED, SERVERS
from examples.discovery.approval import NobodyToAsk
from examples.discovery.inventory import source_of
from examples.discovery.ledger import Caller, open_ledger
from examples.discovery.screen import standard_console
from examples.discovery.service import Service, ServiceError, command, service
from examples.discovery.session import Session, create, discover
from examples.discovery.worker import Assignment

USER = "demo"
KILLED_IN, KILLED_AT = "asset_creation", 0.4
# Slow enough to be killed in the middle, and on a terminal to be watched.
PACE, PACE_ON_A_TERMINAL = 0.05, 0.12
NOTICE_SECONDS = 0.5
DAMAGE = (
    (
        "a phase that others are built on was never begun, it says now",
        """UPDATE discovery_flows SET phases = jsonb_set(phases, '{1,state}', '"NOT_STARTED"') WHERE flow_id = $1""",
    ),
    (
        "of what the discovery found so far, the second half is gone",
        "UPDATE documents SET body = substr(body, 1, octet_length(body) / 2) WHERE flow_id = $1 AND name = 'data'",
    ),
)


class CommandFailed(Exception):
    """A `flowledger` command that must work did not."""


def main(
    csv: Annotated[Path, typer.Option(help="The inventory.")] = SERVERS,
    as_of: Annotated[datetime | None, typer.Option(formats=["%Y-%m-%d"], help="The day on which support is judged; default today.")] = None,
) -> None:
    """Kills a service in the middle of a discovery, damages what it stored, recovers it and finishes."""
    console = standard_console()
    try:
        source_of(csv)  # before a service is started for nothing
        today = datetime.now().astimezone().date()
        pace = PACE_ON_A_TERMINAL if console.is_terminal else PACE
        asyncio.run(_demo(Assignment(csv, as_of.date() if as_of else today, {}, None, pace), console))
    except (*EXPECTED, ServiceError, CommandFailed) as error:
        typer.echo(f"demo: {error}", err=True)
        raise typer.Exit(1) from None
    except (KeyboardInterrupt, asyncio.CancelledError):
        typer.echo("demo: stopped; nothing was left running", err=True)
        raise typer.Exit(130) from None


async def _demo(assignment: Assignment, console: Console) -> None:
    task = asyncio.current_task()
    assert task
    for number in (signal.SIGTERM, signal.SIGHUP):  # as Ctrl-C, which asyncio.run turns into a cancellation itself
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    console.print("Starting a service with a PostgreSQL of its own ...", style="dim")
    async with service() as running:
        await _Story(running, assignment, console).tell()
        console.print()
        console.print("Stopping the service ...", style="dim")
    console.print("The service has stopped; nothing was left running and its data is gone.", style="dim")


class _Story:
    """One discovery through its worst day."""

    def __init__(self, running: Service, assignment: Assignment, console: Console) -> None:
        self._service, self._console = running, console
        caller = Caller(CLIENT_ACCOUNT_ID, ENGAGEMENT_ID, USER)
        self._session = Session(running.address, caller, assignment, "", None)
        self._chapters = 0

    async def tell(self) -> None:
        """From the first phase to the report."""
        self._chapter("A discovery begins, and comes to where a person must approve")
        flow_id = await self._begin()
        self._say("The mapping is approved. Before the work goes on, a sealed copy is taken of what there is:")
        await self._flowledger("checkpoint", "create", flow_id, "--reason", "the mapping is approved")

        self._chapter("The work goes on, and in the middle of it the power fails")
        await self._cut_short(flow_id)
        self._say("kill -9: the service is gone without a word, and so is the worker. PostgreSQL has every change that was answered.")

        self._chapter("While the service is away, somebody damages the flow in the database")
        await self._damage(flow_id)
        self._say("Then the service is started again, on the same data.")
        await self._service.start()

        self._chapter("What is wrong?")
        await self._flowledger("validate", flow_id, codes=(3,))

        self._chapter("What can be done about it? Nothing is changed yet")
        await self._flowledger("recover", flow_id, "--plan")

        self._chapter("The flow is recovered; what was damaged is kept aside")
        await self._flowledger("recover", flow_id, "--yes", "--reason", "the power failed")
        await self._flowledger("history", flow_id, "--limit", "3")
        await self._flowledger("alerts")

        self._chapter("Another worker goes on from there and finishes")
        await self._discover()
        self._console.print()
        self._say("The service was killed and the flow damaged, and this is the report of a discovery like any other.")

    async def _begin(self) -> str:
        """The id of a flow whose mapping a person has approved."""
        assignment = self._session.assignment
        async with open_ledger(self._service.address, self._session.caller, uuid4) as ledger:
            flow_id = await create(ledger, assignment)
            self._session = replace(self._session, flow_id=flow_id)
            self._say(f"Flow {flow_id}")
            with suppress(NobodyToAsk):
                await self._discover()
            approval = change_pb2.PhaseTransition(phase="field_mapping", to=flow_pb2.PHASE_STATE_COMPLETED, reason="looks right")
            await ledger.transition(flow_id, approval)
        return flow_id

    async def _discover(self) -> None:
        await discover(self._session, self._console, uuid4, _nobody)

    async def _cut_short(self, flow_id: str) -> None:
        """The discovery, until it is half way through a phase; then service and worker are gone."""
        working = asyncio.create_task(self._discover())
        try:
            await self._half_way(flow_id)
            await self._service.kill()
            await asyncio.sleep(NOTICE_SECONDS)  # the view says that the service is away
        finally:
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)

    async def _half_way(self, flow_id: str) -> None:
        caller = ClientCaller(CLIENT_ACCOUNT_ID, ENGAGEMENT_ID, USER)
        async with AsyncClient(self._service.address, caller) as client, client.events(flow_id) as events:
            async for event in events:
                if any(_is_half_way(change) for change in event.changes):
                    return

    async def _damage(self, flow_id: str) -> None:
        connection = await asyncpg.connect(host=self._service.socket_directory, port=5432, user="postgres", database="flowledger")
        try:
            for what, sql in DAMAGE:
                self._say(f"{what[:1].upper()}{what[1:]}:")
                self._console.print(f"  {sql.replace('$1', repr(flow_id))};", style="red", soft_wrap=True)
                await connection.execute(sql, UUID(flow_id))
        finally:
            await connection.close()

    async def _flowledger(self, *arguments: str, codes: Sequence[int] = (0,)) -> None:
        """Gives a command as an operator would, and lets it answer on our own output. Raises CommandFailed."""
        variables = {
            "FLOWLEDGER_CLIENT_ADDRESS": self._service.address,
            "FLOWLEDGER_CLIENT_ACCOUNT": str(CLIENT_ACCOUNT_ID),
            "FLOWLEDGER_CLIENT_ENGAGEMENT": str(ENGAGEMENT_ID),
            "FLOWLEDGER_CLIENT_USER": USER,
        }
        self._console.print()
        self._console.print(f"$ flowledger {shlex.join(arguments)}", style="bold cyan", soft_wrap=True)
        sys.stdout.flush()
        # A session of its own: Ctrl-C reaches us alone, and we end it.
        process = await asyncio.create_subprocess_exec(
            command(), *arguments, env={**os.environ, **variables}, stdin=asyncio.subprocess.DEVNULL, start_new_session=True
        )
        try:
            code = await process.wait()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if code not in codes:
            raise CommandFailed(f"flowledger {shlex.join(arguments)} ended with code {code}")

    def _chapter(self, title: str) -> None:
        self._chapters += 1
        self._console.print()
        self._console.print(Rule(f"{self._chapters}. {title}", align="left", style="bold", characters="-"))

    def _say(self, text: str) -> None:
        self._console.print(text)


def _is_half_way(change: event_pb2.EventChange) -> bool:
    moved = change.phase
    return moved.phase == KILLED_IN and (moved.to_fraction >= KILLED_AT or moved.to_state == flow_pb2.PHASE_STATE_COMPLETED)


async def _nobody(_: str) -> str:
    raise EOFError


if __name__ == "__main__":
    typer.run(main)
