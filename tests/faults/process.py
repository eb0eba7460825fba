"""A `flowledger serve` of the test's own, to be stopped politely or killed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc

from tests.conftest import KEYS, Urls

START_SECONDS = 60.0
STOP_SECONDS = 30.0
STEP_SECONDS = 0.02
CHANNEL = [("grpc.initial_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 200)]


@dataclass(frozen=True, slots=True)
class ServerProcess:
    """A running server process and where it listens."""

    process: subprocess.Popen[bytes]
    address: str
    log: Path

    async def kill(self) -> None:
        """End it with SIGKILL, as a crash would."""
        self.process.kill()
        await self.exit_code()

    def terminate(self) -> None:
        """Ask it to stop, as an orchestrator does."""
        self.process.send_signal(signal.SIGTERM)

    async def exit_code(self, seconds: float = STOP_SECONDS) -> int:
        """The exit code, once the process has ended. Raises TimeoutExpired after ``seconds``."""
        return await asyncio.to_thread(self.process.wait, seconds)


def environment(**variables: object) -> dict[str, str]:
    """This process's environment with FLOWLEDGER_ variables."""
    given = {f"FLOWLEDGER_{name.upper()}": str(value) for name, value in variables.items()}
    return {**os.environ, "FLOWLEDGER_PORT": "0", "FLOWLEDGER_SWEEP_SECONDS": "0", "FLOWLEDGER_LOG_LEVEL": "warning", **given}


def database(urls: Urls) -> dict[str, object]:
    """The variables that make a server serve from that database."""
    return {"database_url": urls.service, "owner_database_url": urls.owner, "keys": KEYS}


def command(name: str, *arguments: object, program: Sequence[str] = ("server",)) -> list[str]:
    """How the command line is called; ``program`` is a module that stands in for it, with its arguments."""
    return [sys.executable, "-m", *program, name, *map(str, arguments)]


def serving(place: Path, **variables: object) -> AbstractAsyncContextManager[ServerProcess]:
    """A server process that takes calls; killed at the end unless it has ended before. Its log lies in ``place``."""
    return serving_with(("server",), place, variables)


@asynccontextmanager
async def serving_with(program: Sequence[str], place: Path, variables: Mapping[str, object]) -> AsyncIterator[ServerProcess]:
    """As ``serving``, with a module that stands in for the server's own."""
    ready = place / f"ready-{time.monotonic_ns()}"
    log = ready.with_suffix(".log")
    with log.open("wb") as output:
        arguments = command("serve", "--ready-file", ready, program=program)
        process = subprocess.Popen(arguments, env=environment(**variables), stdout=output, stderr=output)  # noqa: ASYNC220 - starts at once
    try:
        deadline = time.monotonic() + START_SECONDS
        while not ready.exists():
            assert process.poll() is None, f"the server ended with {process.returncode}: {log.read_text()[-2000:]}"
            assert time.monotonic() < deadline, f"the server did not start: {log.read_text()[-2000:]}"
            await asyncio.sleep(STEP_SECONDS)  # a file gives no signal
        yield ServerProcess(process, ready.read_text().strip(), log)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        process.wait(STOP_SECONDS)


@asynccontextmanager
async def connection(address: str) -> AsyncIterator[grpc.aio.Channel]:
    """A channel that tries again soon."""
    async with grpc.aio.insecure_channel(address, options=CHANNEL) as channel:
        yield channel
