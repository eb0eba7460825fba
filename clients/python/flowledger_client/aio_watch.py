"""A watch that lasts, for asyncio: it takes the stream up again where it broke, until the service says that the flow is over."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import Any, Generic, TypeVar

import grpc
from flowledger.v1 import flow_service_pb2 as pb

from flowledger_client.errors import FlowledgerError, error_of
from flowledger_client.following import Following, Resuming, broken_off, ended, silent

T_co = TypeVar("T_co", covariant=True)
Open = Callable[[pb.WatchFlowRequest], Any]


class AsyncWatch(Generic[T_co]):
    """What a flow's stream says, each thing once and in order, through restarts of servers. Use it in an ``async with``, or close it.

    Iterating ends when the flow has; ``end`` then says why. It raises FlowledgerError when the service refuses the watch (OutOfRange: what
    was still to be delivered is no longer kept) or stays away for longer than patience, and WatchBroken. Whoever is cancelled while
    iterating may go on later: nothing is lost, the stream is opened again.
    """

    def __init__(self, following: Following, stream: Open, pick: Callable[[pb.WatchFlowResponse], T_co], resuming: Resuming) -> None:
        self._following, self._stream, self._pick, self._resuming = following, stream, pick, resuming
        self._call: Any = None
        self._closed = False

    @property
    def position(self) -> int:
        """Everything up to this revision was delivered."""
        return self._following.position

    @property
    def end(self) -> pb.WatchEnd | None:
        """Why there is no more; None while there may be."""
        return self._following.end

    def close(self) -> None:
        """End the stream."""
        self._closed = True
        self._drop()

    async def __aenter__(self) -> AsyncWatch[T_co]:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __aiter__(self) -> AsyncIterator[T_co]:
        return self

    async def __anext__(self) -> T_co:
        while not self._closed:
            heard = await self._heard()
            if isinstance(heard, pb.WatchFlowResponse):
                if self._following.took(heard):
                    return self._pick(heard)
                if not heard.HasField("end"):
                    continue
                if self._following.end is not None:
                    break
                heard = ended(heard)
            self._drop()
            if self._closed:
                break
            pause = self._following.pause(heard)
            self._resuming(self._following.position, heard.args[0])
            await asyncio.sleep(pause)
        self.close()
        raise StopAsyncIteration

    async def _heard(self) -> pb.WatchFlowResponse | FlowledgerError:
        """The next message, or why there is none."""
        if self._call is None:
            self._call = self._stream(self._following.request())
        # Waited for in a task of its own: gRPC tells of a call that was cancelled here by the same exception as of a caller that was.
        reading = asyncio.ensure_future(self._call.read())
        try:
            await asyncio.wait({reading}, timeout=self._following.silence)
        except asyncio.CancelledError:
            reading.cancel()
            self._drop()
            raise
        if not reading.done():
            reading.cancel()
            return silent(self._following.silence)
        if reading.cancelled():  # closed meanwhile
            return broken_off()
        error = reading.exception()
        if isinstance(error, grpc.RpcError):
            return error_of(error)
        message = reading.result()
        return message if isinstance(message, pb.WatchFlowResponse) else broken_off()

    def _drop(self) -> None:
        call, self._call = self._call, None
        if call is not None:
            call.cancel()
