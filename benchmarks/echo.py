"""The echo server: what an RPC costs when nothing is done in it. ``python -m benchmarks.echo`` runs it in a process of its own."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TypeAlias

import grpc
import uvloop

from benchmarks.child_process import child_process
from benchmarks.generator import Requests, Target, unary_load
from benchmarks.sample import Measure, Sample
from benchmarks.watching import SUBSCRIBERS, Topic, one_after_another
from benchmarks.wire import message
from server.listening import channel_options
from server.settings import Settings

NAMES = ("echo", "bare fan-out")
PATH = "/bench.Echo/Say"
BODY = message(bytes(range(256)) * 8)  # 2 KiB
EVENT = message(bytes(248))  # the size of a WatchFlowResponse with the event of a progress report


class Same(Requests):
    """Every request is the same."""

    def __init__(self, request: bytes) -> None:
        self._request = request

    def next(self, caller: int) -> bytes:  # noqa: ARG002 - all callers send the same
        """The framed request."""
        return self._request


Context: TypeAlias = "grpc.aio.ServicerContext[bytes, bytes]"


class Echo:
    """Say answers with what it is told; Publish hands it to everyone who listens."""

    def __init__(self) -> None:
        self._listeners: set[asyncio.Queue[bytes]] = set()

    def handlers(self) -> grpc.GenericRpcHandler:
        """Its methods, for a server."""
        methods: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
            "Say": grpc.unary_unary_rpc_method_handler(self._say),
            "Publish": grpc.unary_unary_rpc_method_handler(self._publish),
            "Listen": grpc.unary_stream_rpc_method_handler(self._listen),
        }
        return grpc.method_handlers_generic_handler("bench.Echo", methods)

    async def _say(self, request: bytes, context: Context) -> bytes:  # noqa: ARG002 - grpc's signature
        return request

    async def _publish(self, request: bytes, context: Context) -> bytes:  # noqa: ARG002 - grpc's signature
        for listener in self._listeners:
            listener.put_nowait(request)
        return b""

    async def _listen(self, request: bytes, context: Context) -> AsyncIterator[bytes]:  # noqa: ARG002 - grpc's signature
        mine: asyncio.Queue[bytes] = asyncio.Queue()
        self._listeners.add(mine)
        try:
            yield b""
            while True:
                yield await mine.get()
        finally:
            self._listeners.discard(mine)


async def serve(methods: grpc.GenericRpcHandler) -> None:
    """Serves the methods as the service is served, until it is terminated; prints its port first."""
    server = grpc.aio.server(options=channel_options(Settings.read()))
    server.add_generic_rpc_handlers((methods,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    await stopped.wait()
    await server.stop(0)


@asynccontextmanager
async def served(module: str, path: str, *arguments: str) -> AsyncIterator[Target]:
    """The method ``path`` of a server that ``module`` runs in a process of its own."""
    async with child_process([sys.executable, "-m", module, *arguments]) as process:
        assert process.stdout is not None
        port = int(await asyncio.wait_for(process.stdout.readline(), 30))
        yield Target(("127.0.0.1", port), path, [()], {"server": process.pid})


@asynccontextmanager
async def echo(concurrencies: tuple[int, ...]) -> AsyncIterator[list[Measure]]:
    """The measures ``echo`` against a server in a process of its own."""
    async with served("benchmarks.echo", PATH) as target:
        listen, publish = replace(target, path="/bench.Echo/Listen"), replace(target, path="/bench.Echo/Publish")
        topic = Topic(listen, [message(b"")] * SUBSCRIBERS, publish, Same(EVENT), lambda _: True)

        def measure(concurrency: int) -> Measure:
            async def run(seconds: float) -> Sample:
                return await unary_load(target, Same(BODY), concurrency, seconds)

            return Measure(NAMES[0], concurrency, run)

        async def fan_out(seconds: float) -> Sample:
            return await one_after_another(topic, seconds)

        yield [*(measure(concurrency) for concurrency in concurrencies), Measure(NAMES[1], SUBSCRIBERS, fan_out)]


if __name__ == "__main__":
    uvloop.run(serve(Echo().handlers()))
