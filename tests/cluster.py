"""A PostgreSQL of the tests' own: the wheel's 18, or Debian's 15 with `--postgres 15`; with `--pooler` a PgBouncer stands before it."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from server.embedded import pg_bin
from server.repository.session import Pooler
from tests.pgbouncer import PgBouncer, pgbouncer

DEBIAN = Path("/usr/lib/postgresql")

ROLES = """
CREATE ROLE flowledger_owner LOGIN CREATEROLE CREATEDB;
CREATE ROLE flowledger_service NOLOGIN;
GRANT flowledger_service TO flowledger_owner WITH ADMIN OPTION;
CREATE ROLE flowledger LOGIN IN ROLE flowledger_service;
"""


# Whether servers and stores reach their database through a PgBouncer: `--pooler`.
POOLER = Pooler.NONE
_pgbouncers: dict[str, PgBouncer] = {}


def entrance(url: str) -> str:
    """Where a server, or a store, goes in: ``url`` itself, or with `--pooler` the same database through the PgBouncer before it."""
    for directory, before in _pgbouncers.items():
        if f"?host={directory}&" in url:
            role, _, database = url.partition("?")[0].removeprefix("postgresql://").partition("@/")
            return before.url(database, role)
    return url


@dataclass(frozen=True, slots=True)
class Cluster:
    """A running PostgreSQL; URLs name a database and a role."""

    directory: Path
    bin: Path

    def url(self, database: str, role: str) -> str:
        """Where ``role`` finds ``database``."""
        return f"postgresql://{role}@/{database}?host={self.directory}&port=5432"

    def run(self, sql: str, database: str = "postgres") -> None:
        """Run statements as the superuser."""
        command = [str(self.bin / "psql"), "-X", "-q", "-v", "ON_ERROR_STOP=1", "-h", str(self.directory), "-U", "postgres", "-d", database]
        subprocess.run(command, input=sql, text=True, check=True, capture_output=True)

    def dump(self, database: str) -> str:
        """The database's schema as `pg_dump -s` tells it."""
        command = [str(self.bin / "pg_dump"), "-s", "-h", str(self.directory), "-U", "postgres", "-d", database]
        return subprocess.run(command, text=True, check=True, capture_output=True).stdout


def binaries(major: str) -> Path | None:
    """Where the programs of that version are; None when they are not installed."""
    if major == "18":
        return pg_bin()
    found = DEBIAN / major / "bin"
    return found if (found / "initdb").exists() else None


@contextmanager
def running(major: str) -> Iterator[Cluster]:
    """A fresh cluster, gone when the block ends. Not durable: what tests prove by killing, they prove by killing the server."""
    programs = binaries(major)
    assert programs is not None, f"PostgreSQL {major} is not installed"
    directory = Path(tempfile.mkdtemp(prefix="flpg", dir="/tmp"))
    owner = account()
    if owner is not None:
        os.chown(directory, owner.pw_uid, owner.pw_gid)
        if not _reachable(programs):  # a checkout below /root
            shutil.copytree(programs.parent, directory / "programs")
            libraries = programs.parents[1].with_name(f"{programs.parents[1].name}.libs")
            if libraries.exists():
                shutil.copytree(libraries, directory.parent / libraries.name, dirs_exist_ok=True)
            programs = directory / "programs" / "bin"
    data = directory / "data"
    options = {
        "listen_addresses": "",
        "unix_socket_directories": str(directory),
        "fsync": "off",
        "max_connections": "200",
        "jit": "off",
        "timezone": "Pacific/Chatham",  # 12:45 ahead of UTC: nothing may depend on the server's zone
    }
    settings = " ".join(f"-c {name}={value}" for name, value in options.items())
    _run(owner, programs / "initdb", "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync")
    _run(owner, programs / "pg_ctl", "start", "-w", "-s", "-D", data, "-l", directory / "log", "-o", settings)
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, directory, ignore_errors=True)
        stack.callback(_run, owner, programs / "pg_ctl", "stop", "-w", "-s", "-D", data, "-m", "immediate")
        cluster = Cluster(directory, programs)
        cluster.run(ROLES)
        if POOLER is Pooler.TRANSACTION:
            _pgbouncers[str(directory)] = stack.enter_context(pgbouncer(directory, owner))
            stack.callback(_pgbouncers.pop, str(directory))
        yield cluster


def account() -> pwd.struct_passwd | None:
    """Whom PostgreSQL runs as: it refuses root."""
    if os.geteuid() != 0:
        return None
    names = {entry.pw_name: entry for entry in pwd.getpwall()}
    return names.get("postgres") or names["nobody"]


def _reachable(path: Path) -> bool:
    return all(parent.stat().st_mode & 0o001 for parent in path.resolve().parents)


def _run(account: pwd.struct_passwd | None, *command: object) -> None:
    who = {} if account is None else {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
    subprocess.run([str(part) for part in command], check=True, stdout=subprocess.DEVNULL, cwd="/", **who)  # type: ignore[call-overload]
