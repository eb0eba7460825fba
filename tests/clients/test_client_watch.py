"""The watch of clients/python: each revision once and in order, whatever becomes of servers, connections and Redis."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from uuid import UUID

import grpc
import pytest
from flowledger.v1 import change_pb2, flow_pb2
from flowledger.v1 import flow_service_pb2 as pb
from flowledger_client import AsyncClient, Caller, NotFound, OutOfRange, Patience, Unavailable
from google.protobuf import duration_pb2

from server import app
from tests.clients.both import Both, Connect, Watching, native, threaded
from tests.clients.line import Line, line
from tests.cluster import Cluster
from tests.conftest import Urls
from tests.faults.process import database, serving
from tests.faults.test_workers import served
from tests.redis_server import redis_server
from tests.tenancy import PATIENCE, Tenancy
from tests.waiting import until

ALL = pb.WATCH_START_AFTER_REVISION
SECOND = duration_pb2.Duration(seconds=1)


class Resumptions:
    """Hears of streams that are opened again."""

    def __init__(self) -> None:
        self.told: list[tuple[int, str]] = []
        self._loop = asyncio.get_running_loop()
        self._some = asyncio.Event()

    def __call__(self, position: int, why: str) -> None:
        self.told.append((position, why))
        self._loop.call_soon_threadsafe(self._some.set)

    async def one(self) -> None:
        """Returns at the next one."""
        async with asyncio.timeout(PATIENCE):
            await self._some.wait()
        self._some.clear()

    async def because(self, reason: str) -> None:
        """Returns once there was one for that reason."""
        await until(lambda: any(reason in why for _, why in self.told))


async def renamed(client: Both, flow_id: str, times: int = 1) -> int:
    """The flow's revision after so many changes."""
    revision = 0
    for _ in range(times):
        revision = (
            await client.call("UpdateFlow", pb.UpdateFlowRequest(flow_id=flow_id, update=change_pb2.FlowUpdate(display_name="x")))
        ).flow.revision
    return revision


async def created(client: Both) -> str:
    """The id of a new flow."""
    found: str = (await client.call("CreateFlow", pb.CreateFlowRequest(type="discovery"))).flow.flow_id
    return found


async def cancelled(client: Both, flow_id: str) -> None:
    """Ends the flow."""
    await client.call("CancelFlow", pb.CancelFlowRequest(flow_id=flow_id))


async def upto(watch: Watching, revision: int) -> list[int]:
    """The revisions that arrive until that one does."""
    found: list[int] = []
    async with asyncio.timeout(PATIENCE):
        while not found or found[-1] != revision:
            found.append((await watch.next()).revision)
    return found


async def rest(watch: Watching) -> list[int]:
    """The revisions that arrive until the flow has ended."""
    async with asyncio.timeout(PATIENCE):
        return [event.revision async for event in watch]


@pytest.fixture
async def client(connect: Connect, server: app.Server, caller: Caller) -> AsyncIterator[Both]:
    """A client of the shared server."""
    async with connect(server.address, caller) as client:
        yield client


async def test_every_event_arrives_once_and_in_order_until_the_flow_has_ended(client: Both) -> None:
    flow_id = await created(client)
    watch = client.events(flow_id)
    assert await upto(watch, 1) == [1]
    await renamed(client, flow_id, 5)
    await cancelled(client, flow_id)
    assert await rest(watch) == [2, 3, 4, 5, 6, 7]
    assert watch.position == 7
    assert watch.end is not None
    assert watch.end.reason == pb.WATCH_END_REASON_FLOW_TERMINAL


async def test_a_watch_begins_where_another_one_stopped(client: Both) -> None:
    flow_id = await created(client)
    await renamed(client, flow_id, 9)
    watch = client.events(flow_id)
    assert await upto(watch, 4) == [1, 2, 3, 4]
    watch.close()
    await cancelled(client, flow_id)
    assert await rest(client.events(flow_id, watch.position)) == [5, 6, 7, 8, 9, 10, 11]


async def both_resumed(*resumed: Resumptions) -> None:
    """Returns when each has heard of one more stream."""
    await asyncio.gather(*(one.one() for one in resumed))


