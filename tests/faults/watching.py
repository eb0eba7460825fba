"""Watchers and writers that follow a service from server to server, as good clients do."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack

import grpc
from flowledger.v1 import flow_service_pb2 as pb

from tests.faults.load import PAUSE_SECONDS, Commit, send
from tests.faults.process import connection
from tests.tenancy import Refusal, Tenancy

RESUMABLE = (pb.WATCH_END_REASON_DRAINING, pb.WATCH_END_REASON_MAX_AGE)


class Place:
    """Where the service is at present; who was sent away waits here for its next address."""

    def __init__(self) -> None:
        self._channels = AsyncExitStack()
        self._moved = asyncio.Condition()
        self._channel: grpc.aio.Channel | None = None

    async def moved_to(self, address: str) -> None:
        """Tell everybody of the new server."""
        channel = await self._channels.enter_async_context(connection(address))
        async with self._moved:
            self._channel = channel
            self._moved.notify_all()

    def stays(self, channel: grpc.aio.Channel) -> None:
        """It is behind this connection for good, wherever that leads."""
        self._channel = channel

    async def lost(self) -> None:
        """Nobody serves until the next move."""
        async with self._moved:
            self._channel = None

    async def channel(self) -> grpc.aio.Channel:
        """A connection to the present server, as soon as there is one."""
        async with self._moved:
            await self._moved.wait_for(lambda: self._channel is not None)
            assert self._channel is not None
            return self._channel

    async def close(self) -> None:
        """Close every connection."""
        await self._channels.aclose()


class Watcher:
    """Follows one flow to its end over any number of broken streams; ``seen`` has what arrived, in order."""

    def __init__(self, tenancy: Tenancy, place: Place, flow_id: str) -> None:
        self._tenancy, self._place, self.flow_id = tenancy, place, flow_id
        self.seen: list[tuple[int, bytes]] = []
        self.streams = 0

    async def run(self) -> None:
        """Returns when the flow has ended."""
        while True:
            tenancy = self._tenancy.on(await self._place.channel())
            position = self.seen[-1][0] if self.seen else 0
            self.streams += 1
            try:
                async for message in tenancy.watch(self.flow_id, start=pb.WATCH_START_AFTER_REVISION, after_revision=position):
                    if message.HasField("event"):
                        self.seen.append((message.revision, message.event.hash))
                    elif message.HasField("end"):
                        if message.end.reason not in RESUMABLE:
                            assert message.end.reason == pb.WATCH_END_REASON_FLOW_TERMINAL
                            return
                        assert message.revision == (self.seen[-1][0] if self.seen else 0)
            except grpc.aio.AioRpcError as error:
                # A balancer whose server died amid a stream says INTERNAL; what says so on purpose has a reason.
                broken = error.code() is grpc.StatusCode.INTERNAL and not Refusal.of(error).reason
                if not broken and error.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise
            await asyncio.sleep(PAUSE_SECONDS)  # as a client would


class Writer:
    """Writes one revision after another, each until it is acknowledged."""

    def __init__(self, tenancy: Tenancy, place: Place, flow_id: str, progressed: Callable[[], None]) -> None:
        self._tenancy, self._place, self._flow_id, self._progressed = tenancy, place, flow_id, progressed
        self.revisions: list[int] = []

    async def run(self, enough: asyncio.Event) -> None:
        """Returns once it is told that it is enough."""
        while not enough.is_set():
            update = {"display_name": f"{len(self.revisions)}"}
            commit = Commit.of("UpdateFlow", flow_id=self._flow_id, update=update)
            self.revisions.append(await self._until_acknowledged(commit))
            self._progressed()

    async def _until_acknowledged(self, commit: Commit) -> int:
        while True:
            try:
                return (await send(self._tenancy.on(await self._place.channel()), commit)).revision
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise
                await asyncio.sleep(PAUSE_SECONDS)  # as a client would
