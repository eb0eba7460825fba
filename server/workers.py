"""Several server processes behind one port: each with a loop of its own, started, watched and replaced by one that serves nothing itself.

Workers are started as programs, never forked: neither gRPC nor an event loop survives that. The kernel deals connections out among those
that listen on the port (SO_REUSEPORT), so balance comes from clients with several connections.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import structlog

_log = structlog.get_logger()

# A worker must take calls within so long, and is given so much longer than its drain to end.
START_SECONDS = 60.0
GRACE_SECONDS = 5.0
# A worker that lived shorter than this ended because it cannot serve; so many of those in a row, and all is ended.
SHORT_SECONDS = 10.0
SHORT_LIVES = 5
RESTART_SECONDS = 0.5


class WorkersError(Exception):
    """The workers cannot serve; the text says what was seen."""


class Workers:
    """Keeps ``count`` workers serving on one port."""

    def __init__(self, count: int, host: str, port: int, environment: Mapping[str, str], drain_seconds: float) -> None:
        self._count, self._drain = count, drain_seconds
        self._environment = {**environment, "FLOWLEDGER_HOST": host, "FLOWLEDGER_PORT": str(port)}
        self._running: set[asyncio.subprocess.Process] = set()
        self._leaving: set[asyncio.subprocess.Process] = set()
        self._short_lives = 0
        self._rolling = asyncio.Lock()
        self._stopping = False

    async def start(self) -> None:
        """Start them all; returns when each takes calls. Raises WorkersError."""
        started = await asyncio.gather(*(self._started() for _ in range(self._count)), return_exceptions=True)
        for one in started:
            if isinstance(one, BaseException):
                raise one

    async def keep(self) -> None:
        """Replace workers that end, for ever. Raises WorkersError when new ones cannot serve."""
        loop = asyncio.get_running_loop()
        watched: dict[asyncio.Task[int], tuple[asyncio.subprocess.Process, float]] = {}
        while True:
            known = {process for process, _ in watched.values()}
            for process in self._running - known:
                watched[asyncio.create_task(process.wait())] = process, loop.time()
            done, _ = await asyncio.wait(watched, timeout=RESTART_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                process, since = watched.pop(task)
                self._running.discard(process)
                if process in self._leaving:
                    self._leaving.discard(process)
                    continue
                _log.error("worker_ended", pid=process.pid, code=process.returncode)
                self._short_lives = self._short_lives + 1 if loop.time() - since < SHORT_SECONDS else 0
                if self._short_lives >= SHORT_LIVES:
                    raise WorkersError(f"{SHORT_LIVES} workers in a row ended within {SHORT_SECONDS:g} s; the log says why")
                await self._started()

    async def roll(self) -> None:
        """Replace every worker by a new one, one after the other: the new one takes calls before the old one is asked to end."""
        async with self._rolling:
            for old in list(self._running):
                await self._started()
                self._leaving.add(old)
                _end(old)
                with suppress(TimeoutError):
                    await asyncio.wait_for(old.wait(), self._drain + GRACE_SECONDS)

    async def stop(self) -> None:
        """End them all, each after its drain."""
        self._stopping = True
        for process in self._running:
            _end(process)
        if self._running:
            ending = [asyncio.create_task(process.wait()) for process in self._running]
            _, late = await asyncio.wait(ending, timeout=self._drain + GRACE_SECONDS)
            for task in late:
                task.cancel()
        for process in self._running:
            if process.returncode is None:
                _log.error("worker_killed", pid=process.pid)
                process.kill()
                await process.wait()

    async def _started(self) -> None:
        with tempfile.TemporaryDirectory(prefix="flowledger-") as scratch:
            ready = Path(scratch) / "ready"
            command = [sys.executable, "-m", "server", "serve", "--worker", "--ready-file", str(ready)]
            # Its standard input ends with this process, however that ends.
            process = await asyncio.create_subprocess_exec(*command, env=self._environment, stdin=asyncio.subprocess.PIPE)
            self._running.add(process)
            deadline = asyncio.get_running_loop().time() + START_SECONDS
            while not ready.exists():
                if process.returncode is not None or asyncio.get_running_loop().time() > deadline or self._stopping:
                    self._running.discard(process)
                    if process.returncode is None:
                        process.kill()
                    await process.wait()
                    raise WorkersError(f"a worker took no calls within {START_SECONDS:g} s, or ended; the log says why")
                await asyncio.sleep(0.02)
        _log.info("worker_started", pid=process.pid)


def _end(process: asyncio.subprocess.Process) -> None:
    with suppress(ProcessLookupError):
        process.send_signal(signal.SIGTERM)


@asynccontextmanager
async def shared_port(host: str, port: int) -> AsyncIterator[int]:
    """A port that workers can listen on together, kept while the block lasts; 0 lets the kernel choose. Raises OSError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as kept:
        try:
            # First without sharing: a stranger's server on that port would get a part of the connections.
            with socket.socket(family, socket.SOCK_STREAM) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((host.strip("[]"), port))
            kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            kept.bind((host.strip("[]"), port))  # bound and not listening: it takes no connection
        except OSError as error:
            raise OSError(f"cannot listen on {host}:{port}: is another server there? Set FLOWLEDGER_PORT") from error
        yield int(kept.getsockname()[1])


@asynccontextmanager
async def working(count: int, host: str, port: int, drain_seconds: float) -> AsyncIterator[tuple[Workers, int]]:
    """Workers that serve while the block lasts, and their port. Raises WorkersError, OSError."""
    async with shared_port(host, port) as bound:
        workers = Workers(count, host, bound, os.environ, drain_seconds)
        try:
            await workers.start()
            yield workers, bound
        finally:
            await workers.stop()
