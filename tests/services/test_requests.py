"""What every mutation promises: one revision and one event, a guard, a rehearsal, and one answer to one request id."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import uuid4

import grpc
import pytest
from flowledger.v1 import flow_service_pb2 as pb

from server import app
from tests.conftest import Urls, settings
from tests.services.calls import BIRTHS, CALLS, METHODS, MUTATIONS, Call, flow_and_event
from tests.tenancy import PATIENCE, Tenancy

GUARDED = sorted(name for name, call in CALLS.items() if call.guarded)
REHEARSABLE = sorted(name for name, call in CALLS.items() if call.rehearsable)
AT_ONCE = 20


async def _history(tenancy: Tenancy, flow_id: str) -> tuple[Any, list[Any]]:
    flow = (await tenancy.call("GetFlow", flow_id=flow_id, view="FLOW_VIEW_FULL")).flow
    events = list((await tenancy.call("ListFlowEvents", flow_id=flow_id, page_size=1000)).events)
    assert [event.revision for event in events] == list(range(1, flow.revision + 1))
    return flow, events


async def _raw(tenancy: Tenancy, call: Call, flow_id: str, **more: Any) -> bytes:
    """The response's bytes as they come over the wire."""
    body = call.request(flow_id, **more).SerializeToString()
    rpc: Any = tenancy.channel.unary_unary(f"/flowledger.v1.FlowService/{call.name}")
    found: bytes = await rpc(body, metadata=tenancy.metadata, timeout=PATIENCE)
    return found


def _parsed(name: str, body: bytes) -> Any:
    return getattr(pb, f"{name}Response").FromString(body)


def test_every_rpc_that_writes_is_here() -> None:
    reading = {"GetFlow", "BatchGetFlows", "ListFlows", "ListFlowEvents", "DiffFlow", "WatchFlow", "WatchFlows"}
    assert {*MUTATIONS, "StreamProgress"} == METHODS.keys() - reading
    assert set(GUARDED) == {*MUTATIONS} - {*BIRTHS, "BatchUpdateFlows"}
    assert set(REHEARSABLE) == {
        "CreateFlow", "UpdateFlow", "CommitFlow", "TransitionPhase", "RetryPhase", "RollbackPhase", "BatchUpdateFlows", "StartChildFlow",
        "RevertFlow", "ForkFlow",
    }  # fmt: skip


@pytest.mark.parametrize("name", MUTATIONS)
async def test_a_mutation_is_one_revision_and_one_event(tenancy: Tenancy, name: str) -> None:
    call = CALLS[name]
    prepared = await call.prepare(tenancy)
    before = (await tenancy.call("GetFlow", flow_id=prepared)).flow.revision if name not in BIRTHS else 0
    flow, event = flow_and_event(await call.send(tenancy, prepared))
    assert (flow.revision, event.revision) == (before + 1, before + 1)
    stored, events = await _history(tenancy, flow.flow_id)
    assert events[-1] == event
    assert (event.flow_id, event.actor, event.status, event.progress_percent) == (
        flow.flow_id,
        tenancy.user,
        flow.status,
        flow.progress_percent,
    )
    assert event.changes
    assert len(event.hash) == 32
    assert flow.children[:] == ([*stored.children] if name in (*BIRTHS, "StartChildFlow", "RevertFlow") else [])
    for field in ("state", "metadata", "cross_phase_context", "activity", "children"):
        stored.ClearField(field)
        flow.ClearField(field)
    assert stored == flow


@pytest.mark.parametrize("name", GUARDED)
async def test_a_commit_happens_only_at_the_revision_that_was_expected(tenancy: Tenancy, name: str) -> None:
    call = CALLS[name]
    flow_id = await call.prepare(tenancy)
    before = await _history(tenancy, flow_id)
    revision = before[0].revision
    for wrong in (revision + 1, revision - 1, 2**63 - 1):
        if wrong:
            refusal = await call.refusal(tenancy, flow_id, expected_revision=wrong)
            assert (refusal.code, refusal.reason) == (grpc.StatusCode.ABORTED, "CONCURRENT_MODIFICATION")
            assert refusal.metadata == {"expected_revision": str(wrong), "current_revision": str(revision)}
    assert await _history(tenancy, flow_id) == before
    flow, _ = flow_and_event(await call.send(tenancy, flow_id, expected_revision=revision))
    assert flow.revision == revision + 1


