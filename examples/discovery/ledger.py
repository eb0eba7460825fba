"""The service, as this worker calls it: one method for each thing that the worker says, answers waited for through restarts.

Every change carries a request id and is repeated under it while the service is away, so it happens once even when its answer was lost.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Protocol, TypeVar
from uuid import UUID

import grpc
from flowledger.v1 import activity_pb2, change_pb2, document_pb2, flow_pb2, flow_service_pb2, flow_service_pb2_grpc
from google.rpc import error_details_pb2  # type: ignore[import-untyped]  # ships no stubs
from grpc import aio
from grpc_status import rpc_status

CHILD = "discovery"
ATTEMPT_SECONDS = 10.0
PATIENCE_SECONDS = 60.0
# What says nothing about whether the change happened, or that it will work in a moment.
AWAY = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED})
# A full flow is four documents of up to 4 MiB; gRPC's own limit is 4 MiB a message.
_CHANNEL_OPTIONS = (
    ("grpc.max_receive_message_length", 32 * 1024 * 1024),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2000),
)

Q_contra = TypeVar("Q_contra", contravariant=True)
R_co = TypeVar("R_co", covariant=True)
Q = TypeVar("Q")
R = TypeVar("R")


class Method(Protocol[Q_contra, R_co]):
    """A unary RPC of the generated stub."""

    def __call__(self, request: Q_contra, /, *, timeout: float | None, metadata: tuple[tuple[str, str], ...]) -> Awaitable[R_co]: ...


@dataclass(frozen=True, slots=True)
class Caller:
    """On whose behalf the worker calls: the tenant and the user."""

    client_account_id: UUID
    engagement_id: UUID
    user_id: str

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What every call carries."""
        return (
            ("x-client-account-id", str(self.client_account_id)),
            ("x-engagement-id", str(self.engagement_id)),
            ("x-user-id", self.user_id),
        )


class CallFailed(Exception):
    """The service refused a call, or stayed away; the text is a sentence, ``reason`` the machine-readable reason if one came."""

    def __init__(self, sentence: str, reason: str, code: grpc.StatusCode) -> None:
        super().__init__(sentence)
        self.reason, self.code = reason, code


def call_failed(error: aio.AioRpcError) -> CallFailed:
    """``error`` as a sentence, with the reason and the faulty fields that the service sent along."""
    said = error.details() or "the service gave no reason"
    reason, told = "", [said]
    status = rpc_status.from_call(error)  # type: ignore[arg-type]  # it takes whatever has a code, details and trailers
    for detail in status.details if status else ():
        info, request = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
        if detail.Unpack(info):
            reason = info.reason
            more = [(key.replace("_", " "), value) for key, value in sorted(info.metadata.items())]
        elif detail.Unpack(request):
            more = [(violation.field, violation.description) for violation in request.field_violations]
        else:
            more = []
        told += [f"{name}: {text}" for name, text in more if text not in said]
    label = reason or error.code().name
    return CallFailed(f"{'; '.join(told)} ({label})", reason, error.code())


@asynccontextmanager
async def open_ledger(address: str, caller: Caller, new_id: Callable[[], UUID]) -> AsyncIterator[Ledger]:
    """A ledger on a channel of its own to ``address`` (`host:port`)."""
    async with aio.insecure_channel(address, options=_CHANNEL_OPTIONS) as channel:
        yield Ledger(flow_service_pb2_grpc.FlowServiceStub(channel), caller, new_id)


