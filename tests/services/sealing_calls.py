"""One call of every RPC of CheckpointService, and of those of AdminService that concern keys: what must be there, and what it asks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import grpc
from flowledger.v1 import admin_service_pb2 as admin_pb
from flowledger.v1 import checkpoint_service_pb2 as pb
from google.protobuf.descriptor import MethodDescriptor

from server.services.key_admin import KeyAdmin
from tests.services.checkpoints import Sealing
from tests.tenancy import PATIENCE, Refusal, Tenancy

_CHECKPOINTS = pb.DESCRIPTOR.services_by_name["CheckpointService"]
_ADMIN = admin_pb.DESCRIPTOR.services_by_name["AdminService"]
_OF_KEYS = [name for name in vars(KeyAdmin) if name[0].isupper()]
METHODS: dict[str, MethodDescriptor] = {
    **{method.name: method for method in _CHECKPOINTS.methods},
    **{name: _ADMIN.methods_by_name[name] for name in _OF_KEYS},
}


@dataclass(frozen=True, slots=True)
class Target:
    """What the calls are about: a tenant's flow at revision 2, a checkpoint of each revision, the first one with a payload."""

    sealing: Sealing
    flow_id: str
    checkpoint_id: str
    other_id: str

    @classmethod
    async def fresh(cls, tenancy: Tenancy) -> Target:
        """A new one."""
        sealing = Sealing(tenancy)
        flow_id = (await tenancy.create(state={"json": '{"n":1}'})).flow_id
        one = (await sealing.upload(b"payload", flow_id=flow_id)).checkpoint
        await tenancy.call("UpdateFlow", flow_id=flow_id, update={"state": {"json": '{"n":2}'}})
        return cls(sealing, flow_id, one.checkpoint_id, (await sealing.create(flow_id)).checkpoint_id)

    @property
    def tenancy(self) -> Tenancy:
        """Whose it is."""
        return self.sealing.tenancy

    async def told(self) -> tuple[Any, Any, bytes]:
        """Everything that can be seen of it."""
        flow = (await self.tenancy.call("GetFlow", flow_id=self.flow_id, view="FLOW_VIEW_FULL")).flow
        return flow, await self.sealing.listed(), await self.sealing.download(self.checkpoint_id, part="CHECKPOINT_PART_PAYLOAD")


def confirm(tenancy: Tenancy) -> str:
    """What an erasure asks for."""
    return f"{tenancy.account}/{tenancy.engagement}"


# The fields of a request that succeeds, when the target's own tenant asks.
CALLS: dict[str, Callable[[Target], dict[str, Any]]] = {
    "CreateCheckpoint": lambda target: {"flow_id": target.flow_id},
    "GetCheckpoint": lambda target: {"checkpoint_id": target.checkpoint_id},
    "ListCheckpoints": lambda target: {"flow_id": target.flow_id},
    "RestoreCheckpoint": lambda target: {"checkpoint_id": target.checkpoint_id},
    "DiffCheckpoints": lambda target: {"from_checkpoint_id": target.checkpoint_id, "to_checkpoint_id": target.other_id},
    "UpdateCheckpoint": lambda target: {"checkpoint_id": target.checkpoint_id, "pinned": True},
    "DeleteCheckpoint": lambda target: {"checkpoint_id": target.checkpoint_id},
    "PruneCheckpoints": lambda target: {"flow_id": target.flow_id, "keep_newest": 1},
    "UploadCheckpoint": lambda target: {"header": {"flow_id": target.flow_id}},
    "DownloadCheckpoint": lambda target: {"checkpoint_id": target.checkpoint_id, "part": "CHECKPOINT_PART_SNAPSHOT"},
    "RotateTenantKey": lambda _: {},
    "GetKeyRotation": lambda _: {},
    "EraseTenant": lambda target: {"confirm": confirm(target.tenancy)},
}


def fields_of(name: str) -> set[str]:
    """The names of the request's fields, of an upload those of its header."""
    kind = pb.UploadHeader.DESCRIPTOR if name == "UploadCheckpoint" else METHODS[name].input_type
    return set(kind.fields_by_name)


MUTATIONS = sorted(name for name in METHODS if "request_id" in fields_of(name))


def request(name: str, target: Target, **more: Any) -> Any:
    """The request, of an upload its header."""
    fields = CALLS[name](target)
    fields = {"header": {**fields["header"], **more}} if "header" in fields else {**fields, **more}
    return getattr(admin_pb if name in _OF_KEYS else pb, f"{name}Request")(**fields)


async def raw(tenancy: Tenancy, name: str, body: bytes) -> bytes:
    """The response to a request's bytes, of a stream all of its responses; an upload's header is followed by a payload."""
    method = METHODS[name]
    assert method.containing_service is not None
    path = f"/{method.containing_service.full_name}/{name}"
    channel: Any = tenancy.channel  # these are bytes already, and stubs want messages
    rest: Any = {"metadata": tenancy.metadata, "timeout": PATIENCE}
    if method.server_streaming:
        return b"".join([part async for part in channel.unary_stream(path)(body, **rest)])
    if method.client_streaming:
        chunk = pb.UploadCheckpointRequest(chunk=b"payload").SerializeToString()
        uploaded: bytes = await channel.stream_unary(path)(iter([body, chunk]), **rest)
        return uploaded
    found: bytes = await channel.unary_unary(path)(body, **rest)
    return found


async def refusal(tenancy: Tenancy, name: str, body: bytes) -> Refusal | None:
    """The error that the request's bytes are refused with; None when they are taken."""
    try:
        await raw(tenancy, name, body)
    except grpc.aio.AioRpcError as error:
        return Refusal.of(error)
    return None