async def test_a_batch_is_guarded_flow_by_flow(tenancy: Tenancy) -> None:
    flows = [(await tenancy.create()).flow_id for _ in range(3)]
    commits = [{"flow_id": flow_id, "changes": [{"pause": {}}], "expected_revision": 1} for flow_id in flows]
    commits[2]["expected_revision"] = 5
    refusal = await tenancy.refusal("BatchUpdateFlows", commits=commits)
    assert (refusal.reason, refusal.code) == ("CONCURRENT_MODIFICATION", grpc.StatusCode.ABORTED)
    assert refusal.metadata == {"expected_revision": "5", "current_revision": "1", "flow_id": flows[2], "commit_index": "2"}
    for flow_id in flows:
        assert (await _history(tenancy, flow_id))[0].revision == 1
    commits[2]["expected_revision"] = 1
    found = (await tenancy.call("BatchUpdateFlows", commits=commits)).results
    assert [(one.flow.flow_id, one.flow.revision, one.event.revision) for one in found] == [(flow_id, 2, 2) for flow_id in flows]


@pytest.mark.parametrize("name", REHEARSABLE)
async def test_a_rehearsal_tells_what_would_be_and_writes_nothing(tenancy: Tenancy, name: str) -> None:
    call = CALLS[name]
    flow_id = await call.prepare(tenancy)
    before = await _history(tenancy, flow_id)
    count = len((await tenancy.call("ListFlows", show_deleted=True)).flows)
    request_id = str(uuid4())
    would, would_event = flow_and_event(await call.send(tenancy, flow_id, validate_only=True, request_id=request_id))
    assert await _history(tenancy, flow_id) == before
    assert len((await tenancy.call("ListFlows", show_deleted=True)).flows) == count
    # A rehearsal takes no request id: the real request may use it, for another payload even.
    found, event = flow_and_event(await call.send(tenancy, flow_id, request_id=request_id))
    assert would.revision == found.revision
    assert (would.status, would.progress_percent, would.type) == (found.status, found.progress_percent, found.type)
    assert [change.WhichOneof("kind") for change in would_event.changes] == [change.WhichOneof("kind") for change in event.changes]


@pytest.mark.parametrize("name", sorted(set(REHEARSABLE) - BIRTHS))
async def test_a_rehearsal_is_refused_as_the_commit_would_be(tenancy: Tenancy, name: str) -> None:
    call = CALLS[name]
    flow_id = await call.prepare(tenancy)
    await tenancy.call("DeleteFlow", flow_id=flow_id)
    rehearsed, real = await call.refusal(tenancy, flow_id, validate_only=True), await call.refusal(tenancy, flow_id)
    assert rehearsed == real
    assert real.reason == "FLOW_NOT_ACTIVE"
    if call.guarded:
        assert (await call.refusal(tenancy, flow_id, validate_only=True, expected_revision=1)).reason == "CONCURRENT_MODIFICATION"


async def test_a_rehearsed_creation_tells_of_an_id_that_is_taken(tenancy: Tenancy) -> None:
    flow = await tenancy.create()
    assert (await tenancy.refusal("CreateFlow", type="discovery", flow_id=flow.flow_id, validate_only=True)).reason == "FLOW_EXISTS"


@pytest.mark.parametrize("name", MUTATIONS)
async def test_a_repeated_request_gets_its_first_answer_and_changes_nothing(tenancy: Tenancy, name: str) -> None:
    call, request_id = CALLS[name], str(uuid4())
    prepared = await call.prepare(tenancy)
    first = await _raw(tenancy, call, prepared, request_id=request_id)
    flow, _ = flow_and_event(_parsed(name, first))
    assert await _raw(tenancy, call, prepared, request_id=request_id) == first
    assert (await _history(tenancy, flow.flow_id))[0].revision == flow.revision

    if flow.HasField("delete_time"):
        await tenancy.call("UndeleteFlow", flow_id=flow.flow_id)
    await tenancy.call("RecordActivity", flow_id=flow.flow_id, activity={"entries": [{"kind": "ACTIVITY_KIND_ERROR"}]})
    assert await _raw(tenancy, call, prepared, request_id=request_id) == first  # after a further change
    if name != "CancelFlow":
        await tenancy.call("CancelFlow", flow_id=flow.flow_id)
    assert await _raw(tenancy, call, prepared, request_id=request_id) == first  # after the end
    await tenancy.call("DeleteFlow", flow_id=flow.flow_id)
    history = await _history(tenancy, flow.flow_id)
    assert await _raw(tenancy, call, prepared, request_id=request_id) == first  # and after the deletion
    assert await _history(tenancy, flow.flow_id) == history


