"""What flows were can be listed, compared and begun with again, over RPC."""

from __future__ import annotations

import asyncio
import json
import random
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import grpc
import jsonpatch
import pytest
from flowledger.v1 import event_pb2, flow_pb2

from server import app
from server.repository.events import LOOKED_AT
from tests.conftest import Urls, settings
from tests.tenancy import Tenancy

PHASE = "data_import"


async def lived(tenancy: Tenancy) -> str:
    """A flow with something of everything in its history: nine revisions."""
    flow_id = (await tenancy.create(display_name="first", labels={"wave": "1"}, state={"json": '{"n":1,"rows":[1,2,3]}'})).flow_id
    await tenancy.move(flow_id, PHASE, "IN_PROGRESS")  # 2
    await tenancy.call("ReportProgress", flow_id=flow_id, progress={"phase": PHASE, "fraction": 0.5})  # 3
    await tenancy.call("UpdateFlow", flow_id=flow_id, update={"state": {"json": '{"n":1.0,"rows":[1,3,9007199254740993]}'}})  # 4
    other = Tenancy(tenancy.channel, tenancy.account, tenancy.engagement, "bob")
    await other.call("UpdateFlow", flow_id=flow_id, update={"display_name": "second", "labels": {"wave": "2", "fact": "hold"}})  # 5
    await other.call("UpdateFlow", flow_id=flow_id, update={"child_data": {"discovery": {"json": '{"a":1}'}}})  # 6
    await tenancy.call("PauseFlow", flow_id=flow_id, pause={"reason": "lunch"})  # 7
    await tenancy.call("ResumeFlow", flow_id=flow_id)  # 8
    entry = {"kind": "ACTIVITY_KIND_TIMING", "phase": PHASE, "value": 1.0}
    await tenancy.call("RecordActivity", flow_id=flow_id, activity={"entries": [entry]})  # 9
    return flow_id


async def full(tenancy: Tenancy, flow_id: str, revision: int = 0) -> flow_pb2.Flow:
    found: flow_pb2.Flow = (await tenancy.call("GetFlow", flow_id=flow_id, view="FLOW_VIEW_FULL", at_revision=revision)).flow
    return found


def content(flow: flow_pb2.Flow) -> dict[str, Any]:
    """What a flow is but for its identity, its revision, its times and its analytics."""
    return {
        "name": flow.display_name,
        "labels": dict(flow.labels),
        "status": flow.status,
        "progress": flow.progress_percent,
        "hold": flow.hold_reason,
        "documents": [flow.state.json, flow.metadata.json, flow.cross_phase_context.json],
        "children": [
            (child.type, child.data.json, [phase.SerializeToString(deterministic=True) for phase in child.phases])
            for child in flow.children
        ],
    }


# ---- DiffFlow -------------------------------------------------------------------------------------------------------------------------


async def test_a_difference_leads_from_one_revision_to_the_other(tenancy: Tenancy) -> None:
    flow_id = await lived(tenancy)
    for before, after in ((1, 9), (9, 1), (4, 5), (3, 3), (1, 0), (0, 2)):
        diff = (await tenancy.call("DiffFlow", flow_id=flow_id, from_revision=before, to_revision=after)).diff
        one, other = await full(tenancy, flow_id, before), await full(tenancy, flow_id, after)
        assert (diff.from_revision, diff.to_revision) == (before or 9, after or 9)
        assert (diff.from_status, diff.to_status) == (one.status, other.status)
        assert (diff.from_progress_percent, diff.to_progress_percent) == (one.progress_percent, other.progress_percent)
        assert diff.HasField("fields") == (one.display_name != other.display_name or one.labels != other.labels)
        patches = {(document.document, document.child_type): json.loads(document.json_patch) for document in diff.documents}
        for place, text, wanted in (
            (("state", ""), one.state.json, other.state.json),
            (("data", "discovery"), one.children[0].data.json, other.children[0].data.json),
        ):
            patched = jsonpatch.apply_patch(json.loads(text or "{}"), patches.pop(place, []))
            assert repr(patched) == repr(json.loads(wanted or "{}"))
        assert not patches
        moved = {phase.phase for phase in diff.phases}
        assert moved == {a.name for a, b in zip(one.children[0].phases, other.children[0].phases, strict=True) if a != b and a.state}


