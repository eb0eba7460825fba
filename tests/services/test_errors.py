"""Every reason of the error table is provoked, and looks as the contract says, whatever the input was."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote
from uuid import UUID, uuid4

import asyncpg
import grpc
import pytest
from flowledger.v1 import flow_service_pb2 as pb
from google.rpc import error_details_pb2  # type: ignore[import-untyped]
from grpc_status import rpc_status

from server import app
from server.services.boundary import CODES
from server.statemachine.errors import FlowError
from tests.cluster import Cluster
from tests.conftest import Urls, settings
from tests.services.calls import CALLS
from tests.services.serving import served
from tests.services.streams import stalled
from tests.tenancy import Refusal, Tenancy

MARKER = "sesame-4711"
# The event's fact is of a kind that no version of the server wrote: the exception's text names it.
BROKEN_BODY = f'{{"status":"INITIALIZED","progress":0.0,"facts":[{{"fact":"{MARKER}"}}]}}'


@dataclass(frozen=True, slots=True)
class Stage:
    """What a provocation can use."""

    tenancy: Tenancy
    superuser: asyncpg.Connection
    postgres: Cluster
    own_urls: Callable[[], Urls]

    @asynccontextmanager
    async def own_server(self, **more: object) -> AsyncIterator[tuple[app.Server, Tenancy, Urls]]:
        """A server that may be harmed, and the tenant's way to it."""
        urls = self.own_urls()
        async with app.running(settings(urls, **more)) as server, grpc.aio.insecure_channel(server.address) as channel:
            yield server, self.tenancy.on(channel), urls


async def _moved(stage: Stage, *states: str, phase: str = "data_import") -> str:
    flow_id = (await stage.tenancy.create()).flow_id
    await stage.tenancy.move(flow_id, phase, *states)
    return flow_id


async def _invalid_request(stage: Stage) -> Refusal:
    return await stage.tenancy.refusal("GetFlow", flow_id="x", min_revision=-1, view=77, form=78)


async def _request_id_reused(stage: Stage) -> Refusal:
    request_id = str(uuid4())
    await stage.tenancy.create(request_id=request_id)
    return await stage.tenancy.refusal("CreateFlow", type="planning", request_id=request_id)


async def _flow_not_found(stage: Stage) -> Refusal:
    return await stage.tenancy.refusal("GetFlow", flow_id=str(uuid4()))


async def _phase_not_found(stage: Stage) -> Refusal:
    flow_id = (await stage.tenancy.create()).flow_id
    return await stage.tenancy.refusal("ReportProgress", flow_id=flow_id, progress={"phase": "nothing"})


async def _flow_exists(stage: Stage) -> Refusal:
    flow_id = (await stage.tenancy.create()).flow_id
    await stage.tenancy.call("DeleteFlow", flow_id=flow_id)
    return await stage.tenancy.refusal("CreateFlow", type="discovery", flow_id=flow_id)


async def _invalid_phase_transition(stage: Stage) -> Refusal:
    flow_id = await _moved(stage, "IN_PROGRESS")
    return await stage.tenancy.refusal(
        "TransitionPhase", flow_id=flow_id, transition={"phase": "data_import", "to": "PHASE_STATE_NOT_STARTED"}
    )


async def _dependency_incomplete(stage: Stage) -> Refusal:
    flow_id = (await stage.tenancy.create()).flow_id
    return await stage.tenancy.refusal(
        "TransitionPhase", flow_id=flow_id, transition={"phase": "field_mapping", "to": "PHASE_STATE_IN_PROGRESS"}
    )


async def _flow_not_active(stage: Stage) -> Refusal:
    flow_id = (await stage.tenancy.create()).flow_id
    await stage.tenancy.call("PauseFlow", flow_id=flow_id)
    return await stage.tenancy.refusal("ReportProgress", flow_id=flow_id, progress={"phase": "data_import"})


async def _flow_not_paused(stage: Stage) -> Refusal:
    return await stage.tenancy.refusal("ResumeFlow", flow_id=(await stage.tenancy.create()).flow_id)


