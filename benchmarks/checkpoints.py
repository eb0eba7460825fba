"""CreateCheckpoint and RestoreCheckpoint at three sizes, against their ceiling: zstd, AES-GCM and one INSERT of the same document.

Each checkpoint is of a document that was not there before, since of one that was nothing would be sealed; putting it there is not
measured. Each restore brings back another document than the one before.
"""

from __future__ import annotations

import itertools
import os
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import zstandard
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from flowledger.v1 import change_pb2, checkpoint_service_pb2, document_pb2, flow_service_pb2
from flowledger.v1.checkpoint_service_pb2_grpc import CheckpointServiceStub
from flowledger.v1.flow_service_pb2_grpc import FlowServiceStub

from benchmarks.documents import large_document
from benchmarks.postgres import Connection, Postgres
from benchmarks.processor import spending
from benchmarks.sample import Measure, Sample, sample_of
from benchmarks.serving import serving

MIB = 1024 * 1024
SIZES: Mapping[str, int] = {"10 KiB": 10 * 1024, "1 MiB": MIB, "64 MiB": 64 * MIB}
NAMES = tuple(f"{name}, {size}" for size in SIZES for name in ("bare seal", "create_checkpoint", "restore_checkpoint"))
VARIABLES = {
    "FLOWLEDGER_MAX_DOCUMENT_BYTES": str(64 * MIB),
    "FLOWLEDGER_MAX_MESSAGE_BYTES": str(256 * MIB),
    "FLOWLEDGER_STATEMENT_TIMEOUT_SECONDS": "120",
}
CALL_SECONDS = 300.0
SCHEMA = "CREATE SCHEMA bare_seals CREATE TABLE seals (id uuid PRIMARY KEY, sealed bytea NOT NULL)"
INSERT = "INSERT INTO bare_seals.seals VALUES ($1, $2)"

Step = Callable[[], Awaitable[object]]


@asynccontextmanager
async def checkpoints(postgres: Postgres) -> AsyncIterator[list[Measure]]:
    """The measures of all sizes, each for one caller."""
    async with AsyncExitStack() as stack:
        started = await stack.enter_async_context(serving(postgres, VARIABLES))
        options = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
        address = ":".join(map(str, started.address))
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(address, options=options))
        connection = await postgres.connect()
        stack.push_async_callback(connection.close)
        await connection.execute(SCHEMA)
        # What stays large stays as it is: sealed bytes do not compress.
        await connection.execute("ALTER TABLE bare_seals.seals ALTER sealed SET STORAGE EXTERNAL")
        trees = {"server": started.pid, "postgres": postgres.pid}
        measures = []
        for label, size in SIZES.items():
            caller = _Caller(channel, *large_document(size, 21))
            await caller.prepare()
            bare = _Bare(connection, caller)
            measures += [
                _measure(f"bare seal, {label}", _nothing, bare.seal, {"harness": os.getpid(), "postgres": postgres.pid}),
                _measure(f"create_checkpoint, {label}", caller.change, caller.create, trees),
                _measure(f"restore_checkpoint, {label}", _nothing, caller.restore, trees),
            ]
        yield measures


def _measure(name: str, prepare: Step, call: Step, trees: Mapping[str, int]) -> Measure:
    async def run(seconds: float) -> Sample:
        latencies: list[float] = []
        cpu = dict.fromkeys(trees, 0.0)
        while sum(latencies) < seconds:
            await prepare()
            with spending(trees) as spent:
                await call()
            latencies.append(spent.wall)
            cpu = {tree: cpu[tree] + spent.cpu[tree] for tree in trees}
        return sample_of(latencies, sum(latencies), cpu)

    return Measure(name, 1, run)


async def _nothing() -> None:
    """Nothing has to be made ready."""


@dataclass(slots=True)
class _Caller:
    """A tenant with one flow, whose state is a document of the size."""

    channel: grpc.aio.Channel
    before: str
    after: str
    metadata: tuple[tuple[str, str], ...] = ()
    flow_id: str = ""
    numbers: Any = None
    kept: Any = None

    def document(self) -> document_pb2.Document:
        """Another document than any before."""
        return document_pb2.Document(json=f"{self.before}{next(self.numbers):012d}{self.after}")

    async def prepare(self) -> None:
        """The flow, and two checkpoints with different documents."""
        ids = ("x-client-account-id", "x-engagement-id")
        self.metadata = (*((name, str(uuid.uuid4())) for name in ids), ("x-user-id", "bench"))
        self.numbers = itertools.count()
        request = flow_service_pb2.CreateFlowRequest(type="discovery", state=self.document())
        flows: Any = FlowServiceStub(self.channel)
        self.flow_id = (await flows.CreateFlow(request, metadata=self.metadata, timeout=CALL_SECONDS)).flow.flow_id
        first = await self.create()
        await self.change()
        self.kept = itertools.cycle([first, await self.create()])

    async def change(self) -> None:
        """Put another document into the flow."""
        request = flow_service_pb2.UpdateFlowRequest(flow_id=self.flow_id, update=change_pb2.FlowUpdate(state=self.document()))
        flows: Any = FlowServiceStub(self.channel)
        await flows.UpdateFlow(request, metadata=self.metadata, timeout=CALL_SECONDS)

    async def create(self) -> str:
        """A checkpoint; its id."""
        request = checkpoint_service_pb2.CreateCheckpointRequest(flow_id=self.flow_id)
        found = await self._checkpoints.CreateCheckpoint(request, metadata=self.metadata, timeout=CALL_SECONDS)
        return str(found.checkpoint.checkpoint_id)

    async def restore(self) -> None:
        """Bring back one of the two, the other one than last time."""
        request = checkpoint_service_pb2.RestoreCheckpointRequest(checkpoint_id=next(self.kept))
        await self._checkpoints.RestoreCheckpoint(request, metadata=self.metadata, timeout=CALL_SECONDS)

    @property
    def _checkpoints(self) -> Any:
        return CheckpointServiceStub(self.channel)  # type: ignore[no-untyped-call, unused-ignore]


@dataclass(frozen=True, slots=True)
class _Bare:
    """The ceiling: the same bytes, compressed and sealed in one piece, and stored as one row."""

    connection: Connection
    caller: _Caller

    async def seal(self) -> None:
        """One document, sealed and durable."""
        packed = zstandard.ZstdCompressor(level=1).compress(self.caller.document().json.encode())
        nonce = os.urandom(12)
        sealed = nonce + AESGCM(bytes(32)).encrypt(nonce, packed, b"place")
        await self.connection.execute(INSERT, uuid.uuid4(), sealed)