async def test_a_difference_is_told_in_lines(tenancy: Tenancy) -> None:
    flow_id = await lived(tenancy)
    assert list((await tenancy.call("DiffFlow", flow_id=flow_id, from_revision=3, to_revision=5)).diff.lines) == [
        "display_name: 'first' -> 'second'",
        "label fact: not there -> 'hold'",
        "label wave: '1' -> '2'",
        "state: 22 -> 39 bytes",
        "state /n: 1 -> 1.0",
        "state /rows/1: 2 removed",
        "state /rows/2: 9007199254740993 added",
    ]


async def test_a_difference_with_what_is_not_there_is_refused(tenancy: Tenancy) -> None:
    flow_id = (await tenancy.create()).flow_id
    for fields in ({"from_revision": 2}, {"to_revision": 2}):
        assert (await tenancy.refusal("DiffFlow", flow_id=flow_id, **fields)).reason == "REVISION_IN_FUTURE"
    refusal = await tenancy.refusal("DiffFlow", flow_id="x", from_revision=-1, to_revision=-1)
    assert refusal.violations.keys() == {"flow_id", "from_revision", "to_revision"}


async def test_large_documents_can_be_compared_without_holding_up_others(tenancy: Tenancy) -> None:
    chance = random.Random(3)
    rows = [{"id": at, "name": f"{chance.getrandbits(200):x}"} for at in range(40_000)]
    flow_id = (await tenancy.create(state={"json": json.dumps({"rows": rows})})).flow_id
    for at in range(0, 40_000, 997):
        rows[at]["name"] = "changed"
    await tenancy.call("UpdateFlow", flow_id=flow_id, update={"state": {"json": json.dumps({"rows": rows})}})
    loop, delays = asyncio.get_running_loop(), []

    async def look() -> None:
        while True:
            began = loop.time()
            await asyncio.sleep(0.005)
            delays.append(loop.time() - began)

    looking = asyncio.create_task(look())
    (document,) = (await tenancy.call("DiffFlow", flow_id=flow_id, from_revision=1)).diff.documents
    looking.cancel()
    assert len(json.loads(document.json_patch)) == 41
    assert max(delays) < 1.0, "the event loop stood still"


# ---- RevertFlow -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("revision", [1, 3, 4, 6, 7, 9])
async def test_a_reverted_flow_is_as_it_was_at_a_new_revision(tenancy: Tenancy, revision: int) -> None:
    flow_id = await lived(tenancy)
    old = await full(tenancy, flow_id, revision)
    told = await tenancy.call("RevertFlow", flow_id=flow_id, revision=revision, reason="went wrong")
    new = await full(tenancy, flow_id)
    assert content(new) == content(old)
    assert (new.revision, new.flow_id, new.create_time) == (10, flow_id, old.create_time)
    assert [child.child_flow_id for child in new.children] == [child.child_flow_id for child in old.children]
    (replaced,) = [change.replaced for change in told.event.changes if change.WhichOneof("kind") == "replaced"]
    assert (replaced.cause, replaced.source_revision, replaced.reason) == (event_pb2.REPLACEMENT_CAUSE_REVERT, revision, "went wrong")
    assert told.flow.children == [*_without_documents(new)]
    assert not told.HasField("diff")
    diff = (await tenancy.call("DiffFlow", flow_id=flow_id, from_revision=revision)).diff
    assert (list(diff.lines), list(diff.documents), list(diff.phases)) == ([], [], [])
    for at in range(1, 10):  # the history is what it was
        assert (await full(tenancy, flow_id, at)).revision == at


def _without_documents(flow: flow_pb2.Flow) -> list[flow_pb2.ChildFlow]:
    children = []
    for child in flow.children:
        bare = flow_pb2.ChildFlow()
        bare.CopyFrom(child)
        bare.ClearField("data")
        children.append(bare)
    return children


async def test_a_revert_can_be_reverted(tenancy: Tenancy) -> None:
    flow_id = await lived(tenancy)
    before = content(await full(tenancy, flow_id))
    await tenancy.call("RevertFlow", flow_id=flow_id, revision=1)
    assert content(await full(tenancy, flow_id)) != before
    await tenancy.call("RevertFlow", flow_id=flow_id, revision=9)
    assert content(await full(tenancy, flow_id)) == before


