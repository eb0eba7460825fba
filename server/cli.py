"""The `flowledger` command."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import signal
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Annotated, Any, TypeAlias
from uuid import UUID

import structlog
import typer
import uvloop

from server import embedded as private
from server.app import adopt_key, compacted, running
from server.listening import Port
from server.log import CallLog, logging
from server.repository import distribution, schema
from server.settings import Settings, SettingsError, rows
from server.statemachine.errors import FlowError
from server.statemachine.values import Tenant
from server.vault import KeyFault, new_key, written
from server.workers import WorkersError, working

app = typer.Typer(
    help="Keeps the state of long, many-phase flows. Configured by FLOWLEDGER_ variables; README has the table.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
keys = typer.Typer(help="The keys that tenants' data keys are wrapped with.", no_args_is_help=True)
app.add_typer(keys, name="keys")
_log = structlog.get_logger()
# The schema's before and after.
Versions: TypeAlias = tuple[str | None, str | None]


def main() -> None:
    """Run the command line."""
    app()


@app.command()
def serve(
    ready_file: Annotated[
        Path | None, typer.Option(help="Write host:port to this file once calls are taken; for scripts that wait.", metavar="PATH")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, max=64, help="Serve from so many processes on one port; SIGHUP replaces them one by one.")
    ] = None,
    worker: Annotated[bool, typer.Option(hidden=True)] = False,
) -> None:
    """Serve until SIGTERM or Ctrl-C. Without FLOWLEDGER_DATABASE_URL a private PostgreSQL is started in the data directory."""
    settings = _settings()
    with logging(settings.log_level, settings.log_format) as calls:
        if workers is not None:
            _run(_serve_from_workers(settings, workers, ready_file))
        else:
            _run(_serve(settings, calls, ready_file, Port.SHARED if worker else Port.OWN))


@app.command()
def migrate(
    citus: Annotated[bool, typer.Option("--citus", help="Then distribute the tables over a Citus cluster, by client account.")] = False,
    sql: Annotated[bool, typer.Option("--sql", help="With --citus: print what Citus would be told, and ask no database.")] = False,
) -> None:
    """Bring the database's schema up to this version, as its owner (FLOWLEDGER_OWNER_DATABASE_URL, else FLOWLEDGER_DATABASE_URL)."""
    if sql:
        if not citus:
            raise typer.BadParameter("is for --citus", param_hint="--sql")
        for statement in distribution.statements():
            typer.echo(f"{statement};")
        return
    before, after = _run(_migrate(_settings(), schema.distribute if citus else schema.migrate))
    typer.echo(f"schema {after}: already there" if before == after else f"schema {before or 'empty'} -> {after}")


@app.command()
def stop() -> None:
    """Stop the private PostgreSQL of the data directory that a killed server left running."""
    settings = _settings()
    found = _run(private.stop(settings.data_dir))
    typer.echo(f"PostgreSQL in {settings.data_dir} {'is stopped' if found else 'was not running'}")


@app.command()
def compact(
    tenant: Annotated[
        str | None, typer.Option(help="Only this tenant's flows; all tenants' without it.", metavar="ACCOUNT_ID/ENGAGEMENT_ID")
    ] = None,
    dry_run: Annotated[bool, typer.Option(help="Say what would go, and take nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One line of JSON.")] = False,
) -> None:
    """Take away the history that tenants' policies do not keep, now; beside servers that serve, and as often as you like.

    Ends with 3 when flows were left alone because their history is damaged; the log says which.
    """
    settings = _settings()
    only = None if tenant is None else _tenant(tenant)
    with logging(settings.log_level, settings.log_format):
        done = _run(compacted(settings, only, rehearse=dry_run))
    counts = {"flows": done.flows, "events": done.events, "versions": done.versions, "bytes": done.bytes, "damaged": done.damaged}
    if as_json:
        typer.echo(json.dumps({**counts, "dry_run": dry_run}))
    else:
        verb = "would go" if dry_run else "went"
        typer.echo(f"{done.events} events and {done.versions} versions of documents of {done.flows} flows {verb}, {done.bytes} bytes")
        if done.damaged:
            typer.echo(f"{done.damaged} flows were left alone, their history is damaged: VerifyAudit says how", err=True)
    if done.damaged:
        sys.exit(3)


@app.command("settings")
def show_settings() -> None:
    """Print the table of all settings."""
    typer.echo("| variable | default | meaning |\n| --- | --- | --- |")
    for row in rows():
        typer.echo(f"| `{row.variable}` | {row.default} | {row.meaning} |")


