"""How far a watch has come, and what to make of what its streams say: the part that is the same however they are read."""

from __future__ import annotations

from collections.abc import Callable

import grpc
from flowledger.v1 import flow_service_pb2 as pb

from flowledger_client.errors import FlowledgerError, Told, Unavailable, WatchBroken
from flowledger_client.patience import Backoff

HEARTBEAT_SECONDS = 5
# After so many heartbeats that did not come, a connection counts as dead.
SILENT_HEARTBEATS = 3
# After any other end the stream is asked for again: what stands in the way of that, the service then says as an error.
_OVER = frozenset({pb.WATCH_END_REASON_FLOW_TERMINAL, pb.WATCH_END_REASON_FLOW_DELETED})

# What of a request leaves events out.
FILTERS = ("kinds", "phases")

# Told before a stream is opened again: the position, and why.
Resuming = Callable[[int, str], None]


def unheard(position: int, why: str) -> None:
    """Tells nobody."""


class Following:
    """One watch over all its streams.

    It is taken up again by revision, which every server understands whatever its age and keys; a filter goes along in the request.
    """

    def __init__(self, request: pb.WatchFlowRequest, backoff: Backoff, patience: float | None, clock: Callable[[], float]) -> None:
        """``request`` is what the first stream asks for; ``patience`` is how many seconds the service may be away, None for ever."""
        self._first = pb.WatchFlowRequest()
        self._first.CopyFrom(request)
        if not self._first.HasField("heartbeat_interval"):
            self._first.heartbeat_interval.seconds = HEARTBEAT_SECONDS
        self._backoff, self._patience, self._clock = backoff, patience, clock
        self._known = request.start == pb.WATCH_START_AFTER_REVISION
        self._snapshots = request.delivery == pb.WATCH_DELIVERY_LATEST_ONLY
        self._filtered = any(getattr(request, name, ()) for name in FILTERS)
        self._away: float | None = None
        # Everything up to here was delivered; 0 until a stream that starts elsewhere has said where.
        self.position = request.after_revision
        self.end: pb.WatchEnd | None = None

    @property
    def silence(self) -> float:
        """How many seconds without a word mean that the connection is dead."""
        return SILENT_HEARTBEATS * self._first.heartbeat_interval.ToTimedelta().total_seconds()

    def request(self) -> pb.WatchFlowRequest:
        """What the next stream asks for."""
        if not self._known:
            return self._first
        again = pb.WatchFlowRequest()
        again.CopyFrom(self._first)
        again.start, again.after_revision = pb.WATCH_START_AFTER_REVISION, self.position
        return again

    def took(self, message: pb.WatchFlowResponse) -> bool:
        """Whether the message is for the caller; it counts as delivered then. Raises WatchBroken."""
        self._away = None
        match message.WhichOneof("message"):
            case "event":
                self._moves(message.revision, self._ahead(message.revision, self.position + 1))
            case "snapshot":
                self._moves(message.revision, self._snapshots and message.revision > self.position)
            case "end":
                self._passes(message.revision)
                if message.end.reason in _OVER:
                    self.end = message.end
                return False
            case "heartbeat":
                self._passes(message.revision)
                self._backoff.rest()
                return False
            case _:
                return False
        self._backoff.rest()
        return True

    def _passes(self, revision: int) -> None:
        """Nothing was delivered; a filter may have left something out. Before the snapshot there is no position yet."""
        if revision or self._known:
            self._moves(revision, self._ahead(revision, self.position))

    def _ahead(self, revision: int, expected: int) -> bool:
        return revision >= expected if self._filtered else revision == expected

    def _moves(self, revision: int, in_order: bool) -> None:
        if self._known and not in_order:
            raise WatchBroken(f"the stream is at revision {revision}, and {self.position} is what was delivered before")
        self._known, self.position = True, revision

    def pause(self, failure: FlowledgerError) -> float:
        """How many seconds to wait before the next stream. Raises ``failure`` when there is no use in one, or patience is at its end."""
        if not failure.passing:
            raise failure
        now = self._clock()
        if self._away is None:
            self._away = now
        if self._patience is not None and now - self._away > self._patience:
            raise failure
        return self._backoff.pause(failure.retry_seconds)


def ended(message: pb.WatchFlowResponse) -> FlowledgerError:
    """What a stream's own end comes to."""
    return Unavailable(message.end.message, grpc.StatusCode.UNAVAILABLE, Told())


def broken_off() -> FlowledgerError:
    """What an end without a word comes to."""
    return Unavailable("the stream broke off", grpc.StatusCode.UNAVAILABLE, Told())


def silent(seconds: float) -> FlowledgerError:
    """What a stream comes to on which not even heartbeats arrive."""
    return Unavailable(f"nothing was heard for {seconds:g} s", grpc.StatusCode.UNAVAILABLE, Told())
