"""Ten watchers see every revision once and in order, whatever becomes of the servers and of the hints."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import UUID

import grpc
import pytest

from server import app
from server.statemachine.values import FlowKey
from server.wakeups import LocalWakeups
from tests.cluster import Cluster
from tests.conftest import Urls, settings
from tests.faults.audit import audit
from tests.faults.process import connection, database, serving
from tests.faults.watching import Place, Watcher, Writer
from tests.tenancy import Tenancy

WATCHERS = 10
WRITERS = 4
BETWEEN = 60  # acknowledged commits from one restart to the next
RESTARTS = 3
SECONDS = 60.0

# A server that runs while the block lasts, and what to do to it before the block ends.
Serving = Callable[[int], AsyncIterator[tuple[str, Callable[[], Awaitable[None]]]]]


async def _assert_watchers_see_all(serving_once: Serving, ledger_url: str) -> None:
    """Restarts the server under ten watchers and four writers; at the end each watcher has what is stored."""
    place, acknowledged, step = Place(), 0, asyncio.Event()
    goal = BETWEEN

    def progressed() -> None:
        nonlocal acknowledged
        acknowledged += 1
        if acknowledged >= goal:
            step.set()

    enough = asyncio.Event()
    tenancy: Tenancy | None = None
    watchers: list[Watcher] = []
    writers: list[Writer] = []
    watching: list[asyncio.Task[None]] = []
    writing: list[asyncio.Task[None]] = []
    flow_id = ""
    try:
        async with asyncio.timeout(SECONDS):
            for turn in range(RESTARTS + 1):
                async with asynccontextmanager(serving_once)(turn) as (address, end):
                    await place.moved_to(address)
                    if tenancy is None:
                        tenancy = Tenancy.fresh(await place.channel())
                        flow_id = (await tenancy.create()).flow_id
                        watchers = [Watcher(tenancy, place, flow_id) for _ in range(WATCHERS)]
                        writers = [Writer(tenancy, place, flow_id, progressed) for _ in range(WRITERS)]
                        watching = [asyncio.create_task(watcher.run()) for watcher in watchers]
                        writing = [asyncio.create_task(writer.run(enough)) for writer in writers]
                    await _first(step.wait(), *watching, *writing)
                    step.clear()
                    goal = acknowledged + BETWEEN
                    if turn == RESTARTS:
                        enough.set()
                        await asyncio.gather(*writing)
                        await tenancy.on(await place.channel()).call("CancelFlow", flow_id=flow_id)
                        await asyncio.gather(*watching)
                    else:
                        await place.lost()
                        await end()
    finally:
        for task in (*watching, *writing):
            task.cancel()
        await asyncio.gather(*watching, *writing, return_exceptions=True)
        await place.close()
    stored = (await audit(ledger_url)).hashes[UUID(flow_id)]
    assert sorted(revision for writer in writers for revision in writer.revisions) == list(range(2, len(stored)))
    assert all(watcher.seen == list(enumerate(stored, 1)) for watcher in watchers)
    assert all(watcher.streams > RESTARTS for watcher in watchers), "a stream outlived its server"


async def _first(awaited: Awaitable[object], *tasks: asyncio.Task[None]) -> None:
    """Waits for the first; an error in one of the tasks comes out here rather than as a deadline."""
    main = asyncio.ensure_future(awaited)
    try:
        done, _ = await asyncio.wait({main, *tasks}, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
        assert main in done, "a watcher or a writer ended too early"
    finally:
        main.cancel()


@pytest.fixture
def ledger_url(postgres: Cluster, urls: Urls) -> str:
    """The test's database as the superuser sees it."""
    return postgres.url(urls.name, "postgres")


async def test_ten_watchers_see_every_revision_once_and_in_order_over_three_restarts(urls: Urls, ledger_url: str, tmp_path: Path) -> None:
    async def serving_once(turn: int) -> AsyncIterator[tuple[str, Callable[[], Awaitable[None]]]]:
        async with serving(tmp_path, **database(urls)) as server:

            async def end() -> None:
                if turn == 1:
                    server.terminate()
                    assert await server.exit_code() == 0
                else:
                    await server.kill()

            yield server.address, end

    await _assert_watchers_see_all(serving_once, ledger_url)


async def test_ten_watchers_see_the_same_when_every_hint_is_lost(urls: Urls, ledger_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(self: LocalWakeups, key: FlowKey, revision: int) -> None:
        """No hint arrives."""

    def all_lost(self: LocalWakeups) -> None:
        """No hint arrives."""

    monkeypatch.setattr(LocalWakeups, "ring", lost)
    monkeypatch.setattr(LocalWakeups, "ring_all", all_lost)

    async def serving_once(turn: int) -> AsyncIterator[tuple[str, Callable[[], Awaitable[None]]]]:
        async def end() -> None:
            """The block's own end stops the server."""

        async with app.running(settings(urls, watch_poll_seconds=0.1)) as server:
            yield server.address, end

    await _assert_watchers_see_all(serving_once, ledger_url)


async def test_a_watch_on_one_server_sees_what_is_written_through_another(urls: Urls) -> None:
    async with (
        app.running(settings(urls, watch_poll_seconds=0.05)) as watched,
        app.running(settings(urls)) as written,
        connection(watched.address) as here,
        connection(written.address) as there,
    ):
        tenancy = Tenancy.fresh(there)
        flow_id = (await tenancy.create()).flow_id
        stream = aiter(tenancy.on(here).watch(flow_id))
        async with asyncio.timeout(20):
            assert (await anext(stream)).opened.head_revision == 1
            assert (await anext(stream)).revision == 1
            for revision in range(2, 12):
                await tenancy.call("UpdateFlow", flow_id=flow_id, update={"display_name": f"{revision}"})
                assert (await anext(stream)).event.revision == revision


async def test_a_watcher_whose_server_was_killed_is_told_so(urls: Urls, tmp_path: Path) -> None:
    async with serving(tmp_path, **database(urls)) as server, connection(server.address) as channel:
        tenancy = Tenancy.fresh(channel)
        stream = aiter(tenancy.watch((await tenancy.create()).flow_id))
        await anext(stream)
        await server.kill()
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            await anext(stream)
        assert ended.value.code() is grpc.StatusCode.UNAVAILABLE