async def _flow_not_deleted(stage: Stage) -> Refusal:
    return await stage.tenancy.refusal("UndeleteFlow", flow_id=(await stage.tenancy.create()).flow_id)


async def _child_exists(stage: Stage) -> Refusal:
    return await stage.tenancy.refusal("StartChildFlow", flow_id=(await stage.tenancy.create()).flow_id)


async def _retry_limit_reached(stage: Stage) -> Refusal:
    # A failure becomes RETRY_NEEDED while retries are left, and FAILED when there are none.
    flow_id = await _moved(stage, "IN_PROGRESS", "FAILED", "IN_PROGRESS", "FAILED", "IN_PROGRESS", "FAILED", "IN_PROGRESS", "FAILED")
    return await stage.tenancy.refusal("RetryPhase", flow_id=flow_id, retry={"phase": "data_import"})


async def _concurrent_modification(stage: Stage) -> Refusal:
    flow_id = await _moved(stage, "IN_PROGRESS")
    return await stage.tenancy.refusal("PauseFlow", flow_id=flow_id, expected_revision=1)


async def _history_damaged(stage: Stage) -> Refusal:
    flow_id = await _moved(stage, "IN_PROGRESS")
    await stage.superuser.execute("UPDATE events SET body = '{}' WHERE flow_id = $1 AND revision = 1", UUID(flow_id))
    return await stage.tenancy.refusal("GetFlow", flow_id=flow_id, at_revision=2)


async def _revision_compacted(stage: Stage) -> Refusal:
    flow_id = await _moved(stage, "IN_PROGRESS", "COMPLETED")
    await stage.superuser.execute("DELETE FROM events WHERE flow_id = $1 AND revision < 3", UUID(flow_id))
    return await stage.tenancy.refusal("ListFlowEvents", flow_id=flow_id)


async def _revision_in_future(stage: Stage) -> Refusal:
    flow_id = (await stage.tenancy.create()).flow_id
    return await stage.tenancy.refusal("ListFlowEvents", flow_id=flow_id, after_revision=2)


async def _position_compacted(stage: Stage) -> Refusal:
    flow_id = await _moved(stage, "IN_PROGRESS")
    token = (await CALLS["WatchFlows"].send(stage.tenancy, flow_id, start="WATCH_FLOWS_START_BEGINNING")).resume_token
    await stage.superuser.execute("DELETE FROM events WHERE flow_id = $1 AND revision < 2", UUID(flow_id))
    return await CALLS["WatchFlows"].refusal(stage.tenancy, flow_id, resume_token=token)


async def _position_in_future(stage: Stage) -> Refusal:
    async with stage.own_server() as (_, tenancy, urls):
        token = (await CALLS["WatchFlows"].send(tenancy, "")).resume_token
        stage.postgres.run("UPDATE installation SET position_base = -1000000", urls.name)
        return await CALLS["WatchFlows"].refusal(tenancy, "", resume_token=token)


async def _quota_exceeded(stage: Stage) -> Refusal:
    async with stage.own_server(streams_per_tenant=1) as (_, tenancy, _urls):
        flow_id = (await tenancy.create()).flow_id
        stream = tenancy.watch(flow_id)
        await anext(aiter(stream))
        refusal = await CALLS["WatchFlows"].refusal(tenancy, flow_id)
        other = tenancy.other_engagement()
        await CALLS["WatchFlow"].send(other, (await other.create()).flow_id)  # each tenant has its own quota
        stream.cancel()
        return refusal


async def _limit_exceeded(stage: Stage) -> Refusal:
    return await stage.tenancy.refusal("BatchGetFlows", flow_ids=[str(uuid4())] * 101)


async def _no_caller(stage: Stage) -> Refusal:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stage.tenancy.stub.GetFlow(pb.GetFlowRequest(flow_id=str(uuid4())), metadata=stage.tenancy.metadata[1:])
    return Refusal.of(caught.value)


