"""The log: one JSON object a line on standard error, written beside the event loop."""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, get_args

import orjson
import structlog

# Lines that wait for a slow terminal or pipe; beyond this they are counted and dropped, so that the log cannot eat the memory.
WAITING_LINES = 20_000
FLUSH_SECONDS = 0.05


Line = structlog.typing.EventDict
Level = Literal["debug", "info", "warning", "error"]
_LEVELS: tuple[Level, ...] = get_args(Level)
# What is worse than a call that ended otherwise than well.
_ERRORS = frozenset({"INTERNAL", "STORE_UNAVAILABLE", "CHECKPOINT_UNREADABLE"})


@dataclass(frozen=True, slots=True)
class _Call:
    """One call that ended, before it is written down."""

    level: Level
    method: str
    outcome: str
    ended: float
    seconds: float
    caller: Any
    flow: str
    wrong: str

    def line(self) -> Line:
        """The call's one line: who, what, how it ended and how long it took; never a document."""
        line: Line = {"level": self.level, "timestamp": self.ended, "event": "call", "method": self.method, "outcome": self.outcome}
        line["ms"] = round(self.seconds * 1000, 2)
        if self.caller is not None:
            tenant = self.caller.tenant
            line.update(account=str(tenant.client_account_id), engagement=str(tenant.engagement_id), user=self.caller.user)
        if self.flow:
            line["flow"] = self.flow
        if self.wrong:
            line["error"] = self.wrong
        return line


class CallLog:
    """Hears of every call that ended, and leaves the writing down to the log's thread."""

    def __init__(self, write: Callable[[_Call], None], level: Level) -> None:
        self._write = write
        self._heard = frozenset(_LEVELS[_LEVELS.index(level) :])

    def __call__(self, method: str, outcome: str, started: float, caller: Any, flow: str, wrong: str) -> None:
        """``started`` is of time.perf_counter; ``wrong`` is what the caller was told, if anything was wrong."""
        level: Level = "info" if outcome == "OK" else "error" if outcome in _ERRORS else "warning"
        if level in self._heard:
            self._write(_Call(level, method, outcome, time.time(), time.perf_counter() - started, caller, flow, wrong))


class _Writer:
    """Takes lines without ever blocking or waking anybody; renders and writes them from a thread, many at a time."""

    def __init__(self, render: Callable[[Line], str]) -> None:
        self._render = render
        self._lines: deque[Line | _Call] = deque()
        self._dropped = 0
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    def write(self, line: Line | _Call) -> None:
        """Hand over one line."""
        if len(self._lines) < WAITING_LINES:
            self._lines.append(line)
        else:
            self._dropped += 1

    msg = log = debug = info = warning = warn = error = critical = fatal = exception = write

    def close(self) -> None:
        """Write what waits, at most for a second."""
        self._closing.set()
        self._thread.join(timeout=1.0)

    def _run(self) -> None:
        # Looking at times costs next to nothing; being woken for each line would cost every call a change of threads.
        while not self._closing.wait(FLUSH_SECONDS):
            self._flush()
        self._flush()

    def _flush(self) -> None:
        if self._dropped:
            self._lines.append({"level": "warning", "timestamp": time.time(), "event": "log_lines_dropped", "lines": self._dropped})
            self._dropped = 0
        if lines := [self._lines.popleft() for _ in range(len(self._lines))]:
            # Nobody may read it any more; serving goes on.
            with suppress(OSError, ValueError):
                sys.stderr.write("".join(f"{self._render(line.line() if isinstance(line, _Call) else line)}\n" for line in lines))
                sys.stderr.flush()


@contextmanager
def logging(level: Level, form: Literal["auto", "json", "console"]) -> Iterator[CallLog]:
    """The log is set up while the block lasts; what is yielded hears of calls."""
    console = form == "console" or (form == "auto" and sys.stderr.isatty())
    writer = _Writer(_console_renderer() if console else _json)
    structlog.configure(
        processors=[_stamped],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=lambda *_: writer,
        cache_logger_on_first_use=True,
    )
    try:
        yield CallLog(writer.write, level)
    finally:
        writer.close()
        structlog.reset_defaults()


def _stamped(_: object, method: str, line: Line) -> tuple[tuple[Line], dict[str, object]]:
    """The line with its time and level; a traceback is written down at once, before its frames go on."""
    line["level"] = method
    line["timestamp"] = time.time()
    if "exc_info" in line:
        line = structlog.processors.format_exc_info(None, method, line)
    return (line,), {}


def _told_time(line: Line) -> Line:
    time_told = datetime.fromtimestamp(line.pop("timestamp"), UTC).isoformat(timespec="microseconds")
    return {"time": time_told, "level": line.pop("level"), "event": line.pop("event"), **line}


def _json(line: Line) -> str:
    return orjson.dumps(_told_time(line), default=repr).decode()


def _console_renderer() -> Callable[[Line], str]:
    # Plain tracebacks: the others print local variables, and those may hold documents.
    render = structlog.dev.ConsoleRenderer(
        colors=sys.stderr.isatty(), timestamp_key="time", exception_formatter=structlog.dev.plain_traceback
    )

    def console(line: Line) -> str:
        return str(render(None, "", _told_time(line)))

    return console
