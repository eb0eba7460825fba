"""A watch that lasts, for threads: it takes the stream up again where it broke, until the service says that the flow is over."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Generic, TypeVar

import grpc
from flowledger.v1 import flow_service_pb2 as pb

from flowledger_client.errors import FlowledgerError, error_of
from flowledger_client.following import Following, Resuming, broken_off, ended, silent

T_co = TypeVar("T_co", covariant=True)
Open = Callable[[pb.WatchFlowRequest], Any]


class Watch(Generic[T_co]):
    """What a flow's stream says, each thing once and in order, through restarts of servers. Use it in a ``with``, or close it.

    Iterating ends when the flow has; ``end`` then says why. It raises FlowledgerError when the service refuses the watch (OutOfRange: what
    was still to be delivered is no longer kept) or stays away for longer than patience, and WatchBroken. ``close`` may be called from any
    thread, and ends iterating.
    """

    def __init__(self, following: Following, stream: Open, pick: Callable[[pb.WatchFlowResponse], T_co], resuming: Resuming) -> None:
        self._following, self._stream, self._pick, self._resuming = following, stream, pick, resuming
        self._call: Any = None
        self._closed = threading.Event()
        self._watchdog = _Watchdog(following.silence)

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
        self._closed.set()
        self._drop()

    def __enter__(self) -> Watch[T_co]:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __iter__(self) -> Iterator[T_co]:
        return self

    def __next__(self) -> T_co:
        while not self._closed.is_set():
            heard = self._heard()
            if isinstance(heard, pb.WatchFlowResponse):
                if self._following.took(heard):
                    return self._pick(heard)
                if not heard.HasField("end"):
                    continue
                if self._following.end is not None:
                    break
                heard = ended(heard)
            self._drop()
            if self._closed.is_set():
                break
            pause = self._following.pause(heard)
            self._resuming(self._following.position, heard.args[0])
            self._closed.wait(pause)
        self.close()
        raise StopIteration

    def _heard(self) -> pb.WatchFlowResponse | FlowledgerError:
        """The next message, or why there is none."""
        if self._call is None:
            self._call = self._stream(self._following.request())
        try:
            with self._watchdog.over(self._call):
                message: pb.WatchFlowResponse = next(self._call)
            return message
        except StopIteration:
            return broken_off()
        except grpc.RpcError as error:
            return silent(self._following.silence) if self._watchdog.bit else error_of(error)

    def _drop(self) -> None:
        call, self._call = self._call, None
        self._watchdog.rest()
        if call is not None:
            call.cancel()


class _Watchdog:
    """Cancels a call that somebody waits on for ``seconds``.

    A timer for each message would be a thread for each message: there is one at a time instead, that looks how long the wait has lasted.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._lock = threading.Lock()
        self._waiting: tuple[Any, float] | None = None
        self._timer: threading.Timer | None = None
        self.bit = False

    @contextmanager
    def over(self, call: Any) -> Iterator[None]:
        """Somebody waits on ``call`` while the block lasts."""
        with self._lock:
            self._waiting, self.bit = (call, time.monotonic()), False
            if self._timer is None:
                self._start(self._seconds)
        try:
            yield
        finally:
            self._waiting = None

    def rest(self) -> None:
        """Nobody will wait for now."""
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

    def look(self) -> None:
        """Cancel the call if the wait has lasted too long; otherwise look again when it would have."""
        with self._lock:
            self._timer = None
            if self._waiting is None:
                return  # whoever waits next starts it again
            call, since = self._waiting
            left = since + self._seconds - time.monotonic()
            if left > 0:
                self._start(left)
            else:
                self.bit = True
                call.cancel()

    def _start(self, seconds: float) -> None:
        # Weakly: a watch that nobody has any more is not kept by its timer.
        self._timer = threading.Timer(seconds, _look, (weakref.ref(self),))
        self._timer.daemon = True
        self._timer.start()


def _look(watchdog: weakref.ref[_Watchdog]) -> None:
    if (found := watchdog()) is not None:
        found.look()
