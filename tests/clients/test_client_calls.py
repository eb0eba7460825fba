"""Calls of clients/python: typed errors, deadlines, and changes that happen once whatever becomes of their answers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import UUID, uuid4

import grpc
import pytest
from flowledger.v1 import change_pb2, flow_pb2
from flowledger.v1 import flow_service_pb2 as pb
from flowledger_client import (
    AlreadyExists,
    Caller,
    ConcurrentModification,
    DeadlineExceeded,
    FlowledgerError,
    InvalidRequest,
    LimitReached,
    NotFound,
    OutOfRange,
    Patience,
    PreconditionFailed,
    Unauthenticated,
    Unavailable,
)

from server import app
from tests.clients.both import Both, Connect
from tests.clients.line import Line, line
from tests.conftest import Urls, settings
from tests.faults.process import database, serving
from tests.tenancy import Tenancy

SOON = Patience(call=20.0, attempt=1.0)


@pytest.fixture
async def client(connect: Connect, server: app.Server, caller: Caller) -> AsyncIterator[Both]:
    """A client of the shared server."""
    async with connect(server.address, caller) as client:
        yield client


async def created(client: Both, **fields: object) -> flow_pb2.Flow:
    """A new flow."""
    request = pb.CreateFlowRequest(**{"type": "discovery", **fields})  # type: ignore[arg-type]
    found: flow_pb2.Flow = (await client.call("CreateFlow", request)).flow
    return found


def renaming(flow_id: str, name: str = "new", **fields: object) -> pb.UpdateFlowRequest:
    """A change that always can be made."""
    return pb.UpdateFlowRequest(flow_id=flow_id, update=change_pb2.FlowUpdate(display_name=name), **fields)  # type: ignore[arg-type]


def transition(flow_id: str, phase: str, to: flow_pb2.PhaseState.ValueType, **fields: object) -> pb.TransitionPhaseRequest:
    """A phase's next state."""
    return pb.TransitionPhaseRequest(flow_id=flow_id, transition={"phase": phase, "to": to}, **fields)  # type: ignore[arg-type]


async def test_what_is_changed_is_read_back(client: Both) -> None:
    flow = await created(client, display_name="first")
    assert (await client.call("UpdateFlow", renaming(flow.flow_id))).flow.revision == 2
    found = (await client.call("GetFlow", pb.GetFlowRequest(flow_id=flow.flow_id))).flow
    assert (found.display_name, found.updated_by) == ("new", "ada")


async def test_a_request_sent_twice_on_purpose_is_two_changes_and_with_an_id_of_its_own_one(client: Both) -> None:
    flow = await created(client)
    request = renaming(flow.flow_id)
    assert [(await client.call("UpdateFlow", request)).flow.revision for _ in range(2)] == [2, 3]
    assert request.request_id == ""
    request.request_id = str(uuid4())
    assert [(await client.call("UpdateFlow", request)).flow.revision for _ in range(2)] == [4, 4]


