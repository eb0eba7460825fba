"""``python -m benchmarks.checkpoint_memory``: how much memory a server takes while large checkpoints are made, read and brought back.

The payload is bytes that do not compress, made and checked a chunk at a time, so that the caller's memory says nothing of the server's.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import grpc
import psutil
import typer
from flowledger.v1 import change_pb2, checkpoint_pb2, checkpoint_service_pb2, document_pb2, flow_service_pb2
from flowledger.v1.checkpoint_service_pb2_grpc import CheckpointServiceStub
from flowledger.v1.flow_service_pb2_grpc import FlowServiceStub
from rich.console import Console
from rich.table import Table

from benchmarks.documents import large_document
from benchmarks.postgres import private_postgres
from benchmarks.serving import serving

MIB = 1024 * 1024
CALL_SECONDS = 600.0
DOCUMENT_BYTES = 4 * MIB


@dataclass(slots=True)
class Peak:
    """The most memory that a process had since it was begun to be looked at; bytes."""

    pid: int
    before: int = 0

    def begin(self) -> None:
        """Forget what was before: Linux keeps the peak for us."""
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")
        self.before = psutil.Process(self.pid).memory_info().rss

    def end(self) -> int:
        """The peak."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))) * 1024


@dataclass(slots=True)
class Trial:
    """One tenant's flow with large documents, and its checkpoints with a payload."""

    channel: grpc.aio.Channel
    size: int
    metadata: tuple[tuple[str, str], ...] = field(
        default_factory=lambda: (
            ("x-client-account-id", str(uuid.uuid4())),
            ("x-engagement-id", str(uuid.uuid4())),
            ("x-user-id", "bench"),
        )
    )
    flow_id: str = ""
    taken: list[str] = field(default_factory=list)
    sha256: bytes = b""

    async def prepare(self) -> None:
        """The flow: three documents as large as they may be."""
        request = flow_service_pb2.CreateFlowRequest(type="discovery", **_documents(0))
        flows: Any = FlowServiceStub(self.channel)
        self.flow_id = (await flows.CreateFlow(request, metadata=self.metadata, timeout=CALL_SECONDS)).flow.flow_id

    async def upload(self) -> None:
        """A checkpoint with the payload; what came is what was sent."""
        digest = hashlib.sha256()

        async def messages() -> AsyncIterator[checkpoint_service_pb2.UploadCheckpointRequest]:
            header = checkpoint_service_pb2.UploadHeader(flow_id=self.flow_id, size_bytes=self.size)
            yield checkpoint_service_pb2.UploadCheckpointRequest(header=header)
            for at in range(0, self.size, MIB):
                chunk = random.Random(at).randbytes(min(MIB, self.size - at))
                digest.update(chunk)
                yield checkpoint_service_pb2.UploadCheckpointRequest(chunk=chunk)

        done = await self._checkpoints.UploadCheckpoint(messages(), metadata=self.metadata, timeout=CALL_SECONDS)
        self.sha256 = digest.digest()
        assert done.sha256 == self.sha256
        self.taken.append(done.checkpoint.checkpoint_id)

    async def download(self) -> None:
        """The payload, broken off in the middle and gone on with; what came is what was sent."""
        digest, at = hashlib.sha256(), 0
        for until in (self.size // 2, self.size):
            request = checkpoint_service_pb2.DownloadCheckpointRequest(checkpoint_id=self.taken[0], part=_PAYLOAD, offset=at)
            stream = self._checkpoints.DownloadCheckpoint(request, metadata=self.metadata, timeout=CALL_SECONDS)
            async for message in stream:
                assert message.offset == at
                digest.update(message.chunk)
                at += len(message.chunk)
                if message.sha256:
                    assert (message.size_bytes, message.sha256) == (self.size, self.sha256)
                elif at >= until and until < self.size:
                    stream.cancel()
                    break
        assert (at, digest.digest()) == (self.size, self.sha256)

    async def change(self) -> None:
        """Put other documents into the flow."""
        update = change_pb2.FlowUpdate(**_documents(1))
        request = flow_service_pb2.UpdateFlowRequest(flow_id=self.flow_id, update=update)
        flows: Any = FlowServiceStub(self.channel)
        await flows.UpdateFlow(request, metadata=self.metadata, timeout=CALL_SECONDS)

    async def restore(self) -> None:
        """Bring the flow back to the first checkpoint."""
        request = checkpoint_service_pb2.RestoreCheckpointRequest(checkpoint_id=self.taken[0])
        await self._checkpoints.RestoreCheckpoint(request, metadata=self.metadata, timeout=CALL_SECONDS)

    @property
    def _checkpoints(self) -> Any:
        return CheckpointServiceStub(self.channel)  # type: ignore[no-untyped-call, unused-ignore]


_PAYLOAD = checkpoint_pb2.CHECKPOINT_PART_PAYLOAD


def _documents(number: int) -> dict[str, Any]:
    text = f"{number:012d}".join(large_document(DOCUMENT_BYTES, 31))
    return dict.fromkeys(("state", "metadata", "cross_phase_context"), document_pb2.Document(json=text))


async def _run(size: int, at_once: int) -> list[tuple[str, float, int, int]]:
    """Of each step its name, its seconds, and the server's memory before it and at its peak."""
    found = []
    async with private_postgres() as postgres, serving(postgres) as started:
        options = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
        async with grpc.aio.insecure_channel(":".join(map(str, started.address)), options=options) as channel:
            trials = [Trial(channel, size) for _ in range(at_once)]
            peak = Peak(started.pid)

            async def step(name: str, work: Callable[[Trial], Awaitable[None]]) -> None:
                peak.begin()
                began = time.perf_counter()
                await asyncio.gather(*(work(trial) for trial in trials))
                found.append((name, time.perf_counter() - began, peak.before, peak.end()))

            await step("create the flow (3 documents of 4 MiB)", Trial.prepare)
            await step("upload", Trial.upload)
            await step("download, broken off and resumed", Trial.download)
            await step("upload the same once more", Trial.upload)
            await step("change the flow's documents", Trial.change)
            await step("restore", Trial.restore)
    return found


def main(
    mib: Annotated[int, typer.Option(min=1, max=256, help="Size of the payload.")] = 256,
    at_once: Annotated[int, typer.Option(min=1, help="How many tenants do each step at the same time.")] = 1,
) -> None:
    """Measures the server's peak memory during each step."""
    table = Table("step", "seconds", "MiB before", "MiB at the peak", "MiB more", title=f"payload of {mib} MiB, {at_once} at once")
    for name, seconds, before, most in asyncio.run(_run(mib * MIB, at_once)):
        table.add_row(name, f"{seconds:.1f}", *(f"{figure / MIB:.0f}" for figure in (before, most, most - before)))
    Console(width=120).print(table)


if __name__ == "__main__":
    typer.run(main)
