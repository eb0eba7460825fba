"""WatchFlows: all flows of a tenant in one stream, each event once, filtered as the event left its flow, resumable anywhere."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import UUID

import asyncpg
import grpc
import pytest
from flowledger.v1 import event_pb2, flow_pb2
from flowledger.v1 import flow_service_pb2 as pb

from server import app
from server.services import feed_watch, tail
from tests.conftest import Urls, settings
from tests.services.streams import SECONDS, own_server, rename
from tests.tenancy import Refusal, Tenancy

BEGINNING = pb.WATCH_FLOWS_START_BEGINNING
MOVED = event_pb2.EVENT_KIND_PHASE_CHANGED


class FeedStream:
    """A watch of many flows, read message by message with a deadline; the first message, ``opened``, is taken aside."""

    def __init__(self, tenancy: Tenancy, **fields: Any) -> None:
        self.call = tenancy.watch_all(**fields)
        self._messages = aiter(self.call)
        self.first: pb.WatchFlowsResponse | None = None

    async def open(self) -> pb.WatchFlowsResponse:
        """The first message."""
        if self.first is None:
            async with asyncio.timeout(SECONDS):
                self.first = await anext(self._messages)
            assert self.first is not None
            assert self.first.HasField("opened")
        return self.first

    async def next(self) -> pb.WatchFlowsResponse:
        """The next message."""
        await self.open()
        async with asyncio.timeout(SECONDS):
            found: pb.WatchFlowsResponse = await anext(self._messages)
            assert not found.HasField("opened")
            return found

    async def changes(self, count: int) -> list[tuple[str, int]]:
        """So many changes: whose, and which revision."""
        found = []
        for _ in range(count):
            message = await self.next()
            assert message.HasField("change"), message
            found.append((message.change.flow_id, message.change.revision))
        return found

    async def rest(self) -> list[pb.WatchFlowsResponse]:
        """Everything until the service ends the stream."""
        await self.open()
        async with asyncio.timeout(SECONDS):
            return [message async for message in self._messages]

    async def refusal(self) -> Refusal:
        """The error that the stream ends with."""
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            await self.rest()
        return Refusal.of(ended.value)


# ---- what is told -------------------------------------------------------------------------------------------------------------------


async def test_a_change_has_the_event_and_the_flow_as_it_is(tenancy: Tenancy) -> None:
    stream = FeedStream(tenancy)
    await stream.open()
    flow = await tenancy.create(display_name="one", labels={"wave": "3"})
    created = (await stream.next()).change
    response = await tenancy.move(flow.flow_id, "data_import", "IN_PROGRESS")
    moved = (await stream.next()).change
    assert (created.flow_id, created.revision, moved.flow_id, moved.revision) == (flow.flow_id, 1, flow.flow_id, 2)
    assert (moved.event, moved.flow) == (response.event, response.flow)
    listed = (await tenancy.call("ListFlowEvents", flow_id=flow.flow_id)).events
    assert [created.event, moved.event] == list(listed)


async def test_from_now_tells_nothing_older_and_from_the_beginning_everything(tenancy: Tenancy) -> None:
    one, two = (await tenancy.create()).flow_id, (await tenancy.create()).flow_id
    await rename(tenancy, one, "a", "b")
    now, beginning = FeedStream(tenancy), FeedStream(tenancy, start=BEGINNING)
    await now.open()
    await rename(tenancy, two, "c")
    assert await now.changes(1) == [(two, 2)]
    assert await beginning.changes(5) == [(one, 1), (two, 1), (one, 2), (one, 3), (two, 2)]


async def test_every_event_of_many_flows_arrives_once_and_each_flows_in_order(tenancy: Tenancy) -> None:
    flows = [(await tenancy.create()).flow_id for _ in range(10)]
    streams = [FeedStream(tenancy), FeedStream(tenancy, start=BEGINNING)]
    for stream in streams:
        await stream.open()
    await asyncio.gather(*(rename(tenancy, flow_id, *(f"{at}" for at in range(30))) for flow_id in flows))
    live, whole = await streams[0].changes(300), await streams[1].changes(310)
    assert whole[10:] == live  # the same order for everybody
    for flow_id in flows:
        assert [revision for found, revision in whole if found == flow_id] == list(range(1, 32))


async def test_a_terminal_or_deleted_flow_does_not_end_the_stream(tenancy: Tenancy) -> None:
    stream = FeedStream(tenancy)
    await stream.open()
    one, two = (await tenancy.create()).flow_id, (await tenancy.create()).flow_id
    await tenancy.call("CancelFlow", flow_id=one)
    await tenancy.call("DeleteFlow", flow_id=two)
    await tenancy.call("UndeleteFlow", flow_id=two)
    assert await stream.changes(5) == [(one, 1), (two, 1), (one, 2), (two, 2), (two, 3)]


# ---- filters ------------------------------------------------------------------------------------------------------------------------


# What ``_wave`` leads to: a flow and its revision, in the order of the commits.
WAVE = [
    "discovery 3 1", "planning 3 1", "discovery 1", "discovery 3 2", "planning 3 2", "discovery 3 3", "discovery 3 4", "discovery 2",
]  # fmt: skip


async def _wave(tenancy: Tenancy) -> dict[str, str]:
    """Three flows, what happened to them, and their ids by a name."""
    flows = {
        "discovery 3": await tenancy.create(labels={"wave": "3"}),
        "planning 3": await tenancy.create(type="planning", labels={"wave": "3"}),
        "discovery": await tenancy.create(),
    }
    ids = {name: flow.flow_id for name, flow in flows.items()}
    await tenancy.move(ids["discovery 3"], "data_import", "IN_PROGRESS")
    await tenancy.move(ids["planning 3"], "wave_planning", "IN_PROGRESS")
    await tenancy.call("UpdateFlow", flow_id=ids["discovery 3"], update={"labels": {"wave": "4"}})
    await tenancy.move(ids["discovery 3"], "data_import", "FAILED")
    await tenancy.call("CancelFlow", flow_id=ids["discovery"])
    return ids


@pytest.mark.parametrize(
    ("filter_", "expected"),
    [
        ("", WAVE),
        ("type = planning", ["planning 3 1", "planning 3 2"]),
        # As the event left the flow, not as the flow is when the event is read.
        ('labels.wave = "3"', ["discovery 3 1", "planning 3 1", "discovery 3 2", "planning 3 2"]),
        ("labels.wave = 4", ["discovery 3 3", "discovery 3 4"]),
        ("NOT labels:wave", ["discovery 1", "discovery 2"]),
        ("status = RETRY_PENDING OR status = CANCELLED", ["discovery 3 4", "discovery 2"]),
        ("status = DATA_GATHERING", ["discovery 3 2", "discovery 3 3"]),
        ("phase = data_import", ["discovery 3 2", "discovery 3 4"]),
        ("phase:* AND type = planning", ["planning 3 2"]),
        ("NOT phase:* AND type = discovery", ["discovery 3 1", "discovery 1", "discovery 3 3", "discovery 2"]),
    ],
)  # fmt: skip
async def test_a_filter_sees_the_flow_as_the_event_left_it(tenancy: Tenancy, filter_: str, expected: list[str]) -> None:
    ids = await _wave(tenancy)
    stream = FeedStream(tenancy, filter=filter_, start=BEGINNING)
    names = {flow_id: name for name, flow_id in ids.items()}
    assert [f"{names[flow_id]} {revision}" for flow_id, revision in await stream.changes(len(expected))] == expected
    last = await tenancy.create(type="execution", labels={"wave": "3"})  # nothing else came in between
    if filter_ in ("", 'labels.wave = "3"'):
        assert await stream.changes(1) == [(last.flow_id, 1)]


async def test_kinds_narrow_as_in_a_watch_of_one_flow(tenancy: Tenancy) -> None:
    ids = await _wave(tenancy)
    stream = FeedStream(tenancy, kinds=[MOVED], filter="type = discovery", start=BEGINNING)
    assert await stream.changes(2) == [(ids["discovery 3"], 2), (ids["discovery 3"], 4)]


async def test_events_from_before_there_were_positions_come_first_and_have_their_flows_labels(
    tenancy: Tenancy, superuser: asyncpg.Connection
) -> None:
    one, two = (await tenancy.create(labels={"a": "b"})).flow_id, (await tenancy.create()).flow_id
    await rename(tenancy, one, "two")
    old = """UPDATE events SET position = 0, body = regexp_replace(body, ',"labels":{"a":"b"}}$', '}') WHERE flow_id = $1"""
    assert await superuser.execute(old, UUID(one)) == "UPDATE 2"
    assert await FeedStream(tenancy, start=BEGINNING).changes(3) == [(one, 1), (one, 2), (two, 1)]
    stream = FeedStream(tenancy, start=BEGINNING, filter="labels.a = b")
    message = await stream.next()
    assert (message.change.flow_id, message.change.revision) == (one, 1)
    assert await FeedStream(tenancy, resume_token=message.resume_token, filter="labels.a = b").changes(1) == [(one, 2)]


@pytest.mark.parametrize(
    ("field", "fields"),
    [
        ("filter", {"filter": "display_name = x"}),
        ("filter", {"filter": "status = NOTHING"}),
        ("filter", {"filter": "x" * 2001}),
        ("kinds[0]", {"kinds": [0]}),
        ("start", {"start": 9}),
        ("resume_token", {"resume_token": "x"}),
        ("heartbeat_interval", {"heartbeat_interval": {"seconds": 301}}),
    ],
)
async def test_a_malformed_watch_is_refused_by_the_name_of_its_field(tenancy: Tenancy, field: str, fields: dict[str, Any]) -> None:
    refusal = await FeedStream(tenancy, **fields).refusal()
    assert (refusal.code, list(refusal.violations)) == (grpc.StatusCode.INVALID_ARGUMENT, [field])


# ---- order ---------------------------------------------------------------------------------------------------------------------------


async def test_what_is_committed_late_is_not_passed_over(urls: Urls) -> None:
    """A transaction that began before others holds everything back, is told of, and delays nothing else once it is over."""
    async with own_server(urls, watch_poll_seconds=60) as (tenancy, _):
        flow_id = (await tenancy.create()).flow_id
        stream = FeedStream(tenancy, heartbeat_interval={"seconds": 1})
        await stream.open()
        blocker = await asyncpg.connect(urls.service)
        async with blocker.transaction():
            await blocker.fetchval("SELECT pg_current_xact_id()")
            await rename(tenancy, flow_id, "two", "three")
            beats = [await stream.next() for _ in range(2)]
            assert [beat.WhichOneof("message") for beat in beats] == ["heartbeat"] * 2
            assert 0.5 < beats[0].heartbeat.lag.ToTimedelta().total_seconds() < beats[1].heartbeat.lag.ToTimedelta().total_seconds()
            late = FeedStream(tenancy, resume_token=(await stream.open()).resume_token)
            assert (await late.open()).opened.lag.ToTimedelta().total_seconds() > 0.5
        await blocker.close()
        # No hint says that the blocker is gone, and the poll is a minute away.
        assert await stream.changes(2) == [(flow_id, 2), (flow_id, 3)]
        assert await late.changes(2) == [(flow_id, 2), (flow_id, 3)]
        assert (await stream.next()).heartbeat.lag.ToTimedelta().total_seconds() == 0.0


# ---- going on -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fields", [{}, {"filter": "type = planning OR phase:*"}, {"kinds": [MOVED]}])
async def test_a_stream_goes_on_after_any_of_its_messages(
    tenancy: Tenancy, fields: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed_watch, "PAGE", 3)  # so that messages stand at the ends of pages and in the middle
    await _wave(tenancy)
    count = {"": 8, "type = planning OR phase:*": 4}.get(fields.get("filter", ""), 3) if "kinds" not in fields else 3
    stream = FeedStream(tenancy, start=BEGINNING, **fields)
    whole = [await stream.open(), *[await stream.next() for _ in range(count)]]
    for at, message in enumerate(whole):
        resumed = FeedStream(tenancy, resume_token=message.resume_token, **fields)
        assert [(await resumed.next()).change.event for _ in whole[at + 1 :]] == [one.change.event for one in whole[at + 1 :]]
    last = FeedStream(tenancy, resume_token=whole[-1].resume_token, **fields)
    await last.open()
    flow = await tenancy.create(type="planning")
    await tenancy.move(flow.flow_id, "wave_planning", "IN_PROGRESS")
    assert (await last.next()).change.flow_id == flow.flow_id


async def test_any_server_takes_the_token(urls: Urls) -> None:
    async with (
        own_server(urls) as (tenancy, _),
        app.running(settings(urls, watch_poll_seconds=0.05)) as other,
        grpc.aio.insecure_channel(other.address) as elsewhere,
    ):
        stream = FeedStream(tenancy)
        token = (await stream.open()).resume_token
        flow_id = (await tenancy.create()).flow_id
        await rename(tenancy, flow_id, "two")
        again = FeedStream(tenancy.on(elsewhere), resume_token=token)
        assert await again.changes(2) == [(flow_id, 1), (flow_id, 2)]
        await rename(tenancy, flow_id, "three")  # no hint reaches the other server
        assert await again.changes(1) == [(flow_id, 3)]


@pytest.mark.parametrize(
    ("field", "fields"),
    [
        ("start", {"start": BEGINNING, "filter": "type = planning"}),
        ("resume_token", {}),
        ("resume_token", {"filter": "type=planning"}),
        ("resume_token", {"filter": "type = planning", "kinds": [MOVED]}),
    ],
)
async def test_a_token_does_not_go_with_anything_that_differs(tenancy: Tenancy, field: str, fields: dict[str, Any]) -> None:
    token = (await FeedStream(tenancy, filter="type = planning").open()).resume_token
    refusal = await FeedStream(tenancy, resume_token=token, **fields).refusal()
    assert (refusal.code, list(refusal.violations)) == (grpc.StatusCode.INVALID_ARGUMENT, [field])


async def test_a_token_that_was_tampered_with_or_is_of_another_kind_is_refused(tenancy: Tenancy) -> None:
    token = (await FeedStream(tenancy).open()).resume_token
    flow_id = (await tenancy.create()).flow_id
    watch = tenancy.watch(flow_id)
    other = (await anext(aiter(watch))).resume_token
    forged = [token[:at] + ("A" if token[at] != "A" else "B") + token[at + 1 :] for at in range(0, len(token), 3)]
    for wrong in (*forged, token + "A", token[:-1], other, "x" * 3000):
        refusal = await FeedStream(tenancy, resume_token=wrong).refusal()
        assert (refusal.reason, list(refusal.violations)) == ("INVALID_REQUEST", ["resume_token"]), wrong


async def test_heartbeats_carry_a_position_that_moves_on_over_what_the_filter_drops(
    tenancy: Tenancy, superuser: asyncpg.Connection
) -> None:
    stream = FeedStream(tenancy, filter="type = execution", heartbeat_interval={"seconds": 1})
    opened = await stream.open()
    flow_id = (await tenancy.create()).flow_id
    await rename(tenancy, flow_id, "two", "three")
    await stream.next()
    beat = await stream.next()  # a second and more after the last event
    assert beat.HasField("heartbeat")
    await superuser.execute("DELETE FROM events WHERE flow_id = $1 AND revision < 3", UUID(flow_id))
    await FeedStream(tenancy, filter="type = execution", resume_token=beat.resume_token).open()
    refusal = await FeedStream(tenancy, filter="type = execution", resume_token=opened.resume_token).refusal()
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.OUT_OF_RANGE, "POSITION_COMPACTED")


# ---- ends ----------------------------------------------------------------------------------------------------------------------------


async def test_from_the_beginning_means_from_what_is_kept(tenancy: Tenancy, superuser: asyncpg.Connection) -> None:
    flow_id = (await tenancy.create()).flow_id
    await rename(tenancy, flow_id, "two", "three")
    await superuser.execute("DELETE FROM events WHERE flow_id = $1 AND revision < 3", UUID(flow_id))
    stream = FeedStream(tenancy, start=BEGINNING)
    opened = await stream.open()
    assert await stream.changes(1) == [(flow_id, 3)]
    # What was gone before it began does not stand in the way of going on.
    assert await FeedStream(tenancy, resume_token=opened.resume_token).changes(1) == [(flow_id, 3)]
    await rename(tenancy, flow_id, "four")
    await superuser.execute("DELETE FROM events WHERE flow_id = $1 AND revision = 3", UUID(flow_id))
    assert (await FeedStream(tenancy, resume_token=opened.resume_token).refusal()).reason == "POSITION_COMPACTED"


async def test_a_stream_that_compaction_overtook_ends_resumably_for_nobody(tenancy: Tenancy, superuser: asyncpg.Connection) -> None:
    flow_id = (await tenancy.create()).flow_id
    await tenancy.move(flow_id, "data_import", "IN_PROGRESS")
    report = {"phase": "data_import", "fraction": 0.5, "message": "x" * 2000}
    await asyncio.gather(*(tenancy.call("ReportProgress", flow_id=flow_id, progress=report) for _ in range(800)))
    stream = FeedStream(tenancy, start=BEGINNING)
    await stream.next()  # and now it stands still, a long way before the head
    await superuser.execute("DELETE FROM events WHERE flow_id = $1 AND revision <= 800", UUID(flow_id))
    *changes, end = await stream.rest()
    assert end.end.reason == pb.WATCH_END_REASON_COMPACTED
    assert [message.change.revision for message in changes] == list(range(2, len(changes) + 2))
    assert len(changes) < 800
    assert (await FeedStream(tenancy, resume_token=end.resume_token).refusal()).reason == "POSITION_COMPACTED"


async def test_what_is_removed_before_the_tail_read_it_is_found_out_by_everyone(urls: Urls, monkeypatch: pytest.MonkeyPatch) -> None:
    """Events come and go while no hint is heard: those who wait at the tail must not go on as if nothing had happened."""
    monkeypatch.setattr(tail.Tail, "stir", lambda self: None)
    async with own_server(urls, watch_poll_seconds=60) as (tenancy, _):
        flow_id = (await tenancy.create()).flow_id
        streams = [FeedStream(tenancy) for _ in range(3)]
        for stream in streams:
            await stream.open()
        await rename(tenancy, flow_id, "two", "three")
        truth = await asyncpg.connect(urls.service.replace("flowledger@", "postgres@", 1))
        await truth.execute("DELETE FROM events WHERE flow_id = $1 AND revision = 2", UUID(flow_id))
        await truth.close()
        monkeypatch.undo()
        await rename(tenancy, flow_id, "four")
        for stream in streams:
            (end,) = await stream.rest()
            assert end.end.reason == pb.WATCH_END_REASON_COMPACTED


async def test_a_watch_that_is_too_old_ends_resumably(urls: Urls) -> None:
    async with own_server(urls, watch_max_age_seconds=1) as (tenancy, _):
        flow_id = (await tenancy.create()).flow_id
        stream = FeedStream(tenancy)
        await stream.open()
        await rename(tenancy, flow_id, "two")
        change, end = await stream.rest()
        assert (change.change.revision, end.end.reason) == (2, pb.WATCH_END_REASON_MAX_AGE)
        await rename(tenancy, flow_id, "three")
        assert await FeedStream(tenancy, resume_token=end.resume_token).changes(1) == [(flow_id, 3)]


async def test_a_draining_server_ends_its_watches_with_everything_told(urls: Urls) -> None:
    async with own_server(urls, watch_poll_seconds=60) as (tenancy, server):
        flow_id = (await tenancy.create()).flow_id
        streams = [FeedStream(tenancy) for _ in range(3)]
        for stream in streams:
            await stream.open()
        await rename(tenancy, flow_id, "two")
        server.drain()
        for stream in streams:
            change, end = await stream.rest()
            assert (change.change.revision, end.end.reason) == (2, pb.WATCH_END_REASON_DRAINING)


async def test_a_damaged_event_stops_the_stream_before_it_and_says_whose_it_is(tenancy: Tenancy, superuser: asyncpg.Connection) -> None:
    one, two = (await tenancy.create()).flow_id, (await tenancy.create()).flow_id
    await rename(tenancy, one, "two")
    await superuser.execute("UPDATE events SET body = '[]' WHERE flow_id = $1 AND revision = 2", UUID(one))
    stream = FeedStream(tenancy, start=BEGINNING)
    assert await stream.changes(2) == [(one, 1), (two, 1)]
    refusal = await stream.refusal()
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.DATA_LOSS, "HISTORY_DAMAGED")
    assert refusal.metadata == {"flow_id": one, "revision": "2"}


async def test_status_names_are_those_of_the_contract(tenancy: Tenancy) -> None:
    flow_id = (await tenancy.create()).flow_id
    for name in ("INITIALIZED", "FLOW_STATUS_INITIALIZED"):
        message = await FeedStream(tenancy, start=BEGINNING, filter=f"status = {name}").next()
        assert (message.change.flow_id, message.change.event.status) == (flow_id, flow_pb2.FLOW_STATUS_INITIALIZED)
