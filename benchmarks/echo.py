"""The echo server: what an RPC costs when nothing is done in it. ``python -m benchmarks.echo`` runs it in a process of its own."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import uvloop

from benchmarks.generator import Requests, Target, unary_load
from benchmarks.sample import Measure, Sample
from benchmarks.wire import message

PATH = "/bench.Echo/Say"
BODY = message(bytes(range(256)) * 8)  # 2 KiB

# The options of the service that cost or save time in a call; its keepalive and message limits do neither.
OPTIONS = (("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", 16 * 2**20), ("grpc.max_send_message_length", 16 * 2**20))


class Same(Requests):
    """Every request is the same."""

    def next(self, caller: int) -> bytes:  # noqa: ARG002 - all callers send the same
        """The framed 2 KiB."""
        return BODY


async def _say(request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:  # noqa: ARG001 - grpc's signature
    return request


async def serve() -> None:
    """Answers until it is terminated; prints its port first."""
    server = grpc.aio.server(options=OPTIONS)
    methods = {"Say": grpc.unary_unary_rpc_method_handler(_say)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bench.Echo", methods),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    await stopped.wait()
    await server.stop(0)


@asynccontextmanager
async def echo(concurrencies: tuple[int, ...]) -> AsyncIterator[list[Measure]]:
    """The measures ``echo`` against a server in a process of its own."""
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "benchmarks.echo", stdout=asyncio.subprocess.PIPE)
    try:
        assert process.stdout is not None
        port = int(await asyncio.wait_for(process.stdout.readline(), 30))
        target = Target(("127.0.0.1", port), PATH, (), {"server": process.pid})

        def measure(concurrency: int) -> Measure:
            async def run(seconds: float) -> Sample:
                return await unary_load(target, Same(), concurrency, seconds)

            return Measure("echo", concurrency, run)

        yield [measure(concurrency) for concurrency in concurrencies]
    finally:
        process.terminate()
        await process.wait()


if __name__ == "__main__":
    uvloop.run(serve())
