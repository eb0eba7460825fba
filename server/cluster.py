"""One database cluster: its files, its socket, and the PostgreSQL that serves it."""

import contextlib
import hashlib
import os
import re
import shutil
import socket
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from server.programs import MAJOR, EmbeddedError, account_for, environment, reachable_bin, refuse_unreachable, run

START_SECONDS = 120.0  # room for crash recovery of max_wal_size
ORPHAN_SECONDS = 30.0
FAST_STOP_SECONDS = 30
IMMEDIATE_STOP_SECONDS = 10
LOG_BYTES = 16 * 1024 * 1024
KEPT_LOG_BYTES = 1024 * 1024
UNFINISHED = "postgres.new-"
SOCKET_NAME = ".s.PGSQL.5432"
SOCKET_PATH_BYTES = 103  # macOS takes 103 bytes in a socket's path, Linux 107

# The operator may change these in postgresql.conf; what a start depends on is given on the command line.
CONFIGURATION = {
    "max_connections": "100",
    "shared_buffers": "128MB",
    "max_wal_size": "512MB",
    "wal_compression": "off",
    "huge_pages": "off",
    "jit": "off",
    "timezone": "UTC",
    "log_timezone": "UTC",
}
# The group is granted to the owner as if the owner had created it, so that a migration may grant it on.
BOOTSTRAP = """\
CREATE ROLE flowledger_owner LOGIN CREATEROLE
CREATE ROLE flowledger_service NOLOGIN
GRANT flowledger_service TO flowledger_owner WITH ADMIN TRUE, INHERIT FALSE, SET FALSE
CREATE ROLE flowledger LOGIN IN ROLE flowledger_service
CREATE DATABASE flowledger OWNER flowledger_owner
"""


