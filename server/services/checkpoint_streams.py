"""UploadCheckpoint and DownloadCheckpoint: what does not fit into a message, a chunk at a time."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import aclosing, suppress
from functools import partial
from uuid import UUID

from flowledger.v1 import checkpoint_pb2
from flowledger.v1 import checkpoint_service_pb2 as pb

from server.checkpoints.archive import UPLOAD_SECONDS, Archive
from server.checkpoints.chunks import CHUNK_BYTES, Inflow
from server.checkpoints.taking import Wanted
from server.repository.document_store import offloaded
from server.repository.flows import Record
from server.repository.requests import Answered, answered, requested
from server.repository.store import Store
from server.services.caller import Caller
from server.services.checkpoint_alarm import CheckpointAlarm
from server.services.checkpoint_messages import check_expiry, expiry, message
from server.services.fields import Fields
from server.services.flow_service import Sources
from server.services.replies import reply_of
from server.statemachine import document
from server.statemachine.checkpoint import PAYLOAD, Checkpoint, CheckpointKind
from server.statemachine.errors import (
    CheckpointNotFound,
    ConcurrentModification,
    FlowError,
    LimitExceeded,
    OffsetOutOfRange,
    StoreUnavailable,
    invalid,
)
from server.statemachine.values import Tenant

PAYLOAD_BYTES = 256 * 1024 * 1024
_SHA256_BYTES = 32
_SNAPSHOT, _PAYLOAD = checkpoint_pb2.CHECKPOINT_PART_SNAPSHOT, checkpoint_pb2.CHECKPOINT_PART_PAYLOAD
_PARTS = frozenset(checkpoint_pb2.CheckpointPart.values())


class CheckpointStreams:
    """Takes payloads in, and sends payloads and snapshots out."""

    def __init__(self, store: Store, archive: Archive, alarm: CheckpointAlarm, sources: Sources, limits: document.Limits) -> None:
        self._store, self._archive, self._alarm = store, archive, alarm
        self._sources, self._limits = sources, limits

    async def UploadCheckpoint(
        self, requests: AsyncIterator[pb.UploadCheckpointRequest], caller: Caller
    ) -> pb.UploadCheckpointResponse | bytes:
        """The new checkpoint."""
        async with asyncio.timeout(UPLOAD_SECONDS):
            header = await _header(requests)
            fields = Fields(self._limits)
            flow_id = fields.uuid("header.flow_id", header.flow_id)
            fields.revision("header.expected_revision", header.expected_revision)
            fields.optional_uuid("header.request_id", header.request_id)
            wanted = Wanted(
                CheckpointKind.MANUAL,
                caller.user,
                fields.text("header.reason", header.reason),
                fields.labels("header.labels", header.labels),
                header.pinned,
                expiry(fields, "header.", header),
            )
            if header.size_bytes < 0:
                fields.wrong("header.size_bytes", f"is {header.size_bytes}, it must not be negative")
            if len(header.sha256) not in (0, _SHA256_BYTES):
                fields.wrong("header.sha256", f"has {len(header.sha256)} bytes, a SHA-256 has {_SHA256_BYTES}")
            fields.check()
            if header.size_bytes > PAYLOAD_BYTES:
                raise LimitExceeded("header.size_bytes", PAYLOAD_BYTES, header.size_bytes)
            if header.request_id and await requested(self._store.database, caller.tenant, UUID(header.request_id)):
                return await self._again(requests, caller.tenant, header)
            check_expiry("header.", wanted.expires, self._sources.now())
            await self._record(caller.tenant, flow_id, header)  # before megabytes are sent in vain
            inflow = await self._archive.taking.inflow(caller.tenant)
            try:
                async for chunk in _chunks(requests, header):
                    await inflow.write(chunk)
                await inflow.end()
                _check_sha256(header, inflow.sha256)
                return await self._taken(await self._record(caller.tenant, flow_id, header), header, wanted, inflow)
            except FlowError:
                with suppress(StoreUnavailable):  # then it is the sweeper's
                    await self._archive.taking.discard(caller.tenant, inflow)
                raise

    async def DownloadCheckpoint(
        self, request: pb.DownloadCheckpointRequest, caller: Caller
    ) -> AsyncIterator[pb.DownloadCheckpointResponse]:
        """The part from the offset on, then its size and hash."""
        fields = Fields(self._limits)
        checkpoint_id = fields.uuid("checkpoint_id", request.checkpoint_id)
        at = fields.revision("offset", request.offset)
        if request.part not in _PARTS:
            fields.wrong("part", f"{request.part} is unknown; one of SNAPSHOT, PAYLOAD")
        fields.check()
        async with self._alarm.watching(caller.tenant):
            opening = self._archive.opening
            opened = await opening.header(caller.tenant, checkpoint_id)
            header, payload = opened.header, opened.header.part(PAYLOAD)
            if payload is None and request.part == _PAYLOAD:
                raise CheckpointNotFound(checkpoint_id, "payload")
            if payload is None or request.part == _SNAPSHOT:
                size, sha256, texts = header.snapshot_size, header.snapshot_sha256, opening.snapshot(opened, at)
            else:
                size, sha256, texts = payload.size, payload.sha256, opening.part(opened, payload, at)
            if at > size:
                raise OffsetOutOfRange(at, size)
            async with aclosing(texts):
                async for text in texts:
                    yield pb.DownloadCheckpointResponse(offset=at, chunk=text)
                    at += len(text)
            yield pb.DownloadCheckpointResponse(offset=at, size_bytes=size, sha256=sha256)

    async def _record(self, tenant: Tenant, flow_id: UUID, header: pb.UploadHeader) -> Record:
        """The flow as it is. Raises FlowNotFound, ConcurrentModification."""
        record = (await self._store.flows.records(tenant, [flow_id]))[0]
        if header.expected_revision and header.expected_revision != record.head.flow.revision:
            raise ConcurrentModification(header.expected_revision, record.head.flow.revision)
        return record

    async def _taken(self, record: Record, header: pb.UploadHeader, wanted: Wanted, inflow: Inflow) -> pb.UploadCheckpointResponse | bytes:
        def answer(checkpoint: Checkpoint) -> pb.UploadCheckpointResponse:
            return pb.UploadCheckpointResponse(checkpoint=message(checkpoint), sha256=inflow.sha256)

        taken = await self._archive.taking.take(record, wanted, inflow, lambda one: reply_of(header, answer(one), inflow.sha256))
        return taken.answer if isinstance(taken, Answered) else answer(taken)

    async def _again(self, requests: AsyncIterator[pb.UploadCheckpointRequest], tenant: Tenant, header: pb.UploadHeader) -> bytes:
        """The first answer, once it is certain that the payload is the same. Raises RequestIdReused."""
        digest = hashlib.sha256()
        async for chunk in _chunks(requests, header):
            await offloaded(len(chunk), partial(digest.update, chunk))
        asking = reply_of(header, None, digest.digest())
        assert asking is not None
        found = await answered(self._store.database, tenant, asking)
        assert found is not None
        return found.answer


async def _header(requests: AsyncIterator[pb.UploadCheckpointRequest]) -> pb.UploadHeader:
    async for request in requests:
        if request.WhichOneof("part") == "header":
            return request.header
        break
    raise invalid("header", "is required: the first message of an upload has it")


async def _chunks(requests: AsyncIterator[pb.UploadCheckpointRequest], header: pb.UploadHeader) -> AsyncIterator[bytes]:
    """The payload's chunks as they come. Raises InvalidRequest, LimitExceeded."""
    size = 0
    async for request in requests:
        if request.WhichOneof("part") != "chunk":
            raise invalid("chunk", "is required: all messages of an upload but the first have one")
        chunk = request.chunk
        if not 1 <= len(chunk) <= CHUNK_BYTES:
            raise invalid("chunk", f"has {len(chunk)} bytes, it must have 1 to {CHUNK_BYTES}")
        size += len(chunk)
        if size > PAYLOAD_BYTES:
            raise LimitExceeded("payload (bytes)", PAYLOAD_BYTES, size)
        yield chunk
    if header.size_bytes and header.size_bytes != size:
        raise invalid("header.size_bytes", f"is {header.size_bytes}, and {size} bytes came")


def _check_sha256(header: pb.UploadHeader, sha256: bytes) -> None:
    if header.sha256 and header.sha256 != sha256:
        raise invalid("header.sha256", f"is {header.sha256.hex()}, and what came has {sha256.hex()}")
