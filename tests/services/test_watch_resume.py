"""Resume tokens and filters of WatchFlow: a stream goes on from any message, anywhere, as what it was and as nothing else."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import grpc
import pytest
from flowledger.v1 import event_pb2
from flowledger.v1 import flow_service_pb2 as pb

from server import app
from tests.conftest import Urls, settings
from tests.services.streams import Stream, kinds, own_server, rename
from tests.tenancy import Tenancy

AFTER, SNAPSHOT, NOW = pb.WATCH_START_AFTER_REVISION, pb.WATCH_START_SNAPSHOT, pb.WATCH_START_NOW
EVERY, LATEST = pb.WATCH_DELIVERY_EVERY_REVISION, pb.WATCH_DELIVERY_LATEST_ONLY
MOVED, REPORTED = event_pb2.EVENT_KIND_PHASE_CHANGED, event_pb2.EVENT_KIND_PROGRESS_REPORTED
FIELDS, HELD = event_pb2.EVENT_KIND_FIELDS_CHANGED, event_pb2.EVENT_KIND_HOLD_CHANGED


async def _storied(tenancy: Tenancy) -> str:
    """A flow with one event of each of several kinds, and cancelled at revision 8."""
    flow_id = (await tenancy.create()).flow_id
    await rename(tenancy, flow_id, "two")
    await tenancy.move(flow_id, "data_import", "IN_PROGRESS")
    await tenancy.call("ReportProgress", flow_id=flow_id, progress={"phase": "data_import", "fraction": 0.5})
    await tenancy.move(flow_id, "data_import", "COMPLETED")
    await tenancy.move(flow_id, "field_mapping", "IN_PROGRESS")
    await tenancy.call("RollbackPhase", flow_id=flow_id, rollback={"phase": "data_import"})
    await tenancy.call("CancelFlow", flow_id=flow_id)
    return flow_id


# ---- the first message --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("delivery", [EVERY, LATEST])
@pytest.mark.parametrize("start", [SNAPSHOT, AFTER, NOW])
async def test_the_first_message_tells_the_head_and_the_oldest_revision(
    tenancy: Tenancy, superuser: asyncpg.Connection, start: pb.WatchStart.ValueType, delivery: pb.WatchDelivery.ValueType
) -> None:
    flow_id = (await tenancy.create()).flow_id
    await rename(tenancy, flow_id, "two", "three", "four")
    await superuser.execute("DELETE FROM events WHERE flow_id = $1 AND revision < 3", UUID(flow_id))
    fields = {"after_revision": 3} if start == AFTER else {}
    first = await Stream(tenancy, flow_id, start=start, delivery=delivery, **fields).open()
    assert (first.opened.head_revision, first.opened.oldest_revision) == (4, 3)
    assert first.revision == {SNAPSHOT: 0, AFTER: 3, NOW: 4}[start]


async def test_of_a_flow_whose_events_are_all_gone_the_oldest_is_the_next(tenancy: Tenancy, superuser: asyncpg.Connection) -> None:
    flow_id = (await tenancy.create()).flow_id
    await superuser.execute("DELETE FROM events WHERE flow_id = $1", UUID(flow_id))
    stream = Stream(tenancy, flow_id)
    first = await stream.open()
    assert (first.opened.head_revision, first.opened.oldest_revision) == (1, 2)
    assert (await stream.next()).snapshot.flow.revision == 1
    await rename(tenancy, flow_id, "two")
    assert kinds([await stream.next()]) == [("event", 2)]


# ---- tokens -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fields", [{"start": SNAPSHOT}, {"start": AFTER}, {"start": AFTER, "kinds": [MOVED, HELD], "phases": []}])
async def test_a_stream_goes_on_after_any_of_its_messages(tenancy: Tenancy, fields: dict[str, Any]) -> None:
    flow_id = await _storied(tenancy)
    stream = Stream(tenancy, flow_id, **fields)
    whole = [await stream.open(), *await stream.rest()]
    assert whole[-1].end.reason == pb.WATCH_END_REASON_FLOW_TERMINAL
    for at, message in enumerate(whole):
        # After the last event there is nothing but the end; after the end, the end again.
        expected = whole[at + 1 :] or whole[-1:]
        resumed = await Stream(tenancy, flow_id, resume_token=message.resume_token).rest()
        assert kinds(resumed) == kinds(expected)
        assert [one.event for one in resumed] == [one.event for one in expected]
        assert [one.resume_token for one in resumed] == [one.resume_token for one in expected]


async def test_a_token_is_all_it_takes_and_any_server_takes_it(urls: Urls) -> None:
    async with (
        own_server(urls) as (tenancy, _),
        app.running(settings(urls)) as other,
        grpc.aio.insecure_channel(other.address) as elsewhere,
    ):
        flow_id = (await tenancy.create()).flow_id
        stream = Stream(tenancy, flow_id, start=AFTER)
        token = (await stream.next()).resume_token
        await rename(tenancy, flow_id, "two")
        again = Stream(tenancy.on(elsewhere), "", resume_token=token)
        assert kinds([await again.next()]) == [("event", 2)]
        assert (await again.open()).resume_token == token


async def test_a_token_keeps_what_the_stream_was(tenancy: Tenancy) -> None:
    flow_id = (await tenancy.create()).flow_id
    latest = await Stream(tenancy, flow_id, delivery=LATEST).next()
    filtered = await Stream(tenancy, flow_id, start=AFTER, phases=["data_import", "field_mapping"], kinds=[MOVED]).open()
    await rename(tenancy, flow_id, "two")
    await tenancy.move(flow_id, "data_import", "IN_PROGRESS")
    assert kinds([await Stream(tenancy, flow_id, resume_token=latest.resume_token).next()]) == [("snapshot", 3)]
    assert kinds([await Stream(tenancy, flow_id, resume_token=filtered.resume_token).next()]) == [("event", 3)]
    # Saying the same again is no fault.
    same = {"phases": ["field_mapping", "data_import"], "kinds": [MOVED], "delivery": EVERY}
    assert kinds([await Stream(tenancy, flow_id, resume_token=filtered.resume_token, **same).next()]) == [("event", 3)]


@pytest.mark.parametrize(
    ("field", "fields"),
    [
        ("start", {"start": AFTER}),
        ("start", {"start": SNAPSHOT}),
        ("after_revision", {"after_revision": 1}),
        ("delivery", {"delivery": LATEST}),
        ("kinds", {"kinds": [REPORTED]}),
        ("kinds", {"kinds": [MOVED, REPORTED]}),
        ("phases", {"phases": ["field_mapping"]}),
        ("flow_id", {"flow_id": str(uuid4())}),
        ("flow_id", {"flow_id": "seven"}),
        ("heartbeat_interval", {"heartbeat_interval": {"seconds": 301}}),
    ],
)
async def test_a_token_does_not_go_with_anything_that_differs(tenancy: Tenancy, field: str, fields: dict[str, Any]) -> None:
    flow_id = (await tenancy.create()).flow_id
    token = (await Stream(tenancy, flow_id, start=AFTER, kinds=[MOVED], phases=["data_import"]).open()).resume_token
    refusal = await Stream(tenancy, **{"flow_id": flow_id, "resume_token": token, **fields}).refusal()
    assert (refusal.code, list(refusal.violations)) == (grpc.StatusCode.INVALID_ARGUMENT, [field])


async def test_every_fault_beside_a_token_is_named_at_once(tenancy: Tenancy) -> None:
    refusal = await Stream(
        tenancy,
        "seven",
        resume_token="x",
        start=9,
        delivery=9,
        kinds=[99],
        phases=[""],
        after_revision=-1,
        heartbeat_interval={"seconds": 0},
    ).refusal()
    assert refusal.violations.keys() >= {"flow_id", "resume_token", "start", "delivery", "kinds[0]", "phases[0]", "after_revision"}


async def test_a_token_that_was_tampered_with_is_refused(tenancy: Tenancy) -> None:
    flow_id = (await tenancy.create()).flow_id
    token = (await Stream(tenancy, flow_id, start=AFTER).open()).resume_token
    forged = [token[:at] + ("A" if token[at] != "A" else "B") + token[at + 1 :] for at in range(0, len(token), 3)]
    for wrong in (*forged, token + "A", token[:-1], token + "=", f" {token}", token.swapcase(), "x" * 3000):
        refusal = await Stream(tenancy, flow_id, resume_token=wrong).refusal()
        assert (refusal.reason, list(refusal.violations)) == ("INVALID_REQUEST", ["resume_token"]), wrong


async def test_tokens_of_other_kinds_are_refused(tenancy: Tenancy) -> None:
    flow_id = (await tenancy.create()).flow_id
    await tenancy.create()
    await rename(tenancy, flow_id, "two")
    pages = [
        (await tenancy.call("ListFlows", page_size=1)).next_page_token,
        (await tenancy.call("ListFlowEvents", flow_id=flow_id, page_size=1)).next_page_token,
    ]
    feed = tenancy.watch_all()
    feed_token = (await anext(aiter(feed))).resume_token
    feed.cancel()
    own = (await Stream(tenancy, flow_id).open()).resume_token
    for wrong in (*pages, feed_token):
        assert wrong
        assert list((await Stream(tenancy, flow_id, resume_token=wrong).refusal()).violations) == ["resume_token"]
    assert list((await tenancy.refusal("ListFlows", page_size=1, page_token=own)).violations) == ["page_token"]


async def test_a_token_of_a_flow_that_is_gone_finds_nothing(urls: Urls, superuser: asyncpg.Connection, tenancy: Tenancy) -> None:
    flow_id = (await tenancy.create(skip_first_child=True)).flow_id
    token = (await Stream(tenancy, flow_id).open()).resume_token
    await superuser.execute("DELETE FROM flows WHERE flow_id = $1", UUID(flow_id))
    refusal = await Stream(tenancy, flow_id, resume_token=token).refusal()
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.NOT_FOUND, "FLOW_NOT_FOUND")


async def test_a_token_older_than_kept_history_is_refused_with_the_oldest_revision(tenancy: Tenancy, superuser: asyncpg.Connection) -> None:
    flow_id = (await tenancy.create()).flow_id
    tokens = [(await Stream(tenancy, flow_id, **fields).open()).resume_token for fields in ({"start": AFTER}, {}, {"delivery": LATEST})]
    await rename(tenancy, flow_id, "two", "three")
    await superuser.execute("DELETE FROM events WHERE flow_id = $1 AND revision < 3", UUID(flow_id))
    refusal = await Stream(tenancy, flow_id, resume_token=tokens[0]).refusal()
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.OUT_OF_RANGE, "REVISION_COMPACTED")
    assert refusal.metadata["oldest_revision"] == "3"
    for token in tokens[1:]:  # what begins with a snapshot needs no history
        assert kinds([await Stream(tenancy, flow_id, resume_token=token).next()]) == [("snapshot", 3)]


# ---- filters ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "revisions"),
    [
        ({}, [1, 2, 3, 4, 5, 6, 7, 8]),
        ({"kinds": [FIELDS]}, [2]),
        ({"kinds": [MOVED]}, [3, 5, 6, 7]),
        ({"kinds": [MOVED, REPORTED]}, [3, 4, 5, 6, 7]),
        ({"phases": ["data_import"]}, [3, 4, 5, 7]),
        ({"phases": ["field_mapping"]}, [6, 7]),
        ({"kinds": [REPORTED], "phases": ["data_import", "field_mapping"]}, [4]),
        ({"kinds": [HELD], "phases": ["data_import"]}, []),
        ({"phases": ["nothing of that name"]}, []),
    ],
)
async def test_a_filter_leaves_events_out_and_never_parts_of_one(tenancy: Tenancy, fields: dict[str, Any], revisions: list[int]) -> None:
    flow_id = await _storied(tenancy)
    listed = (await tenancy.call("ListFlowEvents", flow_id=flow_id)).events
    *events, end = await Stream(tenancy, flow_id, start=AFTER, **fields).rest()
    assert [message.revision for message in events] == revisions
    assert [message.event for message in events] == [listed[revision - 1] for revision in revisions]
    assert kinds([end]) == [("end", 8)]


@pytest.mark.parametrize(
    ("field", "fields"),
    [
        ("kinds[1]", {"kinds": [MOVED, 0]}),
        ("kinds[0]", {"kinds": [77]}),
        ("kinds", {"kinds": [MOVED] * 21}),
        ("phases[0]", {"phases": ["x" * 101]}),
        ("phases[0]", {"phases": ["a\0b"]}),
        ("phases", {"phases": [f"p{at}" for at in range(21)]}),
        ("phases", {"phases": [f"{at}{'💥' * 50}" for at in range(10)]}),
        ("kinds", {"kinds": [MOVED], "delivery": LATEST}),
        ("phases", {"phases": ["data_import"], "delivery": LATEST}),
    ],
)
async def test_a_malformed_filter_is_refused_by_the_name_of_its_field(tenancy: Tenancy, field: str, fields: dict[str, Any]) -> None:
    refusal = await Stream(tenancy, str(uuid4()), **fields).refusal()
    assert (refusal.code, list(refusal.violations)) == (grpc.StatusCode.INVALID_ARGUMENT, [field])


async def test_a_filter_that_drops_everything_moves_on_and_does_not_fall_behind_history(
    tenancy: Tenancy, superuser: asyncpg.Connection
) -> None:
    flow_id = (await tenancy.create()).flow_id
    stream = Stream(tenancy, flow_id, start=AFTER, phases=["cutover"], heartbeat_interval={"seconds": 1})
    await stream.open()
    await rename(tenancy, flow_id, *(f"{at}" for at in range(9)))
    beat = await stream.next()
    while beat.revision < 10:
        assert beat.HasField("heartbeat")
        beat = await stream.next()
    await superuser.execute("DELETE FROM events WHERE flow_id = $1 AND revision < 10", UUID(flow_id))
    resumed = Stream(tenancy, flow_id, resume_token=beat.resume_token)
    assert (await resumed.open()).revision == 10


async def test_a_busy_flow_that_the_filter_drops_is_told_of_by_heartbeats(tenancy: Tenancy) -> None:
    flow_id = (await tenancy.create()).flow_id
    stream = Stream(tenancy, flow_id, start=AFTER, kinds=[HELD], heartbeat_interval={"seconds": 1})
    await stream.open()

    async def busy() -> None:
        while True:
            await rename(tenancy, flow_id, "busy")

    work = asyncio.create_task(busy())
    try:
        beats = [await stream.next() for _ in range(2)]
    finally:
        work.cancel()
    assert {beat.WhichOneof("message") for beat in beats} == {"heartbeat"}
    assert 1 < beats[0].revision < beats[1].revision


# ---- the newest state ---------------------------------------------------------------------------------------------------------------


async def test_snapshots_say_whether_progress_fell_since_the_last_one(tenancy: Tenancy) -> None:
    flow_id = (await tenancy.create()).flow_id
    await tenancy.move(flow_id, "data_import", "IN_PROGRESS", "COMPLETED")
    stream = Stream(tenancy, flow_id, delivery=LATEST)
    first = await stream.next()
    await tenancy.call("RollbackPhase", flow_id=flow_id, rollback={"phase": "data_import"})
    fallen = await stream.next()
    await tenancy.move(flow_id, "data_import", "IN_PROGRESS")
    risen = await stream.next()
    told = [(message.revision, message.snapshot.progress_regressed) for message in (first, fallen, risen)]
    assert told == [(3, False), (4, True), (5, False)]
    # One that resumes compares with where it was.
    again = await Stream(tenancy, flow_id, resume_token=first.resume_token).next()
    assert (again.revision, again.snapshot.skipped, again.snapshot.progress_regressed) == (5, 1, True)
    again = await Stream(tenancy, flow_id, resume_token=fallen.resume_token).next()
    assert (again.revision, again.snapshot.progress_regressed) == (5, False)


async def test_without_the_event_of_its_position_a_resumed_stream_does_not_say_that_progress_fell(
    tenancy: Tenancy, superuser: asyncpg.Connection
) -> None:
    flow_id = (await tenancy.create()).flow_id
    await tenancy.move(flow_id, "data_import", "IN_PROGRESS", "COMPLETED")
    first = await Stream(tenancy, flow_id, delivery=LATEST).next()
    await tenancy.call("RollbackPhase", flow_id=flow_id, rollback={"phase": "data_import"})
    await superuser.execute("DELETE FROM events WHERE flow_id = $1 AND revision < 4", UUID(flow_id))
    again = await Stream(tenancy, flow_id, resume_token=first.resume_token).next()
    assert (again.revision, again.snapshot.progress_regressed) == (4, False)


# ---- what is gone -------------------------------------------------------------------------------------------------------------------


async def test_a_stream_that_history_overtook_ends_with_the_oldest_revision(tenancy: Tenancy, superuser: asyncpg.Connection) -> None:
    flow_id = (await tenancy.create()).flow_id
    await tenancy.move(flow_id, "data_import", "IN_PROGRESS")
    report = {"phase": "data_import", "fraction": 0.5, "message": "x" * 2000}
    await asyncio.gather(*(tenancy.call("ReportProgress", flow_id=flow_id, progress=report) for _ in range(600)))
    stream = Stream(tenancy, flow_id, start=AFTER)
    await stream.next()  # and now it stands still, a long way before the head
    await superuser.execute("DELETE FROM events WHERE flow_id = $1 AND revision <= 600", UUID(flow_id))
    *events, end = await stream.rest()
    assert end.end.reason == pb.WATCH_END_REASON_COMPACTED
    assert end.end.oldest_revision == 601
    assert [message.revision for message in events] == list(range(2, end.revision + 1))
    assert end.revision < 600
    again = await Stream(tenancy, flow_id, resume_token=end.resume_token).refusal()
    assert (again.reason, again.metadata["oldest_revision"]) == ("REVISION_COMPACTED", "601")


async def test_an_event_that_is_missing_in_the_middle_ends_the_stream_rather_than_to_be_passed_over(
    tenancy: Tenancy, superuser: asyncpg.Connection
) -> None:
    flow_id = (await tenancy.create()).flow_id
    await rename(tenancy, flow_id, "two", "three", "four")
    await superuser.execute("DELETE FROM events WHERE flow_id = $1 AND revision = 3", UUID(flow_id))
    for after, delivered in ((0, [1, 2]), (2, [])):
        stream = Stream(tenancy, flow_id, start=AFTER, after_revision=after)
        assert [(await stream.next()).revision for _ in delivered] == delivered
        refusal = await stream.refusal()
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.DATA_LOSS, "HISTORY_DAMAGED")
        assert refusal.metadata["revision"] == "3"