async def test_a_revert_takes_away_what_came_later(tenancy: Tenancy) -> None:
    flow_id = (await tenancy.create(type="migration", skip_first_child=True)).flow_id
    await tenancy.call("StartChildFlow", flow_id=flow_id, child_start={"data": {"json": '{"a":1}'}})
    told = await tenancy.call("RevertFlow", flow_id=flow_id, revision=1)
    assert list(told.flow.children) == []
    (replaced,) = [change.replaced for change in told.event.changes if change.WhichOneof("kind") == "replaced"]
    assert (list(replaced.children_removed), list(replaced.documents_removed)) == (["discovery"], ["data/discovery"])
    assert [child.data.json for child in (await full(tenancy, flow_id, 2)).children] == ['{"a":1}']
    await tenancy.call("RevertFlow", flow_id=flow_id, revision=2)
    assert [child.data.json for child in (await full(tenancy, flow_id)).children] == ['{"a":1}']


async def test_a_rehearsed_revert_says_what_would_differ(tenancy: Tenancy) -> None:
    flow_id = await lived(tenancy)
    would = await tenancy.call("RevertFlow", flow_id=flow_id, revision=4, validate_only=True)
    back = (await tenancy.call("DiffFlow", flow_id=flow_id, from_revision=9, to_revision=4)).diff
    assert (would.diff.from_revision, would.diff.to_revision) == (9, 0)
    assert (list(would.diff.lines), list(would.diff.documents)) == (list(back.lines), list(back.documents))
    assert (await full(tenancy, flow_id)).revision == 9


async def test_a_revert_is_refused_with_a_reason(tenancy: Tenancy) -> None:
    flow_id = await lived(tenancy)
    assert (await tenancy.refusal("RevertFlow", flow_id=flow_id)).violations.keys() == {"revision"}
    assert (await tenancy.refusal("RevertFlow", flow_id=flow_id, revision=10)).reason == "REVISION_IN_FUTURE"
    refusal = await tenancy.refusal("RevertFlow", flow_id=flow_id, revision=1, expected_revision=8)
    assert (refusal.reason, refusal.metadata) == ("CONCURRENT_MODIFICATION", {"expected_revision": "8", "current_revision": "9"})
    await tenancy.call("CancelFlow", flow_id=flow_id)
    assert (await tenancy.refusal("RevertFlow", flow_id=flow_id, revision=1)).reason == "FLOW_NOT_ACTIVE"


async def test_a_revert_among_other_writers_loses_nothing_of_them(tenancy: Tenancy) -> None:
    flow_id = await lived(tenancy)
    reports = [{"phase": PHASE, "fraction": at / 100} for at in range(30)]

    async def report(progress: dict[str, Any]) -> None:
        await tenancy.call("ReportProgress", flow_id=flow_id, progress=progress)

    reverts = [tenancy.call("RevertFlow", flow_id=flow_id, revision=3) for _ in range(5)]
    await asyncio.gather(*map(report, reports), *reverts)
    events = (await tenancy.call("ListFlowEvents", flow_id=flow_id)).events
    assert [event.revision for event in events] == list(range(1, 9 + 30 + 5 + 1))
    assert sum(event.changes[0].WhichOneof("kind") == "replaced" for event in events) == 5
    assert content(await full(tenancy, flow_id))["documents"][0] == '{"n":1,"rows":[1,2,3]}'


# ---- ForkFlow -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("revision", [1, 4, 7, 0])
async def test_a_fork_begins_as_its_source_was(tenancy: Tenancy, revision: int) -> None:
    flow_id = await lived(tenancy)
    old = await full(tenancy, flow_id, revision)
    told = await tenancy.call("ForkFlow", flow_id=flow_id, revision=revision, reason="another way")
    new = await full(tenancy, told.flow.flow_id)
    expected, found = content(old), content(new)
    if revision == 7:  # the source was paused; a fork is not held
        assert (new.status, new.hold_reason, old.hold_reason) == (flow_pb2.FLOW_STATUS_DATA_GATHERING, "", "lunch")
        expected |= {"status": new.status, "hold": ""}
    assert found == expected
    assert new.flow_id != flow_id
    assert (new.revision, new.lineage.flow_id, new.lineage.revision, new.created_by) == (1, flow_id, revision or 9, "ada")
    assert new.children[0].child_flow_id != old.children[0].child_flow_id
    (replaced,) = [change.replaced for change in told.event.changes if change.WhichOneof("kind") == "replaced"]
    assert (replaced.cause, replaced.source_flow_id, replaced.source_revision, replaced.reason) == (
        event_pb2.REPLACEMENT_CAUSE_FORK,
        flow_id,
        revision or 9,
        "another way",
    )
    assert (await full(tenancy, flow_id)).revision == 9
    await tenancy.call("PauseFlow", flow_id=new.flow_id)
    assert content(await full(tenancy, new.flow_id, 1)) == found  # and its own history can be rebuilt


