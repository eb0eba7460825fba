"""Calls of one flow, made through several servers and written down: each with its time, its answer, and what it may have done."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from typing import Any
from uuid import uuid4

import grpc
from flowledger.v1 import event_pb2
from flowledger.v1 import flow_service_pb2 as pb

from tests.linearizability.history import Call, Heard, History, Kind, Watched
from tests.tenancy import PATIENCE, Refusal, Tenancy

_Code = grpc.StatusCode
# Whether the call did anything is not known; a killed server ends its calls with any of these.
UNKNOWN = frozenset({_Code.UNAVAILABLE, _Code.DEADLINE_EXCEEDED, _Code.CANCELLED, _Code.INTERNAL, _Code.UNKNOWN})
CALL_SECONDS = 5.0
PAUSE_SECONDS = 0.02
LAST = "the last word"
RESUMABLE = (pb.WATCH_END_REASON_DRAINING, pb.WATCH_END_REASON_MAX_AGE)


class Recorder:
    """One flow as its clients see it; ``sides`` are the same tenant on connections to different servers."""

    def __init__(self, sides: Sequence[Tenancy], chance: random.Random, acknowledged: Callable[[], None]) -> None:
        """``acknowledged`` is told of each write that was."""
        self.flow_id = str(uuid4())
        self._sides, self._chance, self._acknowledged = sides, chance, acknowledged
        self._calls: list[Call] = []
        self._watches: list[Watched] = []
        self._count = 0
        self._newest = 0  # that anybody was told of
        # Faults of the service itself: those that a killed server cannot explain are for the test to judge.
        self.internal: list[str] = []

    async def create(self) -> None:
        """Make the flow; who creates it at the same time through another server is refused."""
        mark = self._mark()
        if not await self._write("CreateFlow", mark, type="discovery", display_name=mark):
            await self.create()

    async def write(self, enough: asyncio.Event) -> None:
        """One commit after another; every third with the revision that is expected to be current."""
        while not enough.is_set():
            mark = self._mark()
            expected = self._newest if self._chance.random() < 0.3 else 0
            await self._write("UpdateFlow", mark, update={"display_name": mark}, expected_revision=expected)
            await asyncio.sleep(PAUSE_SECONDS * self._chance.random())

    async def read(self, enough: asyncio.Event) -> None:
        """One read after another, STRONG and CACHED, some of them with the revision that was told last."""
        while not enough.is_set():
            kind = self._chance.choice((Kind.READ, Kind.CACHED))
            least = self._newest if self._chance.random() < 0.5 else 0
            consistency = pb.READ_CONSISTENCY_STRONG if kind is Kind.READ else pb.READ_CONSISTENCY_CACHED
            request = pb.GetFlowRequest(flow_id=self.flow_id, min_revision=least, consistency=consistency)
            called = time.monotonic()
            try:
                flow = (await self._side().send("GetFlow", request, CALL_SECONDS)).flow
            except grpc.aio.AioRpcError as error:
                refusal = Refusal.of(error)
                if error.code() is _Code.NOT_FOUND:
                    self._calls.append(Call(kind, called, time.monotonic(), 0, least=least))
                elif refusal.reason == "REVISION_IN_FUTURE":
                    self._calls.append(Call(kind, called, time.monotonic(), int(refusal.metadata["head_revision"]), least=least))
                else:
                    await self._stumbled(error)
            else:
                self._calls.append(Call(kind, called, time.monotonic(), flow.revision, flow.display_name, least))
                self._newest = max(self._newest, flow.revision)
            await asyncio.sleep(PAUSE_SECONDS * self._chance.random())

    async def watch(self) -> None:
        """Follow the flow to its end, on one server after the other; what was heard until a cancellation counts."""
        heard: list[Heard] = []
        try:
            while not await self._stream(heard):
                pass
        finally:
            self._watches.append(Watched(0, tuple(heard)))

    async def _stream(self, heard: list[Heard]) -> bool:
        """Whether the watch is over; what it says is added to ``heard``."""
        position, over = heard[-1].revision if heard else 0, False
        try:
            async for message in self._side().watch(self.flow_id, start=pb.WATCH_START_AFTER_REVISION, after_revision=position):
                if message.HasField("event"):
                    heard.append(Heard(message.revision, mark_of(message.event), time.monotonic()))
                elif message.HasField("end"):
                    over = message.end.reason not in RESUMABLE
        except grpc.aio.AioRpcError as error:
            if error.code() is _Code.OUT_OF_RANGE:  # there is no going on: the checker says what is missing
                return True
            await self._stumbled(error)
        return over

    async def end(self) -> None:
        """End the flow, for sure."""
        assert await self._write("CancelFlow", LAST, tries=1000)

    async def history(self, stale: float) -> History:
        """All of it, once nothing is under way."""
        ledger: list[str] = []
        token = ""
        while token or not ledger:
            page = await self._side().call("ListFlowEvents", flow_id=self.flow_id, page_size=500, page_token=token)
            ledger += [mark_of(event) for event in page.events]
            token = page.next_page_token
        return History(tuple(self._calls), tuple(self._watches), tuple(ledger), stale)

    async def _write(self, name: str, mark: str, tries: int = 0, **fields: Any) -> bool:
        """Whether it was acknowledged. Who knows nothing tries again, or not, under the same request id, through any server."""
        request = getattr(pb, f"{name}Request")(flow_id=self.flow_id, request_id=str(uuid4()), **fields)
        called = time.monotonic()
        for _ in range(tries or self._chance.choice((1, 5))):
            try:
                response = await self._side().send(name, request, CALL_SECONDS)
            except grpc.aio.AioRpcError as error:
                if error.code() in (_Code.ABORTED, _Code.ALREADY_EXISTS):
                    current = Refusal.of(error).metadata.get("current_revision")
                    self._calls.append(Call(Kind.REFUSED, called, time.monotonic(), int(current) if current else None, mark))
                    return name == "CreateFlow"
                await self._stumbled(error)
            else:
                revision = response.event.revision
                self._calls.append(Call(Kind.WRITE, called, time.monotonic(), revision, mark))
                self._newest = max(self._newest, revision)
                self._acknowledged()
                return True
        self._calls.append(Call(Kind.WRITE, called, mark=mark))
        return False

    async def _stumbled(self, error: grpc.aio.AioRpcError) -> None:
        refusal = Refusal.of(error)
        if error.code() not in UNKNOWN:
            raise error
        if refusal.reason == "INTERNAL":
            self.internal.append(refusal.text)
        await asyncio.sleep(PAUSE_SECONDS)  # as a client would

    def _side(self) -> Tenancy:
        return self._chance.choice(self._sides)

    def _mark(self) -> str:
        self._count += 1
        return f"mark {self._count}"


def mark_of(event: event_pb2.FlowEvent) -> str:
    """What was written by the commit that the event tells of."""
    for change in event.changes:
        match change.WhichOneof("kind"):
            case "created":
                return change.created.display_name
            case "fields":
                return change.fields.to_display_name
            case "hold":
                return LAST
    return ""


async def record(recorders: Sequence[Recorder], faults: Callable[[], Any], stale: float, patience: float = 2 * PATIENCE) -> list[History]:
    """The histories of several flows that are written, read and watched while ``faults`` does what it does.

    A watch that has not heard of its flow's end ``patience`` seconds after it has come is left; the checker says what it is missing.
    """
    enough = asyncio.Event()
    watching, working = [], []
    for recorder in recorders:
        working += [asyncio.ensure_future(recorder.read(enough)) for _ in range(2)]
    await asyncio.gather(*(recorder.create() for recorder in recorders for _ in range(2)))
    for recorder in recorders:
        watching += [asyncio.ensure_future(recorder.watch()) for _ in range(2)]
        working += [asyncio.ensure_future(recorder.write(enough)) for _ in range(3)]
    try:
        await faults()
        enough.set()
        await asyncio.gather(*working)
        await asyncio.gather(*(recorder.end() for recorder in recorders))
        watching += [asyncio.ensure_future(recorder.watch()) for recorder in recorders]  # one more, that hears it all at once
        done, late = await asyncio.wait(watching, timeout=patience)
        for watch in late:
            watch.cancel()
        await asyncio.gather(*done, asyncio.wait(watching))
        return [await recorder.history(stale) for recorder in recorders]
    finally:
        for task in (*working, *watching):
            task.cancel()
