"""Many watches of one process: read once, bounded in memory and number, gone without a trace."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import psutil
import pytest
from flowledger.v1 import flow_service_pb2 as pb

from server.repository.events import Events
from server.repository.feed import Feed
from server.services import feed_watch, flow_watch, streams, tail, watch
from server.wakeups import LocalWakeups
from tests.conftest import Urls
from tests.services.serving import served
from tests.services.streams import NARROW, Stream, begun, kinds, large_events, own_server, rename
from tests.tenancy import Refusal, Tenancy

AFTER = pb.WATCH_START_AFTER_REVISION


@contextmanager
def _counted(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> Iterator[list[None]]:
    """How often the method is called while the block lasts: the length of the list."""
    calls: list[None] = []
    method = getattr(owner, name)

    def counting(*arguments: Any) -> Any:
        calls.append(None)
        return method(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, counting)
        yield calls


# ---- read once ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("watchers", [30, 250])
async def test_an_event_is_read_and_written_once_however_many_watch(urls: Urls, monkeypatch: pytest.MonkeyPatch, watchers: int) -> None:
    async with own_server(urls, watch_poll_seconds=60) as (tenancy, _):
        flow_id = (await tenancy.create()).flow_id
        watching = [Stream(tenancy, flow_id) for _ in range(watchers)]
        filtered = [Stream(tenancy, flow_id, kinds=["EVENT_KIND_FIELDS_CHANGED"]) for _ in range(10)]
        for stream in (*watching, *filtered):
            assert kinds([await stream.next()]) == [("snapshot", 1)]
        events = 20
        with (
            _counted(monkeypatch, Events, "page") as pages,
            _counted(monkeypatch, flow_watch.FlowTold, "__init__") as written,
            _counted(monkeypatch, flow_watch.FlowWanted, "written") as sealed,
        ):
            for revision in range(2, 2 + events):
                await rename(tenancy, flow_id, f"{revision}")
                for stream in (*watching, *filtered):
                    assert kinds([await stream.next()]) == [("event", revision)]
        assert (len(written), len(sealed)) == (events, 2 * events)  # one token for each filter
        assert events <= len(pages) <= 2 * events


async def test_a_tenants_events_are_read_and_written_once_however_many_watch(urls: Urls, monkeypatch: pytest.MonkeyPatch) -> None:
    async with own_server(urls, watch_poll_seconds=60) as (tenancy, _):
        flow_id = (await tenancy.create()).flow_id
        watching = [aiter(tenancy.watch_all()) for _ in range(30)]
        for messages in watching:
            assert (await anext(messages)).HasField("opened")
        with _counted(monkeypatch, Feed, "page") as pages, _counted(monkeypatch, feed_watch.FeedTold, "__init__") as written:
            for revision in range(2, 22):
                await rename(tenancy, flow_id, f"{revision}")
                for messages in watching:
                    assert (await anext(messages)).change.revision == revision
        assert len(written) == 20
        assert len(pages) <= 20 * 3  # more than once where another transaction held an event back for a moment


async def test_many_who_ask_for_the_same_history_have_it_written_once(urls: Urls, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after a restart, when everybody comes back at the same place."""
    async with own_server(urls) as (tenancy, _):
        flow_id = await begun(tenancy)
        await large_events(tenancy, flow_id, 300)
        with _counted(monkeypatch, flow_watch.FlowTold, "__init__") as written:
            watching = [Stream(tenancy, flow_id, start=AFTER) for _ in range(20)]
            for found in await asyncio.gather(*(stream.until(302) for stream in watching)):
                assert kinds(found) == [("event", revision) for revision in range(1, 303)]
        assert len(written) == 302


# ---- slow consumers -----------------------------------------------------------------------------------------------------------------


