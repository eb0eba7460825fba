"""The standard health service: whether calls should come here. It knows who asks now and then, and whether they have heard of an end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Any

import grpc
import structlog
from grpc_health.v1 import health_pb2, health_pb2_grpc

from server.statemachine.errors import StoreUnavailable

_log = structlog.get_logger()
Response = health_pb2.HealthCheckResponse
# How often PostgreSQL is looked for, and how long it may take to answer.
LOOK_SECONDS = 2.0
# Who has asked within this time is expected to ask again: balancers do so every second, or every few.
RECENT_SECONDS = 10.0


class Health(health_pb2_grpc.HealthServicer):
    """Tells the state of all services alike: they share one PostgreSQL and one process.

    Not the servicer of grpcio-health-checking: once one of its watchers leaves, the others are told nothing any more, and its watches
    hold up the end of a server for as long as there is time.
    """

    def __init__(self, names: Iterable[str]) -> None:
        """``names`` are the services'; the server as a whole, which is called nothing, is added."""
        self._names = frozenset(("", *names))
        self._status: int = Response.SERVING
        self._draining = self._closed = False
        self._changed = asyncio.Event()
        # When each host asked last, and how often in a row; of those that have not heard of the end yet.
        self._asked: dict[str, tuple[float, int]] = {}

    async def Check(self, request: Any, context: Any) -> Any:
        """The state of one service."""
        self._note(context.peer())
        if request.service not in self._names:
            context.set_code(grpc.StatusCode.NOT_FOUND)
        return Response(status=self._status)

    async def Watch(self, request: Any, _: Any) -> AsyncIterator[Any]:
        """The state of one service, and each change of it, until the server closes."""
        told = None
        while not self._closed:
            changed = self._changed
            status = self._status if request.service in self._names else Response.SERVICE_UNKNOWN
            if status != told:
                told = status
                yield Response(status=status)
            await changed.wait()

    async def follow(self, check: Callable[[float], Awaitable[None]]) -> None:
        """Tells whether ``check`` finds PostgreSQL, until it is cancelled."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            try:
                await check(LOOK_SECONDS)
                found: int = Response.SERVING
            except StoreUnavailable:
                found = Response.NOT_SERVING
            if found != self._status and not self._draining:
                _log.warning("store_state", reachable=found == Response.SERVING)
                self._tell(found)

    async def drain(self, seconds: float) -> None:
        """NOT_SERVING from now on; returns when those who ask now and then have heard it, and at the latest after so many seconds."""
        self._draining = True
        self._tell(Response.NOT_SERVING)
        oldest = asyncio.get_running_loop().time() - RECENT_SECONDS
        self._asked = {host: (at, times) for host, (at, times) in self._asked.items() if at >= oldest and times > 1}
        try:
            async with asyncio.timeout(seconds):
                while self._asked:
                    await self._changed.wait()
        except TimeoutError:
            _log.info("health_unheard", hosts=sorted(self._asked))

    def close(self) -> None:
        """Ends all watches."""
        self._closed = True
        self._tell(self._status)

    def _note(self, peer: str) -> None:
        host = peer.rpartition(":")[0]  # many a prober takes a new connection each time
        if self._draining:
            if self._asked.pop(host, None) is not None:
                self._tell(self._status)
            return
        now = asyncio.get_running_loop().time()
        _, times = self._asked.pop(host, (now, 0))
        self._asked[host] = now, times + 1  # the last is the newest
        while now - self._asked[first := next(iter(self._asked))][0] > RECENT_SECONDS:
            del self._asked[first]

    def _tell(self, status: int) -> None:
        self._status = status
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
