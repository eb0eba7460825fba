"""The log: one JSON object a line on standard error, written beside the event loop."""

from __future__ import annotations

import queue
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import orjson
import structlog

# Lines that wait for a slow terminal or pipe; beyond this they are counted and dropped, so that the log cannot eat the memory.
WAITING_LINES = 20_000


class _Writer:
    """Takes lines without ever blocking, and writes them from a thread."""

    def __init__(self) -> None:
        self._lines: queue.Queue[str | None] = queue.Queue(WAITING_LINES)
        self._dropped = 0
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    def write(self, line: str) -> None:
        """Hand over one line."""
        try:
            self._lines.put_nowait(line)
        except queue.Full:
            self._dropped += 1

    msg = log = debug = info = warning = warn = error = critical = fatal = exception = write

    def close(self) -> None:
        """Write what waits, at most for a second."""
        self._lines.put(None)
        self._thread.join(timeout=1.0)

    def _run(self) -> None:
        stream = sys.stderr
        while (line := self._lines.get()) is not None:
            lines = [line]
            while not self._lines.empty() and (more := self._lines.get_nowait()) is not None:
                lines.append(more)
            if self._dropped:
                lines.append(orjson.dumps({"event": "log_lines_dropped", "lines": self._dropped}).decode())
                self._dropped = 0
            try:
                stream.write("\n".join(lines) + "\n")
                stream.flush()
            except (OSError, ValueError):  # nobody reads it any more
                return


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