class Ledger:
    """The calls of one caller. ``revision`` is the newest that any answer named."""

    def __init__(self, stub: flow_service_pb2_grpc.FlowServiceAsyncStub, caller: Caller, new_id: Callable[[], UUID]) -> None:
        self._stub, self._caller, self._new_id = stub, caller, new_id
        self.revision = 0

    async def create_flow(self, display_name: str, labels: dict[str, str], child_data: str) -> str:
        """The id of a new discovery flow."""
        request = flow_service_pb2.CreateFlowRequest(
            type=CHILD, display_name=display_name, labels=labels, child_data=_json(child_data), request_id=self._request_id()
        )
        answer = await self._call(self._stub.CreateFlow, request)
        return self._seen(answer.flow).flow_id

    async def flow(self, flow_id: str, view: flow_pb2.FlowView.ValueType) -> flow_pb2.Flow:
        """The flow, at least as new as anything this ledger has been told."""
        request = flow_service_pb2.GetFlowRequest(flow_id=flow_id, view=view, min_revision=self.revision)
        return self._seen((await self._call(self._stub.GetFlow, request)).flow)

    async def transition(self, flow_id: str, transition: change_pb2.PhaseTransition) -> flow_service_pb2.TransitionPhaseResponse:
        """Moves a phase."""
        transition.child_type = CHILD
        request = flow_service_pb2.TransitionPhaseRequest(flow_id=flow_id, transition=transition, request_id=self._request_id())
        answer = await self._call(self._stub.TransitionPhase, request)
        self._seen(answer.flow)
        return answer

    async def retry(self, flow_id: str, phase: str, reason: str) -> None:
        """Begins a phase again."""
        retry = change_pb2.PhaseRetry(phase=phase, child_type=CHILD, reason=reason)
        request = flow_service_pb2.RetryPhaseRequest(flow_id=flow_id, retry=retry, request_id=self._request_id())
        self._seen((await self._call(self._stub.RetryPhase, request)).flow)

    async def update_child(self, flow_id: str, patch: str) -> None:
        """Merges ``patch`` (RFC 7396) into the discovery child's document."""
        request = flow_service_pb2.UpdateFlowRequest(flow_id=flow_id, update=child_patch(patch), request_id=self._request_id())
        self._seen((await self._call(self._stub.UpdateFlow, request)).flow)

    async def commit(self, flow_id: str, changes: Sequence[change_pb2.Change]) -> None:
        """Does several things as one commit."""
        request = flow_service_pb2.CommitFlowRequest(flow_id=flow_id, changes=changes, request_id=self._request_id())
        self._seen((await self._call(self._stub.CommitFlow, request)).flow)

    async def report(self, flow_id: str, report: change_pb2.ProgressReport) -> None:
        """Says how far a phase has come."""
        request = flow_service_pb2.ReportProgressRequest(flow_id=flow_id, progress=report, request_id=self._request_id())
        self._seen((await self._call(self._stub.ReportProgress, request)).flow)

    async def record(self, flow_id: str, entries: Sequence[activity_pb2.ActivityEntry]) -> None:
        """Adds to the flow's activity."""
        activity = change_pb2.ActivityRecord(entries=entries)
        request = flow_service_pb2.RecordActivityRequest(flow_id=flow_id, activity=activity, request_id=self._request_id())
        self._seen((await self._call(self._stub.RecordActivity, request)).flow)

    def progress_call(self) -> aio.StreamUnaryCall[flow_service_pb2.StreamProgressRequest, flow_service_pb2.StreamProgressResponse]:
        """A new StreamProgress call; what it is told and how it ends is its holder's business."""
        return self._stub.StreamProgress(metadata=self._caller.metadata)

    def watch_call(
        self, request: flow_service_pb2.WatchFlowRequest
    ) -> aio.UnaryStreamCall[flow_service_pb2.WatchFlowRequest, flow_service_pb2.WatchFlowResponse]:
        """A new WatchFlow call."""
        return self._stub.WatchFlow(request, metadata=self._caller.metadata)

    def _request_id(self) -> str:
        return str(self._new_id())

    def _seen(self, flow: flow_pb2.Flow) -> flow_pb2.Flow:
        self.revision = max(self.revision, flow.revision)
        return flow

    async def _call(self, method: Method[Q, R], request: Q) -> R:
        """The answer; CallFailed when the service refuses, or stays away for longer than PATIENCE_SECONDS."""
        clock = asyncio.get_running_loop().time
        give_up, pause = clock() + PATIENCE_SECONDS, 0.1
        while True:
            try:
                return await method(request, timeout=ATTEMPT_SECONDS, metadata=self._caller.metadata)
            except aio.AioRpcError as error:
                if error.code() not in AWAY or clock() + pause > give_up:
                    raise call_failed(error) from None
            await asyncio.sleep(pause)
            pause = min(2 * pause, 2.0)


def child_patch(patch: str) -> change_pb2.FlowUpdate:
    """The update that merges ``patch`` into the discovery child's document."""
    return change_pb2.FlowUpdate(child_data={CHILD: _json(patch)}, document_mode=document_pb2.DOCUMENT_MODE_MERGE_PATCH)


def state_patch(patch: str) -> change_pb2.FlowUpdate:
    """The update that merges ``patch`` into the flow's state."""
    return change_pb2.FlowUpdate(state=_json(patch), document_mode=document_pb2.DOCUMENT_MODE_MERGE_PATCH)


def _json(text: str) -> document_pb2.Document:
    return document_pb2.Document(json=text)
