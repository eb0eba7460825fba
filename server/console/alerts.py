"""`flowledger alerts`: what a person should know of."""

from __future__ import annotations

import time
from functools import partial
from typing import Annotated

import grpc
import typer
from flowledger.v1 import admin_service_pb2 as pb
from flowledger.v1 import alert_pb2
from flowledger_client import error_of
from rich.text import Text

from server.console.calling import Operator, command
from server.console.screen import Column, clean
from server.console.wording import SEVERITY_STYLES, local, member, name, summed, zone

PAGE = 500
GAP_SECONDS = 60
RETRY_SECONDS = 1.0


def add(app: typer.Typer) -> None:
    """Add the command."""
    command(app, "alerts")(alerts)


def alerts(
    operator: Operator,
    flow: Annotated[str, typer.Option("--flow", metavar="FLOW", help="Only of this flow.")] = "",
    kind: Annotated[
        int | None,
        typer.Option(
            parser=partial(member, enum=alert_pb2.AlertKind, prefix="ALERT_KIND_"), metavar="KIND", help="Only such: flow-stuck, ..."
        ),
    ] = None,
    severity: Annotated[
        int | None,
        typer.Option(
            parser=partial(member, enum=alert_pb2.AlertSeverity, prefix="ALERT_SEVERITY_"),
            metavar="SEVERITY",
            help="Only warning or critical.",
        ),
    ] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="The newest so many.")] = 20,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Then show what comes, until Ctrl-C.")] = False,
) -> None:
    """What went wrong with the tenant's flows, the newest last."""
    if follow and (flow or kind or severity):
        raise typer.BadParameter("--follow shows every alert that comes: leave --flow, --kind and --severity out")
    request = pb.ListAlertsRequest(flow_id=flow, page_size=min(limit, PAGE))
    request.kind = kind or alert_pb2.ALERT_KIND_UNSPECIFIED  # type: ignore[assignment]
    request.severity = severity or alert_pb2.ALERT_SEVERITY_UNSPECIFIED  # type: ignore[assignment]
    found: list[alert_pb2.Alert] = []
    while len(found) < limit:
        response = operator.admin.ListAlerts(request)
        found += response.alerts
        request.page_token = response.next_page_token
        if not request.page_token:
            break
    found = found[:limit][::-1]
    screen = operator.screen
    if screen.json:
        screen.documents(found)
    elif found:
        columns = Column(f"time {zone()}"), Column("severity"), Column("kind"), Column("what happened, and what to do")
        screen.table(columns, [_row(alert, screen.narrow) for alert in found])
    else:
        screen.line("There is no such alert." if flow or kind or severity else "There are no alerts.", "green")
    if follow:
        _follow(operator, found[-1].alert_id if found else "")


def _follow(operator: Operator, after: str) -> None:
    request = pb.WatchAlertsRequest(after_alert_id=after)
    if not after:
        request.since.FromSeconds(GAP_SECONDS)  # what came since nothing was found
    while True:  # the service ends streams that are old
        try:
            for response in operator.admin.WatchAlerts(request):
                if response.HasField("alert"):
                    request.after_alert_id = response.alert.alert_id
                    _tell(operator, response.alert)
        except grpc.RpcError as error:
            failure = error_of(error)
            if not failure.passing:
                raise
            typer.echo(f"flowledger: the stream is taken up again: {clean(failure.args[0])}", err=True)
            time.sleep(RETRY_SECONDS)


def _tell(operator: Operator, alert: alert_pb2.Alert) -> None:
    if operator.screen.json:
        operator.screen.documents([alert])
        return
    when, severity, kind, text = _row(alert, operator.screen.narrow)
    operator.screen.line(Text.assemble(when, "  ", severity, "  ", kind, "  ", clean(text)))


def _row(alert: alert_pb2.Alert, short: bool) -> tuple[str, Text, str, str]:
    severity = name(alert_pb2.AlertSeverity, alert.severity, "ALERT_SEVERITY_").lower()
    place = "/".join(filter(None, (alert.child_type, alert.phase)))
    about = (f"flow {alert.flow_id}" if alert.flow_id else "", place, f"checkpoint {alert.checkpoint_id}" if alert.checkpoint_id else "")
    subjects = ", ".join(one for one in about if one and one.rpartition(" ")[2] not in alert.message)
    return (
        local(alert.create_time, short),
        Text(severity, SEVERITY_STYLES.get(alert.severity, "")),
        name(alert_pb2.AlertKind, alert.kind, "ALERT_KIND_").lower().replace("_", "-"),
        "; ".join(summed(alert.message.split("; "))) + (f" ({subjects})" if subjects else ""),
    )
