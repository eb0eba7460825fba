"""One call of every RPC that succeeds: what must be there before it, and what it asks."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import grpc
from flowledger.v1 import flow_service_pb2 as pb

from tests.tenancy import PATIENCE, Refusal, Tenancy

METHODS = {method.name: method for method in pb.DESCRIPTOR.services_by_name["FlowService"].methods}
PHASE = "data_import"


async def _plain(tenancy: Tenancy) -> str:
    return (await tenancy.create()).flow_id


async def _begun(tenancy: Tenancy) -> str:
    flow_id = await _plain(tenancy)
    await tenancy.move(flow_id, PHASE, "IN_PROGRESS")
    return flow_id


async def _completed(tenancy: Tenancy) -> str:
    flow_id = await _plain(tenancy)
    await tenancy.move(flow_id, PHASE, "IN_PROGRESS", "COMPLETED")
    return flow_id


async def _retryable(tenancy: Tenancy) -> str:
    flow_id = await _plain(tenancy)
    await tenancy.move(flow_id, PHASE, "IN_PROGRESS", "RETRY_NEEDED")
    return flow_id


async def _paused(tenancy: Tenancy) -> str:
    flow_id = await _plain(tenancy)
    await tenancy.call("PauseFlow", flow_id=flow_id)
    return flow_id


async def _deleted(tenancy: Tenancy) -> str:
    flow_id = await _plain(tenancy)
    await tenancy.call("DeleteFlow", flow_id=flow_id)
    return flow_id


async def _childless(tenancy: Tenancy) -> str:
    return (await tenancy.create(type="migration", skip_first_child=True)).flow_id


@dataclass(frozen=True, slots=True)
class Call:
    """``prepare`` makes the flow that the call is about, ``fields`` are the request's, given that flow's id."""

    name: str
    prepare: Callable[[Tenancy], Awaitable[str]]
    fields: Callable[[str], dict[str, Any]]

    @property
    def mutates(self) -> bool:
        """Whether the RPC takes a request id, as every mutation does."""
        return "request_id" in METHODS[self.name].input_type.fields_by_name

    @property
    def guarded(self) -> bool:
        """Whether the RPC takes the revision that the flow must be at."""
        return "expected_revision" in METHODS[self.name].input_type.fields_by_name

    @property
    def rehearsable(self) -> bool:
        """Whether the RPC can be tried without writing."""
        return "validate_only" in METHODS[self.name].input_type.fields_by_name

    def request(self, flow_id: str, **more: Any) -> Any:
        """The request."""
        return getattr(pb, f"{self.name}Request")(**{**self.fields(flow_id), **more})

    async def send(self, tenancy: Tenancy, flow_id: str, **more: Any) -> Any:
        """The response, for a watch its first message."""
        return await send(tenancy, self.name, self.request(flow_id, **more))

    async def refusal(self, tenancy: Tenancy, flow_id: str, **more: Any) -> Refusal:
        """The error that the call ends with."""
        try:
            response = await self.send(tenancy, flow_id, **more)
        except grpc.aio.AioRpcError as error:
            return Refusal.of(error)
        raise AssertionError(f"{self.name} was not refused: {response}")


async def send(tenancy: Tenancy, name: str, request: Any) -> Any:
    """The response to ``request`` whatever kind of RPC it is; a stream's first message, a lone report for a client stream."""
    method = METHODS[name]
    rpc, metadata = getattr(tenancy.stub, name), tenancy.metadata
    if method.client_streaming:
        return await rpc(iter([request]), metadata=metadata, timeout=PATIENCE)
    if not method.server_streaming:
        return await rpc(request, metadata=metadata, timeout=PATIENCE)
    stream = rpc(request, metadata=metadata, timeout=PATIENCE)
    try:
        return await asyncio.wait_for(anext(aiter(stream)), PATIENCE)
    finally:
        stream.cancel()


_TRANSITION = {"phase": PHASE, "to": "PHASE_STATE_IN_PROGRESS"}
_REPORT = {"phase": PHASE, "fraction": 0.5}

CALLS: Mapping[str, Call] = {
    call.name: call
    for call in (
        Call("CreateFlow", _plain, lambda _: {"type": "discovery", "display_name": "new"}),
        Call("GetFlow", _plain, lambda flow_id: {"flow_id": flow_id}),
        Call("BatchGetFlows", _plain, lambda flow_id: {"flow_ids": [flow_id]}),
        Call("ListFlows", _plain, lambda _: {"show_deleted": True}),
        Call("UpdateFlow", _plain, lambda flow_id: {"flow_id": flow_id, "update": {"display_name": "other"}}),
        Call("CommitFlow", _plain, lambda flow_id: {"flow_id": flow_id, "changes": [{"transition": _TRANSITION}, {"progress": _REPORT}]}),
        Call("TransitionPhase", _plain, lambda flow_id: {"flow_id": flow_id, "transition": _TRANSITION}),
        Call("RetryPhase", _retryable, lambda flow_id: {"flow_id": flow_id, "retry": {"phase": PHASE}}),
        Call("RollbackPhase", _completed, lambda flow_id: {"flow_id": flow_id, "rollback": {"phase": PHASE}}),
        Call("ReportProgress", _begun, lambda flow_id: {"flow_id": flow_id, "progress": _REPORT}),
        Call("StreamProgress", _begun, lambda flow_id: {"flow_id": flow_id, "progress": _REPORT}),
        Call(
            "RecordActivity",
            _plain,
            lambda flow_id: {"flow_id": flow_id, "activity": {"entries": [{"kind": "ACTIVITY_KIND_TIMING", "value": 1.0}]}},
        ),
        Call("PauseFlow", _plain, lambda flow_id: {"flow_id": flow_id, "pause": {"reason": "lunch"}}),
        Call("ResumeFlow", _paused, lambda flow_id: {"flow_id": flow_id, "resume": {"reason": "back"}}),
        Call("CancelFlow", _plain, lambda flow_id: {"flow_id": flow_id, "cancel": {"reason": "no budget"}}),
        Call("DeleteFlow", _plain, lambda flow_id: {"flow_id": flow_id, "reason": "a mistake"}),
        Call("UndeleteFlow", _deleted, lambda flow_id: {"flow_id": flow_id}),
        Call(
            "BatchUpdateFlows",
            _plain,
            lambda flow_id: {"commits": [{"flow_id": flow_id, "changes": [{"transition": _TRANSITION}]}]},
        ),
        Call("StartChildFlow", _childless, lambda flow_id: {"flow_id": flow_id, "child_start": {"type": "discovery"}}),
        Call("ListFlowEvents", _plain, lambda flow_id: {"flow_id": flow_id}),
        Call("DiffFlow", _begun, lambda flow_id: {"flow_id": flow_id, "from_revision": 1}),
        Call("RevertFlow", _begun, lambda flow_id: {"flow_id": flow_id, "revision": 1, "reason": "a mistake"}),
        Call("ForkFlow", _begun, lambda flow_id: {"flow_id": flow_id, "revision": 1, "display_name": "another way"}),
        Call("WatchFlow", _plain, lambda flow_id: {"flow_id": flow_id}),
        Call("WatchFlows", _plain, lambda _: {}),
    )
}
# What makes a new flow: its answer is about another one than the call was prepared with, if about any.
BIRTHS = frozenset({"CreateFlow", "ForkFlow"})
MUTATIONS = sorted(name for name, call in CALLS.items() if call.mutates)


def flow_and_event(response: Any) -> tuple[Any, Any]:
    """The flow after a mutation and the event that records it, of a batch the first."""
    one = response.results[0] if hasattr(response, "results") else response
    return one.flow, one.event
