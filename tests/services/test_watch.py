"""WatchFlow: where a stream starts, what it delivers in which order, and why it ends."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import uuid4

import grpc
import pytest
from flowledger.v1 import flow_pb2
from flowledger.v1 import flow_service_pb2 as pb

from server.services.flow_watch import FlowTail
from tests.conftest import Urls
from tests.services.streams import Stream, complete, kinds, own_server, rename
from tests.tenancy import Tenancy

# Within this many seconds an idle stream would have said something, had it anything to say: a poll and a good deal more.
QUIET_SECONDS = 0.5


@pytest.fixture
def following(monkeypatch: pytest.MonkeyPatch) -> dict[str, asyncio.Event]:
    """Whether some flow is followed: ``some`` and ``none`` are raised as it changes."""
    heard = {"some": asyncio.Event(), "none": asyncio.Event()}
    begin, close = FlowTail.__init__, FlowTail.close
    number = 0

    def begun(self: FlowTail, *arguments: Any) -> None:
        nonlocal number
        number += 1
        heard["some"].set()
        begin(self, *arguments)

    def closed(self: FlowTail) -> None:
        nonlocal number
        number -= 1
        if number == 0:
            heard["none"].set()
        close(self)

    monkeypatch.setattr(FlowTail, "__init__", begun)
    monkeypatch.setattr(FlowTail, "close", closed)
    return heard


# ---- where it starts ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", [{}, {"start": pb.WATCH_START_SNAPSHOT}])
async def test_by_default_a_watch_begins_with_a_snapshot_and_goes_on_with_events(tenancy: Tenancy, start: dict[str, Any]) -> None:
    flow = await tenancy.create()
    await rename(tenancy, flow.flow_id, "two")
    stream = Stream(tenancy, flow.flow_id, **start)
    snapshot = await stream.next()
    assert (snapshot.revision, snapshot.snapshot.skipped) == (2, 0)
    assert snapshot.snapshot.flow == (await tenancy.call("GetFlow", flow_id=flow.flow_id)).flow
    response = await tenancy.call("UpdateFlow", flow_id=flow.flow_id, update={"display_name": "three"})
    event = await stream.next()
    assert (event.revision, event.event) == (3, response.event)


@pytest.mark.parametrize("after", [0, 1, 3, 5])
async def test_a_watch_after_a_revision_delivers_each_later_event_as_the_list_has_it(tenancy: Tenancy, after: int) -> None:
    flow_id = (await tenancy.create()).flow_id
    await rename(tenancy, flow_id, "two", "three", "four")
    await tenancy.call("CancelFlow", flow_id=flow_id)
    listed = (await tenancy.call("ListFlowEvents", flow_id=flow_id)).events
    *events, end = await Stream(tenancy, flow_id, start=pb.WATCH_START_AFTER_REVISION, after_revision=after).rest()
    assert [message.event for message in events] == list(listed)[after:]
    assert [message.revision for message in events] == list(range(after + 1, 6))
    assert kinds([end]) == [("end", 5)]


async def test_a_watch_from_now_says_where_now_is_and_tells_nothing_older(tenancy: Tenancy) -> None:
    flow_id = (await tenancy.create()).flow_id
    await rename(tenancy, flow_id, "two", "three")
    stream = Stream(tenancy, flow_id, start=pb.WATCH_START_NOW)
    position = await stream.next()
    await rename(tenancy, flow_id, "four")
    assert kinds([position, await stream.next()]) == [("heartbeat", 3), ("event", 4)]


async def test_a_watch_after_a_revision_that_the_flow_has_not_reached_is_refused(tenancy: Tenancy) -> None:
    flow_id = (await tenancy.create()).flow_id
    for delivery in (pb.WATCH_DELIVERY_EVERY_REVISION, pb.WATCH_DELIVERY_LATEST_ONLY):
        stream = Stream(tenancy, flow_id, start=pb.WATCH_START_AFTER_REVISION, after_revision=2, delivery=delivery)
        refusal = await stream.refusal()
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.OUT_OF_RANGE, "REVISION_IN_FUTURE")
        assert refusal.metadata["head_revision"] == "1"


@pytest.mark.parametrize("start", [pb.WATCH_START_SNAPSHOT, pb.WATCH_START_AFTER_REVISION, pb.WATCH_START_NOW])
@pytest.mark.parametrize("delivery", [pb.WATCH_DELIVERY_EVERY_REVISION, pb.WATCH_DELIVERY_LATEST_ONLY])
async def test_a_watch_of_a_flow_that_the_tenant_does_not_have_is_not_found(
    tenancy: Tenancy, start: pb.WatchStart.ValueType, delivery: pb.WatchDelivery.ValueType
) -> None:
    foreign = (await tenancy.other_engagement().create()).flow_id
    for flow_id in (str(uuid4()), foreign):
        refusal = await Stream(tenancy, flow_id, start=start, delivery=delivery).refusal()
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.NOT_FOUND, "FLOW_NOT_FOUND")


@pytest.mark.parametrize(
    ("field", "fields"),
    [
        ("flow_id", {"flow_id": "seven"}),
        ("start", {"start": 9}),
        ("delivery", {"delivery": 9}),
        ("after_revision", {"after_revision": 1}),
        ("after_revision", {"start": pb.WATCH_START_AFTER_REVISION, "after_revision": -1}),
        ("heartbeat_interval", {"heartbeat_interval": {"nanos": 999_999_999}}),
        ("heartbeat_interval", {"heartbeat_interval": {"seconds": 301}}),
    ],
)
async def test_a_malformed_watch_is_refused_by_the_name_of_its_field(tenancy: Tenancy, field: str, fields: dict[str, Any]) -> None:
    refusal = await Stream(tenancy, **{"flow_id": str(uuid4()), **fields}).refusal()
    assert (refusal.code, list(refusal.violations)) == (grpc.StatusCode.INVALID_ARGUMENT, [field])


# ---- what it delivers ---------------------------------------------------------------------------------------------------------------


async def test_every_revision_arrives_once_and_in_order_while_many_write(tenancy: Tenancy) -> None:
    flow_id = (await tenancy.create()).flow_id
    stream = Stream(tenancy, flow_id, start=pb.WATCH_START_AFTER_REVISION)
    await asyncio.gather(*(rename(tenancy, flow_id, f"{at}", f"{at} again") for at in range(100)))
    messages = await stream.until(201)
    assert kinds(messages) == [("event", revision) for revision in range(1, 202)]
    assert [message.event.revision for message in messages] == list(range(1, 202))


async def test_a_slow_consumer_gets_everything(tenancy: Tenancy) -> None:
    flow_id = (await tenancy.create()).flow_id
    await tenancy.move(flow_id, "data_import", "IN_PROGRESS")
    stream = Stream(tenancy, flow_id)
    await stream.next()
    # Many times what the connection holds, so that the stream stands still until somebody reads.
    words = "x" * 2000
    progress = {"phase": "data_import", "fraction": 0.5, "message": words}
    await asyncio.gather(*(tenancy.call("ReportProgress", flow_id=flow_id, progress=progress) for _ in range(400)))
    messages = await stream.until(402)
    assert kinds(messages) == [("event", revision) for revision in range(3, 403)]
    assert {message.event.changes[0].phase.reason for message in messages} == {words}


async def test_latest_only_skips_what_was_passed_over_and_ends_on_the_newest_state(tenancy: Tenancy) -> None:
    flow_id = (await tenancy.create()).flow_id
    stream = Stream(tenancy, flow_id, delivery=pb.WATCH_DELIVERY_LATEST_ONLY)
    first = await stream.next()
    assert (first.revision, first.snapshot.skipped) == (1, 0)
    await asyncio.gather(*(rename(tenancy, flow_id, f"{at}") for at in range(200)))
    await tenancy.call("CancelFlow", flow_id=flow_id)
    *messages, end = await stream.rest()
    assert {message.WhichOneof("message") for message in messages} == {"snapshot"}
    position = 1
    for message in messages:
        assert message.revision == message.snapshot.flow.revision == position + message.snapshot.skipped + 1
        position = message.revision
    assert len(messages) < 201, "nothing was conflated"
    assert (position, end.revision, end.end.reason) == (202, 202, pb.WATCH_END_REASON_FLOW_TERMINAL)
    assert messages[-1].snapshot.flow == (await tenancy.call("GetFlow", flow_id=flow_id)).flow


async def test_latest_only_after_a_revision_counts_what_lies_between(tenancy: Tenancy) -> None:
    flow_id = (await tenancy.create()).flow_id
    await rename(tenancy, flow_id, "two", "three", "four")
    latest = {"delivery": pb.WATCH_DELIVERY_LATEST_ONLY, "start": pb.WATCH_START_AFTER_REVISION}
    message = await Stream(tenancy, flow_id, after_revision=1, **latest).next()
    assert (message.revision, message.snapshot.skipped) == (4, 2)


async def test_an_event_tells_that_progress_fell(tenancy: Tenancy) -> None:
    flow_id = (await tenancy.create()).flow_id
    stream = Stream(tenancy, flow_id, start=pb.WATCH_START_AFTER_REVISION)
    await tenancy.move(flow_id, "data_import", "IN_PROGRESS", "COMPLETED")
    await tenancy.call("RollbackPhase", flow_id=flow_id, rollback={"phase": "data_import"})
    events = [message.event for message in await stream.until(4)]
    assert [event.progress_regressed for event in events] == [False, False, False, True]
    assert events[-1].progress_percent < events[-2].progress_percent


async def test_heartbeats_come_only_when_idle_and_carry_the_position(tenancy: Tenancy) -> None:
    flow_id = (await tenancy.create()).flow_id
    stream = Stream(tenancy, flow_id, heartbeat_interval={"seconds": 1})
    loop = asyncio.get_running_loop()
    assert kinds([await stream.next()]) == [("snapshot", 1)]
    spoken = loop.time()
    assert kinds([await stream.next()]) == [("heartbeat", 1)]
    assert 0.9 <= loop.time() - spoken < 2.5
    # As long as there is something to say no heartbeat is sent, and the second of silence begins anew.
    spoken = loop.time()
    revision = 1
    while loop.time() - spoken < 1.3:
        revision += 1
        await rename(tenancy, flow_id, f"name {revision}")
        assert kinds([await stream.next()]) == [("event", revision)]
    assert kinds([await stream.next()]) == [("heartbeat", revision)]


async def test_a_watch_with_nothing_to_say_is_silent_until_its_heartbeat(tenancy: Tenancy) -> None:
    flow_id = (await tenancy.create()).flow_id
    stream = Stream(tenancy, flow_id)
    await stream.next()
    reading = asyncio.ensure_future(stream.next())
    _, waiting = await asyncio.wait({reading}, timeout=QUIET_SECONDS)
    assert waiting
    await rename(tenancy, flow_id, "two")
    assert kinds([await reading]) == [("event", 2)]


# ---- how it ends --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("delivery", [pb.WATCH_DELIVERY_EVERY_REVISION, pb.WATCH_DELIVERY_LATEST_ONLY])
@pytest.mark.parametrize("ending", ["COMPLETED", "FAILED", "CANCELLED"])
async def test_a_watch_ends_when_the_flow_has_ended(tenancy: Tenancy, ending: str, delivery: pb.WatchDelivery.ValueType) -> None:
    flow_id = (await tenancy.create()).flow_id
    stream = Stream(tenancy, flow_id, delivery=delivery)
    match ending:
        case "COMPLETED":
            head = await complete(tenancy, flow_id)
        case "FAILED":
            await tenancy.move(flow_id, "data_import", "IN_PROGRESS")
            failed = {"phase": "data_import", "to": "PHASE_STATE_FAILED", "failure": {"code": "FAILURE_CODE_DATA_VALIDATION_FAILED"}}
            head = (await tenancy.call("TransitionPhase", flow_id=flow_id, transition=failed)).flow.revision
        case _:
            head = (await tenancy.call("CancelFlow", flow_id=flow_id)).flow.revision
    *messages, end = await stream.rest()
    assert messages[-1].revision == head
    last = messages[-1]
    status = last.event.status if last.HasField("event") else last.snapshot.flow.status
    assert flow_pb2.FlowStatus.Name(status) == f"FLOW_STATUS_{ending}"
    assert (end.revision, end.end.reason) == (head, pb.WATCH_END_REASON_FLOW_TERMINAL)
    assert end.end.message


async def test_a_watch_of_a_flow_that_ended_before_tells_all_and_ends(tenancy: Tenancy) -> None:
    flow_id = (await tenancy.create()).flow_id
    await tenancy.call("CancelFlow", flow_id=flow_id)
    resumed = await Stream(tenancy, flow_id, start=pb.WATCH_START_AFTER_REVISION, after_revision=2).rest()
    assert [message.end.reason for message in resumed] == [pb.WATCH_END_REASON_FLOW_TERMINAL]
    assert kinds(await Stream(tenancy, flow_id).rest()) == [("snapshot", 2), ("end", 2)]


async def test_a_watch_ends_when_the_flow_is_deleted(tenancy: Tenancy) -> None:
    flow_id = (await tenancy.create()).flow_id
    stream = Stream(tenancy, flow_id)
    await stream.next()
    await tenancy.call("DeleteFlow", flow_id=flow_id, reason="not needed")
    event, end = await stream.rest()
    assert event.event.changes[0].deleted.reason == "not needed"
    assert (end.revision, end.end.reason) == (2, pb.WATCH_END_REASON_FLOW_DELETED)


async def test_a_watch_that_is_too_old_ends_resumably(urls: Urls) -> None:
    async with own_server(urls, watch_max_age_seconds=1) as (tenancy, _):
        flow_id = (await tenancy.create()).flow_id
        stream = Stream(tenancy, flow_id)
        await stream.next()
        await rename(tenancy, flow_id, "two")
        event, end = await stream.rest()
        assert (event.revision, end.revision, end.end.reason) == (2, 2, pb.WATCH_END_REASON_MAX_AGE)
        await rename(tenancy, flow_id, "three")
        resumed = Stream(tenancy, flow_id, start=pb.WATCH_START_AFTER_REVISION, after_revision=end.revision)
        assert kinds([await resumed.next()]) == [("event", 3)]


async def test_a_watch_too_old_delivers_what_there_is_before_it_ends(urls: Urls) -> None:
    async with own_server(urls, watch_max_age_seconds=1) as (tenancy, _):
        flow_id = (await tenancy.create()).flow_id
        await tenancy.move(flow_id, "data_import", "IN_PROGRESS")
        progress = {"phase": "data_import", "fraction": 0.5, "message": "x" * 2000}
        await asyncio.gather(*(tenancy.call("ReportProgress", flow_id=flow_id, progress=progress) for _ in range(400)))
        stream = Stream(tenancy, flow_id, start=pb.WATCH_START_AFTER_REVISION)
        await stream.next()
        await asyncio.sleep(1.1)  # the claim is about time: the stream grows old while its reader does something else
        *events, end = await stream.rest()
        assert [message.revision for message in events] == list(range(2, 403))
        assert (end.revision, end.end.reason) == (402, pb.WATCH_END_REASON_MAX_AGE)


async def test_a_draining_server_ends_its_watches_with_everything_told(urls: Urls) -> None:
    async with own_server(urls, watch_poll_seconds=60) as (tenancy, server):
        flow_id = (await tenancy.create()).flow_id
        streams = [Stream(tenancy, flow_id) for _ in range(3)]
        for stream in streams:
            await stream.next()
        await rename(tenancy, flow_id, "two")
        server.drain()
        for stream in streams:
            event, end = await stream.rest()
            assert (event.event.revision, end.revision, end.end.reason) == (2, 2, pb.WATCH_END_REASON_DRAINING)


# ---- hints --------------------------------------------------------------------------------------------------------------------------


async def test_a_client_that_leaves_frees_its_subscription(urls: Urls, following: dict[str, asyncio.Event]) -> None:
    async with own_server(urls, watch_poll_seconds=60) as (tenancy, _):
        flow_id = (await tenancy.create()).flow_id
        streams = [Stream(tenancy, flow_id) for _ in range(5)]
        for stream in streams:
            await stream.next()
        assert following["some"].is_set()
        for stream in streams[1:]:
            stream.call.cancel()
        await rename(tenancy, flow_id, "two")
        assert kinds([await streams[0].next()]) == [("event", 2)]
        assert not following["none"].is_set()
        streams[0].call.cancel()
        async with asyncio.timeout(5):
            await following["none"].wait()


async def test_a_client_that_leaves_without_reading_frees_its_subscription(urls: Urls, following: dict[str, asyncio.Event]) -> None:
    async with own_server(urls, watch_poll_seconds=60) as (tenancy, server):
        flow_id = (await tenancy.create()).flow_id
        await tenancy.move(flow_id, "data_import", "IN_PROGRESS")
        progress = {"phase": "data_import", "fraction": 0.5, "message": "x" * 2000}
        await asyncio.gather(*(tenancy.call("ReportProgress", flow_id=flow_id, progress=progress) for _ in range(200)))
        async with grpc.aio.insecure_channel(server.address) as channel:
            await Stream(tenancy.on(channel), flow_id, start=pb.WATCH_START_AFTER_REVISION).next()
            assert following["some"].is_set()
            assert not following["none"].is_set()
        async with asyncio.timeout(5):
            await following["none"].wait()


async def test_a_hint_brings_an_event_long_before_the_poll(urls: Urls) -> None:
    async with own_server(urls, watch_poll_seconds=60) as (tenancy, _):
        flow_id = (await tenancy.create()).flow_id
        stream = Stream(tenancy, flow_id)
        await stream.next()
        for revision in range(2, 20):
            await rename(tenancy, flow_id, f"{revision}")
            assert kinds([await stream.next()]) == [("event", revision)]
