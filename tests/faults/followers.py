"""Watches that go on by their resume tokens, from process to process, and write down what they were told."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
from flowledger.v1 import flow_service_pb2 as pb

from tests.tenancy import Refusal, Tenancy

RESUMABLE = (pb.WATCH_END_REASON_DRAINING, pb.WATCH_END_REASON_MAX_AGE)
# How a stream breaks when the process that sends it dies, or its connection.
BROKEN = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL)
PAUSE_SECONDS = 0.05
OPTIONS = [("grpc.use_local_subchannel_pool", 1), ("grpc.initial_reconnect_backoff_ms", 50), ("grpc.max_reconnect_backoff_ms", 200)]

# What was told of one event: flow, revision, hash, and how many changes came with it.
Told = tuple[str, int, bytes, int]


@asynccontextmanager
async def elsewhere(tenancy: Tenancy, address: str) -> AsyncIterator[Tenancy]:
    """The tenant on a connection of its own: of several processes behind the port, the kernel chooses one."""
    async with grpc.aio.insecure_channel(address, options=OPTIONS) as channel:
        yield tenancy.on(channel)


class Follower:
    """One watch; ``told`` holds every event in the order of arrival, ``tokens`` each token and how many events came before it."""

    def __init__(self, tenancy: Tenancy, address: str, flow_id: str = "", **wanted: Any) -> None:
        """Of one flow, or of all flows when there is no ``flow_id``."""
        self._tenancy, self._address, self._flow_id, self._wanted = tenancy, address, flow_id, wanted
        self.told: list[Told] = []
        self.tokens: list[tuple[str, int]] = []
        self.streams = 0
        self.opened = asyncio.Event()

    async def run(self, token: str = "") -> None:
        """Follow, from the very beginning or from a token on, until cancelled. Raises on whatever ends a watch for good."""
        while True:
            self.streams += 1
            async with elsewhere(self._tenancy, self._address) as tenancy:
                try:
                    token = await self._stream(tenancy, token)
                except grpc.aio.AioRpcError as error:
                    if error.code() not in BROKEN or Refusal.of(error).reason == "INTERNAL":
                        raise
                    token = self.tokens[-1][0] if self.tokens else token
            await asyncio.sleep(PAUSE_SECONDS)  # as a client would

    async def _stream(self, tenancy: Tenancy, token: str) -> str:
        start = pb.WATCH_START_AFTER_REVISION if self._flow_id else pb.WATCH_FLOWS_START_BEGINNING
        where = {"resume_token": token} if token else {"start": start}
        asked = {**self._wanted, **where, "heartbeat_interval": {"seconds": 1}}
        call = tenancy.watch(self._flow_id, **asked) if self._flow_id else tenancy.watch_all(**asked)
        async for message in call:
            match message.WhichOneof("message"):
                case "opened":
                    self.opened.set()
                case "event":
                    self._heard(message.event)
                case "change":
                    self._heard(message.change.event)
                case "end":
                    assert message.end.reason in RESUMABLE, message.end
            token = message.resume_token
            self.tokens.append((token, len(self.told)))
        return token

    def _heard(self, event: Any) -> None:
        self.told.append((event.flow_id, event.revision, event.hash, len(event.changes)))

    def some_tokens(self, count: int, chance: random.Random) -> list[tuple[str, int]]:
        """Some of the positions that it was given."""
        return chance.sample(self.tokens, min(count, len(self.tokens)))
