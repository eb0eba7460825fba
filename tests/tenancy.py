"""How tests call the service: as one tenant's user, with the generated stub."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID, uuid4

import grpc
from flowledger.v1 import flow_pb2
from flowledger.v1 import flow_service_pb2 as pb
from flowledger.v1.flow_service_pb2_grpc import FlowServiceStub
from google.rpc import error_details_pb2  # type: ignore[import-untyped]
from grpc_status import rpc_status

PATIENCE = 20.0  # seconds that a call may take before the test fails instead of hanging


@dataclass(frozen=True, slots=True)
class Tenancy:
    """One tenant and user on one channel; ``call("GetFlow", flow_id=...)`` is the way in."""

    channel: grpc.aio.Channel
    account: UUID
    engagement: UUID
    user: str = "ada"

    @classmethod
    def fresh(cls, channel: grpc.aio.Channel) -> Tenancy:
        """A tenant that nobody else uses."""
        return cls(channel, uuid4(), uuid4())

    def other_engagement(self) -> Tenancy:
        """The same account with another engagement."""
        return replace(self, engagement=uuid4())

    def on(self, channel: grpc.aio.Channel) -> Tenancy:
        """The same tenant on another connection."""
        return replace(self, channel=channel)

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What names the caller."""
        return (
            ("x-client-account-id", str(self.account)),
            ("x-engagement-id", str(self.engagement)),
            ("x-user-id", self.user),
        )

    @property
    def stub(self) -> Any:
        """The generated stub, untyped: tests send wrong things on purpose."""
        return FlowServiceStub(self.channel)

    async def send(self, name: str, request: Any, timeout: float = PATIENCE) -> Any:  # noqa: ASYNC109 - gRPC's own
        """The response to ``request``."""
        return await getattr(self.stub, name)(request, metadata=self.metadata, timeout=timeout)

    async def call(self, name: str, **fields: Any) -> Any:
        """The response to the RPC's request made of ``fields``."""
        return await self.send(name, getattr(pb, f"{name}Request")(**fields))

    async def create(self, **fields: Any) -> flow_pb2.Flow:
        """A new flow, of type discovery unless said otherwise."""
        found: flow_pb2.Flow = (await self.call("CreateFlow", **{"type": "discovery", **fields})).flow
        return found

    async def move(self, flow_id: str, phase: str, *states: str, **fields: Any) -> Any:
        """The last response after moving a phase through ``states``."""
        response = None
        for state in states:
            transition = {"phase": phase, "to": f"PHASE_STATE_{state}"}
            if state == "FAILED":
                transition["failure"] = {"code": "FAILURE_CODE_EXTERNAL_SERVICE_ERROR"}  # type: ignore[assignment]
            response = await self.call("TransitionPhase", flow_id=flow_id, transition=transition, **fields)
        return response

    async def refusal(self, name: str, **fields: Any) -> Refusal:
        """The error that the call is refused with."""
        try:
            response = await self.call(name, **fields)
        except grpc.aio.AioRpcError as error:
            return Refusal.of(error)
        raise AssertionError(f"{name} was not refused: {response}")

    def watch(self, flow_id: str, **fields: Any) -> Any:
        """The stream of a WatchFlow."""
        return self.stub.WatchFlow(pb.WatchFlowRequest(flow_id=flow_id, **fields), metadata=self.metadata)

    def watch_all(self, **fields: Any) -> Any:
        """The stream of a WatchFlows."""
        return self.stub.WatchFlows(pb.WatchFlowsRequest(**fields), metadata=self.metadata)


@dataclass(frozen=True, slots=True)
class Refusal:
    """An error as a client sees it."""

    code: grpc.StatusCode
    text: str
    reason: str
    metadata: dict[str, str]
    violations: dict[str, str]
    details: tuple[str, ...]

    @classmethod
    def of(cls, error: grpc.aio.AioRpcError) -> Refusal:
        """What the error carries."""
        status = rpc_status.from_call(error)  # type: ignore[arg-type]
        reason, metadata, violations, kinds = "", {}, {}, []
        for detail in status.details if status is not None else ():
            kinds.append(detail.type_url.rpartition(".")[2])
            info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
            if detail.Unpack(info):
                assert info.domain == "flowledger"
                reason, metadata = info.reason, dict(info.metadata)
            elif detail.Unpack(bad):
                violations = {violation.field: violation.description for violation in bad.field_violations}
        return cls(error.code(), error.details() or "", reason, metadata, violations, tuple(kinds))