async def test_both_watches_go_on_over_a_kill_a_drain_and_old_age(urls: Urls, tmp_path: Path, caller: Caller) -> None:
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(serving(tmp_path, **database(urls)))
        port = first.address.rpartition(":")[2]
        clients = [await stack.enter_async_context(made(first.address, caller)) for made in (threaded, native)]
        client, resumed = clients[0], (Resumptions(), Resumptions())
        flow_id = await created(client)
        watches = [one.events(flow_id, resuming=heard) for one, heard in zip(clients, resumed, strict=True)]
        await renamed(client, flow_id, 3)
        seen = [await upto(watch, 4) for watch in watches]
        following = [asyncio.ensure_future(rest(watch)) for watch in watches]
        await first.kill()
        await both_resumed(*resumed)
        second = await stack.enter_async_context(serving(tmp_path, **database(urls), port=port))
        reached = await renamed(client, flow_id, 3)
        await until(lambda: all(watch.position == reached for watch in watches))  # so both have a stream of this server
        second.terminate()
        for one in resumed:
            await one.because("the server is stopping")
        assert await second.exit_code() == 0
        await stack.enter_async_context(serving(tmp_path, **database(urls), port=port, watch_max_age_seconds=1))
        await renamed(client, flow_id, 3)
        for one in resumed:
            await one.because("the stream is old")
        await renamed(client, flow_id, 3)
        await cancelled(client, flow_id)
        for before, after, one in zip(seen, following, resumed, strict=True):
            assert before + await after == list(range(1, 15))
            assert [position for position, _ in one.told] == sorted(position for position, _ in one.told)


@pytest.fixture
async def wire(server: app.Server) -> AsyncIterator[Line]:
    """A line to the shared server."""
    async with line(server.address) as wire:
        yield wire


async def test_a_connection_that_is_cut_again_and_again_costs_no_event_and_repeats_none(
    connect: Connect, wire: Line, caller: Caller, channel: grpc.aio.Channel
) -> None:
    beside = Tenancy(channel, UUID(str(caller.account)), UUID(str(caller.engagement)))
    flow_id, resumed = (await beside.create()).flow_id, Resumptions()
    async with connect(wire.address, caller) as client:
        watch = client.events(flow_id, resuming=resumed)
        assert (await watch.next()).revision == 1
        following = asyncio.ensure_future(rest(watch))
        for at in range(60):
            await beside.call("UpdateFlow", flow_id=flow_id, update={"display_name": f"{at}"})
            if at % 15 == 7:
                await until(lambda: watch.position > (resumed.told[-1][0] if resumed.told else 0))
                wire.cut()
                await resumed.one()
        await beside.call("CancelFlow", flow_id=flow_id)
        assert await following == list(range(2, 63))
    assert len(resumed.told) >= 4


async def both_at_once(said: Callable[[Connect], Awaitable[None]]) -> None:
    """What is said of one client is so of both; for what takes its time, they take it together."""
    await asyncio.gather(*(said(connect) for connect in (threaded, native)))


async def test_a_connection_on_which_not_even_heartbeats_arrive_is_given_up(
    server: app.Server, caller: Caller, channel: grpc.aio.Channel
) -> None:
    beside = Tenancy(channel, UUID(str(caller.account)), UUID(str(caller.engagement)))

    async def given_up(connect: Connect) -> None:
        flow_id, resumed = (await beside.create()).flow_id, Resumptions()
        async with line(server.address) as wire, connect(wire.address, caller) as client:
            request = pb.WatchFlowRequest(flow_id=flow_id, start=ALL, heartbeat_interval=SECOND)
            watch = client.watch(request, resuming=resumed)
            assert (await watch.next()).revision == 1
            wire.mute()
            following = asyncio.ensure_future(rest(watch))
            await beside.call("CancelFlow", flow_id=flow_id)
            await resumed.one()
            assert resumed.told[0] == (1, "nothing was heard for 3 s")
            wire.cut()
            wire.unmute()
            assert await following == [2]

    await both_at_once(given_up)


