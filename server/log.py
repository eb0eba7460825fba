"""The log: one JSON object a line on standard error, written beside the event loop."""

from __future__ import annotations

import sys
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Literal

import orjson
import structlog

# Lines that wait for a slow terminal or pipe; beyond this they are counted and dropped, so that the log cannot eat the memory.
WAITING_LINES = 20_000
FLUSH_SECONDS = 0.05


class _Writer:
    """Takes lines without ever blocking or waking anybody, and writes them from a thread, many at a time."""

    def __init__(self) -> None:
        self._lines: deque[str] = deque()
        self._dropped = 0
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    def write(self, line: str) -> None:
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
            self._lines.append(orjson.dumps({"event": "log_lines_dropped", "lines": self._dropped}).decode())
            self._dropped = 0
        if lines := [self._lines.popleft() for _ in range(len(self._lines))]:
            # Nobody may read it any more; serving goes on.
            with suppress(OSError, ValueError):
                sys.stderr.write("\n".join(lines) + "\n")
                sys.stderr.flush()


@contextmanager
def logging(level: Literal["debug", "info", "warning", "error"], form: Literal["auto", "json", "console"]) -> Iterator[None]:
    """The log is set up while the block lasts."""
    writer = _Writer()
    console = form == "console" or (form == "auto" and sys.stderr.isatty())
    renderer: list[structlog.typing.Processor]
    if console:
        renderer = [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())]
    else:
        renderer = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(serializer=_written)]
    structlog.configure(
        processors=[structlog.processors.add_log_level, structlog.processors.TimeStamper(fmt="iso", utc=True), *renderer],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=lambda *_: writer,
        cache_logger_on_first_use=True,
    )
    try:
        yield
    finally:
        writer.close()
        structlog.reset_defaults()


def _written(event: object, **_: object) -> str:
    return orjson.dumps(event, default=repr).decode()
