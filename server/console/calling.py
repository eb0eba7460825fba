"""What every command has in common: whom it calls and for whom, how it asks, and what becomes of errors."""

from __future__ import annotations

import getpass
import inspect
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, Concatenate, ParamSpec
from uuid import UUID

import grpc
import typer
from flowledger.v1.admin_service_pb2_grpc import AdminServiceStub
from flowledger.v1.checkpoint_service_pb2_grpc import CheckpointServiceStub
from flowledger_client import Caller, Client, FlowledgerError, Patience, channel_options, error_of
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

from server.console.screen import Screen, clean, standard_screen

P = ParamSpec("P")
REACH_SECONDS = 3.0
PAUSE_SECONDS = 0.2
_AWAY = frozenset({grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNAVAILABLE})
FOUND_WRONG = 3
OPERATORS = "Flows, for their operators"
PANEL = "Whom to call, and how to answer"


class Failed(Exception):
    """It could not be done; the text says why."""


class Refused(Exception):
    """The command cannot be carried out as it was given; the text says why."""


@dataclass(frozen=True)
class Operator:
    """Who gave the command: what is called on their behalf, and where they read the answer."""

    client: Client
    screen: Screen

    @property
    def checkpoints(self) -> CheckpointServiceStub:
        """The checkpoints."""
        return self.client.service(CheckpointServiceStub)

    @property
    def admin(self) -> AdminServiceStub:
        """Alerts and audit."""
        return self.client.service(AdminServiceStub)

    def agrees(self, question: str, yes: bool) -> bool:
        """Whether to go on, after what would happen was shown. Raises Refused when nobody can be asked."""
        if yes:
            return True
        if not self.screen.terminal or not sys.stdin.isatty():
            raise Refused("nothing was done: nobody can be asked here, so say --yes to do it or --plan to only see it")
        return typer.confirm(question)


def command(group: typer.Typer, name: str) -> Callable[[Callable[Concatenate[Operator, P], None]], Callable[..., None]]:
    """Make a command of a function: its first parameter is the operator, the others are its own arguments and options."""

    def added(function: Callable[Concatenate[Operator, P], None]) -> Callable[..., None]:
        run = _calling(function)
        group.command(name, rich_help_panel=OPERATORS)(run)
        return run

    return added


def _calling(function: Callable[Concatenate[Operator, P], None]) -> Callable[..., None]:
    def run(
        address: Annotated[
            str, typer.Option(envvar="FLOWLEDGER_CLIENT_ADDRESS", metavar="HOST:PORT", rich_help_panel=PANEL, help="Where the service is.")
        ] = "127.0.0.1:50051",
        account: Annotated[
            UUID,
            typer.Option(envvar="FLOWLEDGER_CLIENT_ACCOUNT", metavar="UUID", rich_help_panel=PANEL, help="The tenant's client account."),
        ] = ...,  # type: ignore[assignment]  # required
        engagement: Annotated[
            UUID,
            typer.Option(envvar="FLOWLEDGER_CLIENT_ENGAGEMENT", metavar="UUID", rich_help_panel=PANEL, help="The tenant's engagement."),
        ] = ...,  # type: ignore[assignment]
        user: Annotated[
            str,
            typer.Option(
                envvar="FLOWLEDGER_CLIENT_USER",
                rich_help_panel=PANEL,
                show_default="your login name",
                help="Who you are: it stands in the history beside what you do.",
            ),
        ] = "",
        timeout: Annotated[
            float,
            typer.Option(
                envvar="FLOWLEDGER_CLIENT_TIMEOUT",
                min=0.1,
                max=3600,
                metavar="SECONDS",
                rich_help_panel=PANEL,
                help="How long a call may take.",
            ),
        ] = 20.0,
        json: Annotated[bool, typer.Option("--json", rich_help_panel=PANEL, help="Answer in JSON: one document, or one a line.")] = False,
        **given: Any,
    ) -> None:
        with _errors(address, timeout):
            _reach(address)
            patience = Patience(call=timeout, attempt=timeout)
            client = Client(address, Caller(account, engagement, user or _login()), patience=patience)
            try:
                function(Operator(client, standard_screen(json)), **given)  # type: ignore[call-arg]  # what typer took
            except Exception:  # and not Ctrl-C: see _errors
                client.close()
                raise
            client.close()

    ours = [one for one in inspect.signature(run, eval_str=True).parameters.values() if one.kind is not one.VAR_KEYWORD]
    theirs = list(inspect.signature(function, eval_str=True).parameters.values())[1:]
    parameters = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in (*theirs, *ours)]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # what typer reads
    run.__name__, run.__doc__ = function.__name__, function.__doc__
    return run


@contextmanager
def _errors(address: str, timeout: float) -> Iterator[None]:
    """What went wrong, as one sentence on standard error and a code."""
    try:
        yield
    except (FlowledgerError, grpc.RpcError) as error:
        failure = error if isinstance(error, FlowledgerError) else error_of(error)
        _end(sentence(failure, address, timeout), 1)
    except Failed as error:
        _end(str(error), 1)
    except Refused as error:
        _end(str(error), 2)
    except BrokenPipeError:
        os._exit(0)  # whoever reads has read enough; an orderly end would write once more
    except OSError as error:
        _end(f"{error.filename}: {error.strerror}" if error.filename else str(error), 1)
    except KeyboardInterrupt:
        # At once: gRPC waits for ever to close a connection on which a stream was just being opened, seen with gRPC 1.85.
        sys.stdout.flush()
        os._exit(130)


def _end(text: str, code: int) -> None:
    typer.echo(f"flowledger: {clean(text)}", err=True)
    raise typer.Exit(code) from None


def sentence(failure: FlowledgerError, address: str, timeout: float) -> str:
    """What the service says, what belongs to it, and its reason."""
    if failure.code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return (
            f"the service at {address} has not answered within {timeout:g} s, and whether it did what was asked is not known: "
            "look at the flow's history, or wait longer with --timeout (DEADLINE_EXCEEDED)"
        )
    text = str(failure.args[0])
    told = [text, *(f"{field}: {why}" for field, why in failure.violations if why not in text or field not in text)]
    told += [f"{key.replace('_', ' ')} {value}" for key, value in sorted(failure.metadata.items()) if value and value not in text]
    return f"{'; '.join(told)} ({failure.reason or failure.code.name})"


def _reach(address: str) -> None:
    """Raises Failed quickly, where a call would go on trying: when nobody answers, and when the service says that it cannot serve."""
    end = time.monotonic() + REACH_SECONDS
    with grpc.insecure_channel(address, options=channel_options()) as channel:
        health: Any = HealthStub(channel)  # its stubs do not know its methods
        while True:
            try:
                status = health.Check(HealthCheckRequest(), timeout=max(0.1, end - time.monotonic()), wait_for_ready=True).status
            except grpc.RpcError as error:
                if error.code() not in _AWAY:
                    return  # somebody answers, and what is called next tells the rest
                raise Failed(
                    f"no service answers at {address}: is it running there? --address or FLOWLEDGER_CLIENT_ADDRESS names another"
                ) from None
            if status != HealthCheckResponse.NOT_SERVING:
                return
            if time.monotonic() + PAUSE_SECONDS > end:
                raise Failed(f"the service at {address} runs, and cannot serve: its database is away, or it is stopping; its log says more")
            time.sleep(PAUSE_SECONDS)


def _login() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):  # a user without a name, as in containers
        return "operator"