async def test_a_fork_has_the_name_and_the_id_that_were_asked_for(tenancy: Tenancy) -> None:
    flow_id, new_id = await lived(tenancy), str(uuid4())
    flow = (await tenancy.call("ForkFlow", flow_id=flow_id, new_flow_id=new_id, display_name="")).flow
    assert (flow.flow_id, flow.display_name, dict(flow.labels)) == (new_id, "", {"wave": "2", "fact": "hold"})
    for validate_only in (False, True):
        refusal = await tenancy.refusal("ForkFlow", flow_id=flow_id, new_flow_id=new_id, validate_only=validate_only)
        assert (refusal.reason, refusal.metadata) == ("FLOW_EXISTS", {"flow_id": new_id})
    assert (await tenancy.refusal("ForkFlow", flow_id=flow_id, new_flow_id=flow_id)).reason == "FLOW_EXISTS"


async def test_what_has_ended_or_was_deleted_can_be_forked(tenancy: Tenancy) -> None:
    flow_id = await lived(tenancy)
    await tenancy.call("CancelFlow", flow_id=flow_id)
    await tenancy.call("DeleteFlow", flow_id=flow_id)
    flow = (await tenancy.call("ForkFlow", flow_id=flow_id)).flow
    assert (flow.status, flow.HasField("delete_time"), flow.HasField("end_time")) == (flow_pb2.FLOW_STATUS_DATA_GATHERING, False, False)
    await tenancy.call("ReportProgress", flow_id=flow.flow_id, progress={"phase": PHASE, "fraction": 0.7})


async def test_a_fork_of_a_fork_names_its_own_source(tenancy: Tenancy) -> None:
    first = (await tenancy.call("ForkFlow", flow_id=await lived(tenancy))).flow
    second = (await tenancy.call("ForkFlow", flow_id=first.flow_id)).flow
    assert (second.lineage.flow_id, second.lineage.revision) == (first.flow_id, 1)


async def test_the_first_answer_outlives_what_it_was_made_of(tenancy: Tenancy, superuser: asyncpg.Connection) -> None:
    """The old revision cannot be read any more, the flow has ended: a repeat is answered as the first time."""
    flow_id = await lived(tenancy)
    for name, fields in (("RevertFlow", {"revision": 3}), ("ForkFlow", {"revision": 3})):
        request_id = str(uuid4())
        first = await tenancy.call(name, flow_id=flow_id, request_id=request_id, **fields)
        await superuser.execute("CREATE TEMP TABLE kept AS SELECT * FROM events WHERE flow_id = $1 AND revision < 5", UUID(flow_id))
        await superuser.execute("DELETE FROM events WHERE flow_id = $1 AND revision < 5", UUID(flow_id))
        assert (await tenancy.refusal(name, flow_id=flow_id, **fields)).reason == "REVISION_COMPACTED"
        assert await tenancy.call(name, flow_id=flow_id, request_id=request_id, **fields) == first
        refusal = await tenancy.refusal(name, flow_id=flow_id, request_id=request_id, revision=4)
        assert refusal.reason == "REQUEST_ID_REUSED"
        await superuser.execute("INSERT INTO events SELECT * FROM kept")
        await superuser.execute("DROP TABLE kept")


# ---- ListFlowEvents -------------------------------------------------------------------------------------------------------------------


async def revisions(tenancy: Tenancy, flow_id: str, **fields: Any) -> list[int]:
    """The revisions of all events that match, read page by page."""
    found: list[int] = []
    token = ""
    while True:
        page = await tenancy.call("ListFlowEvents", flow_id=flow_id, page_token=token, **fields)
        found += [event.revision for event in page.events]
        token = page.next_page_token
        if not token:
            return found


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"kinds": ["EVENT_KIND_HOLD_CHANGED"]}, [7, 8]),  # not 5, where a label reads the same
        ({"kinds": ["EVENT_KIND_PHASE_CHANGED"]}, [2]),
        ({"kinds": ["EVENT_KIND_PROGRESS_REPORTED"]}, [3]),
        ({"kinds": ["EVENT_KIND_DOCUMENT_CHANGED", "EVENT_KIND_FLOW_CREATED"]}, [1, 4, 6]),
        ({"kinds": ["EVENT_KIND_FLOW_DELETED"]}, []),
        ({"phases": [PHASE]}, [2, 3, 9]),
        ({"phases": [PHASE, "field_mapping"], "kinds": ["EVENT_KIND_ACTIVITY_RECORDED"]}, [9]),
        ({"phases": ["field_mapping"]}, []),
        ({"phases": ['"']}, []),
        ({"actor": "bob"}, [5, 6]),
        ({"actor": "nobody"}, []),
        ({"actor": "bob", "kinds": ["EVENT_KIND_DOCUMENT_CHANGED"]}, [6]),
        ({"after_revision": 5, "kinds": ["EVENT_KIND_DOCUMENT_CHANGED"]}, [6]),
    ],
)
async def test_events_are_narrowed_to_what_is_asked_for(tenancy: Tenancy, fields: dict[str, Any], expected: list[int]) -> None:
    flow_id = await lived(tenancy)
    for size in (1, 2, 100):
        assert await revisions(tenancy, flow_id, page_size=size, **fields) == expected


