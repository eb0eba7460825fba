"""Times, spans, sizes and states, as they are said and as they are read."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import typer
from flowledger.v1 import alert_pb2, flow_pb2
from flowledger_client.text import state_name, status_name
from google.protobuf.timestamp_pb2 import Timestamp
from rich.text import Text

T = TypeVar("T")
SPAN = re.compile(r"(\d+(?:\.\d+)?)([smhdw])")
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
STATUS_STYLES = {
    flow_pb2.FLOW_STATUS_COMPLETED: "green",
    flow_pb2.FLOW_STATUS_FAILED: "bold red",
    flow_pb2.FLOW_STATUS_CANCELLED: "red",
    flow_pb2.FLOW_STATUS_RETRY_PENDING: "magenta",
    flow_pb2.FLOW_STATUS_ERROR_RECOVERY: "magenta",
    flow_pb2.FLOW_STATUS_WAITING_APPROVAL: "yellow",
    flow_pb2.FLOW_STATUS_PAUSED: "yellow",
}
STATE_STYLES = {
    flow_pb2.PHASE_STATE_COMPLETED: "green",
    flow_pb2.PHASE_STATE_IN_PROGRESS: "cyan",
    flow_pb2.PHASE_STATE_WAITING_VALIDATION: "yellow",
    flow_pb2.PHASE_STATE_WAITING_APPROVAL: "yellow",
    flow_pb2.PHASE_STATE_FAILED: "bold red",
    flow_pb2.PHASE_STATE_RETRY_NEEDED: "magenta",
    flow_pb2.PHASE_STATE_ROLLED_BACK: "magenta",
}
SEVERITY_STYLES = {alert_pb2.ALERT_SEVERITY_WARNING: "yellow", alert_pb2.ALERT_SEVERITY_CRITICAL: "bold red"}


def local(time: Timestamp, short: bool = False) -> str:
    """The time on the clock beside the terminal, to the second; ``short`` leaves the year out."""
    return f"{time.ToDatetime(UTC).astimezone():{'' if short else '%Y-'}%m-%d %H:%M:%S}"


def zone() -> str:
    """What that clock is ahead of UTC: `+0545`."""
    return f"{datetime.now(UTC).astimezone():%z}"


def until(time: Timestamp) -> str:
    """How long it is until then, roughly: `23 h`; `now` when it is past."""
    return rough(time.ToDatetime(UTC) - datetime.now(UTC))


def rough(span: timedelta) -> str:
    """The span in its largest unit that it holds twice."""
    seconds = span.total_seconds()
    if seconds <= 0:
        return "now"
    for unit, name in (("d", "days"), ("h", "h"), ("m", "min")):
        if seconds >= 2 * UNITS[unit]:
            return f"{seconds // UNITS[unit]:.0f} {name}"
    return f"{seconds:.0f} s"


def span(text: str) -> timedelta:
    """The span that somebody wrote: `90s`, `24h`, `7d`, `1d12h`."""
    parts = SPAN.findall(text)
    if not parts or "".join(map("".join, parts)) != text:
        raise typer.BadParameter(f"{text!r} is no span of time: write it as 90s, 30m, 24h, 7d or 1d12h")
    try:
        return timedelta(seconds=sum(float(number) * UNITS[unit] for number, unit in parts))
    except OverflowError:
        raise typer.BadParameter(f"{text!r} is longer than anybody can wait") from None


def size(count: int) -> str:
    """Bytes for people: `12.3 KiB`."""
    value = float(count)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if value < 1024 or unit == "GiB":
            return f"{value:,.0f} {unit}" if unit == "bytes" else f"{value:,.1f} {unit}"
        value /= 1024
    raise AssertionError


def name(enum: Any, value: int, prefix: str) -> str:
    """An enum's value without its prefix; the number of one that is newer than this command."""
    try:
        return str(enum.Name(value)).removeprefix(prefix)
    except ValueError:
        return str(value)


def member(text: str, enum: Any, prefix: str) -> int:
    """The value that somebody wrote, in any case, with `-` or `_`: `pre-rollback`."""
    wanted = prefix + text.upper().replace("-", "_")
    if wanted not in enum.keys() or enum.Value(wanted) == 0:  # noqa: SIM118 - the wrapper is no mapping
        known = ", ".join(key.removeprefix(prefix).lower().replace("_", "-") for key, value in enum.items() if value)
        raise typer.BadParameter(f"{text!r} is not one of {known}")
    return int(enum.Value(wanted))


def status(value: flow_pb2.FlowStatus.ValueType) -> Text:
    """A flow's status in its colour."""
    return Text(status_name(value), STATUS_STYLES.get(value, "cyan"))


def state(value: flow_pb2.PhaseState.ValueType) -> Text:
    """A phase's state in its colour."""
    return Text("not there" if not value else state_name(value), STATE_STYLES.get(value, "dim"))


def sentence(text: str) -> str:
    """What the service says without a capital and a full stop, with them."""
    return f"{text[:1].upper()}{text[1:]}{'' if text.endswith(('.', '!', '?')) else '.'}"


def counted(number: int, one: str, more: str = "") -> str:
    """`1 event`, `1,234 events`."""
    return f"{number:,} {one if number == 1 else more or one + 's'}"


def alike(found: Iterable[T], text: Callable[[T], str]) -> Iterable[list[T]]:
    """What is found, together with whatever differs from it in numbers alone: the same of each revision is one thing to a person."""
    groups: dict[str, list[T]] = {}
    for one in found:
        groups.setdefault(re.sub(r"\d+", "#", text(one)), []).append(one)
    return groups.values()


def told(group: Sequence[str]) -> str:
    """The first of what is alike, and how much more there is."""
    return group[0] if len(group) == 1 else f"{group[0]} (and {len(group) - 1:,} more like this, up to: {group[-1]})"


def summed(texts: Iterable[str]) -> list[str]:
    """The texts, those that are alike as one."""
    return [told(group) for group in alike(texts, str)]