async def _store_unavailable(stage: Stage) -> Refusal:
    async with stage.own_server(statement_timeout_seconds=1.0) as (_, tenancy, urls):
        flow = await tenancy.create()
        blocker = await asyncpg.connect(stage.postgres.url(urls.name, "postgres"))
        async with blocker.transaction():
            await blocker.execute("LOCK TABLE flows")
            refusal = await tenancy.refusal("GetFlow", flow_id=flow.flow_id)
        await blocker.close()
        assert (await tenancy.call("GetFlow", flow_id=flow.flow_id)).flow.revision == 1  # it was for the moment only
    return refusal


async def _draining(stage: Stage) -> Refusal:
    async with stage.own_server() as (server, tenancy, _):
        flow = await tenancy.create()
        server.drain()
        return await tenancy.refusal("GetFlow", flow_id=flow.flow_id)


async def _stream_stalled(stage: Stage) -> Refusal:
    return await stalled(stage.own_urls())


async def _deadline_exceeded(stage: Stage) -> Refusal:
    """The server's own deadline, for a call that has none: the client library's own says nothing of ours."""
    async with stage.own_server(default_deadline_seconds=0.1) as (_, tenancy, urls):
        flow = await tenancy.create()
        blocker = await asyncpg.connect(stage.postgres.url(urls.name, "postgres"))
        async with blocker.transaction():
            await blocker.execute("LOCK TABLE flows")
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await tenancy.stub.GetFlow(pb.GetFlowRequest(flow_id=flow.flow_id), metadata=tenancy.metadata)
        await blocker.close()
    return Refusal.of(caught.value)


async def _internal(stage: Stage) -> Refusal:
    flow_id = (await stage.tenancy.create()).flow_id
    await stage.superuser.execute("UPDATE events SET body = $2 WHERE flow_id = $1", UUID(flow_id), BROKEN_BODY)
    return await stage.tenancy.refusal("ListFlowEvents", flow_id=flow_id)


@dataclass(frozen=True, slots=True)
class Provocation:
    """How a reason comes about, and what its error carries beside the reason."""

    provoke: Callable[[Stage], Awaitable[Refusal]]
    metadata: frozenset[str]
    details: tuple[str, ...] = ()


def _by(provoke: Callable[[Stage], Awaitable[Refusal]], metadata: str = "", *details: str) -> Provocation:
    return Provocation(provoke, frozenset(metadata.split()), details)


PROVOCATIONS: Mapping[str, Provocation] = {
    "INVALID_REQUEST": _by(_invalid_request, "", "BadRequest"),
    "REQUEST_ID_REUSED": _by(_request_id_reused, "request_id"),
    "FLOW_NOT_FOUND": _by(_flow_not_found, "flow_id"),
    "PHASE_NOT_FOUND": _by(_phase_not_found, "phase phases"),
    "FLOW_EXISTS": _by(_flow_exists, "flow_id"),
    "INVALID_PHASE_TRANSITION": _by(_invalid_phase_transition, "phase valid_transitions", "PreconditionFailure"),
    "DEPENDENCY_INCOMPLETE": _by(_dependency_incomplete, "missing_dependencies", "PreconditionFailure"),
    "FLOW_NOT_ACTIVE": _by(_flow_not_active, "status", "PreconditionFailure"),
    "FLOW_NOT_PAUSED": _by(_flow_not_paused, "", "PreconditionFailure"),
    "FLOW_NOT_DELETED": _by(_flow_not_deleted, "", "PreconditionFailure"),
    "CHILD_EXISTS": _by(_child_exists, "child_type", "PreconditionFailure"),
    "RETRY_LIMIT_REACHED": _by(_retry_limit_reached, "phase retry_count max_retries retry_allowed", "PreconditionFailure"),
    "CONCURRENT_MODIFICATION": _by(_concurrent_modification, "expected_revision current_revision"),
    "REVISION_COMPACTED": _by(_revision_compacted, "asked_revision oldest_revision head_revision"),
    "HISTORY_DAMAGED": _by(_history_damaged, "revision"),
    "REVISION_IN_FUTURE": _by(_revision_in_future, "asked_revision head_revision"),
    "POSITION_COMPACTED": _by(_position_compacted),
    "POSITION_IN_FUTURE": _by(_position_in_future),
    "QUOTA_EXCEEDED": _by(_quota_exceeded, "quota limit actual"),
    "LIMIT_EXCEEDED": _by(_limit_exceeded, "field limit actual"),
    "NO_CALLER": _by(_no_caller),
    "STORE_UNAVAILABLE": _by(_store_unavailable, "", "RetryInfo"),
    "STREAM_STALLED": _by(_stream_stalled, "", "RetryInfo"),
    "DRAINING": _by(_draining, "", "RetryInfo"),
    "DEADLINE_EXCEEDED": _by(_deadline_exceeded),
    "INTERNAL": _by(_internal, "error_id"),
}


