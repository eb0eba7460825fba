"""The load generator against real gRPC servers: what it reports is what was answered."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc
import pytest

from benchmarks.echo import PATH, Echo, Same
from benchmarks.generator import CallFailed, Target, paced_load, unary_load
from benchmarks.wire import OK, connect, message

TOO_LARGE_FOR_ONE_WINDOW = 300_000


@pytest.fixture
async def address() -> AsyncIterator[tuple[str, int]]:
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((Echo().handlers(),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield "127.0.0.1", port
    await server.stop(0)


async def test_a_call_that_is_not_answered_with_ok_ends_the_measure(address: tuple[str, int]) -> None:
    target = Target(address, "/bench.Echo/Unknown", [()], {})
    with pytest.raises(CallFailed, match="grpc-status 12"):
        await unary_load(target, Same(message(b"x")), 4, 5.0)


async def test_every_caller_gets_its_answers(address: tuple[str, int]) -> None:
    sample = await unary_load(Target(address, PATH, [()], {}), Same(message(bytes(2_048))), 16, 0.2)
    assert sample.calls >= 16
    assert 0 < sample.p50_ms <= sample.p99_ms


async def test_requests_beyond_the_flow_control_window_arrive_whole(address: tuple[str, int]) -> None:
    sample = await unary_load(Target(address, PATH, [()], {}), Same(message(bytes(TOO_LARGE_FOR_ONE_WINDOW))), 4, 0.2)
    assert sample.calls >= 4


async def test_paced_calls_come_at_their_rate(address: tuple[str, int]) -> None:
    sample = await paced_load(Target(address, PATH, [()], {}), Same(message(b"x")), 8, 100.0, 0.5)
    assert sample.calls == 50
    assert sample.seconds > 0.45


async def test_the_text_of_a_refusal_is_kept(address: tuple[str, int]) -> None:
    connection = await connect(address, "/bench.Echo/Unknown", ())
    answered: asyncio.Future[tuple[str, str]] = asyncio.get_running_loop().create_future()
    connection.unary(message(b"x"), lambda status, text: answered.set_result((status, text)))
    connection.flush()
    status, text = await asyncio.wait_for(answered, 10)
    connection.close()
    assert (status, text) != (OK, "")
    assert text == "Method not found!"


async def test_messages_of_a_stream_arrive_whole_and_in_order(address: tuple[str, int]) -> None:
    connection = await connect(address, "/bench.Echo/Listen", ())
    publisher = await connect(address, "/bench.Echo/Publish", ())
    sent = [bytes([number]) * 20_000 for number in range(1, 6)]
    heard: list[bytes] = []
    moved = asyncio.Event()

    def received(body: bytes) -> None:
        heard.append(body)
        moved.set()

    connection.server_stream(message(b""), received, lambda *_: moved.set())
    connection.flush()
    for body in [b"", *sent]:
        if body:
            publisher.unary(message(body), lambda *_: None)
            publisher.flush()
        await asyncio.wait_for(moved.wait(), 10)
        moved.clear()
    connection.close()
    publisher.close()
    assert heard == [b"", *sent]