async def test_a_slow_reader_is_not_taken_for_a_dead_connection(server: app.Server, caller: Caller) -> None:
    async def read_slowly(connect: Connect) -> None:
        async with connect(server.address, caller) as client:
            flow_id, resumed = await created(client), Resumptions()
            watch = client.watch(pb.WatchFlowRequest(flow_id=flow_id, start=ALL, heartbeat_interval=SECOND), resuming=resumed)
            assert (await watch.next()).revision == 1
            await asyncio.sleep(3.5)  # longer than silence is put up with
            await cancelled(client, flow_id)
            assert await rest(watch) == [2]
            assert resumed.told == []

    await both_at_once(read_slowly)


async def test_both_watches_go_on_when_their_workers_are_killed(urls: Urls, tmp_path: Path, caller: Caller) -> None:
    async with (
        served(urls, tmp_path) as workers,
        threaded(workers.address, caller) as one,
        native(workers.address, caller) as other,
        native(workers.address, caller) as writer,
    ):
        flow_id, resumed = await created(writer), Resumptions()
        watches = [client.events(flow_id, resuming=resumed) for client in (one, other)]
        assert [(await watch.next()).revision for watch in watches] == [1, 1]
        following = [asyncio.ensure_future(rest(watch)) for watch in watches]
        for worker in workers.workers():  # one after the other, and among them those of the watches
            os.kill(worker.pid, signal.SIGKILL)
            await renamed(writer, flow_id, 3)
        await cancelled(writer, flow_id)
        assert await asyncio.gather(*following) == [list(range(2, 9))] * 2
        assert len(resumed.told) >= 2


async def test_both_watches_go_on_while_redis_dies_and_comes_back(urls: Urls, tmp_path: Path, caller: Caller) -> None:
    with redis_server(tmp_path) as redis:
        hints = {**database(urls), "redis_url": redis.url, "watch_poll_seconds": 0.3}
        async with (
            serving(tmp_path, **hints) as watched,
            serving(tmp_path, **hints) as written,
            threaded(watched.address, caller) as one,
            native(watched.address, caller) as other,
            native(written.address, caller) as writer,
        ):
            flow_id, resumed = await created(writer), Resumptions()
            following = [asyncio.ensure_future(rest(client.events(flow_id, resuming=resumed))) for client in (one, other)]
            await renamed(writer, flow_id, 10)
            redis.kill()
            await renamed(writer, flow_id, 10)
            await asyncio.to_thread(redis.start)
            await renamed(writer, flow_id, 10)
            await cancelled(writer, flow_id)
            assert await asyncio.gather(*following) == [list(range(1, 33))] * 2
            assert resumed.told == []


async def test_a_snapshot_comes_once_and_what_follows_it_after_a_break_too(
    connect: Connect, wire: Line, caller: Caller, channel: grpc.aio.Channel
) -> None:
    beside = Tenancy(channel, UUID(str(caller.account)), UUID(str(caller.engagement)))
    flow_id, resumed = (await beside.create()).flow_id, Resumptions()
    await beside.call("UpdateFlow", flow_id=flow_id, update={"display_name": "x"})
    async with connect(wire.address, caller) as client:
        watch = client.watch(pb.WatchFlowRequest(flow_id=flow_id), resuming=resumed)
        first = await watch.next()
        assert (first.WhichOneof("message"), first.revision, watch.position) == ("snapshot", 2, 2)
        wire.cut()
        following = asyncio.ensure_future(rest(watch))
        await beside.call("UpdateFlow", flow_id=flow_id, update={"display_name": "y"})
        await beside.call("CancelFlow", flow_id=flow_id)
        assert await following == [3, 4]


async def test_of_latest_only_the_newest_state_arrives_in_the_end_whatever_breaks(
    connect: Connect, wire: Line, caller: Caller, channel: grpc.aio.Channel
) -> None:
    beside = Tenancy(channel, UUID(str(caller.account)), UUID(str(caller.engagement)))
    flow_id = (await beside.create()).flow_id
    async with connect(wire.address, caller) as client:
        watch = client.watch(pb.WatchFlowRequest(flow_id=flow_id, delivery=pb.WATCH_DELIVERY_LATEST_ONLY))
        following = asyncio.ensure_future(_snapshots(watch))
        for at in range(30):
            await beside.call("UpdateFlow", flow_id=flow_id, update={"display_name": f"{at}"})
            if at % 10 == 5:
                wire.cut()
        await beside.call("CancelFlow", flow_id=flow_id)
        flows = await following
    revisions = [flow.revision for flow in flows]
    assert revisions == sorted(set(revisions))
    assert (flows[-1].revision, flows[-1].status) == (32, flow_pb2.FLOW_STATUS_CANCELLED)


