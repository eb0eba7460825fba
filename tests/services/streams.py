"""Watches as tests read them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from flowledger.v1 import flow_pb2
from flowledger.v1 import flow_service_pb2 as pb

from server import app
from server.services import streams
from tests.conftest import Urls, settings
from tests.tenancy import Refusal, Tenancy

SECONDS = 20.0
PHASES = (
    "data_import",
    "field_mapping",
    "data_cleansing",
    "asset_creation",
    "asset_inventory",
    "dependency_analysis",
    "tech_debt_analysis",
)


class Stream:
    """A watch, read message by message with a deadline; the first message, ``opened``, is taken aside."""

    def __init__(self, tenancy: Tenancy, flow_id: str, **fields: Any) -> None:
        self.call = tenancy.watch(flow_id, **fields)
        self._messages = aiter(self.call)
        self.first: pb.WatchFlowResponse | None = None

    async def open(self) -> pb.WatchFlowResponse:
        """The first message."""
        if self.first is None:
            async with asyncio.timeout(SECONDS):
                self.first = await anext(self._messages)
            assert self.first is not None
            assert self.first.HasField("opened")
        return self.first

    async def next(self) -> pb.WatchFlowResponse:
        """The next message."""
        await self.open()
        async with asyncio.timeout(SECONDS):
            found: pb.WatchFlowResponse = await anext(self._messages)
            assert not found.HasField("opened")
            return found

    async def rest(self) -> list[pb.WatchFlowResponse]:
        """Everything until the service ends the stream."""
        await self.open()
        async with asyncio.timeout(SECONDS):
            return [message async for message in self._messages]

    async def until(self, revision: int) -> list[pb.WatchFlowResponse]:
        """Every message up to the one of that revision."""
        found = [await self.next()]
        while found[-1].revision < revision:
            found.append(await self.next())
        return found

    async def refusal(self) -> Refusal:
        """The error that the stream ends with."""
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            await self.rest()
        return Refusal.of(ended.value)


# A connection on which little more than 64 KiB is under way, however fast it is.
NARROW = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 65_535)]


@asynccontextmanager
async def own_server(
    urls: Urls, channel_options: Sequence[tuple[str, int]] = (), **more: object
) -> AsyncIterator[tuple[Tenancy, app.Server]]:
    async with app.running(settings(urls, **more)) as server, grpc.aio.insecure_channel(server.address, channel_options) as channel:
        yield Tenancy.fresh(channel), server


def kinds(messages: list[pb.WatchFlowResponse]) -> list[tuple[str | None, int]]:
    return [(message.WhichOneof("message"), message.revision) for message in messages]


async def rename(tenancy: Tenancy, flow_id: str, *names: str) -> None:
    for name in names:
        await tenancy.call("UpdateFlow", flow_id=flow_id, update={"display_name": name})


async def complete(tenancy: Tenancy, flow_id: str) -> int:
    """The revision at which the discovery flow is COMPLETED."""
    for phase in PHASES:
        states = ["IN_PROGRESS", *(["WAITING_APPROVAL"] if phase == "field_mapping" else []), "COMPLETED"]
        response = await tenancy.move(flow_id, phase, *states)
    assert response.flow.status == flow_pb2.FLOW_STATUS_COMPLETED
    return int(response.flow.revision)


async def begun(tenancy: Tenancy) -> str:
    """A flow whose first phase is under way."""
    flow_id = (await tenancy.create()).flow_id
    await tenancy.move(flow_id, "data_import", "IN_PROGRESS")
    return flow_id


async def large_events(tenancy: Tenancy, flow_id: str, count: int) -> None:
    """So many events of two kilobytes, in hundreds."""
    report = {"phase": "data_import", "fraction": 0.5, "message": "x" * 2000}
    for _ in range(0, count, 100):
        await asyncio.gather(*(tenancy.call("ReportProgress", flow_id=flow_id, progress=report) for _ in range(100)))


async def stalled(urls: Urls) -> Refusal:
    """How a watch ends from which nothing is taken until it is too old: for whoever goes on to read it, resumably, and without a gap."""
    gone = asyncio.Event()

    async def noticing(self: streams.Stream, run: Callable[[streams.Stream], Awaitable[None]] = streams.Stream.run) -> None:
        try:
            await run(self)
        finally:
            gone.set()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streams, "LATE_SECONDS", 0.5)
        patch.setattr(streams.Stream, "run", noticing)
        async with own_server(urls, NARROW, watch_max_age_seconds=3, watch_heartbeat_seconds=0.5) as (tenancy, _):
            flow_id = await begun(tenancy)
            await large_events(tenancy, flow_id, 600)
            stream = Stream(tenancy, flow_id, start=pb.WATCH_START_AFTER_REVISION)
            found = [await stream.next()]  # and nothing after that: the stream stands still with its connection full
            async with asyncio.timeout(30):
                await gone.wait()

            async def read_on() -> None:
                while True:
                    found.append(await stream.next())

            with pytest.raises(grpc.aio.AioRpcError) as ended:
                await read_on()
            assert kinds(found) == [("event", revision) for revision in range(1, len(found) + 1)]
            assert len(found) < 602
            resumed = Stream(tenancy, flow_id, resume_token=found[-1].resume_token)
            assert (await resumed.next()).revision == len(found) + 1
    return Refusal.of(ended.value)