def _reasons(kind: type[FlowError]) -> Iterator[str]:
    if "reason" in vars(kind):
        yield kind.reason
    for narrower in kind.__subclasses__():
        yield from _reasons(narrower)


def test_every_reason_has_a_provocation() -> None:
    assert PROVOCATIONS.keys() == CODES.keys()


def test_every_error_of_the_domain_has_a_code() -> None:
    assert set(_reasons(FlowError)) == CODES.keys() - {"DEADLINE_EXCEEDED", "INTERNAL"}


@pytest.fixture
def stage(tenancy: Tenancy, superuser: asyncpg.Connection, postgres: Cluster, request: pytest.FixtureRequest) -> Stage:
    """A stage; a database of its own is made for those that ask."""
    return Stage(tenancy, superuser, postgres, lambda: request.getfixturevalue("urls"))


@pytest.mark.parametrize("reason", CODES)
async def test_a_reason_is_told_with_its_code_and_details(stage: Stage, reason: str) -> None:
    expected = PROVOCATIONS[reason]
    refusal = await expected.provoke(stage)
    assert (refusal.reason, refusal.code) == (reason, CODES[reason])
    assert refusal.metadata.keys() >= expected.metadata
    assert refusal.details == ("ErrorInfo", *expected.details)
    assert refusal.text


async def test_all_faulty_fields_are_named_at_once(tenancy: Tenancy) -> None:
    refusal = await tenancy.refusal("GetFlow", flow_id="x", min_revision=-1, view=77, form=78)
    assert refusal.violations.keys() == {"flow_id", "min_revision", "view", "form"}
    refusal = await tenancy.refusal(
        "CreateFlow", flow_id="x", type="nothing", display_name="n" * 201, labels={"UPPER": ""}, state={"json": "{"}, request_id="y"
    )
    assert refusal.violations.keys() == {"flow_id", "type", "display_name", "labels['UPPER']", "state.json", "request_id"}
    refusal = await tenancy.refusal(
        "CommitFlow",
        flow_id="x",
        expected_revision=-1,
        changes=[{"transition": {"to": 99}}, {}, {"progress": {"phase": "p", "fraction": 2.0}}],
    )
    assert refusal.violations.keys() == {
        "flow_id",
        "expected_revision",
        "changes[0].transition.phase",
        "changes[0].transition.to",
        "changes[1]",
        "changes[2].progress.fraction",
    }


async def test_a_lists_faults_are_named_at_once_too(tenancy: Tenancy) -> None:
    refusal = await tenancy.refusal("ListFlows", page_size=-1, filter="nothing = 1", order_by="revision", view=9)
    assert refusal.violations.keys() == {"page_size", "filter", "order_by", "view"}


async def test_more_faults_than_fit_are_counted(tenancy: Tenancy) -> None:
    refusal = await tenancy.refusal("BatchGetFlows", flow_ids=["x"] * 100)
    named = len(refusal.violations) - 1
    assert named >= 5
    assert refusal.violations["..."] == f"and {100 - named} more"