async def test_who_falls_behind_what_is_in_memory_reads_from_the_store_and_comes_back(urls: Urls, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "ROOM_BYTES", 20_000)
    monkeypatch.setattr(flow_watch, "PAGE", 7)
    monkeypatch.setattr(feed_watch, "PAGE", 7)
    monkeypatch.setattr(flow_watch, "PAGE_BYTES", 10_000)
    monkeypatch.setattr(feed_watch, "PAGE_BYTES", 10_000)
    async with own_server(urls) as (tenancy, _):
        flow_id = await begun(tenancy)
        slow, fast = [Stream(tenancy, flow_id, start=AFTER) for _ in range(2)]
        slow_all, fast_all = [aiter(tenancy.watch_all(start=pb.WATCH_FLOWS_START_BEGINNING)) for _ in range(2)]
        await slow.next()
        for messages in (slow_all, fast_all):
            assert (await anext(messages)).HasField("opened")
        await large_events(tenancy, flow_id, 400)
        await fast.until(402)
        for revision in range(1, 403):
            assert (await anext(fast_all)).change.revision == revision
        assert kinds(await slow.until(402)) == [("event", revision) for revision in range(2, 403)]
        for revision in range(1, 403):
            assert (await anext(slow_all)).change.revision == revision
        await rename(tenancy, flow_id, "last")
        for stream in (slow, fast):
            assert kinds([await stream.next()]) == [("event", 403)]
        for messages in (slow_all, fast_all):
            assert (await anext(messages)).change.revision == 403


# Events of 1,500 times two kilobytes are what one consumer would cost if they were kept for it; so many megabytes is what ninety may cost.
SLOW, EVENTS, GROWTH_BYTES = 60, 1500, 100 * 1024 * 1024


