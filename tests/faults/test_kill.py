"""A server that is killed in the middle of a thousand commits loses nothing that it acknowledged and keeps nothing by halves."""

from __future__ import annotations

import asyncio
import contextlib
import random
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import psutil
import pytest

from tests.faults.audit import audit
from tests.faults.load import AGAIN, Acknowledged, Commit, assert_each_is_there_once, mixed, send, send_until_acknowledged
from tests.faults.process import STOP_SECONDS, command, connection, environment, serving
from tests.tenancy import Tenancy

COMMITS = 1000


def _postgres(data_dir: Path) -> list[psutil.Process]:
    """PostgreSQL's processes of the data directory."""
    try:
        pid = int((data_dir / "postgres" / "postmaster.pid").read_text().split()[0])
        postmaster = psutil.Process(pid)
        return [postmaster, *postmaster.children(recursive=True)]
    except (FileNotFoundError, psutil.NoSuchProcess):
        return []


def _superuser_url(data_dir: Path) -> str:
    socket_dir = (data_dir / "postgres" / "postmaster.pid").read_text().splitlines()[4]
    return f"postgresql://postgres@/flowledger?host={socket_dir}&port=5432"


def _stop(data_dir: Path) -> str:
    """What `flowledger stop` says."""
    stopping = subprocess.run(command("stop"), env=environment(data_dir=data_dir), check=True, capture_output=True, text=True)
    return stopping.stdout


@pytest.fixture(scope="module")
def data_dir() -> Iterator[Path]:
    """A data directory that every account may enter; at the end nothing that works in it lives on."""
    place = Path(tempfile.mkdtemp(prefix="flkill-", dir="/tmp"))
    place.chmod(0o755)
    yield place / "data"
    left = _postgres(place / "data")
    for process in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(left, timeout=STOP_SECONDS)
    shutil.rmtree(place, ignore_errors=True)


class _Countdown:
    """Kills once so many commits were acknowledged."""

    def __init__(self, process: subprocess.Popen[bytes], left: int, others: list[psutil.Process]) -> None:
        self._process, self._left, self._others = process, left, others

    def acknowledged(self) -> None:
        self._left -= 1
        if self._left == 0:
            self._process.kill()
            for other in self._others:
                with contextlib.suppress(psutil.NoSuchProcess):
                    other.kill()


async def _try_once(tenancy: Tenancy, commit: Commit, countdown: _Countdown) -> Acknowledged | None:
    """The acknowledgement; None when the call broke, so that nobody knows."""
    try:
        told = await send(tenancy, commit)
    except grpc.aio.AioRpcError as error:
        if error.code() not in AGAIN:
            raise
        return None
    countdown.acknowledged()
    return told


@pytest.mark.parametrize(("seed", "postgres_too"), [(1, False), (2, True), (3, False)])
async def test_kill_9_amid_1000_commits_loses_no_acknowledged_one_and_doubles_none(
    data_dir: Path, tmp_path: Path, seed: int, postgres_too: bool
) -> None:
    chance = random.Random(seed)
    async with serving(tmp_path, data_dir=data_dir) as server, connection(server.address) as channel:
        tenancy = Tenancy.fresh(channel)
        commits = await mixed(tenancy, chance, COMMITS)
        before = (await audit(_superuser_url(data_dir))).events
        victims = _postgres(data_dir) if postgres_too else []
        countdown = _Countdown(server.process, chance.randrange(1, COMMITS * 3 // 4), victims)
        first = await asyncio.gather(*(_try_once(tenancy, commit, countdown) for commit in commits))
        assert await server.exit_code() == -signal.SIGKILL
    acknowledged = [one for one in first if one is not None]
    assert 0 < len(acknowledged) < COMMITS, "the kill did not come in between"

    async with serving(tmp_path, data_dir=data_dir) as server, connection(server.address) as channel:
        survived = await audit(_superuser_url(data_dir))  # already here nothing is half there
        assert_each_is_there_once(survived, acknowledged)
        tenancy = tenancy.on(channel)
        again = await asyncio.gather(*(send_until_acknowledged(tenancy, commit) for commit in commits))
        assert [now for now, then in zip(again, first, strict=True) if then is not None] == acknowledged
        ledger = await audit(_superuser_url(data_dir))
    assert_each_is_there_once(ledger, again)
    assert ledger.events == before + COMMITS


async def test_postgresql_killed_under_its_server_comes_back_and_loses_no_acknowledged_commit(data_dir: Path, tmp_path: Path) -> None:
    async with serving(tmp_path, data_dir=data_dir) as server, connection(server.address) as channel:
        tenancy = Tenancy.fresh(channel)
        commits = await mixed(tenancy, random.Random(5), 200)
        for victim in _postgres(data_dir):
            victim.kill()
        acknowledged = await asyncio.gather(*(send_until_acknowledged(tenancy, commit) for commit in commits))
        assert_each_is_there_once(await audit(_superuser_url(data_dir)), acknowledged)
        assert server.process.poll() is None


async def test_stop_ends_what_a_killed_server_left_running(data_dir: Path, tmp_path: Path) -> None:
    async with serving(tmp_path, data_dir=data_dir) as server:
        await server.kill()
    left = _postgres(data_dir)
    assert left
    assert _stop(data_dir) == f"PostgreSQL in {data_dir} is stopped\n"
    assert not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in left)
    assert _stop(data_dir) == f"PostgreSQL in {data_dir} was not running\n"


async def test_two_servers_on_one_data_directory_share_it_and_the_last_one_stops_it(data_dir: Path, tmp_path: Path) -> None:
    async with serving(tmp_path, data_dir=data_dir) as one, serving(tmp_path, data_dir=data_dir) as other:
        async with connection(one.address) as channel, connection(other.address) as second:
            tenancy = Tenancy.fresh(channel)
            flow = await tenancy.create()
            assert (await tenancy.on(second).call("GetFlow", flow_id=flow.flow_id)).flow == flow
            postgres = _postgres(data_dir)
            one.terminate()
            assert await one.exit_code() == 0
            await tenancy.on(second).move(flow.flow_id, "data_import", "IN_PROGRESS")
        other.terminate()
        assert await other.exit_code() == 0
    assert postgres
    assert not _postgres(data_dir)


async def test_a_second_server_on_a_port_in_use_ends_with_a_sentence(data_dir: Path, tmp_path: Path) -> None:
    async with serving(tmp_path, data_dir=data_dir) as server:
        port = server.address.rpartition(":")[2]
        started = time.monotonic()
        second = await asyncio.to_thread(
            subprocess.run,
            command("serve"),
            env=environment(data_dir=data_dir, port=port),
            capture_output=True,
            text=True,
            timeout=STOP_SECONDS,
        )
        assert time.monotonic() - started < STOP_SECONDS
        assert second.returncode == 1
        said = f"flowledger: cannot listen on 127.0.0.1:{port}: is another server there? Set FLOWLEDGER_PORT"
        assert [line for line in second.stderr.splitlines() if line.startswith("flowledger:")] == [said]
        assert "Traceback" not in second.stderr
        async with connection(server.address) as channel:  # the first one, whose PostgreSQL the second had a hold on, goes on
            await Tenancy.fresh(channel).create()
        server.terminate()
        assert await server.exit_code() == 0
