"""The live view of a flow, fed by WatchFlow alone: bars for the phases, the status, the last events."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import grpc
from flowledger.v1 import event_pb2, flow_pb2, flow_service_pb2
from flowledger_client.text import event_text, state_name, status_name
from google.protobuf import duration_pb2
from grpc import aio
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from examples.discovery.ledger import Ledger, call_failed

EVENTS_SHOWN = 8
HEARTBEAT_SECONDS = 5
RECONNECT_SECONDS = 0.2
_DONE = frozenset({flow_pb2.PHASE_STATE_COMPLETED, flow_pb2.PHASE_STATE_WAITING_APPROVAL, flow_pb2.PHASE_STATE_WAITING_VALIDATION})
_STYLES = {
    flow_pb2.PHASE_STATE_COMPLETED: "green",
    flow_pb2.PHASE_STATE_IN_PROGRESS: "cyan",
    flow_pb2.PHASE_STATE_WAITING_APPROVAL: "yellow",
    flow_pb2.PHASE_STATE_WAITING_VALIDATION: "yellow",
    flow_pb2.PHASE_STATE_RETRY_NEEDED: "magenta",
    flow_pb2.PHASE_STATE_FAILED: "red",
    flow_pb2.PHASE_STATE_ROLLED_BACK: "magenta",
}
_ENDINGS = {
    flow_service_pb2.WATCH_END_REASON_FLOW_TERMINAL: "the flow has ended",
    flow_service_pb2.WATCH_END_REASON_FLOW_DELETED: "the flow was deleted",
}


@dataclass(frozen=True, slots=True)
class PhaseLine:
    """What the stream has said of one phase."""

    name: str
    state: flow_pb2.PhaseState.ValueType
    fraction: float
    message: str
    retry_count: int

    @property
    def done(self) -> float:
        """How full the bar is, 0 to 1."""
        return 1.0 if self.state in _DONE else self.fraction


@dataclass(slots=True)
class FlowPicture:
    """The flow as the stream has told it so far."""

    name: str = ""
    status: flow_pb2.FlowStatus.ValueType = flow_pb2.FLOW_STATUS_UNSPECIFIED
    percent: float = 0.0
    revision: int = 0
    phases: dict[tuple[str, str], PhaseLine] = field(default_factory=dict)
    events: deque[str] = field(default_factory=lambda: deque(maxlen=EVENTS_SHOWN))

    def show_snapshot(self, flow: flow_pb2.Flow) -> None:
        """Takes a snapshot in the place of everything known."""
        self.name, self.status, self.percent, self.revision = flow.display_name, flow.status, flow.progress_percent, flow.revision
        self.phases = {
            (child.type, phase.name): PhaseLine(phase.name, phase.state, phase.fraction, phase.message, phase.retry_count)
            for child in flow.children
            for phase in child.phases
        }

    def show_event(self, event: event_pb2.FlowEvent) -> None:
        """Applies one event."""
        self.status, self.percent, self.revision = event.status, event.progress_percent, event.revision
        for change in event.changes:
            if change.WhichOneof("kind") == "phase":
                moved = change.phase
                line = self.phases.get((moved.child_type, moved.phase))
                before = line or PhaseLine(moved.phase, moved.from_state, moved.from_fraction, "", 0)
                self.phases[moved.child_type, moved.phase] = replace(
                    before,
                    state=moved.to_state,
                    fraction=moved.to_fraction,
                    message=moved.reason if moved.from_state == moved.to_state else before.message,
                    retry_count=moved.retry_count,
                )
        self.events.append(f"{event.revision:>4}  {event_text(event)}")


class ProgressView:
    """Shows a flow while it happens: live on a terminal, a line for each event elsewhere."""

    def __init__(self, console: Console, ledger: Ledger, flow_id: str) -> None:
        self._console, self._ledger, self._flow_id = console, ledger, flow_id
        self._picture = FlowPicture()
        self._live_again = True  # until the stream has ended
        # Not transient: the last picture stays when the report comes below it.
        self._live = Live(console=console, auto_refresh=False, vertical_overflow="crop") if _moves(console) else None

    async def run(self) -> None:
        """Shows the flow until its stream ends for good; CallFailed when it cannot be watched."""
        if self._live:
            self._live.start()
        try:
            async for response in self._responses():
                self._show(response)
        finally:
            if self._live:
                self._live.stop()
            self._live_again = False

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Room for a question: the bars stand still above it, and come back below."""
        if self._live:
            self._live.stop()
        try:
            yield
        finally:
            if self._live and self._live_again:
                self._live.start(refresh=True)

    async def _responses(self) -> AsyncIterator[flow_service_pb2.WatchFlowResponse]:
        """Everything that the service says of the flow, through breaks and restarts, each revision once."""
        away = False
        while True:
            call = self._ledger.watch_call(self._request())
            try:
                async for response in call:
                    away = False
                    yield response
                    if response.WhichOneof("message") == "end" and response.end.reason in _ENDINGS:
                        return
                await asyncio.sleep(RECONNECT_SECONDS)
            except aio.AioRpcError as error:
                if error.code() == grpc.StatusCode.OUT_OF_RANGE:  # that part of the history is gone: a snapshot has what it led to
                    self._picture.revision = 0
                elif error.code() != grpc.StatusCode.UNAVAILABLE:
                    raise call_failed(error) from None
                elif not away:  # said once for each absence
                    away = True
                    self._say(f"the service is away; the stream is taken up again after revision {self._picture.revision}")
                await asyncio.sleep(RECONNECT_SECONDS)
            finally:
                call.cancel()

    def _request(self) -> flow_service_pb2.WatchFlowRequest:
        position = self._picture.revision
        return flow_service_pb2.WatchFlowRequest(
            flow_id=self._flow_id,
            start=flow_service_pb2.WATCH_START_AFTER_REVISION if position else flow_service_pb2.WATCH_START_SNAPSHOT,
            after_revision=position,
            delivery=flow_service_pb2.WATCH_DELIVERY_EVERY_REVISION,
            heartbeat_interval=duration_pb2.Duration(seconds=HEARTBEAT_SECONDS),
        )

    def _show(self, response: flow_service_pb2.WatchFlowResponse) -> None:
        picture = self._picture
        match response.WhichOneof("message"):
            case "snapshot":
                picture.show_snapshot(response.snapshot.flow)
                self._line(f"{picture.name} as it is now, {status_name(picture.status)}")
            case "event":
                picture.show_event(response.event)
                self._line(event_text(response.event))
            case "end":
                why = _ENDINGS.get(response.end.reason, f"{response.end.message or 'the stream was closed'}; it is taken up again")
                self._say(f"{why}, {status_name(picture.status)}")
        self._refresh()

    def _line(self, text: str) -> None:
        if not self._live:
            print(f"{self._picture.revision:>4}  {self._picture.percent:5.1f} %  {text}", flush=True)

    def _say(self, text: str) -> None:
        """Something about the stream itself."""
        if self._live:
            last = f"   -  {text}"
            if not self._picture.events or self._picture.events[-1] != last:
                self._picture.events.append(last)
            self._refresh()
        else:
            print(f"   -  {text}", flush=True)

    def _refresh(self) -> None:
        if self._live and self._live.is_started:
            self._live.update(picture_of(self._picture, self._console.width), refresh=True)


