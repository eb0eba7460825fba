"""A server in a process of its own, as `flowledger serve` starts it."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.conftest import KEYS, Urls

DEADLINE = 30.0  # seconds


@dataclass(slots=True)
class Served:
    """A running server: its process, where it listens, and what it logged so far."""

    process: asyncio.subprocess.Process
    address: str = ""
    lines: list[dict[str, Any]] = field(default_factory=list)
    _moved: asyncio.Event = field(default_factory=asyncio.Event)

    async def logged(self, event: str, **fields: Any) -> dict[str, Any]:
        """The first line of the log of that kind with those fields, waited for."""
        async with asyncio.timeout(DEADLINE):
            while True:
                self._moved.clear()
                for line in self.lines:
                    if line.get("event") == event and fields.items() <= line.items():
                        return line
                await self._moved.wait()

    async def read(self) -> None:
        """Takes in the log until the process ends."""
        assert self.process.stderr is not None
        async for text in self.process.stderr:
            try:
                line = json.loads(text)
            except ValueError:
                line = {"event": "text", "text": text.decode(errors="replace")}
            self.lines.append(line)
            self._moved.set()


@asynccontextmanager
async def served(urls: Urls, **variables: str) -> AsyncIterator[Served]:
    """A server on that database while the block lasts; ``variables`` are FLOWLEDGER_ settings by their field's name."""
    environment = {
        **os.environ,
        "FLOWLEDGER_DATABASE_URL": urls.service,
        "FLOWLEDGER_OWNER_DATABASE_URL": urls.owner,
        "FLOWLEDGER_KEYS": KEYS,
        "FLOWLEDGER_PORT": "0",
        "FLOWLEDGER_SWEEP_SECONDS": "0",
        "FLOWLEDGER_DRAIN_SECONDS": "1",
        "FLOWLEDGER_LOG_FORMAT": "json",
        # The C library keeps what is freed, up to 32 MiB a piece in each thread; with these, memory measured is memory in use.
        "MALLOC_MMAP_THRESHOLD_": "65536",
        "MALLOC_ARENA_MAX": "2",
        **{f"FLOWLEDGER_{name.upper()}": value for name, value in variables.items()},
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "server", "serve", env=environment, stderr=asyncio.subprocess.PIPE, limit=1 << 24
    )
    server = Served(process)
    reading = asyncio.create_task(server.read())
    try:
        server.address = (await server.logged("listening"))["address"]
        yield server
    finally:
        if process.returncode is None:
            process.terminate()
        await asyncio.wait_for(process.wait(), DEADLINE)
        await reading