async def test_each_kind_of_refusal_is_an_exception_of_its_own_that_tells_what_it_knows(client: Both, connect: Connect) -> None:
    flow = await created(client)
    with pytest.raises(InvalidRequest) as invalid:
        await client.call("TransitionPhase", pb.TransitionPhaseRequest(flow_id="nope"))
    assert {field for field, _ in invalid.value.violations} >= {"flow_id", "transition.phase"}
    assert (invalid.value.code, invalid.value.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")
    with pytest.raises(NotFound, match=r"\(FLOW_NOT_FOUND\)"):
        await client.call("GetFlow", pb.GetFlowRequest(flow_id=str(uuid4())))
    with pytest.raises(AlreadyExists):
        await created(client, flow_id=flow.flow_id)
    with pytest.raises(PreconditionFailed) as refused:
        await client.call("TransitionPhase", transition(flow.flow_id, "field_mapping", flow_pb2.PHASE_STATE_IN_PROGRESS))
    assert refused.value.missing_dependencies == ("data_import",)
    with pytest.raises(PreconditionFailed) as refused:
        await client.call("TransitionPhase", transition(flow.flow_id, "data_import", flow_pb2.PHASE_STATE_COMPLETED))
    assert refused.value.valid_transitions == ("IN_PROGRESS",)
    with pytest.raises(ConcurrentModification) as aborted:
        await client.call("UpdateFlow", renaming(flow.flow_id, expected_revision=7))
    assert (aborted.value.expected_revision, aborted.value.current_revision) == (7, 1)
    assert UUID(aborted.value.request_id).version == 4
    with pytest.raises(OutOfRange) as ahead:
        await client.call("GetFlow", pb.GetFlowRequest(flow_id=flow.flow_id, min_revision=9))
    assert ahead.value.head_revision == 1
    with pytest.raises(LimitReached):
        await created(client, state={"json": '{"a":"' + "x" * 5 * 1024 * 1024 + '"}'})


async def test_a_caller_that_is_not_known_is_told_so_at_once(connect: Connect, server: app.Server) -> None:
    started = time.monotonic()
    async with connect(server.address, Caller("acme", uuid4(), "ada")) as client:
        with pytest.raises(Unauthenticated, match="x-client-account-id must be a UUID"):
            await created(client)
    assert time.monotonic() - started < 25  # a call has 30 seconds


@pytest.fixture
async def wire(server: app.Server) -> AsyncIterator[Line]:
    """A line to the shared server."""
    async with line(server.address) as wire:
        yield wire


async def test_a_change_whose_answer_was_lost_happens_once(connect: Connect, wire: Line, caller: Caller, channel: grpc.aio.Channel) -> None:
    beside = Tenancy(channel, UUID(str(caller.account)), UUID(str(caller.engagement)))
    async with connect(wire.address, caller) as client:
        flow = await created(client)
        wire.mute()
        changing = asyncio.ensure_future(client.call("UpdateFlow", renaming(flow.flow_id)))
        while (await beside.call("GetFlow", flow_id=flow.flow_id)).flow.revision == 1:
            pass
        wire.cut()
        wire.unmute()
        answer = await changing
        assert (answer.flow.revision, answer.event.revision) == (2, 2)
        assert (await beside.call("GetFlow", flow_id=flow.flow_id)).flow.revision == 2
        assert wire.connections >= 2


async def test_a_server_that_hangs_does_not_use_up_all_the_time_of_a_call(connect: Connect, wire: Line, caller: Caller) -> None:
    async with connect(wire.address, caller, patience=SOON) as client:
        flow = await created(client)
        wire.mute()
        changing = asyncio.ensure_future(client.call("UpdateFlow", renaming(flow.flow_id)))
        await asyncio.sleep(1.2)  # longer than one attempt
        wire.unmute()
        assert (await changing).flow.revision == 2


async def test_a_call_ends_when_its_time_is_over_and_tells_under_which_id_to_send_it_again(
    connect: Connect, wire: Line, caller: Caller
) -> None:
    async with connect(wire.address, caller, patience=SOON) as client:
        flow = await created(client)
        wire.mute()
        started = time.monotonic()
        with pytest.raises(DeadlineExceeded) as late:
            await client.call("UpdateFlow", renaming(flow.flow_id), timeout=0.3)
        assert time.monotonic() - started < 15  # without a timeout of its own it has 20 seconds
        wire.unmute()
        again = renaming(flow.flow_id, request_id=late.value.request_id)
        assert (await client.call("UpdateFlow", again)).flow.revision == 2
        assert (await client.call("GetFlow", pb.GetFlowRequest(flow_id=flow.flow_id))).flow.revision == 2


async def test_a_call_waits_for_a_server_that_is_restarted(connect: Connect, urls: Urls, tmp_path: Path, caller: Caller) -> None:
    async with serving(tmp_path, **database(urls)) as first, connect(first.address, caller) as client:
        flow = await created(client)
        port = first.address.rpartition(":")[2]
        await first.kill()
        changing = [asyncio.ensure_future(client.call("UpdateFlow", renaming(flow.flow_id, f"{at}"))) for at in range(5)]
        await asyncio.sleep(0.3)
        assert not any(call.done() for call in changing)
        async with serving(tmp_path, **database(urls), port=port):
            assert sorted([(await call).flow.revision for call in changing]) == [2, 3, 4, 5, 6]


async def test_a_server_that_is_stopping_is_asked_again_no_sooner_than_it_says(connect: Connect, urls: Urls, caller: Caller) -> None:
    # No retries of gRPC's own, so that each try is ours.
    async with app.running(settings(urls)) as draining, connect(draining.address, caller, options=()) as client:
        flow = await created(client)
        draining.drain()
        started = time.monotonic()
        with pytest.raises(Unavailable) as refused:
            await client.call("UpdateFlow", renaming(flow.flow_id), timeout=1.4)
        # Two pauses of half a second fit in, a third does not.
        assert time.monotonic() - started > 0.9
        assert (refused.value.reason, refused.value.retry_seconds) == ("DRAINING", 0.5)
        assert refused.value.passing


async def test_when_there_is_no_server_a_call_says_so_after_its_time(connect: Connect, caller: Caller) -> None:
    async with connect("127.0.0.1:1", caller) as client:
        with pytest.raises((Unavailable, DeadlineExceeded)) as away:
            await client.call("GetFlow", pb.GetFlowRequest(flow_id=str(uuid4())), timeout=0.5)
        assert isinstance(away.value, FlowledgerError)


async def test_streams_of_other_rpcs_carry_the_caller(client: Both) -> None:
    flow = await created(client)
    await client.call("TransitionPhase", transition(flow.flow_id, "data_import", flow_pb2.PHASE_STATE_IN_PROGRESS))
    report = pb.StreamProgressRequest(flow_id=flow.flow_id, progress={"phase": "data_import", "fraction": 0.5})  # type: ignore[arg-type]
    answer = await client.call("StreamProgress", iter([report]))
    assert answer.received_count == 1


async def test_calls_go_out_from_many_threads_at_once(client: Both) -> None:
    flow = await created(client)
    answers = await asyncio.gather(*(client.call("UpdateFlow", renaming(flow.flow_id, f"{at}")) for at in range(20)))
    assert sorted(answer.flow.revision for answer in answers) == list(range(2, 22))
