"""How tests call AdminService: as one tenant's user, with the generated stub."""

from __future__ import annotations

from typing import Any

import grpc
from flowledger.v1 import admin_service_pb2 as pb
from flowledger.v1 import audit_pb2
from flowledger.v1.admin_service_pb2_grpc import AdminServiceStub

from tests.tenancy import PATIENCE, Refusal, Tenancy


def request(name: str, **fields: Any) -> Any:
    """The RPC's request."""
    return getattr(pb, f"{name}Request")(**fields)


async def call(tenancy: Tenancy, name: str, **fields: Any) -> Any:
    """The response; of a stream all of its messages."""
    stub: Any = AdminServiceStub(tenancy.channel)  # type: ignore[no-untyped-call, unused-ignore]
    asked = getattr(stub, name)(request(name, **fields), metadata=tenancy.metadata, timeout=PATIENCE)
    if pb.DESCRIPTOR.services_by_name["AdminService"].methods_by_name[name].server_streaming:
        return [message async for message in asked]
    return await asked


async def refusal(tenancy: Tenancy, name: str, **fields: Any) -> Refusal:
    """The error that the call is refused with."""
    try:
        response = await call(tenancy, name, **fields)
    except grpc.aio.AioRpcError as error:
        return Refusal.of(error)
    raise AssertionError(f"{name} was not refused: {response}")


async def verified(tenancy: Tenancy, flow_id: str = "") -> tuple[Any, list[tuple[str, int, str]]]:
    """The result of VerifyAudit: the summary, and each flow's first broken link."""
    messages = await call(tenancy, "VerifyAudit", flow_id=flow_id)
    assert [message.done for message in messages] == [False] * (len(messages) - 1) + [True]
    breaks = [found for message in messages for found in message.breaks]
    return messages[-1].summary, [
        (found.flow_id, found.revision, audit_pb2.BreakKind.Name(found.kind).removeprefix("BREAK_KIND_")) for found in breaks
    ]
