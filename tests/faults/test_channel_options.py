"""Each option of a connection has its effect: gRPC passes over names that it does not know without a word."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import grpc
import pytest

from server import app
from server.services.flow_watch import FlowWatch
from tests.conftest import Urls, settings
from tests.tenancy import Tenancy

KIB = 1024
LARGE = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
NOTICED_SECONDS = 20.0
# More pings than a server that minds them puts up with: it ends the connection at the third.
PINGING = [("grpc.keepalive_time_ms", 5_500), ("grpc.keepalive_permit_without_calls", 1), ("grpc.http2.max_pings_without_data", 0)]

# Opens a watch, says so, and goes on until it is killed.
WATCHING_CLIENT = """
import sys, grpc
from flowledger.v1 import flow_service_pb2 as pb
from flowledger.v1.flow_service_pb2_grpc import FlowServiceStub
address, flow_id, account, engagement = sys.argv[1:]
metadata = (("x-client-account-id", account), ("x-engagement-id", engagement), ("x-user-id", "ada"))
for message in FlowServiceStub(grpc.insecure_channel(address)).WatchFlow(pb.WatchFlowRequest(flow_id=flow_id), metadata=metadata):
    if message.revision:
        print(message.revision, flush=True)
"""


@asynccontextmanager
async def _serving(urls: Urls, **more: object) -> AsyncIterator[tuple[app.Server, Tenancy]]:
    async with app.running(settings(urls, **more)) as server, grpc.aio.insecure_channel(server.address, options=LARGE) as channel:
        yield server, Tenancy.fresh(channel)


async def test_a_second_server_on_the_same_port_is_refused(urls: Urls) -> None:
    async with _serving(urls) as (server, _):
        with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1:{server.port}: is another server there"):
            async with app.running(settings(urls, port=server.port)):
                raise AssertionError("two servers share one port")


def _documents(number: int) -> dict[str, dict[str, str]]:
    """That many documents of 30 KiB each."""
    return {name: {"json": '{"words":"' + "x" * 30 * KIB + '"}'} for name in ("state", "metadata", "cross_phase_context")[:number]}


async def test_a_request_beyond_the_message_limit_is_refused_and_one_below_is_taken(urls: Urls) -> None:
    async with _serving(urls, max_document_bytes=32 * KIB, max_message_bytes=64 * KIB) as (_, tenancy):
        await tenancy.create(**_documents(2))
        refusal = await tenancy.refusal("CreateFlow", type="discovery", **_documents(3))
        assert refusal.code is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_a_response_beyond_the_message_limit_is_refused_and_one_below_is_sent(urls: Urls) -> None:
    async with _serving(urls, max_document_bytes=32 * KIB, max_message_bytes=64 * KIB) as (_, tenancy):
        flow_id = (await tenancy.create(**_documents(2))).flow_id
        full = {"flow_id": flow_id, "view": "FLOW_VIEW_FULL"}
        assert len((await tenancy.call("GetFlow", **full)).flow.state.json) > 30 * KIB
        await tenancy.call("UpdateFlow", flow_id=flow_id, update={"cross_phase_context": _documents(3)["cross_phase_context"]})
        assert (await tenancy.refusal("GetFlow", **full)).code is grpc.StatusCode.RESOURCE_EXHAUSTED


@contextmanager
def _standing_client(address: str, tenancy: Tenancy, flow_id: str) -> Iterator[subprocess.Popen[str]]:
    """A process that watches the flow."""
    arguments = [address, flow_id, str(tenancy.account), str(tenancy.engagement)]
    client = subprocess.Popen([sys.executable, "-c", WATCHING_CLIENT, *arguments], stdout=subprocess.PIPE, text=True)
    try:
        yield client
    finally:
        client.kill()
        client.communicate()


async def test_on_idle_streams_a_dead_peer_is_noticed_and_one_that_pings_often_is_kept(urls: Urls, monkeypatch: pytest.MonkeyPatch) -> None:
    run, gone = FlowWatch.run, asyncio.Event()

    async def noticing(self: FlowWatch) -> None:
        try:
            await run(self)
        finally:
            gone.set()

    monkeypatch.setattr(FlowWatch, "run", noticing)
    async with _serving(urls, watch_heartbeat_seconds=300) as (server, tenancy):
        flow_id = (await tenancy.create()).flow_id
        with _standing_client(server.address, tenancy, flow_id) as client:
            assert client.stdout is not None
            assert await asyncio.to_thread(client.stdout.readline) == "1\n"
            async with grpc.aio.insecure_channel(server.address, options=PINGING) as pinging:
                watch = tenancy.on(pinging).watch(flow_id)
                messages = aiter(watch)
                assert (await anext(messages)).opened.head_revision == 1
                assert (await anext(messages)).revision == 1
                client.send_signal(signal.SIGSTOP)  # its kernel goes on to acknowledge what is sent; nobody answers a ping
                started = time.monotonic()
                kept = asyncio.ensure_future(anext(messages))
                async with asyncio.timeout(NOTICED_SECONDS):
                    await gone.wait()
                ended, _ = await asyncio.wait({kept}, timeout=max(0.0, 3 * 5.5 + 0.5 - (time.monotonic() - started)))
                assert not ended, "a client that pings within the rules was cut off"
                await tenancy.call("CancelFlow", flow_id=flow_id)
                assert (await kept).event.revision == 2


async def test_streams_that_all_come_at_once_are_all_taken(urls: Urls) -> None:
    count = 2500
    async with _serving(urls) as (_, tenancy):
        flow_id = (await tenancy.create()).flow_id
        calls = [tenancy.watch(flow_id) for _ in range(count)]
        async with asyncio.timeout(60):
            first = await asyncio.gather(*(call.read() for call in calls))
        assert [message.WhichOneof("message") for message in first] == ["opened"] * count
        for call in calls:
            call.cancel()
