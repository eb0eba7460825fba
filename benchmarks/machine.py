"""On what a run was measured: versions and sizes, nothing that names the machine."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version

import psutil

from benchmarks.postgres import Postgres
from benchmarks.processor import Others

_PACKAGES = ("grpcio", "protobuf", "asyncpg", "SQLAlchemy", "uvloop", "orjson")
_SETTINGS = ("fsync", "synchronous_commit", "shared_buffers")


async def machine(postgres: Postgres, found: Others) -> dict[str, str]:
    """Versions, processors, memory, kernel and PostgreSQL's durability settings, by name.

    ``found`` is what else kept the processors busy during the run.
    """
    connection = await postgres.connect()
    try:
        settings = [f"{name}={await connection.fetchval('SELECT current_setting($1)', name)}" for name in _SETTINGS]
        server_version = await connection.fetchval("SHOW server_version")
    finally:
        await connection.close()
    return {
        "PostgreSQL": f"{server_version} ({', '.join(settings)})",
        "Python": platform.python_version(),
        **{package: version(package) for package in _PACKAGES},
        "CPUs": str(os.cpu_count()),
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        "kernel": platform.release(),
        "architecture": platform.machine(),
        "other processes": f"{found.used:.0%} of the processors",
        "hypervisor": f"{found.stolen:.0%}",
    }