class Cluster:
    """The files and the processes of one database cluster; whoever calls `start` or `stop` holds the start lock."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir
        self.pgdata = data_dir / "postgres"
        self.log = data_dir / "postgres.log"
        self.account = account_for(self.pgdata)
        if self.account.credentials:
            refuse_unreachable(self.account, data_dir)
        self._bin = reachable_bin(self.account, data_dir)

    def postmaster(self) -> int | None:
        """Return the process id that the pid file names, or None when no PostgreSQL of this cluster has it."""
        pid = _pid_file(self.pgdata).pid
        return pid if pid is not None and _alive(pid) and self._works(pid) else None

    def answers(self) -> bool:
        """Return whether somebody listens on the socket that the pid file names."""
        socket_dir = _pid_file(self.pgdata).socket_dir
        return socket_dir is not None and _answers(socket_dir)

    def start(self, alone: Callable[[], bool]) -> Path:
        """Make sure that PostgreSQL answers; return the directory of its socket.

        `alone` says whether no other server has a hold on the data directory. Raises EmbeddedError.
        """
        for interrupted in self.data_dir.glob(f"{UNFINISHED}*"):
            shutil.rmtree(interrupted, ignore_errors=True)
        if not self.pgdata.exists():
            self._create()
        self._refuse_other_major()
        self.bound_log()
        if alone():
            self._clear_stale_pid_file()
        size = self.log.stat().st_size if self.log.exists() else 0
        child: int | None = None
        now = time.monotonic()
        deadline, patience = now + START_SECONDS, now + ORPHAN_SECONDS
        while time.monotonic() < deadline:
            found = _pid_file(self.pgdata)
            if found.ready and found.socket_dir is not None and _answers(found.socket_dir):
                return found.socket_dir
            if child is None and self.postmaster() is None:
                child = self._spawn()
            elif child is not None and not _alive(child):
                if self._has_processes() and time.monotonic() < patience:
                    child = None  # refused as long as there are backends of a killed postmaster
                    self._end_orphans()
                    time.sleep(0.2)
                    continue
                raise EmbeddedError(f"PostgreSQL did not start. Its log, {self.log}, ends with:\n{_end_of(self.log, size)}")
            time.sleep(0.02)
        raise EmbeddedError(
            f"PostgreSQL has not answered for {START_SECONDS:g} s; it may still be recovering and is left running, so start again to go on "
            f"waiting. Its log, {self.log}, ends with:\n{_end_of(self.log, size)}"
        )

    def stop(self) -> bool:
        """Stop PostgreSQL, politely and then at once; return whether it was running. Raises EmbeddedError when it stays."""
        if self.postmaster() is None:
            return False
        output = ""
        # pg_ctl runs as the account, so a forged pid file cannot make root signal another process.
        for mode, seconds in (("fast", FAST_STOP_SECONDS), ("immediate", IMMEDIATE_STOP_SECONDS)):
            stopping = self._bin / "pg_ctl", "stop", "-D", self.pgdata, "-m", mode, "-t", str(seconds), "-s"
            result = run(self.account, stopping, text="", seconds=seconds + 10)
            if result.returncode == 0 or self.postmaster() is None:
                return True
            output += result.stdout
        raise EmbeddedError(f"PostgreSQL in {self.pgdata} does not stop:\n{output}")

    def bound_log(self) -> None:
        """Keep the log from filling the disk: past its limit its end moves to postgres.log.1 and it begins anew."""
        if not self.log.exists() or self.log.stat().st_size <= LOG_BYTES:
            return
        with self.log.open("rb") as source:
            source.seek(-KEPT_LOG_BYTES, os.SEEK_END)
            with os.fdopen(private_file(self.log.with_name("postgres.log.1"), os.O_WRONLY | os.O_TRUNC), "wb") as kept:
                kept.write(source.read(KEPT_LOG_BYTES))
        os.truncate(self.log, 0)  # PostgreSQL appends, so it goes on at the new end

    def _create(self) -> None:
        """Make the cluster with its roles and its database beside its place, then move it there: it exists whole or not at all."""
        # A name of its own: an initdb that outlived its killed server may still be writing to the last one.
        unfinished = Path(tempfile.mkdtemp(prefix=UNFINISHED, dir=self.data_dir))
        self.account.give(unfinished)
        options = [part for name, value in CONFIGURATION.items() for part in ("-c", f"{name}={value}")]
        # The builtin locale sorts alike on every machine.
        locale = ("--encoding=UTF8", "--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8")
        # The socket's directory is closed to others, so the socket needs no password.
        access = ("--username=postgres", "--auth-local=trust", "--auth-host=reject")
        self._create_step([self._bin / "initdb", "-D", unfinished, "--data-checksums", *locale, *access, *options], "")
        self._create_step([self._bin / "postgres", "--single", "-D", unfinished, "-c", "exit_on_error=on", "postgres"], BOOTSTRAP)
        unfinished.rename(self.pgdata)
        directory = os.open(self.data_dir, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def _create_step(self, command: Sequence[str | Path], text: str) -> None:
        result = run(self.account, command, text=text, seconds=START_SECONDS)
        if result.returncode != 0:
            raise EmbeddedError(f"{Path(command[0]).name} could not create the database in {self.data_dir}:\n{result.stdout}")

    def _refuse_other_major(self) -> None:
        try:
            major = (self.pgdata / "PG_VERSION").read_text().strip()
        except FileNotFoundError:
            raise EmbeddedError(f"{self.pgdata} is not a PostgreSQL database: move it away, or name another FLOWLEDGER_DATA_DIR.") from None
        if major != str(MAJOR):
            raise EmbeddedError(
                f"The database in {self.pgdata} was made by PostgreSQL {major}, and the programs here are PostgreSQL {MAJOR}: serve it "
                f"with PostgreSQL {major} through FLOWLEDGER_DATABASE_URL, or move it over with pg_dump."
            )

    def _clear_stale_pid_file(self) -> None:
        """Remove the pid files of a killed PostgreSQL whose process id is another process's now, or a zombie's, as happens in containers.

        PostgreSQL itself would take that one for a running server. All its processes work in the cluster's directory.
        """
        if _pid_file(self.pgdata).pid is None or self.answers():
            return
        # Also a lone backend counts: it may still write, and PostgreSQL finds that out through the file.
        if not self._has_processes():
            (self.pgdata / "postmaster.pid").unlink(missing_ok=True)
            (self._socket_dir() / f"{SOCKET_NAME}.lock").unlink(missing_ok=True)

    def _has_processes(self) -> bool:
        return self._works(*(int(process.name) for process in Path("/proc").glob("[0-9]*")))

    def _works(self, *pids: int) -> bool:
        """Return whether one of the processes works in the cluster's directory, as its PostgreSQL does; true where none can be seen."""
        if not Path("/proc/self").exists():
            return True
        unseen = []
        for pid in pids:
            place = Path(f"/proc/{pid}/cwd")
            try:
                if place.samefile(self.pgdata):
                    return True
            except PermissionError:
                unseen.append(place)
            except (FileNotFoundError, ProcessLookupError):  # gone, or a zombie
                continue
        if not unseen or not self.account.credentials:
            return False
        # Root in a container may not look at the account's processes, but the account may.
        look = 'there=$1; shift; for place; do [ "$place" -ef "$there" ] && exit 0; done; exit 1'
        return run(self.account, ["/bin/sh", "-c", look, "sh", self.pgdata, *unseen], text="", seconds=30).returncode == 0

    def _end_orphans(self) -> None:
        """End what a killed postmaster left, as `pg_ctl stop -m immediate` would: its work is redone from the write-ahead log.

        Most notice by themselves. One that waits for a lock whose holder is gone waits for ever, seen with PostgreSQL 18 in XLogFlush.
        """
        if self.postmaster() is None:
            # As the account, so that nothing forged can make root signal another process.
            quit_all = 'for each in /proc/[0-9]*; do [ "$each/cwd" -ef "$1" ] && kill -QUIT "${each#/proc/}"; done; :'
            run(self.account, ["/bin/sh", "-c", quit_all, "sh", self.pgdata], text="", seconds=30)

    def _spawn(self) -> int:
        """Start the postmaster in a session of its own, out of reach of Ctrl-C; return its process id."""
        given = {
            "listen_addresses": "",
            "port": "5432",
            "unix_socket_directories": str(self._socket_dir()),
            "unix_socket_permissions": "0700",
            "logging_collector": "off",
            "log_destination": "stderr",
        }
        options = [part for name, value in given.items() for part in ("-c", f"{name}={value}")]
        log_file = private_file(self.log, os.O_WRONLY | os.O_APPEND)
        try:
            # The shell goes away at once, so nobody has to wait for the postmaster and no handle of it can be lost.
            shell = subprocess.run(
                ["/bin/sh", "-c", '"$@" >&2 & echo $!', "sh", self._bin / "postgres", "-D", self.pgdata, *options],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log_file,
                check=True,
                cwd="/",
                env=environment(),
                start_new_session=True,
                **self.account.credentials,
            )
        finally:
            os.close(log_file)
        return int(shell.stdout)

    def _socket_dir(self) -> Path:
        """Return a directory that only the account can enter: in the data directory, or where its path will not do, in /tmp."""
        directory = self.data_dir / "socket"
        # Drivers split a host at commas and colons. /tmp and not TMPDIR: the name must be the same for every process.
        if len(os.fsencode(directory / SOCKET_NAME)) > SOCKET_PATH_BYTES or not re.fullmatch(r"[A-Za-z0-9/._-]+", str(directory)):
            directory = Path("/tmp") / f"flowledger-{hashlib.sha256(os.fsencode(self.data_dir)).hexdigest()[:16]}"
        with contextlib.suppress(FileExistsError):
            directory.mkdir(mode=0o700)
        if stat.S_ISDIR(directory.lstat().st_mode) and directory.lstat().st_uid == os.geteuid():
            self.account.give(directory)
        found = directory.lstat()
        # Whoever owns the directory owns the socket's name, and could answer in PostgreSQL's place.
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != self.account.uid or found.st_mode & 0o077:
            raise EmbeddedError(
                f"{directory} must be a directory of `{self.account.name}` that is closed to others: remove it and start again."
            )
        return directory


