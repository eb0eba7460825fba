"""A service of one's own for as long as it is needed: started, awaited, stopped, nothing left."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import stat
import sys
import tempfile
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

START_SECONDS = 120.0
STOP_SECONDS = 60.0
POLL_SECONDS = 0.05


class ServiceError(Exception):
    """The service did not start, did not stop, or left something behind; the text says which and shows its last words."""


class Service:
    """A service in a directory of its own, with an embedded PostgreSQL."""

    address = ""

    def __init__(self, directory: Path) -> None:
        self.directory, self._log = directory, directory / "server.log"
        self._process: asyncio.subprocess.Process | None = None
        self._postmasters: set[int] = set()
        self._killed = False

    @property
    def socket_directory(self) -> str:
        """Where its PostgreSQL is reached without the service, by whoever may do anything there."""
        return (self.directory / "data" / "postgres" / "postmaster.pid").read_text().split("\n")[4]

    async def start(self) -> None:
        """Starts it, for the first time or again, then at the same address. Raises ServiceError."""
        ready = self.directory / "ready"
        ready.unlink(missing_ok=True)
        environment = {name: value for name, value in os.environ.items() if not name.startswith("FLOWLEDGER_")}
        port = self.address.rpartition(":")[2] or "0"
        environment |= {"FLOWLEDGER_DATA_DIR": str(self.directory / "data"), "FLOWLEDGER_PORT": port}
        with self._log.open("ab") as output:
            # A session of its own: Ctrl-C reaches us alone, and we stop the service in order.
            self._process = await asyncio.create_subprocess_exec(
                command(),
                "serve",
                "--ready-file",
                str(ready),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=asyncio.subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )
        self.address = await _ready(self._process, ready, self._log)
        self._killed = False
        self._postmasters |= _postmasters(self.directory)

    async def kill(self) -> None:
        """Ends it as a power cut would, without a word; its PostgreSQL runs on."""
        assert self._process
        self._killed = True
        self._process.kill()
        await self._process.wait()

    async def stop(self) -> None:
        """Stops it and makes sure of it; ServiceError when it had to be killed or left a process."""
        if self._process is not None:
            await _stop(self._process, self.directory, self._postmasters, self._killed)


@asynccontextmanager
async def service() -> AsyncIterator[Service]:
    """A new service that runs; it and its data are gone when the context ends.

    Raises ServiceError.
    """
    with _data_directory() as directory:
        made = Service(directory)
        try:
            await made.start()
            yield made
        finally:
            await _to_its_end(made.stop())


@asynccontextmanager
async def running_service() -> AsyncIterator[str]:
    """The address of such a service."""
    async with service() as made:
        yield made.address


async def _ready(server: asyncio.subprocess.Process, ready: Path, log: Path) -> str:
    try:
        async with asyncio.timeout(START_SECONDS):
            while True:
                if server.returncode is not None:
                    raise ServiceError(f"the service ended with code {server.returncode} before it served:\n{_tail(log)}")
                if address := _first_line(ready):
                    return address
                await asyncio.sleep(POLL_SECONDS)
    except TimeoutError:
        raise ServiceError(f"the service did not serve within {START_SECONDS:.0f} s:\n{_tail(log)}") from None


async def _to_its_end(stopping: Coroutine[None, None, None]) -> None:
    """Awaits ``stopping`` however often we are cancelled meanwhile: an impatient Ctrl-C must not leave processes behind."""
    task = asyncio.ensure_future(stopping)
    cancelled = False
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError:
            cancelled = True
    task.result()
    if cancelled:
        raise asyncio.CancelledError


async def _stop(server: asyncio.subprocess.Process, directory: Path, postmasters: set[int], abandoned: bool) -> None:
    """Stops the service and makes sure of it; ServiceError when it had to be killed or left a process, unless it was ``abandoned``."""
    postmasters = postmasters | _postmasters(directory)
    killed = False
    if server.returncode is None:
        server.send_signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(server.wait(), STOP_SECONDS)
        except TimeoutError:
            killed = True
            server.kill()
            await server.wait()
    left = {pid for pid in postmasters if _alive(pid)}
    for pid in left:
        os.kill(pid, signal.SIGINT)  # PostgreSQL's fast shutdown
    for _ in range(int(STOP_SECONDS / POLL_SECONDS)):
        if not any(map(_alive, left)):
            break
        await asyncio.sleep(POLL_SECONDS)
    if killed:
        raise ServiceError(f"the service did not stop within {STOP_SECONDS:.0f} s and was killed:\n{_tail(directory / 'server.log')}")
    if left and not abandoned:
        raise ServiceError(f"the service left PostgreSQL running (process {', '.join(map(str, sorted(left)))}); it was stopped now")


def _first_line(ready: Path) -> str:
    """The address that the service wrote once it served; empty before."""
    try:
        return ready.read_text().split("\n", 1)[0].strip()
    except FileNotFoundError:
        return ""


def _postmasters(directory: Path) -> set[int]:
    """The processes that the PostgreSQL lock files below ``directory`` name in their first line."""
    found = set()
    for lock in directory.rglob("postmaster.pid"):
        try:
            found.add(int(lock.read_text().split("\n", 1)[0]))
        except (OSError, ValueError):
            continue
    return {pid for pid in found if _alive(pid)}


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    # A zombie has ended; only whoever started it has not asked yet.
    status = Path(f"/proc/{pid}/stat")
    try:
        return not status.exists() or status.read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def command() -> str:
    """The `flowledger` command of this environment. Raises ServiceError when there is none."""
    beside = Path(sys.executable).with_name("flowledger")
    if beside.exists():
        return str(beside)
    if found := shutil.which("flowledger"):
        return found
    raise ServiceError("there is no `flowledger` command: install the service into this environment first (`make demo` does)")


@contextmanager
def _data_directory() -> Iterator[Path]:
    """A new directory that an unprivileged user can reach: PostgreSQL refuses to run as root, so root's server runs it as another."""
    directory = Path(tempfile.mkdtemp(prefix="flowledger-demo-", dir=_reachable_temporary_directory()))
    try:
        directory.chmod(0o755)
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _reachable_temporary_directory() -> Path:
    chosen = Path(tempfile.gettempdir()).resolve()
    if os.geteuid() != 0:
        return chosen
    for candidate in (chosen, Path("/tmp"), Path("/var/tmp")):
        if candidate.is_dir() and all(part.stat().st_mode & stat.S_IXOTH for part in (candidate, *candidate.parents)):
            return candidate
    raise ServiceError(
        f"root's PostgreSQL runs as another user, who cannot reach {chosen}: set TMPDIR to a directory that everybody may enter"
    )


def _tail(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    return "\n".join(f"  {line}" for line in lines[-15:]) or "  (it said nothing)"
