"""The bare skeleton: an RPC that makes one durable mutation, combined with those of the same moment, and nothing else.

It has no tenants, no rules, no events that say anything: what a service on this stack can reach at most. ``python -m
benchmarks.skeleton URL`` runs it in a process of its own.
"""

from __future__ import annotations

import itertools
import random
import sys
from collections.abc import AsyncIterator, Sized
from contextlib import asynccontextmanager
from dataclasses import replace

import asyncpg
import grpc
import uvloop

from benchmarks.echo import Context, serve, served
from benchmarks.generator import Requests, unary_load
from benchmarks.mutation import APART, DOCUMENT, FLOWS, Combining, combining_over
from benchmarks.postgres import Postgres, no_reset
from benchmarks.sample import Measure, Sample
from benchmarks.wire import message
from server.repository.gathering import gathered

NAMES = ("skeleton",)
PATH = "/bench.Skeleton/Mutate"
NUMBER_BYTES = 4
ENOUGH = 128


class Mutations(Requests):
    """Requests for mutations, spread over all flows; 64 callers never meet on one."""

    def __init__(self) -> None:
        self._flows = itertools.cycle(random.Random(5).sample(range(FLOWS), FLOWS))
        self._document = DOCUMENT.encode()

    def next(self, caller: int) -> bytes:  # noqa: ARG002 - the flows go round, whoever calls
        """The framed request."""
        return message(next(self._flows).to_bytes(NUMBER_BYTES, "big") + self._document)


class Skeleton:
    """Mutate stores the document of the flow whose number stands before it, and answers with the request."""

    def __init__(self, combining: Combining) -> None:
        self._combining = combining

    def handlers(self) -> grpc.GenericRpcHandler:
        """Its method, for a server."""
        methods: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {"Mutate": grpc.unary_unary_rpc_method_handler(self._mutate)}
        return grpc.method_handlers_generic_handler("bench.Skeleton", methods)

    async def _mutate(self, request: bytes, context: Context) -> bytes:  # noqa: ARG002 - grpc's signature
        await self._combining.mutate(int.from_bytes(request[:NUMBER_BYTES], "big"), request[NUMBER_BYTES:])
        return request


async def _gathering(waiting: Sized) -> None:
    await gathered(waiting, ENOUGH)


async def main(url: str) -> None:
    """Serves over the tables of `mutation`, which must be there."""
    settings = {"plan_cache_mode": "force_generic_plan", "jit": "off"}
    async with asyncpg.create_pool(url, min_size=2, max_size=2, reset=no_reset, server_settings=settings) as pool:
        await serve(Skeleton(await combining_over(pool, APART, 1, _gathering)).handlers())


@asynccontextmanager
async def skeleton(postgres: Postgres, concurrencies: tuple[int, ...]) -> AsyncIterator[list[Measure]]:
    """The measure ``skeleton``; `mutation` must be open."""
    async with served("benchmarks.skeleton", PATH, postgres.url) as found:
        target = replace(found, trees={**found.trees, "postgres": postgres.pid})

        def measure(concurrency: int) -> Measure:
            requests = Mutations()

            async def run(seconds: float) -> Sample:
                return await unary_load(target, requests, concurrency, seconds)

            return Measure(NAMES[0], concurrency, run)

        yield [measure(concurrency) for concurrency in concurrencies]


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1]))
