"""The service as one caller calls it, from asyncio."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, TypeVar, cast
from uuid import UUID, uuid4

import grpc
from flowledger.v1 import change_pb2, event_pb2, flow_pb2, flow_service_pb2_grpc
from flowledger.v1 import flow_service_pb2 as pb

from flowledger_client.aio_watch import AsyncWatch
from flowledger_client.caller import Caller
from flowledger_client.channel import Option, channel_options, target_of
from flowledger_client.errors import ConcurrentModification, FlowledgerError, error_of
from flowledger_client.following import Following, Resuming, unheard
from flowledger_client.patience import Backoff, Patience, Tries
from flowledger_client.request_id import identified
from flowledger_client.work import END_TRIES, PhaseLost, PhasePlace, read_of

S = TypeVar("S")
Decide = Callable[[flow_pb2.Flow], Sequence[change_pb2.Change]]
Metadata = tuple[tuple[str, str], ...]


class AsyncClient:
    """One caller's calls, made in a running event loop and used in it; each client has connections of its own.

    ``flows`` has every RPC of FlowService: it takes the contract's request, what is awaited is the contract's response, and what is raised
    a FlowledgerError. A change gets a request_id unless it has one, and a call is tried again under it while the service is away, so that
    the change happens once.
    """

    flows: flow_service_pb2_grpc.FlowServiceAsyncStub

    def __init__(
        self,
        addresses: str | Sequence[str],
        caller: Caller,
        *,
        credentials: grpc.ChannelCredentials | None = None,
        patience: Patience | None = None,
        options: Sequence[Option] | None = None,
        new_id: Callable[[], UUID] = uuid4,
    ) -> None:
        """``addresses`` is one `host:port`, a gRPC target, or several `ip:port`; without ``credentials`` nothing is encrypted."""
        target, chosen = target_of(addresses), channel_options() if options is None else tuple(options)
        self._patience = Patience() if patience is None else patience
        if credentials is None:
            self._channel = grpc.aio.insecure_channel(target, options=chosen)
        else:
            self._channel = grpc.aio.secure_channel(target, credentials, options=chosen)
        self._calls = _Calls(self._channel, caller.metadata, self._patience, new_id)
        self.flows = self.service(flow_service_pb2_grpc.FlowServiceStub)

    async def close(self) -> None:
        """Close the connections; watches end."""
        await self._channel.close()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()

    def service(self, stub: Callable[[grpc.aio.Channel], S]) -> S:
        """Another service of the contract, called as ``flows`` is: ``client.service(CheckpointServiceStub)``.

        Unary RPCs are called and return; of streams only the caller's metadata are taken care of.
        """
        return stub(cast(grpc.aio.Channel, self._calls))  # it has of a channel what generated stubs use

    def watch(self, request: pb.WatchFlowRequest, *, resuming: Resuming = unheard) -> AsyncWatch[pb.WatchFlowResponse]:
        """Snapshots and events of a flow as the request asks for them, each once and in order, until the flow ends.

        ``resuming`` is told the position, and why, before the stream is opened again.
        """
        return self._watch(request, lambda message: message, resuming)

    def events(self, flow_id: str, after: int = 0, *, resuming: Resuming = unheard) -> AsyncWatch[event_pb2.FlowEvent]:
        """Every event of a flow after that revision, each once and in order, until the flow ends."""
        request = pb.WatchFlowRequest(flow_id=flow_id, start=pb.WATCH_START_AFTER_REVISION, after_revision=after)
        return self._watch(request, lambda message: message.event, resuming)

    async def commit(
        self, flow_id: str, decide: Decide, *, view: flow_pb2.FlowView.ValueType = flow_pb2.FLOW_VIEW_BASIC, tries: int = 10
    ) -> pb.CommitFlowResponse | None:
        """Commit what ``decide`` makes of the flow as it is, and only if it is still so; None when that is nothing.

        When somebody else was first, the flow is read again and decided again, ``tries`` times at most. Raises ConcurrentModification after
        that, what the calls raise, and what ``decide`` raises.
        """
        backoff = Backoff(random.random, first=0.01, most=0.5)
        while True:
            flow = (await self.flows.GetFlow(read_of(flow_id, view))).flow
            revision = flow.revision  # before the flow is in other hands
            changes = decide(flow)
            if not changes:
                return None
            try:
                return await self.flows.CommitFlow(pb.CommitFlowRequest(flow_id=flow_id, changes=changes, expected_revision=revision))
            except ConcurrentModification:
                tries -= 1
                if tries <= 0:
                    raise
                await asyncio.sleep(backoff.pause())

    @asynccontextmanager
    async def phase(self, flow_id: str, phase: str, *, child_type: str = "", reason: str = "") -> AsyncIterator[AsyncPhaseWork]:
        """Work on a phase: it begins with the block; at its end it is COMPLETED, or waits as it must, in one commit with ``results``.

        An exception makes it FAILED, or RETRY_NEEDED, as PhaseFailed says, and is raised on. Raises PhaseUnknown; PreconditionFailed when
        the phase cannot begin: it waits for another, or somebody is at it; PhaseLost, at the end, when it was taken back meanwhile.
        """
        place = PhasePlace(flow_id, phase, child_type)
        found = place.found((await self.flows.GetFlow(read_of(flow_id, flow_pb2.FLOW_VIEW_BASIC))).flow)
        since = (await self.flows.CommitFlow(place.begun(found, reason))).event.time
        work = AsyncPhaseWork(self, place)
        try:
            yield work
        except Exception as error:
            failure = error  # outlives the handler
            try:
                await self.commit(flow_id, lambda flow: place.failed(flow, since, failure), tries=END_TRIES)
            except (FlowledgerError, PhaseLost) as refused:  # what happened first is what is told
                raise error from refused
            raise
        await self.commit(flow_id, lambda flow: place.done(flow, since, work.reason, work.results), tries=END_TRIES)

    def _watch(self, request: pb.WatchFlowRequest, pick: Callable[[pb.WatchFlowResponse], S], resuming: Resuming) -> AsyncWatch[S]:
        following = Following(request, Backoff(random.random), self._patience.watch, time.monotonic)
        return AsyncWatch(following, self.flows.WatchFlow, pick, resuming)


class AsyncPhaseWork:
    """A phase that is being worked on. ``results`` and ``reason`` go into the commit that ends it."""

    def __init__(self, client: AsyncClient, place: PhasePlace) -> None:
        self._client, self._place = client, place
        self.results: list[change_pb2.Change] = []
        self.reason = ""

    async def report(self, fraction: float, message: str = "") -> None:
        """Say how far it has come, 0 to 1. Raises PreconditionFailed when it was taken back meanwhile: stop then."""
        await self._client.flows.ReportProgress(self._place.reported(fraction, message))


class _Calls:
    """What a generated stub uses of a channel, with all that the client adds to a call."""

    def __init__(self, channel: grpc.aio.Channel, metadata: Metadata, patience: Patience, new_id: Callable[[], UUID]) -> None:
        self._channel, self._metadata, self._patience, self._new_id = channel, metadata, patience, new_id

    def unary_unary(self, *arguments: Any, **named: Any) -> Callable[..., Any]:
        method = self._channel.unary_unary(*arguments, **named)

        async def call(request: Any, timeout: float | None = None, metadata: Metadata = ()) -> Any:
            sent, request_id = identified(request, self._new_id)
            tries = Tries(
                self._patience.call if timeout is None else timeout, self._patience.attempt, Backoff(random.random), time.monotonic
            )
            while True:
                try:
                    return await method(sent, timeout=tries.seconds, metadata=(*self._metadata, *metadata))
                except grpc.RpcError as error:
                    failure = error_of(error, request_id)
                    if (pause := tries.pause(failure)) is None:
                        raise tries.verdict(failure) from error
                await asyncio.sleep(pause)

        return call

    def unary_stream(self, *arguments: Any, **named: Any) -> Callable[..., Any]:
        return self._named(self._channel.unary_stream(*arguments, **named))

    def stream_unary(self, *arguments: Any, **named: Any) -> Callable[..., Any]:
        return self._named(self._channel.stream_unary(*arguments, **named))

    def stream_stream(self, *arguments: Any, **named: Any) -> Callable[..., Any]:
        return self._named(self._channel.stream_stream(*arguments, **named))

    def _named(self, method: Any) -> Callable[..., Any]:
        def call(requests: Any = None, timeout: float | None = None, metadata: Metadata = ()) -> Any:
            return method(requests, timeout=timeout, metadata=(*self._metadata, *metadata))

        return call
