"""Several processes behind one port: they share the load, are replaced when they die, and go all together."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest

from tests.conftest import Urls
from tests.tenancy import PATIENCE, Tenancy
from tests.waiting import until

WORKERS = 2
ACTIVITY = {"entries": [{"kind": "ACTIVITY_KIND_MEMORY"}]}


class Served:
    """A `flowledger serve --workers`: the process that keeps them, and where they listen."""

    def __init__(self, process: asyncio.subprocess.Process, address: str) -> None:
        self.process, self.address = process, address

    def workers(self) -> list[psutil.Process]:
        """The processes that serve."""
        found = []
        for child in psutil.Process(self.process.pid).children():
            with suppress(psutil.Error):  # it ended just now
                if "--worker" in child.cmdline():
                    found.append(child)
        return found

    def busy(self) -> int:
        """How many of them have a client."""
        port = int(self.address.rpartition(":")[2])
        return sum(
            any(found.status == psutil.CONN_ESTABLISHED and found.laddr.port == port for found in worker.net_connections())
            for worker in self.workers()
        )


def alive(process: psutil.Process) -> bool:
    """Whether the process runs still."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


@asynccontextmanager
async def served(urls: Urls, folder: Path, *options: str, count: int = WORKERS, **variables: str) -> AsyncIterator[Served]:
    environment = {
        **os.environ,
        "FLOWLEDGER_DATABASE_URL": urls.service,
        "FLOWLEDGER_OWNER_DATABASE_URL": urls.owner,
        "FLOWLEDGER_PORT": "0",
        "FLOWLEDGER_POOL_MAX": "4",
        "FLOWLEDGER_DRAIN_SECONDS": "3",
        **{f"FLOWLEDGER_{name.upper()}": value for name, value in variables.items()},
    }
    ready = folder / "ready"
    command = [sys.executable, "-m", "server", "serve", "--workers", str(count), "--ready-file", str(ready), *options]
    with (folder / "log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(*command, env=environment, stderr=log)
    try:
        async with asyncio.timeout(3 * PATIENCE):
            while not ready.exists():
                assert process.returncode is None, (folder / "log").read_text()
                await asyncio.sleep(0.02)
        yield Served(process, ready.read_text().strip())
    finally:
        if process.returncode is None:
            process.terminate()
        await asyncio.wait_for(process.wait(), PATIENCE)


@asynccontextmanager
async def channels(address: str, count: int) -> AsyncIterator[list[grpc.aio.Channel]]:
    """As many connections: without the option they would share one."""
    opened = [grpc.aio.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]) for _ in range(count)]
    try:
        yield opened
    finally:
        await asyncio.gather(*(channel.close() for channel in opened))


async def retried(tenancy: Tenancy, name: str, **fields: Any) -> Any:
    """The response, also when a worker goes away meanwhile; whatever else is wrong is an error."""
    async with asyncio.timeout(PATIENCE):
        while True:
            try:
                return await tenancy.call(name, **fields)
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise
                await asyncio.sleep(0.02)


async def test_connections_are_dealt_out_among_the_workers_and_hints_go_between_them(urls: Urls, tmp_path: Path) -> None:
    async with served(urls, tmp_path, watch_poll_seconds="60") as workers, channels(workers.address, 16) as opened:
        tenancy = Tenancy.fresh(opened[0])
        flow = await tenancy.create()
        assert await asyncio.gather(*(tenancy.on(one).call("GetFlow", flow_id=flow.flow_id) for one in opened))
        assert workers.busy() == WORKERS
        await asyncio.sleep(0)
        watches = [tenancy.on(one).watch(flow.flow_id, start="WATCH_START_NOW") for one in opened]
        for watch in watches:
            await watch.read()  # its position; from here on only a hint, or the poll a minute from now, brings an event

        async def seen(watch: Any) -> int:
            while not (message := await watch.read()).HasField("event"):
                pass
            return int(message.revision)

        # The workers greet each other when they start; until both have heard of the other a hint may be lost.
        await asyncio.sleep(3)
        await tenancy.move(flow.flow_id, "data_import", "IN_PROGRESS")
        async with asyncio.timeout(PATIENCE):
            assert await asyncio.gather(*map(seen, watches)) == [2] * len(watches)
        for watch in watches:
            watch.cancel()


async def test_a_worker_that_is_killed_is_replaced_and_nothing_is_lost(urls: Urls, tmp_path: Path) -> None:
    async with served(urls, tmp_path) as workers, channels(workers.address, 8) as opened:
        tenancy = Tenancy.fresh(opened[0])
        ids = [(await tenancy.create()).flow_id for _ in opened]
        before = {worker.pid for worker in workers.workers()}
        assert len(before) == WORKERS
        os.kill(min(before), signal.SIGKILL)
        begun = [
            retried(
                tenancy.on(one), "TransitionPhase", flow_id=flow_id, transition={"phase": "data_import", "to": "PHASE_STATE_IN_PROGRESS"}
            )
            for one, flow_id in zip(opened, ids, strict=True)
        ]
        assert [done.flow.revision for done in await asyncio.gather(*begun)] == [2] * len(ids)
        await until(lambda: len(workers.workers()) == WORKERS)
        assert {worker.pid for worker in workers.workers()} - before


async def test_workers_are_replaced_one_by_one_while_they_serve(urls: Urls, tmp_path: Path) -> None:
    async with served(urls, tmp_path) as workers, channels(workers.address, 8) as opened:
        tenancy = Tenancy.fresh(opened[0])
        flow_id = (await tenancy.create()).flow_id
        before = {worker.pid for worker in workers.workers()}
        done = 0
        over = asyncio.Event()

        async def change(channel: grpc.aio.Channel) -> None:
            nonlocal done
            while not over.is_set():
                await retried(tenancy.on(channel), "RecordActivity", flow_id=flow_id, activity=ACTIVITY)
                done += 1

        changing = [asyncio.create_task(change(one)) for one in opened]
        workers.process.send_signal(signal.SIGHUP)
        await until(lambda: len(workers.workers()) == WORKERS and not before & {worker.pid for worker in workers.workers()})
        over.set()
        await asyncio.gather(*changing)
        revision = (await retried(tenancy, "GetFlow", flow_id=flow_id)).flow.revision
        # A change that was refused with UNAVAILABLE was not done, and one that was done was done once.
        assert revision == done + 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
async def test_with_their_keeper_the_workers_go(urls: Urls, tmp_path: Path, number: int) -> None:
    async with served(urls, tmp_path) as workers:
        left = workers.workers()
        workers.process.send_signal(number)
        assert await asyncio.wait_for(workers.process.wait(), PATIENCE) == (0 if number == signal.SIGTERM else -number)
        await until(lambda: not any(map(alive, left)))


async def test_workers_that_cannot_serve_are_not_tried_for_ever(urls: Urls, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="FLOWLEDGER_POOL_MAX"):
        async with served(urls, tmp_path, pool_min="9"):
            pass


async def test_a_port_that_is_taken_is_said_to_be(urls: Urls, tmp_path: Path) -> None:
    async with served(urls, tmp_path) as workers:
        (tmp_path / "second").mkdir()
        port = workers.address.rpartition(":")[2]
        with pytest.raises(AssertionError, match=f"cannot listen on 127.0.0.1:{port}: is another server there"):
            async with served(urls, tmp_path / "second", port=port):
                pass
