"""The private PostgreSQL of one data directory: started by its first server, shared by all, stopped by the last."""

import asyncio
import fcntl
import os
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

import structlog
from structlog.typing import FilteringBoundLogger

from server.cluster import Cluster, private_file
from server.programs import EmbeddedError, pg_bin

__all__ = ["Addresses", "EmbeddedError", "embedded", "pg_bin", "stop"]

LOCK_SECONDS = 180.0  # longer than the start that another process may be in
TENDING_SECONDS = 1.0

Result = TypeVar("Result")
log: FilteringBoundLogger = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Addresses:
    """URLs of one database, postgresql://..., one per role."""

    owner_url: str
    """As the role that owns the tables; for migrations."""

    service_url: str
    """As the role that the service works as: no superuser, not exempt from row level security."""


@asynccontextmanager
async def embedded(data_dir: Path) -> AsyncIterator[Addresses]:
    """Yield the addresses of the data directory's PostgreSQL, which runs for as long as somebody is in here.

    Raises EmbeddedError when it cannot be started.
    """
    tenancy = _Tenancy(data_dir)
    try:
        yield await _to_its_end(tenancy.enter)
    finally:
        await _to_its_end(tenancy.leave)


async def stop(data_dir: Path) -> bool:
    """Stop the PostgreSQL that killed servers left behind; return whether it was running.

    Raises EmbeddedError while a server still uses it.
    """
    return await _to_its_end(lambda: _stop_orphan(data_dir))


async def _to_its_end(call: Callable[[], Result]) -> Result:
    """Run the call in a thread and wait for its end even when cancelled: half a start would leave a lock or a PostgreSQL behind."""
    running = asyncio.ensure_future(asyncio.to_thread(call))
    cancelled = False
    while not running.done():
        try:
            await asyncio.wait({running})
        except asyncio.CancelledError:
            cancelled = True
    if cancelled:
        running.exception()  # fetched, or asyncio complains that nobody did
        raise asyncio.CancelledError
    return running.result()


class _Tenancy:
    """One server's use of the data directory: a shared lock, and a thread that brings PostgreSQL back when it was killed."""

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir
        self._cluster: Cluster | None = None
        self._users = -1
        self._left = threading.Event()
        self._tender = threading.Thread(target=self._tend, name="embedded-postgresql", daemon=True)

    def enter(self) -> Addresses:
        with _explained(self._data_dir):
            directory = _prepared(self._data_dir)
        with _explained(directory), _start_lock(directory):
            users = private_file(directory / "users.lock", os.O_RDWR)
            try:
                cluster = Cluster(directory)
                socket_dir = _attach(cluster, users)
            except BaseException:
                os.close(users)
                raise
        self._cluster, self._users = cluster, users
        self._tender.start()
        place = f"/flowledger?host={quote(str(socket_dir))}&port=5432"
        return Addresses(f"postgresql://flowledger_owner@{place}", f"postgresql://flowledger@{place}")

    def leave(self) -> None:
        if self._cluster is None:
            return
        self._left.set()
        self._tender.join()
        try:
            with _explained(self._cluster.data_dir), _start_lock(self._cluster.data_dir):
                if _locked(self._users, fcntl.LOCK_EX):
                    self._cluster.stop()
        finally:
            os.close(self._users)

    def _tend(self) -> None:
        cluster, users = self._cluster, self._users
        assert cluster is not None
        pause = TENDING_SECONDS
        while not self._left.wait(pause):
            pause = TENDING_SECONDS
            try:
                cluster.bound_log()
                # One that answers may have its process id in another container's name space.
                if cluster.postmaster() is None and not cluster.answers():
                    log.warning("embedded_postgresql_gone", data_dir=str(cluster.data_dir))
                    with _start_lock(cluster.data_dir):
                        _attach(cluster, users)
                    log.warning("embedded_postgresql_back", data_dir=str(cluster.data_dir))
            except (EmbeddedError, OSError, subprocess.SubprocessError) as error:
                log.error("embedded_postgresql_not_back", data_dir=str(cluster.data_dir), error=str(error))
                pause = 10 * TENDING_SECONDS


@contextmanager
def _explained(data_dir: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise EmbeddedError(
            f"The data directory {data_dir} cannot be used: {error}. It must belong to the user that serves, on a disk with room; "
            "another one can be named in FLOWLEDGER_DATA_DIR."
        ) from error


def _prepared(data_dir: Path) -> Path:
    """Return the data directory's real path after making what is missing of it."""
    directory = data_dir.resolve()
    for place in reversed([directory, *directory.parents]):
        if not place.exists():
            place.mkdir(exist_ok=True)
            # As root another account has to get through, whatever the umask; of the last one it need not see the contents.
            place.chmod(0o755 if place != directory else 0o711 if os.geteuid() == 0 else 0o700)
    return directory


def _attach(cluster: Cluster, users: int) -> Path:
    """Make sure that PostgreSQL runs and that we hold the users lock, shared; return the socket's directory."""
    try:
        return cluster.start(lambda: _locked(users, fcntl.LOCK_EX))
    finally:
        _locked(users, fcntl.LOCK_SH)  # cannot fail: others have it exclusive only under the start lock, which is ours


def _stop_orphan(data_dir: Path) -> bool:
    with _explained(data_dir):
        directory = data_dir.resolve()
        if not (directory / "users.lock").exists():
            return False
        with _start_lock(directory):
            users = private_file(directory / "users.lock", os.O_RDWR)
            try:
                if not _locked(users, fcntl.LOCK_EX):
                    raise EmbeddedError(
                        f"A server still uses the PostgreSQL in {directory}: stop that one, and PostgreSQL stops with the last."
                    )
                return Cluster(directory).stop()
            finally:
                os.close(users)


@contextmanager
def _start_lock(data_dir: Path) -> Iterator[None]:
    path = data_dir / "start.lock"
    descriptor = private_file(path, os.O_RDWR)
    try:
        deadline = time.monotonic() + LOCK_SECONDS
        while not _locked(descriptor, fcntl.LOCK_EX):
            if time.monotonic() > deadline:
                raise EmbeddedError(
                    f"Another process has been starting or stopping PostgreSQL for {LOCK_SECONDS:g} s and holds {path}: see what it is."
                )
            time.sleep(0.02)
        yield
    finally:
        os.close(descriptor)


def _locked(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