async def test_a_precondition_names_what_is_in_the_way(tenancy: Tenancy) -> None:
    flow_id = (await tenancy.create()).flow_id
    transition = {"phase": "field_mapping", "to": "PHASE_STATE_IN_PROGRESS"}
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await tenancy.call("TransitionPhase", flow_id=flow_id, transition=transition)
    failure = error_details_pb2.PreconditionFailure()
    status = rpc_status.from_call(caught.value)  # type: ignore[arg-type] # the stubs know the synchronous error only
    assert status is not None
    assert status.details[1].Unpack(failure)
    (violation,) = failure.violations
    assert (violation.type, violation.subject) == ("DEPENDENCY_INCOMPLETE", "phase/field_mapping")
    assert violation.description == caught.value.details()
    assert Refusal.of(caught.value).metadata["missing_dependencies"] == "data_import"


async def test_who_comes_too_soon_is_told_when_to_come_back(stage: Stage) -> None:
    async with stage.own_server() as (server, tenancy, _):
        server.drain()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await tenancy.call("ListFlows")
    again = error_details_pb2.RetryInfo()
    status = rpc_status.from_call(caught.value)  # type: ignore[arg-type] # the stubs know the synchronous error only
    assert status is not None
    assert status.details[1].Unpack(again)
    assert 0.0 < again.retry_delay.ToTimedelta().total_seconds() <= 5.0


async def test_a_fault_of_the_service_reaches_the_client_as_an_id_and_the_log_as_the_whole(urls: Urls, postgres: Cluster) -> None:
    async with served(urls) as server, grpc.aio.insecure_channel(server.address) as channel:
        tenancy = Tenancy.fresh(channel)
        flow_id = (await tenancy.create()).flow_id
        postgres.run(f"UPDATE events SET body = '{BROKEN_BODY}' WHERE flow_id = '{flow_id}'", urls.name)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await tenancy.call("ListFlowEvents", flow_id=flow_id)
        refusal = Refusal.of(caught.value)
        error_id = refusal.metadata["error_id"]
        assert refusal.text == f"internal error {error_id}: the server's log says more"
        assert MARKER not in repr(caught.value.trailing_metadata()) + repr(caught.value.initial_metadata()) + (refusal.text)
        line = await server.logged("call_failed", error_id=error_id)
        assert MARKER in line["exception"]
        assert (line["method"], line["user"]) == ("flowledger.v1.FlowService/ListFlowEvents", tenancy.user)
        # A stream's faults are no different.
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await CALLS["WatchFlow"].send(tenancy, flow_id, start="WATCH_START_AFTER_REVISION")
        assert Refusal.of(caught.value).reason == "INTERNAL"
        assert MARKER not in repr(caught.value.trailing_metadata())