async def test_events_are_narrowed_by_time(tenancy: Tenancy) -> None:
    flow_id = await lived(tenancy)
    events = (await tenancy.call("ListFlowEvents", flow_id=flow_id)).events
    third = events[2].time
    later = third.ToDatetime(UTC) + timedelta(microseconds=1)
    assert await revisions(tenancy, flow_id, start_time=third) == list(range(3, 10))
    assert await revisions(tenancy, flow_id, end_time=third) == [1, 2]
    assert await revisions(tenancy, flow_id, start_time=third, end_time=later) == [3]
    assert await revisions(tenancy, flow_id, start_time=datetime(9999, 1, 1, tzinfo=UTC)) == []


async def test_a_page_token_is_bound_to_the_filter(tenancy: Tenancy) -> None:
    flow_id = await lived(tenancy)
    fields: dict[str, Any] = {"flow_id": flow_id, "page_size": 1, "actor": "ada", "phases": [PHASE]}
    token = (await tenancy.call("ListFlowEvents", **fields)).next_page_token
    assert [event.revision for event in (await tenancy.call("ListFlowEvents", page_token=token, **fields)).events] == [3]
    others: list[dict[str, Any]] = [
        {"actor": "bob"},
        {"phases": []},
        {"kinds": ["EVENT_KIND_HOLD_CHANGED"]},
        {"after_revision": 1},
        {"start_time": datetime.now(UTC)},
    ]
    for other in others:
        refusal = await tenancy.refusal("ListFlowEvents", **{**fields, **other}, page_token=token)
        assert refusal.violations.keys() == {"page_token"}, other
    found = await tenancy.call("ListFlowEvents", **{**fields, "page_size": 5}, page_token=token)
    assert [event.revision for event in found.events] == [3, 9]


async def test_too_many_and_unknown_filters_are_refused(tenancy: Tenancy) -> None:
    flow_id = (await tenancy.create()).flow_id
    refusal = await tenancy.refusal("ListFlowEvents", flow_id=flow_id, kinds=[99, 0], phases=["a"] * 21, actor="x" * 201)
    assert refusal.violations.keys() == {"kinds[0]", "kinds[1]", "phases", "actor"}


async def test_a_page_looks_at_no_more_than_so_many_revisions(urls: Urls, superuser_of: Any) -> None:
    """A history of 12,000 revisions, made by SQL, in which one event matches."""
    async with app.running(settings(urls)) as server, grpc.aio.insecure_channel(server.address) as channel:
        tenancy = Tenancy.fresh(channel)
        flow_id = (await tenancy.create()).flow_id
        await tenancy.call("PauseFlow", flow_id=flow_id)
        truth = await superuser_of(urls)
        query = """
            INSERT INTO events SELECT client_account_id, engagement_id, flow_id, number, time, actor,
                CASE number WHEN 7777 THEN body ELSE replace(body, '"fact":"hold"', '"fact":"lost","was":"hold"') END, hash, format, NULL
            FROM events, generate_series(3, 12000) number WHERE flow_id = $1 AND revision = 2
        """
        await truth.execute(query, UUID(flow_id))
        await truth.execute("UPDATE flows SET revision = 12000 WHERE flow_id = $1", UUID(flow_id))
        fields = {"flow_id": flow_id, "kinds": ["EVENT_KIND_HOLD_CHANGED"]}
        pages = []
        token = ""
        while True:
            page = await tenancy.call("ListFlowEvents", page_token=token, **fields)
            pages.append([event.revision for event in page.events])
            token = page.next_page_token
            if not token:
                break
        assert pages == [[2], [7777], []]
        assert LOOKED_AT == 5000