@dataclass(frozen=True, slots=True)
class _PidFile:
    """What postmaster.pid says; its lines are those of PostgreSQL's src/include/utils/pidfile.h."""

    pid: int | None
    socket_dir: Path | None
    ready: bool


def _pid_file(pgdata: Path) -> _PidFile:
    try:
        lines = (pgdata / "postmaster.pid").read_text().splitlines()
    except FileNotFoundError:
        lines = []
    pid = abs(int(lines[0])) if lines and lines[0].lstrip("-").isdecimal() else 0
    socket_dir = Path(lines[4]) if len(lines) > 4 and lines[4] else None
    return _PidFile(pid or None, socket_dir, len(lines) > 7 and lines[7].strip() == "ready")


def private_file(path: Path, flags: int) -> int:
    """Open a file of the data directory for its owner alone, made when missing; never through a link that somebody placed there."""
    descriptor = os.open(path, flags | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    if os.geteuid() == 0:  # so that a later start as the directory's owner finds its own files
        owner = path.parent.stat()
        os.fchown(descriptor, owner.st_uid, owner.st_gid)
    return descriptor


def _answers(socket_dir: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(socket_dir / SOCKET_NAME))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
    return True


def _alive(pid: int) -> bool:
    with contextlib.suppress(ChildProcessError):  # ours only when we are a container's first process; then nobody else reaps it
        if os.waitpid(pid, os.WNOHANG)[0] == pid:
            return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def _end_of(path: Path, start: int) -> str:
    with path.open("rb") as lines:
        lines.seek(start)
        return "\n".join(lines.read().decode("utf-8", "replace").splitlines()[-15:]) or "(nothing)"