_WIDE = "\U0001f4a5"  # four bytes of UTF-8, twelve as gRPC encodes a status message
_HOSTILE: Mapping[str, tuple[str, dict[str, Any]]] = {
    "ids": ("BatchGetFlows", {"flow_ids": [_WIDE * 30] * 100}),
    "text": ("GetFlow", {"flow_id": _WIDE * 100_000}),
    "controls": ("GetFlow", {"flow_id": "\x01\r\n%" * 9}),
    "labels": ("CreateFlow", {"type": _WIDE * 9, "labels": {_WIDE * n: _WIDE * 201 for n in range(1, 64)}}),
    "many_labels": ("CreateFlow", {"type": "t" * 200, "labels": {f"k{n}": "" for n in range(1000)}}),
    "filter": ("ListFlows", {"filter": f"display_name = '{_WIDE * 900}"}),
    "field": ("ListFlows", {"filter": f"{_WIDE * 900} = 1"}),
    "status": ("ListFlows", {"filter": f"status = '{_WIDE * 900}'"}),
    "order": ("ListFlows", {"order_by": _WIDE * 200}),
    "token": ("ListFlows", {"page_token": _WIDE * 9000}),
    "phase": ("ReportProgress", {"flow_id": "", "progress": {"phase": _WIDE * 100}}),
    "child": ("ReportProgress", {"flow_id": "", "progress": {"phase": _WIDE * 100, "child_type": _WIDE * 100}}),
    "mask": ("UpdateFlow", {"flow_id": "", "update": {"update_mask": {"paths": [_WIDE * 99] * 99}}}),
    "data": ("UpdateFlow", {"flow_id": "", "update": {"child_data": {_WIDE * 100: {"json": "{}"}}}}),
    "large_data": ("UpdateFlow", {"flow_id": "", "update": {"child_data": {_WIDE * 100: {"json": f'{{"a":"{"a" * (4 << 20)}"}}'}}}}),
    "path": ("UpdateFlow", {"flow_id": "", "update": {"state": {"json": f'{{"{_WIDE * 900}":[{{"{_WIDE * 900}":1E999}}]}}'}}}),
    "json": ("UpdateFlow", {"flow_id": "", "update": {"state": {"json": _WIDE * 900}}}),
    "domain": ("StartChildFlow", {"flow_id": "", "child_start": {"type": _WIDE * 200}}),
    "changes": ("CommitFlow", {"flow_id": "", "changes": [{"transition": {"phase": _WIDE * 101, "child_type": _WIDE * 101}}] * 100}),
    "last_change": ("CommitFlow", {"flow_id": "", "changes": [*[{"pause": {}}, {"resume": {}}] * 49, {"retry": {"phase": _WIDE * 100}}]}),
    "request_id": ("PauseFlow", {"flow_id": "", "request_id": _WIDE * 1000, "pause": {"reason": _WIDE * 9000}}),
}  # fmt: skip


def _trailer_bytes(error: grpc.aio.AioRpcError) -> int:
    """The trailers on their way: names and values, the message as gRPC encodes it (the library hands it over decoded)."""
    message = quote(error.details() or "", safe="".join(chr(code) for code in range(0x20, 0x7F) if chr(code) != "%"))
    pairs = [(key, value) for key, value in error.trailing_metadata() or () if key != "grpc-message"]
    pairs += [("grpc-message", message), ("grpc-status", "16")]
    return sum(len(key) + len(value) for key, value in pairs)


@pytest.mark.parametrize("hostile", _HOSTILE)
async def test_an_errors_trailers_stay_below_2_kb(tenancy: Tenancy, hostile: str) -> None:
    name, fields = _HOSTILE[hostile]
    if fields.get("flow_id") == "":
        fields = {**fields, "flow_id": (await tenancy.create()).flow_id}
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await tenancy.call(name, **fields)
    refusal = Refusal.of(caught.value)
    assert refusal.code is CODES[refusal.reason]
    assert refusal.reason not in ("INTERNAL", "")
    assert _trailer_bytes(caught.value) < 2048


async def test_one_callers_error_is_not_another_ones(channel: grpc.aio.Channel) -> None:
    """Commits of many tenants share a transaction; what one of them is refused for stays with it."""
    crowd = [Tenancy.fresh(channel) for _ in range(60)]
    flows = await asyncio.gather(*(one.create() for one in crowd))
    culprits = {at: str(uuid4()) for at in range(10, 60, 7)}
    for at, request_id in culprits.items():
        await crowd[at].call("CreateFlow", type="planning", request_id=request_id)

    async def pause(at: int) -> str:
        fields = {"flow_id": flows[at].flow_id, "request_id": culprits.get(at, str(uuid4()))}
        try:
            response = await crowd[at].call("PauseFlow", **fields)
        except grpc.aio.AioRpcError as error:
            return Refusal.of(error).reason
        assert response.event.actor == crowd[at].user
        return f"{response.flow.flow_id} at {response.flow.revision}"

    told = await asyncio.gather(*(pause(at) for at in range(len(crowd))))
    assert told == ["REQUEST_ID_REUSED" if at in culprits else f"{flows[at].flow_id} at 2" for at in range(len(crowd))]