@pytest.mark.parametrize("name", MUTATIONS)
async def test_a_request_id_is_refused_for_another_request(tenancy: Tenancy, name: str) -> None:
    call, request_id = CALLS[name], str(uuid4())
    prepared = await call.prepare(tenancy)
    first = await _raw(tenancy, call, prepared, request_id=request_id)
    flow, _ = flow_and_event(_parsed(name, first))
    others: list[tuple[str, dict[str, Any]]] = [
        ("PauseFlow", {"flow_id": flow.flow_id, "pause": {"reason": "other"}}),
        ("BatchUpdateFlows", {"commits": [{"flow_id": flow.flow_id, "changes": [{"update": {"display_name": "other"}}]}]}),
        ("CreateFlow", {"type": "planning"}),
        ("PauseFlow", {"flow_id": (await tenancy.create()).flow_id}),
    ]
    if call.guarded:
        others.append((name, {**call.fields(prepared), "expected_revision": flow.revision - 1}))
    history = await _history(tenancy, flow.flow_id)
    for other, fields in others:
        refusal = await tenancy.refusal(other, request_id=request_id, **fields)
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "REQUEST_ID_REUSED"), other
        assert refusal.metadata == {"request_id": request_id}
    assert await _history(tenancy, flow.flow_id) == history
    assert await _raw(tenancy, call, prepared, request_id=request_id) == first


@pytest.mark.parametrize("name", MUTATIONS)
async def test_duplicates_at_the_same_time_are_one_commit(tenancy: Tenancy, name: str) -> None:
    call, request_id = CALLS[name], str(uuid4())
    prepared = await call.prepare(tenancy)
    answers = await asyncio.gather(*(_raw(tenancy, call, prepared, request_id=request_id) for _ in range(AT_ONCE)))
    assert len(set(answers)) == 1
    flow, event = flow_and_event(_parsed(name, answers[0]))
    stored, events = await _history(tenancy, flow.flow_id)
    assert (stored.revision, events[-1]) == (flow.revision, event)
    if name in BIRTHS:
        assert len((await tenancy.call("ListFlows")).flows) == 2  # the prepared one and this one


async def test_a_request_that_was_refused_may_come_again(tenancy: Tenancy) -> None:
    flow_id, request_id = (await tenancy.create()).flow_id, str(uuid4())
    fields: dict[str, Any] = {"flow_id": flow_id, "request_id": request_id, "resume": {}}
    assert (await tenancy.refusal("ResumeFlow", **fields)).reason == "FLOW_NOT_PAUSED"
    await tenancy.call("PauseFlow", flow_id=flow_id)
    assert (await tenancy.call("ResumeFlow", **fields)).flow.revision == 3


async def test_first_answers_outlive_the_server(urls: Urls, tenancy: Tenancy) -> None:
    """Every mutation repeated on another server on the same database, and on two at the same time."""
    first: dict[str, tuple[str, str, bytes]] = {}
    async with app.running(settings(urls)) as server, grpc.aio.insecure_channel(server.address) as channel:
        for name in MUTATIONS:
            prepared, request_id = await CALLS[name].prepare(tenancy.on(channel)), str(uuid4())
            first[name] = prepared, request_id, await _raw(tenancy.on(channel), CALLS[name], prepared, request_id=request_id)
    async with (
        app.running(settings(urls)) as one,
        app.running(settings(urls)) as two,
        grpc.aio.insecure_channel(one.address) as to_one,
        grpc.aio.insecure_channel(two.address) as to_two,
    ):
        for name, (prepared, request_id, answer) in first.items():
            for channel in (to_one, to_two):
                assert await _raw(tenancy.on(channel), CALLS[name], prepared, request_id=request_id) == answer, name
        for name in MUTATIONS:
            prepared, request_id = await CALLS[name].prepare(tenancy.on(to_one)), str(uuid4())
            answers = await asyncio.gather(
                *(_raw(tenancy.on(channel), CALLS[name], prepared, request_id=request_id) for channel in (to_one, to_two) * 5)
            )
            assert len(set(answers)) == 1, name
            flow, _ = flow_and_event(_parsed(name, answers[0]))
            assert (await _history(tenancy.on(to_two), flow.flow_id))[0].revision == flow.revision
