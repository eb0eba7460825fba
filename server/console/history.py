"""`flowledger history` and `flowledger diff`: what happened to a flow, and what it changed."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Annotated

import typer
from flowledger.v1 import event_pb2
from flowledger.v1 import flow_service_pb2 as pb
from flowledger_client.text import event_text
from rich.text import Text

from server.console.calling import Operator, command
from server.console.differences import show_diff
from server.console.screen import Column, clean
from server.console.wording import counted, local, member, span, status, zone

PAGE = 1000
SHOWN = 50
Flow = Annotated[str, typer.Argument(metavar="FLOW", help="The flow's id.")]


def add(app: typer.Typer) -> None:
    """Add the commands."""
    command(app, "history")(history)
    command(app, "diff")(diff)


def history(
    operator: Operator,
    flow: Flow,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="The newest so many.")] = SHOWN,
    everything: Annotated[bool, typer.Option("--all", help="All that are kept.")] = False,
    after: Annotated[int | None, typer.Option(min=0, metavar="REVISION", help="Only what came after this revision.")] = None,
    kind: Annotated[
        list[int] | None,
        typer.Option(
            parser=partial(member, enum=event_pb2.EventKind, prefix="EVENT_KIND_"),
            metavar="KIND",
            help="Only such changes: phase-changed, flow-replaced, ... Repeatable.",
        ),
    ] = None,
    phase: Annotated[list[str] | None, typer.Option(metavar="PHASE", help="Only changes of this phase. Repeatable.")] = None,
    actor: Annotated[str, typer.Option(metavar="USER", help="Only what this user or agent did.")] = "",
    since: Annotated[timedelta | None, typer.Option(parser=span, metavar="SPAN", help="Only the last 30m, 24h, 7d.")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Then show what comes, until the flow ends or Ctrl-C.")] = False,
) -> None:
    """What happened to a flow, the newest last."""
    narrowed = bool(kind or phase or actor or since)
    if follow and narrowed:
        raise typer.BadParameter("--follow shows everything that comes: leave --kind, --phase, --actor and --since out")
    request = pb.ListFlowEventsRequest(flow_id=flow, page_size=1)
    head = operator.client.flows.ListFlowEvents(request)
    begin = max(head.oldest_revision - 1, 0) if after is None else after
    if not (everything or narrowed):
        begin = max(begin, head.head_revision - limit)
    request = pb.ListFlowEventsRequest(flow_id=flow, after_revision=begin, page_size=PAGE, phases=phase, actor=actor)
    request.kinds.extend(kind or ())  # type: ignore[arg-type]
    if since is not None:
        request.start_time.FromDatetime(datetime.now(UTC) - since)
    events = deque(_pages(operator, request), None if everything else limit)
    if operator.screen.json:
        operator.screen.documents(events)
    else:
        _show(operator, flow, head, events, narrowed)
    if follow:
        _follow(operator, flow, max(head.head_revision, events[-1].revision if events else 0))


def diff(
    operator: Operator,
    flow: Flow,
    begin: Annotated[int, typer.Option("--from", min=0, metavar="REVISION", help="The earlier one; default the one before --to.")] = 0,
    end: Annotated[int, typer.Option("--to", min=0, metavar="REVISION", help="The later one; default the flow as it is.")] = 0,
) -> None:
    """What differs between two revisions of a flow; without --from and --to, what the last change did."""
    if not begin:
        end = end or operator.client.flows.ListFlowEvents(pb.ListFlowEventsRequest(flow_id=flow, page_size=1)).head_revision
        if end == 1:
            raise typer.BadParameter("there is nothing before revision 1")
        begin = end - 1
    response = operator.client.flows.DiffFlow(pb.DiffFlowRequest(flow_id=flow, from_revision=begin, to_revision=end))
    if operator.screen.json:
        operator.screen.document(response.diff)
    else:
        show_diff(operator.screen, response.diff)


def _pages(operator: Operator, request: pb.ListFlowEventsRequest) -> Iterator[event_pb2.FlowEvent]:
    while True:
        response = operator.client.flows.ListFlowEvents(request)
        yield from response.events
        request.page_token = response.next_page_token
        if not request.page_token:
            return


def _show(operator: Operator, flow: str, head: pb.ListFlowEventsResponse, events: deque[event_pb2.FlowEvent], narrowed: bool) -> None:
    screen = operator.screen
    if not events:
        screen.line(f"No event of {flow} matches." if narrowed else f"Nothing came after that: {flow} is at revision {head.head_revision}.")
        return
    columns = Column("rev", right=True), Column(f"time {zone()}"), Column("who", most=16), Column("%", right=True), Column("what")
    screen.table(columns, [_row(event, screen.narrow) for event in events])
    first, last = events[0], events[-1]
    if narrowed:
        screen.line(f"{counted(len(events), 'event')} of the {head.head_revision - head.oldest_revision + 1:,} that are kept.", "dim")
        return
    earlier = first.revision - head.oldest_revision
    more = f" {counted(earlier, 'earlier event')}: --all shows everything." if earlier > 0 else ""
    screen.line(Text.assemble(status(last.status), f", {last.progress_percent:.1f} %, at revision {last.revision}.", (more, "dim")))


def _row(event: event_pb2.FlowEvent, short: bool) -> tuple[str, str, str, Text, str]:
    percent = Text(f"{event.progress_percent:.1f}", "magenta" if event.progress_regressed else "")
    return str(event.revision), local(event.time, short), event.actor, percent, event_text(event)


def _follow(operator: Operator, flow: str, after: int) -> None:
    screen = operator.screen

    def resuming(position: int, why: str) -> None:
        typer.echo(f"flowledger: taken up again after revision {position}: {clean(why)}", err=True)

    with operator.client.events(flow, after, resuming=resuming) as events:
        for event in events:
            if screen.json:
                screen.documents([event])
            else:
                revision, time, who, percent, what = _row(event, screen.narrow)
                screen.line(Text.assemble(revision.rjust(3), "  ", time, "  ", clean(who), "  ", percent, " %  ", clean(what)))
    if events.end is not None and not screen.json:
        screen.line(f"That is all: {events.end.message or 'the flow has ended'}.", "dim")
