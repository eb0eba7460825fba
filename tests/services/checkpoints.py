"""How tests call CheckpointService and the key RPCs of AdminService: as one tenant's user."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import grpc
from flowledger.v1 import admin_service_pb2, checkpoint_pb2
from flowledger.v1 import checkpoint_service_pb2 as pb
from flowledger.v1.admin_service_pb2_grpc import AdminServiceStub
from flowledger.v1.checkpoint_service_pb2_grpc import CheckpointServiceStub

from tests.tenancy import PATIENCE, Refusal, Tenancy

MIB = 1024 * 1024
METHODS = {method.name: method for method in pb.DESCRIPTOR.services_by_name["CheckpointService"].methods}


def state(text: str) -> dict[str, Any]:
    """The fields of an UpdateFlow that puts that state."""
    return {"update": {"state": {"json": text}}}


@dataclass(frozen=True, slots=True)
class Sealing:
    """One tenant's checkpoints."""

    tenancy: Tenancy

    @property
    def stub(self) -> Any:
        """The generated stub, untyped: tests send wrong things on purpose."""
        return CheckpointServiceStub(self.tenancy.channel)  # type: ignore[no-untyped-call, unused-ignore]

    async def send(self, name: str, request: Any) -> Any:
        """The response to ``request``; of a stream its messages, to a stream what it is made of."""
        method, rpc, metadata = METHODS[name], getattr(self.stub, name), self.tenancy.metadata
        if method.server_streaming:
            return [message async for message in rpc(request, metadata=metadata, timeout=PATIENCE)]
        if method.client_streaming and not isinstance(request, Iterable | AsyncIterator):
            request = iter([request])
        return await rpc(request, metadata=metadata, timeout=PATIENCE)

    async def call(self, name: str, **fields: Any) -> Any:
        """The response to the RPC's request made of ``fields``."""
        return await self.send(name, getattr(pb, f"{name}Request")(**fields))

    async def admin(self, name: str, **fields: Any) -> Any:
        """The response of an RPC of AdminService."""
        stub: Any = AdminServiceStub(self.tenancy.channel)  # type: ignore[no-untyped-call, unused-ignore]
        return await getattr(stub, name)(
            getattr(admin_service_pb2, f"{name}Request")(**fields), metadata=self.tenancy.metadata, timeout=PATIENCE
        )

    async def refusal(self, name: str, **fields: Any) -> Refusal:
        """The error that the call is refused with."""
        try:
            response = await (self.admin if name not in METHODS else self.call)(name, **fields)
        except grpc.aio.AioRpcError as error:
            return Refusal.of(error)
        raise AssertionError(f"{name} was not refused: {response}")

    async def create(self, flow_id: str, **fields: Any) -> checkpoint_pb2.Checkpoint:
        """A new checkpoint."""
        found: checkpoint_pb2.Checkpoint = (await self.call("CreateCheckpoint", flow_id=flow_id, **fields)).checkpoint
        return found

    async def listed(self, **fields: Any) -> list[checkpoint_pb2.Checkpoint]:
        """The checkpoints, the newest first."""
        return list((await self.call("ListCheckpoints", **fields)).checkpoints)

    async def upload(self, payload: bytes, chunk: int = MIB, **header: Any) -> pb.UploadCheckpointResponse:
        """The response to an upload in chunks."""
        found: pb.UploadCheckpointResponse = await self.send("UploadCheckpoint", uploading(payload, chunk, **header))
        return found

    async def upload_refusal(self, messages: Iterable[pb.UploadCheckpointRequest]) -> Refusal:
        """The error that an upload ends with."""
        try:
            response = await self.send("UploadCheckpoint", iter(messages))
        except grpc.aio.AioRpcError as error:
            return Refusal.of(error)
        raise AssertionError(f"the upload was not refused: {response}")

    async def download(self, checkpoint_id: str, **fields: Any) -> bytes:
        """The part from the offset on, checked as a client would."""
        messages = await self.call("DownloadCheckpoint", checkpoint_id=checkpoint_id, **fields)
        *chunks, last = messages
        at = fields.get("offset", 0)
        for message in chunks:
            assert message.offset == at
            assert 1 <= len(message.chunk) <= MIB
            assert not message.sha256
            at += len(message.chunk)
        assert (last.offset, last.chunk, last.size_bytes) == (at, b"", at)
        text = b"".join(message.chunk for message in chunks)
        if not fields.get("offset"):
            assert last.sha256 == hashlib.sha256(text).digest()
        return text


def uploading(payload: bytes, chunk: int = MIB, **header: Any) -> Iterator[pb.UploadCheckpointRequest]:
    """The messages of an upload."""
    yield pb.UploadCheckpointRequest(header=pb.UploadHeader(**header))
    for at in range(0, len(payload), chunk):
        yield pb.UploadCheckpointRequest(chunk=payload[at : at + chunk])