async def _snapshots(watch: Watching) -> list[flow_pb2.Flow]:
    async with asyncio.timeout(PATIENCE):
        return [message.snapshot.flow async for message in watch]


async def test_a_watch_from_now_on_tells_nothing_of_before(client: Both) -> None:
    flow_id, resumed = await created(client), Resumptions()
    await renamed(client, flow_id, 3)
    request = pb.WatchFlowRequest(flow_id=flow_id, start=pb.WATCH_START_NOW, heartbeat_interval=SECOND)
    watch = client.watch(request, resuming=resumed)
    following = asyncio.ensure_future(rest(watch))
    await until(lambda: watch.position)  # it is told by a heartbeat, which is not ours to see
    await cancelled(client, flow_id)
    assert await following == [5]


async def test_history_that_is_no_longer_kept_is_said_to_be_missing_and_never_passed_over(
    client: Both, postgres: Cluster, shared_urls: Urls
) -> None:
    flow_id = await created(client)
    await renamed(client, flow_id, 9)
    watch = client.events(flow_id)
    assert await upto(watch, 3) == [1, 2, 3]
    watch.close()
    postgres.run(f"DELETE FROM events WHERE flow_id = '{flow_id}' AND revision < 7", shared_urls.name)
    with pytest.raises(OutOfRange) as gone:
        await client.events(flow_id, watch.position).next()
    assert (gone.value.reason, gone.value.oldest_revision, gone.value.head_revision) == ("REVISION_COMPACTED", 7, 10)
    assert await upto(client.events(flow_id, 6), 10) == [7, 8, 9, 10]


async def test_a_watch_that_is_refused_says_so_at_once(client: Both) -> None:
    with pytest.raises(NotFound):
        await client.events("01890000-0000-7000-8000-000000000000").next()


async def test_a_watch_gives_up_when_the_service_stays_away_for_longer_than_its_patience(server: app.Server, caller: Caller) -> None:
    async def patient_for_a_second(connect: Connect) -> None:
        async with line(server.address) as wire, connect(wire.address, caller, patience=Patience(watch=1.0)) as client:
            flow_id, resumed = await created(client), Resumptions()
            watch = client.watch(pb.WatchFlowRequest(flow_id=flow_id, start=ALL, heartbeat_interval=SECOND), resuming=resumed)
            assert (await watch.next()).revision == 1
            wire.close()
            with pytest.raises(Unavailable):
                await watch.next()
            assert resumed.told
            assert watch.position == 1

    await both_at_once(patient_for_a_second)


async def test_closing_a_watch_ends_whoever_reads_it_and_its_stream(client: Both, server: app.Server) -> None:
    flow_id = await created(client)
    watch = client.events(flow_id)
    assert (await watch.next()).revision == 1
    following = asyncio.ensure_future(rest(watch))
    await asyncio.sleep(0.1)
    watch.close()
    assert await asyncio.wait_for(following, PATIENCE) == []
    assert watch.end is None


async def test_who_is_cancelled_while_reading_goes_on_later_and_misses_nothing(server: app.Server, caller: Caller) -> None:
    async with AsyncClient(server.address, caller) as client:
        flow_id = (await client.flows.CreateFlow(pb.CreateFlowRequest(type="discovery"))).flow.flow_id
        seen: list[int] = []
        async with client.events(flow_id) as watch:
            for at in range(20):
                request = pb.UpdateFlowRequest(flow_id=flow_id, update=change_pb2.FlowUpdate(display_name=f"{at}"))
                await client.flows.UpdateFlow(request)
                try:
                    seen += [(await asyncio.wait_for(anext(watch), 0.001 * (at % 5))).revision]
                except TimeoutError:
                    continue
            while seen[-1:] != [21]:  # on a busy machine not one came in time so far
                seen.append((await anext(watch)).revision)
        assert seen == list(range(1, 22))
        assert [task for task in asyncio.all_tasks() if "AsyncWatch" in repr(task)] == []
