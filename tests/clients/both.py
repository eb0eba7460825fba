"""The two clients of clients/python as one: what is promised of them is tested once, for both."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Protocol
from uuid import uuid4

from flowledger.v1 import change_pb2, flow_pb2
from flowledger.v1 import flow_service_pb2 as pb
from flowledger_client import AsyncClient, Caller, Client

Connect = Callable[..., AbstractAsyncContextManager["Both"]]
Decide = Callable[[flow_pb2.Flow], Sequence[change_pb2.Change]]
_OVER = object()


class Watching(Protocol):
    """A watch, whichever way it is read."""

    position: int
    end: pb.WatchEnd | None

    def __aiter__(self) -> AsyncIterator[Any]: ...
    async def next(self) -> Any: ...
    def close(self) -> None: ...


class Both(Protocol):
    """A client, whichever way it is called."""

    async def call(self, name: str, request: Any, **more: Any) -> Any: ...
    def events(self, flow_id: str, after: int = 0, **more: Any) -> Watching: ...
    def watch(self, request: pb.WatchFlowRequest, **more: Any) -> Watching: ...
    async def commit(self, flow_id: str, decide: Decide, **more: Any) -> Any: ...
    def phase(self, flow_id: str, phase: str, **more: Any) -> AbstractAsyncContextManager[Any]: ...


class _Watching:
    def __init__(self, watch: Any, following: Callable[[], Any]) -> None:
        self._watch, self._following = watch, following

    @property
    def position(self) -> int:
        return int(self._watch.position)

    @property
    def end(self) -> pb.WatchEnd | None:
        found: pb.WatchEnd | None = self._watch.end
        return found

    def __aiter__(self) -> AsyncIterator[Any]:
        return self._all()

    async def _all(self) -> AsyncIterator[Any]:
        while (found := await self._following()) is not _OVER:
            yield found

    async def next(self) -> Any:
        found = await self._following()
        assert found is not _OVER, "the watch is over"
        return found

    def close(self) -> None:
        self._watch.close()


class _Threaded:
    """The client for threads, each of its calls in one."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def call(self, name: str, request: Any, **more: Any) -> Any:
        return await asyncio.to_thread(getattr(self._client.flows, name), request, **more)

    def events(self, flow_id: str, after: int = 0, **more: Any) -> Any:
        return self._read(self._client.events(flow_id, after, **more))

    def watch(self, request: pb.WatchFlowRequest, **more: Any) -> Any:
        return self._read(self._client.watch(request, **more))

    def _read(self, watch: Any) -> _Watching:
        return _Watching(watch, lambda: asyncio.to_thread(next, watch, _OVER))

    async def commit(self, flow_id: str, decide: Decide, **more: Any) -> Any:
        return await asyncio.to_thread(self._client.commit, flow_id, decide, **more)

    @asynccontextmanager
    async def phase(self, flow_id: str, phase: str, **more: Any) -> AsyncIterator[Any]:
        manager = self._client.phase(flow_id, phase, **more)
        work = _ThreadedWork(await asyncio.to_thread(manager.__enter__))
        try:
            yield work
        except BaseException as error:
            if not await asyncio.to_thread(manager.__exit__, type(error), error, error.__traceback__):
                raise
        else:
            await asyncio.to_thread(manager.__exit__, None, None, None)


class _ThreadedWork:
    def __init__(self, work: Any) -> None:
        self._work = work

    def __getattr__(self, name: str) -> Any:
        return getattr(self._work, name)

    async def report(self, fraction: float, message: str = "") -> None:
        await asyncio.to_thread(self._work.report, fraction, message)


class _Native:
    """The client for asyncio."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    async def call(self, name: str, request: Any, **more: Any) -> Any:
        return await getattr(self._client.flows, name)(request, **more)

    def events(self, flow_id: str, after: int = 0, **more: Any) -> Any:
        return self._read(self._client.events(flow_id, after, **more))

    def watch(self, request: pb.WatchFlowRequest, **more: Any) -> Any:
        return self._read(self._client.watch(request, **more))

    def _read(self, watch: Any) -> _Watching:
        async def following() -> Any:
            return await anext(watch, _OVER)

        return _Watching(watch, following)

    async def commit(self, flow_id: str, decide: Decide, **more: Any) -> Any:
        return await self._client.commit(flow_id, decide, **more)

    def phase(self, flow_id: str, phase: str, **more: Any) -> AbstractAsyncContextManager[Any]:
        return self._client.phase(flow_id, phase, **more)


def fresh_caller() -> Caller:
    """A tenant that nobody else uses."""
    return Caller(uuid4(), uuid4(), "ada")


@asynccontextmanager
async def threaded(addresses: str | Sequence[str], caller: Caller, **more: Any) -> AsyncIterator[Both]:
    """The client for threads, connected while the block lasts."""
    with Client(addresses, caller, **more) as client:
        yield _Threaded(client)


@asynccontextmanager
async def native(addresses: str | Sequence[str], caller: Caller, **more: Any) -> AsyncIterator[Both]:
    """The client for asyncio, connected while the block lasts."""
    async with AsyncClient(addresses, caller, **more) as client:
        yield _Native(client)
