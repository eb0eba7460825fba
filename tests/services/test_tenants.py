"""What belongs to one tenant is not there for any other, whichever RPC asks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from uuid import uuid4

import grpc
import pytest
from flowledger.v1 import flow_pb2

from tests.services.calls import CALLS, METHODS, MUTATIONS, flow_and_event
from tests.tenancy import Refusal, Tenancy

STRANGERS: dict[str, Callable[[Tenancy], Tenancy]] = {
    "another tenant": lambda owner: Tenancy.fresh(owner.channel),
    "the same account with another engagement": lambda owner: owner.other_engagement(),
    "another account with the same engagement": lambda owner: replace(owner, account=uuid4()),
    "account and engagement exchanged": lambda owner: replace(owner, account=owner.engagement, engagement=owner.account),
}
# These name no flow of somebody else; each has its own test below.
WITHOUT_A_FLOW = {"CreateFlow", "ListFlows", "WatchFlows"}

strangers = pytest.mark.parametrize("stranger", STRANGERS.values(), ids=[name.replace(" ", "_") for name in STRANGERS])


async def _state(owner: Tenancy, flow_id: str) -> tuple[bytes, int]:
    flow = (await owner.call("GetFlow", flow_id=flow_id, view="FLOW_VIEW_FULL")).flow
    events = await owner.call("ListFlowEvents", flow_id=flow_id)
    assert len(events.events) == flow.revision
    return flow.SerializeToString(deterministic=True), events.head_revision


def test_every_rpc_has_a_case() -> None:
    assert CALLS.keys() == METHODS.keys()


@strangers
@pytest.mark.parametrize("name", sorted(CALLS.keys() - WITHOUT_A_FLOW))
async def test_a_flow_of_another_tenant_is_not_found(tenancy: Tenancy, name: str, stranger: Callable[[Tenancy], Tenancy]) -> None:
    call = CALLS[name]
    flow_id = await call.prepare(tenancy)
    before = await _state(tenancy, flow_id)
    theirs = await call.refusal(stranger(tenancy), flow_id)
    nobodys = await call.refusal(stranger(tenancy), str(uuid4()))
    assert (theirs.code, theirs.reason) == (grpc.StatusCode.NOT_FOUND, "FLOW_NOT_FOUND")
    # No hint that it exists elsewhere: but for the id, the error is the one of a flow that nobody has.
    assert (theirs.metadata.keys(), theirs.details, len(theirs.text)) == (nobodys.metadata.keys(), nobodys.details, len(nobodys.text))
    assert await _state(tenancy, flow_id) == before
    await call.send(tenancy, flow_id)  # the request was refused for its caller alone


@strangers
async def test_a_list_is_empty_for_another_tenant(tenancy: Tenancy, stranger: Callable[[Tenancy], Tenancy]) -> None:
    flow = await tenancy.create(display_name="mine")
    assert [found.flow_id for found in (await tenancy.call("ListFlows", filter="display_name = mine")).flows] == [flow.flow_id]
    for filter_ in ("", "display_name = mine", f'create_time >= "2026-01-01T00:00:00Z" OR created_by = {tenancy.user}'):
        found = await stranger(tenancy).call("ListFlows", filter=filter_, show_deleted=True)
        assert (list(found.flows), found.next_page_token) == ([], "")


@strangers
async def test_two_tenants_can_have_flows_of_one_id(tenancy: Tenancy, stranger: Callable[[Tenancy], Tenancy]) -> None:
    other = stranger(tenancy)
    mine = await tenancy.create(display_name="mine", state={"json": '{"whose":"mine"}'})
    assert (await tenancy.refusal("CreateFlow", type="discovery", flow_id=mine.flow_id)).reason == "FLOW_EXISTS"
    theirs = await other.create(flow_id=mine.flow_id, display_name="theirs", state={"json": '{"whose":"theirs"}'})
    assert theirs.flow_id == mine.flow_id
    assert theirs.children[0].child_flow_id != mine.children[0].child_flow_id
    await other.move(mine.flow_id, "data_import", "IN_PROGRESS", "COMPLETED")
    await other.call("DeleteFlow", flow_id=mine.flow_id)
    for owner, name, revision in ((tenancy, "mine", 1), (other, "theirs", 4)):
        flow = (await owner.call("GetFlow", flow_id=mine.flow_id, view="FLOW_VIEW_FULL")).flow
        assert (flow.display_name, flow.revision, flow.state.json) == (name, revision, f'{{"whose":"{name}"}}')
        assert len((await owner.call("ListFlowEvents", flow_id=mine.flow_id)).events) == revision


async def test_one_foreign_flow_among_own_ones_refuses_the_whole_batch(tenancy: Tenancy) -> None:
    own, foreign = await tenancy.create(), await tenancy.other_engagement().create()
    refusal = await tenancy.refusal("BatchGetFlows", flow_ids=[own.flow_id, foreign.flow_id])
    assert (refusal.reason, refusal.metadata["flow_id"]) == ("FLOW_NOT_FOUND", foreign.flow_id)
    commits = [{"flow_id": flow.flow_id, "changes": [{"pause": {}}]} for flow in (own, foreign)]
    refusal = await tenancy.refusal("BatchUpdateFlows", commits=commits)
    assert (refusal.reason, refusal.metadata) == ("FLOW_NOT_FOUND", {"flow_id": foreign.flow_id, "commit_index": "1"})
    assert (await tenancy.call("GetFlow", flow_id=own.flow_id)).flow.revision == 1


@strangers
async def test_a_page_token_is_refused_for_another_tenant(tenancy: Tenancy, stranger: Callable[[Tenancy], Tenancy]) -> None:
    flow_id = (await tenancy.create()).flow_id
    await tenancy.create()
    await tenancy.move(flow_id, "data_import", "IN_PROGRESS")
    other = stranger(tenancy)
    await other.create(flow_id=flow_id)
    await other.move(flow_id, "data_import", "IN_PROGRESS")
    for name, fields in (("ListFlows", {}), ("ListFlowEvents", {"flow_id": flow_id})):
        token = (await tenancy.call(name, page_size=1, **fields)).next_page_token
        assert token
        refusal = await other.refusal(name, page_size=1, page_token=token, **fields)
        assert (refusal.reason, list(refusal.violations)) == ("INVALID_REQUEST", ["page_token"])
        await tenancy.call(name, page_size=1, page_token=token, **fields)


@strangers
async def test_a_watch_of_all_flows_tells_nothing_of_another_tenants(tenancy: Tenancy, stranger: Callable[[Tenancy], Tenancy]) -> None:
    other = stranger(tenancy)
    mine = await tenancy.create()
    theirs = await other.create(flow_id=mine.flow_id)
    await other.move(mine.flow_id, "data_import", "IN_PROGRESS")
    await tenancy.call("CancelFlow", flow_id=mine.flow_id)
    for owner, states in ((tenancy, ["INITIALIZED", "CANCELLED"]), (other, ["INITIALIZED", "DATA_GATHERING"])):
        for filter_ in ("", "type = discovery OR NOT type = discovery"):
            stream = owner.watch_all(filter=filter_, start="WATCH_FLOWS_START_BEGINNING")
            messages = aiter(stream)
            assert (await anext(messages)).HasField("opened")
            changes = [(await anext(messages)).change for _ in states]
            stream.cancel()
            assert [flow_pb2.FlowStatus.Name(change.event.status) for change in changes] == [f"FLOW_STATUS_{state}" for state in states]
            child = (mine if owner is tenancy else theirs).children[0].child_flow_id
            assert changes[0].event.changes[1].child_started.child_flow_id == child


@strangers
async def test_a_resume_token_is_refused_for_another_tenant(tenancy: Tenancy, stranger: Callable[[Tenancy], Tenancy]) -> None:
    other = stranger(tenancy)
    flow_id = (await tenancy.create()).flow_id
    await other.create(flow_id=flow_id)
    for name in ("WatchFlow", "WatchFlows"):
        token = (await CALLS[name].send(tenancy, flow_id)).resume_token
        assert token
        refusal = await CALLS[name].refusal(other, flow_id, resume_token=token)
        assert (refusal.reason, list(refusal.violations)) == ("INVALID_REQUEST", ["resume_token"])
        await CALLS[name].send(tenancy, flow_id, resume_token=token)


@strangers
@pytest.mark.parametrize("name", MUTATIONS)
async def test_a_request_id_belongs_to_one_tenant(tenancy: Tenancy, name: str, stranger: Callable[[Tenancy], Tenancy]) -> None:
    call, request_id = CALLS[name], str(uuid4())
    other = stranger(tenancy)
    mine, theirs = await call.prepare(tenancy), await call.prepare(other)
    first = await call.send(tenancy, mine, request_id=request_id)
    second = await call.send(other, theirs, request_id=request_id)
    assert flow_and_event(first)[0].flow_id != flow_and_event(second)[0].flow_id
    if name != "CreateFlow":  # which names no flow
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.send(other, mine, request_id=request_id)
        assert Refusal.of(caught.value).reason in ("FLOW_NOT_FOUND", "REQUEST_ID_REUSED")
    assert await call.send(tenancy, mine, request_id=request_id) == first
    assert await call.send(other, theirs, request_id=request_id) == second
