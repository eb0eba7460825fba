"""The standard health service: what it tells, to whom, and how long a server waits for those who have not heard of its end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from server import app
from tests.conftest import Urls, settings

SERVICE = "flowledger.v1.FlowService"
Response = health_pb2.HealthCheckResponse


def stub(channel: grpc.aio.Channel) -> Any:
    return health_pb2_grpc.HealthStub(channel)


def asked(service: str = SERVICE) -> health_pb2.HealthCheckRequest:
    return health_pb2.HealthCheckRequest(service=service)


async def test_the_server_and_its_service_are_well_and_others_are_unknown(channel: grpc.aio.Channel) -> None:
    for name in ("", SERVICE):
        assert (await stub(channel).Check(asked(name))).status == Response.SERVING
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await stub(channel).Check(asked("nobody.v1.Nothing"))
    assert refused.value.code() is grpc.StatusCode.NOT_FOUND
    watch = stub(channel).Watch(asked("nobody.v1.Nothing"))
    assert (await watch.read()).status == Response.SERVICE_UNKNOWN
    watch.cancel()


@asynccontextmanager
async def ending(urls: Urls) -> AsyncIterator[tuple[grpc.aio.Channel, Callable[[], Awaitable[None]]]]:
    """A channel to a server, and what ends the server while the channel is still open."""
    async with AsyncExitStack() as running:
        server = await running.enter_async_context(app.running(settings(urls, drain_seconds=60.0)))
        async with grpc.aio.insecure_channel(server.address) as channel:
            yield channel, running.aclose


async def test_a_watch_hears_of_the_end_also_after_another_has_left(urls: Urls) -> None:
    async with ending(urls) as (channel, end):
        one, two = stub(channel).Watch(asked()), stub(channel).Watch(asked())
        assert [(await watch.read()).status for watch in (one, two)] == [Response.SERVING] * 2
        one.cancel()
        closing = asyncio.ensure_future(end())
        async with asyncio.timeout(30):
            assert (await two.read()).status == Response.NOT_SERVING
            assert await two.read() is grpc.aio.EOF
            await closing


async def test_who_asks_now_and_then_has_heard_before_the_server_closes(urls: Urls) -> None:
    async with ending(urls) as (channel, end):
        for _ in range(2):
            await stub(channel).Check(asked())
        closing = asyncio.ensure_future(end())
        await asyncio.sleep(1)  # longer than the server waits for others
        assert not closing.done()
        assert (await stub(channel).Check(asked())).status == Response.NOT_SERVING
        async with asyncio.timeout(25):  # the drain alone would take longer
            await closing


async def test_who_has_asked_once_is_not_waited_for(urls: Urls) -> None:
    async with ending(urls) as (channel, end):
        await stub(channel).Check(asked())
        async with asyncio.timeout(25):
            await end()
