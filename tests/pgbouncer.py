"""A PgBouncer of the tests' own, in transaction mode and strict: it refuses startup parameters and hands connections on in turn."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

# In this order: Debian's place is not on every user's path.
EXECUTABLE = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")
PORT = 6432
DEADLINE = 20.0  # seconds
ROLES = ("flowledger", "flowledger_owner", "postgres")


class PgBouncer:
    """A PgBouncer before one PostgreSQL; databases and roles are called as there."""

    def __init__(self, directory: Path, postgres: Path, account: pwd.struct_passwd | None, options: Sequence[str] = ()) -> None:
        self.directory, self._account = directory, account
        self._process: subprocess.Popen[bytes] | None = None
        (directory / "users").write_text("".join(f'"{role}" ""\n' for role in ROLES))
        settings = (
            f"unix_socket_dir = {directory}",
            f"listen_port = {PORT}",
            "unix_socket_mode = 0777",
            "auth_type = trust",
            f"auth_file = {directory / 'users'}",
            f"logfile = {directory / 'log'}",
            "pool_mode = transaction",
            # Never the connection of the transaction before, if there is another: what was left there is not found again.
            "server_round_robin = 1",
            "default_pool_size = 12",
            "max_client_conn = 1000",
            # PostgreSQL that comes back is found at once, and who waits for it is told so before long.
            "server_login_retry = 0.1",
            "query_wait_timeout = 10",
            *options,
        )
        (directory / "ini").write_text("\n".join(["[databases]", f"* = host={postgres} port=5432", "[pgbouncer]", *settings, ""]))

    def start(self) -> None:
        """Run it, and wait until it takes connections."""
        assert EXECUTABLE is not None, "pgbouncer is not installed"
        account = self._account
        who = {} if account is None else {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
        self._process = subprocess.Popen(
            [EXECUTABLE, "-q", str(self.directory / "ini")],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            **who,  # type: ignore[call-overload]
        )
        deadline = time.monotonic() + DEADLINE
        while True:
            with suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
                probe.connect(str(self.directory / f".s.PGSQL.{PORT}"))
                return
            assert time.monotonic() < deadline, (self.directory / "log").read_text()[-2000:]
            time.sleep(0.02)

    def kill(self) -> None:
        """End it as the kernel would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
            (self.directory / f".s.PGSQL.{PORT}").unlink(missing_ok=True)

    def url(self, database: str, role: str) -> str:
        """Where ``role`` finds ``database`` through it."""
        return f"postgresql://{role}@/{database}?host={self.directory}&port={PORT}"


@contextmanager
def pgbouncer(postgres: Path, account: pwd.struct_passwd | None, *options: str) -> Iterator[PgBouncer]:
    """A running PgBouncer before the PostgreSQL whose socket is in ``postgres``, while the block lasts."""
    directory = Path(tempfile.mkdtemp(prefix="flpb", dir="/tmp"))
    server = PgBouncer(directory, postgres, account, options)
    if account is not None:
        for path in (directory, *directory.iterdir()):
            os.chown(path, account.pw_uid, account.pw_gid)
    try:
        server.start()
        yield server
    finally:
        server.kill()
        shutil.rmtree(directory, ignore_errors=True)
