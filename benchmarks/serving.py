"""`flowledger serve` in a process of its own, on the PostgreSQL of the run and with default settings."""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from benchmarks.child_process import child_process
from benchmarks.generator import Target
from benchmarks.postgres import Postgres
from benchmarks.requests import SERVICE, Tenant

START_SECONDS = 60.0
_NONE: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Serving:
    """Where a running server listens, and the processes to account its work to."""

    address: tuple[str, int]
    pid: int
    postgres: Postgres

    def target(self, method: str, owners: tuple[Tenant, ...]) -> Target:
        """How to call ``method`` as ``owners``."""
        trees = {"server": self.pid, "postgres": self.postgres.pid}
        return Target(self.address, SERVICE + method, [owner.metadata for owner in owners], trees)


@asynccontextmanager
async def serving(postgres: Postgres, variables: Mapping[str, str] = _NONE) -> AsyncIterator[Serving]:
    """A server that takes calls while the block lasts; it logs to a file, as a container's does to a pipe.

    FLOWLEDGER_ variables of the environment reach it, and ``variables`` before them. Raises RuntimeError with the end of its log when it
    does not start.
    """
    with tempfile.TemporaryDirectory(prefix="flserve-") as scratch:
        ready, log = Path(scratch) / "ready", Path(scratch) / "log"
        environment = {**os.environ, **variables, "FLOWLEDGER_PORT": "0", "FLOWLEDGER_DATA_DIR": str(postgres.data_dir)}
        command: list[str | Path] = [sys.executable, *os.environ.get("BENCH_SERVER", "-m server").split(), "serve", "--ready-file", ready]
        with log.open("wb") as output:
            async with child_process(command, env=environment, output=output, errors=output) as process:
                host, port = (await _told(ready, log, process)).rsplit(":", 1)
                yield Serving((host, int(port)), process.pid, postgres)


async def _told(ready: Path, log: Path, process: asyncio.subprocess.Process) -> str:
    """What the server wrote to its ready file."""
    clock = asyncio.get_running_loop().time
    deadline = clock() + START_SECONDS
    while not ready.exists():  # noqa: ASYNC240 - another process makes it
        if process.returncode is not None or clock() > deadline:
            end = log.read_text(errors="replace")[-4_000:]  # noqa: ASYNC240
            raise RuntimeError(f"`flowledger serve` took no calls within {START_SECONDS:g} s; the end of its log:\n{end}")
        await asyncio.sleep(0.05)
    return ready.read_text().strip()  # noqa: ASYNC240