async def test_slow_consumers_cost_bounded_memory(urls: Urls) -> None:
    async with served(urls) as server, grpc.aio.insecure_channel(server.address) as channel:
        tenancy = Tenancy.fresh(channel)
        flow_id = await begun(tenancy)
        await large_events(tenancy, flow_id, 500)  # so that what commits need is there before it is measured
        process = psutil.Process(server.process.pid)
        before = process.memory_info().rss
        async with grpc.aio.insecure_channel(server.address) as other:
            slow = [Stream(tenancy.on(other), flow_id) for _ in range(SLOW)]
            slow_all = [tenancy.on(other).watch_all() for _ in range(SLOW // 2)]
            for stream in slow:
                await stream.next()
            for call in slow_all:
                await anext(aiter(call))
            fast = Stream(tenancy, flow_id)
            await fast.next()
            reading = asyncio.create_task(fast.until(502 + EVENTS))
            await large_events(tenancy, flow_id, EVENTS)
            await reading
            assert process.memory_info().rss - before < GROWTH_BYTES
            # They are as slow as ever, and have missed nothing.
            assert kinds(await slow[0].until(502 + EVENTS)) == [("event", revision) for revision in range(503, 503 + EVENTS)]


async def test_a_stream_that_is_too_old_and_never_catches_up_ends_where_it_is(urls: Urls, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "LATE_SECONDS", 0.2)
    async with own_server(urls, NARROW, watch_max_age_seconds=1) as (tenancy, _):
        flow_id = await begun(tenancy)
        await large_events(tenancy, flow_id, 600)
        stream = Stream(tenancy, flow_id, start=AFTER)
        found = [await stream.next()]
        while not found[-1].HasField("end"):
            await asyncio.sleep(0.005)  # the claim is about a reader that is slower than the stream is old
            found.append(await stream.next())
        assert found[-1].end.reason == pb.WATCH_END_REASON_MAX_AGE
        assert kinds(found[:-1]) == [("event", revision) for revision in range(1, found[-1].revision + 1)]
        assert found[-1].revision < 602
        resumed = Stream(tenancy, flow_id, resume_token=found[-1].resume_token)
        assert (await resumed.next()).revision == found[-1].revision + 1


# ---- number -------------------------------------------------------------------------------------------------------------------------


async def test_a_tenants_watches_are_counted_and_counted_down_however_they_end(urls: Urls) -> None:
    async with own_server(urls, streams_per_tenant=3) as (tenancy, _):
        flow_id = (await tenancy.create()).flow_id

        async def refused() -> None:
            for attempt in (tenancy.watch(flow_id), tenancy.watch_all()):
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await anext(aiter(attempt))
                refusal = Refusal.of(caught.value)
                assert (refusal.code, refusal.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUOTA_EXCEEDED")
                assert (refusal.metadata["limit"], refusal.metadata["actual"]) == ("3", "4")

        async def admitted(open_one: Callable[[], Any]) -> Any:
            async with asyncio.timeout(30):
                while True:  # a call that its client gave up is noticed a moment later
                    call = open_one()
                    try:
                        await anext(aiter(call))
                    except grpc.aio.AioRpcError:
                        await asyncio.sleep(0.02)
                    else:
                        return call

        calls = [tenancy.watch(flow_id), tenancy.watch_all(), tenancy.watch(flow_id, start=AFTER)]
        for call in calls:
            await anext(aiter(call))
        await refused()
        calls[0].cancel()
        calls[1].cancel()
        for _ in range(2):
            calls.append(await admitted(tenancy.watch_all))
        await refused()
        # A watch that is refused, or that ends by itself, counts no longer.
        await tenancy.call("CancelFlow", flow_id=flow_id)
        async for message in calls[2]:
            last = message
        assert last.end.reason == pb.WATCH_END_REASON_FLOW_TERMINAL
        for _ in range(5):
            with pytest.raises(grpc.aio.AioRpcError):
                await anext(aiter(tenancy.watch("0190a000-0000-7000-8000-000000000001")))
        calls.append(await admitted(tenancy.watch_all))
        await refused()
        other = tenancy.other_engagement()
        for _ in range(3):
            calls.append(other.watch_all())
            await anext(aiter(calls[-1]))


# ---- without a trace ----------------------------------------------------------------------------------------------------------------


def _tasks() -> set[asyncio.Task[Any]]:
    return {task for task in asyncio.all_tasks() if task.get_name() in ("tail", "watch sweep")}


async def _gone(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 - gRPC gives no signal when it has noticed that a client went
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("reading", ["waiting", "sending"])
async def test_watches_that_are_left_leave_no_task_and_no_memory(urls: Urls, monkeypatch: pytest.MonkeyPatch, reading: str) -> None:
    kept: list[tail.Tail] = []
    begin = tail.Tail.__init__

    def keeping(self: tail.Tail, *arguments: Any) -> None:
        kept.append(self)
        begin(self, *arguments)

    monkeypatch.setattr(tail.Tail, "__init__", keeping)
    others = _tasks()
    async with own_server(urls, watch_poll_seconds=0.05) as (tenancy, server):
        flow_id = await begun(tenancy)
        if reading == "sending":
            await large_events(tenancy, flow_id, 500)
        async with grpc.aio.insecure_channel(server.address) as channel:
            start = pb.WATCH_FLOWS_START_BEGINNING
            calls = [tenancy.on(channel).watch(flow_id, start=AFTER) for _ in range(10)]
            calls += [tenancy.on(channel).watch_all(start=start) for _ in range(10)]
            for call in calls:
                await anext(aiter(call))
            assert len(_tasks() - others) >= 1
            assert [one.streams for one in kept] == [10, 10]
        await _gone(lambda: not (_tasks() - others))
        assert [(one.streams, one.crowded) for one in kept] == [(0, False), (0, False)]
        # The server is as good as new.
        stream = Stream(tenancy, flow_id)
        await stream.next()
        await rename(tenancy, flow_id, "on")
        assert (await stream.next()).HasField("event")
    # The stream was left with its channel: what followed it ends when its call has noticed.
    await _gone(lambda: not (_tasks() - others))


async def test_streams_of_one_age_do_not_end_at_once(urls: Urls) -> None:
    async with own_server(urls, watch_max_age_seconds=2) as (tenancy, _):
        flow_id = (await tenancy.create()).flow_id
        ends: list[float] = []

        async def follow(call: Any) -> None:
            started = time.monotonic()
            async for message in call:
                last = message
            assert last.end.reason == pb.WATCH_END_REASON_MAX_AGE
            ends.append(time.monotonic() - started)

        await asyncio.gather(*(follow(tenancy.watch(flow_id)) for _ in range(20)), *(follow(tenancy.watch_all()) for _ in range(20)))
        assert 1.5 < min(ends) < max(ends)
        assert max(ends) - min(ends) > 0.1


# ---- without hints ------------------------------------------------------------------------------------------------------------------


async def test_without_any_hint_the_sweep_finds_what_moved(urls: Urls, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LocalWakeups, "ring", lambda self, key: None)
    async with own_server(urls, watch_poll_seconds=0.1) as (tenancy, _):
        flows = [(await tenancy.create()).flow_id for _ in range(5)]
        watching = [Stream(tenancy, flow_id) for flow_id in flows]
        for stream in watching:
            await stream.next()
        everything = aiter(tenancy.watch_all())
        await anext(everything)

        async def within(seconds: float, what: Awaitable[Any]) -> Any:
            async with asyncio.timeout(seconds):
                return await what

        for revision in range(2, 6):
            for flow_id, stream in zip(flows, watching, strict=True):
                await rename(tenancy, flow_id, f"{revision}")
                assert kinds([await within(2.0, stream.next())]) == [("event", revision)]
                assert (await within(2.0, anext(everything))).change.revision == revision