def picture_of(picture: FlowPicture, width: int) -> RenderableType:
    """The picture for a terminal ``width`` columns wide."""
    names = max((len(line.name) for line in picture.phases.values()), default=10)
    bar = max(10, min(30, width - names - 45))
    bars = Table.grid(padding=(0, 1))
    bars.add_column(no_wrap=True)
    bars.add_column(width=bar)
    bars.add_column(no_wrap=True, justify="right", width=5)
    bars.add_column(no_wrap=True, overflow="ellipsis", max_width=max(10, width - names - bar - 9))
    for line in picture.phases.values():
        style = _STYLES.get(line.state, "dim")
        told = state_name(line.state) + (f", retry {line.retry_count}" if line.retry_count else "")
        if line.state == flow_pb2.PHASE_STATE_IN_PROGRESS and line.message:
            told += f": {line.message}"
        bars.add_row(
            Text(line.name, style),
            ProgressBar(1.0, line.done, width=bar, complete_style=style, finished_style=style),
            f"{line.done:.0%}",
            Text(told, style),
        )
    head = Text.assemble(
        (picture.name, "bold"), f"   {status_name(picture.status)}   {picture.percent:.1f} %   revision {picture.revision}"
    )
    events = [Text(event, "dim", no_wrap=True, overflow="ellipsis") for event in picture.events]
    return Group(head, bars, *events)


def _moves(console: Console) -> bool:
    return console.is_terminal and not console.is_dumb_terminal