@keys.command("new")
def make_key(name: Annotated[str, typer.Option(help="What it is called: 1 to 64 letters, digits, - or _.")] = "key") -> None:
    """Print a fresh key, as FLOWLEDGER_KEYS and key files have it. The first of several wraps, all of them unwrap."""
    typer.echo(written(name, new_key()))


@keys.command("adopt")
def adopt() -> None:
    """Let the database go on with this server's key when the one that it knows is lost. What only that one opens stays sealed."""
    before, after = _run(adopt_key(_settings()))
    typer.echo(
        f"the tenants' keys are wrapped with {after} from now on" + (f", no longer with {before}" if before not in (None, after) else "")
    )


async def _migrate(settings: Settings, work: Callable[[str], Coroutine[Any, Any, Versions]]) -> Versions:
    url = settings.migration_url
    if url is not None:
        return await work(url.get_secret_value())
    async with private.embedded(settings.data_dir) as addresses:
        return await work(addresses.owner_url)


async def _serve(settings: Settings, calls: CallLog, ready_file: Path | None, port: Port) -> None:
    asked_to_stop = _asked_to_stop()
    if port is Port.SHARED:
        _end_with_parent(asked_to_stop)
    async with running(settings, calls, port) as server:
        _calm_garbage_collection()
        if ready_file is not None:
            _announce(ready_file, server.address)
        _log.info("listening", address=server.address, database="embedded" if settings.database_url is None else "external")
        await asked_to_stop.wait()
        _log.info("stopping", drain_seconds=settings.drain_seconds)
    _log.info("stopped")


async def _serve_from_workers(settings: Settings, count: int, ready_file: Path | None) -> None:
    asked_to_stop = _asked_to_stop()
    rolled: set[asyncio.Task[None]] = set()
    async with working(count, settings.host, settings.port, settings.drain_seconds) as (workers, port):

        def roll() -> None:
            task = asyncio.create_task(workers.roll())
            rolled.add(task)
            task.add_done_callback(rolled.discard)

        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, roll)
        address = f"{settings.host}:{port}"
        if ready_file is not None:
            _announce(ready_file, address)
        _log.info("listening", address=address, workers=count)
        keeping = asyncio.create_task(workers.keep())
        stopping = asyncio.create_task(asked_to_stop.wait())
        await asyncio.wait({keeping, stopping}, return_when=asyncio.FIRST_COMPLETED)
        for task in (keeping, stopping, *rolled):
            if not task.done():
                task.cancel()
        _log.info("stopping", drain_seconds=settings.drain_seconds)
    if keeping.done() and not keeping.cancelled():
        keeping.result()  # why they could not be kept
    _log.info("stopped")


def _asked_to_stop() -> asyncio.Event:
    asked = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, asked.set)
    return asked


def _end_with_parent(asked_to_stop: asyncio.Event) -> None:
    """Stop when standard input ends: whoever started this worker is gone."""
    loop = asyncio.get_running_loop()

    def ended() -> None:
        if not os.read(0, 1024):
            loop.remove_reader(0)
            asked_to_stop.set()

    loop.add_reader(0, ended)


def _calm_garbage_collection() -> None:
    """What start-up made stays for good and need not be looked at again; calls make little that only a collection frees.

    The youngest are looked at often enough that it takes no longer than a commit (measured: 5 ms; 25 ms with four times as many).
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(5_000, 20, 50)


def _announce(path: Path, address: str) -> None:
    half = path.with_name(f"{path.name}.new")
    half.write_text(f"{address}\n")
    half.replace(path)  # whoever waits for the file never sees half of it


def _tenant(text: str) -> Tenant:
    try:
        account, engagement = map(UUID, text.split("/"))
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not two UUIDs with a slash between them", param_hint="--tenant") from None
    return Tenant(account, engagement)


def _settings() -> Settings:
    try:
        return Settings.read()
    except SettingsError as error:
        for fault in error.faults:
            typer.echo(f"flowledger: {fault}", err=True)
        sys.exit(2)


def _run(work: Coroutine[Any, Any, Any]) -> Any:
    """What ``work`` returns; an error that its reader can act on ends the command with one sentence instead of a traceback."""
    try:
        return uvloop.run(work)
    except (FlowError, schema.SchemaError, SettingsError, private.EmbeddedError, WorkersError, KeyFault, OSError) as error:
        typer.echo(f"flowledger: {error}", err=True)
        sys.exit(1)
