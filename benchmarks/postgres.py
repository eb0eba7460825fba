"""The PostgreSQL of one benchmark run: the service's own embedded one, in a directory that is removed afterwards."""

from __future__ import annotations

import os
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import asyncpg
import psutil

from server.embedded import embedded, pg_bin

Pool: TypeAlias = "asyncpg.Pool[asyncpg.Record]"  # generic in the stubs only
Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"


@dataclass(frozen=True, slots=True)
class Postgres:
    """A running PostgreSQL: its address as the owner of the database, and the process to account its CPU time to."""

    url: str
    data_dir: Path
    pid: int

    async def connect(self, settings: Mapping[str, str] | None = None) -> Connection:
        """A new connection with the server ``settings`` given."""
        return await asyncpg.connect(self.url, server_settings=dict(settings or {}))

    @asynccontextmanager
    async def pool(self, size: int) -> AsyncIterator[Pool]:
        """A pool of exactly ``size`` connections that are not reset when they are given back, as the service's are."""
        async with asyncpg.create_pool(self.url, min_size=size, max_size=size, reset=no_reset, max_inactive_connection_lifetime=0) as pool:
            yield pool

    def program(self, name: str) -> str:
        """The path of one of PostgreSQL's own programs, for example pgbench."""
        return str(pg_bin() / name)


async def no_reset(connection: Connection) -> None:
    """Keeps prepared statements warm and saves a round trip; everything here is set per transaction."""


@asynccontextmanager
async def private_postgres() -> AsyncIterator[Postgres]:
    """A fresh embedded PostgreSQL, durable, stopped and removed on leaving.

    Raises EmbeddedError when it cannot be started.
    """
    with tempfile.TemporaryDirectory(prefix="flbench-") as scratch:
        os.chmod(scratch, 0o711)
        data_dir = Path(scratch) / "data"
        async with embedded(data_dir) as addresses:
            connection = await asyncpg.connect(addresses.owner_url)
            backend = await connection.fetchval("SELECT pg_backend_pid()")
            postmaster = psutil.Process(backend).ppid()
            await connection.close()
            yield Postgres(addresses.owner_url, data_dir, postmaster)
