"""Watches as tests read them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from flowledger.v1 import flow_pb2
from flowledger.v1 import flow_service_pb2 as pb

from server import app
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


@asynccontextmanager
async def own_server(urls: Urls, **more: object) -> AsyncIterator[tuple[Tenancy, app.Server]]:
    async with app.running(settings(urls, **more)) as server, grpc.aio.insecure_channel(server.address) as channel:
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
