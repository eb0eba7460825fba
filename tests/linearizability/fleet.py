"""Servers that are killed or stopped and started again where they were: several of one process each, or one of several workers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import grpc

from tests.conftest import Urls
from tests.faults.process import ServerProcess, connection, database, serving_with
from tests.faults.test_workers import Served, served


class Fleet:
    """The servers, by number."""

    def __init__(self, folder: Path, program: Sequence[str], variables: Sequence[dict[str, object]]) -> None:
        self._folder, self._program, self._variables = folder, program, variables
        self._lives = [AsyncExitStack() for _ in variables]
        self._processes: dict[int, ServerProcess] = {}
        self.channels: list[grpc.aio.Channel] = []

    async def start(self, number: int) -> None:
        """Begin to serve, where it served before."""
        port = self._processes[number].address.rpartition(":")[2] if number in self._processes else "0"
        life = self._lives[number] = AsyncExitStack()
        process = serving_with(self._program, self._folder, {**self._variables[number], "port": port})
        self._processes[number] = await life.enter_async_context(process)

    async def kill(self, number: int) -> None:
        """End it as a crash would."""
        await self._processes[number].kill()
        await self._lives[number].aclose()

    async def stop(self) -> None:
        """Kill them all."""
        for life in self._lives:
            await life.aclose()

    async def connect(self, stack: AsyncExitStack) -> None:
        """One connection to each."""
        self.channels = [
            await stack.enter_async_context(connection(self._processes[number].address)) for number in range(len(self._variables))
        ]


@asynccontextmanager
async def fleet(urls: Urls, folder: Path, *variables: dict[str, object], program: Sequence[str] = ("server",)) -> AsyncIterator[Fleet]:
    """One server for each of ``variables``, while the block lasts."""
    servers = Fleet(folder, program, [{**database(urls), "pool_max": 4, **more} for more in variables])
    async with AsyncExitStack() as stack:
        stack.push_async_callback(servers.stop)
        await asyncio.gather(*(servers.start(number) for number in range(len(variables))))
        await servers.connect(stack)
        yield servers


class Lives:
    """One `serve --workers`, in one life after the other."""

    def __init__(self, urls: Urls, folder: Path, count: int, variables: Mapping[str, str]) -> None:
        self._urls, self._folder, self._count, self._variables = urls, folder, count, variables
        self._life = AsyncExitStack()
        self._port = "0"
        self.workers: Served

    @property
    def address(self) -> str:
        """Where it listens, in every life."""
        return self.workers.address

    async def begin(self) -> None:
        """Returns when it takes calls."""
        (self._folder / "ready").unlink(missing_ok=True)
        life = served(self._urls, self._folder, count=self._count, **{**self._variables, "port": self._port})
        self.workers = await self._life.enter_async_context(life)
        self._port = self.address.rpartition(":")[2]

    async def end(self) -> None:
        """Ask it to stop, and wait until it has."""
        await self._life.aclose()


@asynccontextmanager
async def lives(urls: Urls, folder: Path, count: int, variables: Mapping[str, str]) -> AsyncIterator[Lives]:
    """The service in its first life; whichever it has at the end of the block is its last."""
    service = Lives(urls, folder, count, variables)
    await service.begin()
    try:
        yield service
    finally:
        await service.end()
