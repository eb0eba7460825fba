"""How soon a watcher hears of a commit, and how many watchers hear of how many; and the same from a server that only passes bytes on."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from flowledger.v1 import flow_service_pb2

from benchmarks.generator import CallFailed, Requests, Target
from benchmarks.processor import spending
from benchmarks.requests import REPORTS, Tenant, Turns
from benchmarks.sample import Measure, Sample, sample_of
from benchmarks.service import Service
from benchmarks.wire import OK, Connection, connect, message

WATCHED = 10
COMMITS_PER_SECOND = 50
SUBSCRIBERS = 1_000
PATIENCE = 30.0  # seconds without the events that were to come


@dataclass(frozen=True, slots=True)
class Topic:
    """Something that can be watched and made to move: each of ``openings`` starts one watch, each of ``publications`` one event.

    ``is_event`` tells a message that a publication caused from others; the first message of every watch is none.
    """

    watch: Target
    openings: Sequence[bytes]
    publish: Target
    publications: Requests
    is_event: Callable[[bytes], bool]


def watch_measures(service: Service) -> list[Measure]:
    """The measures ``watch`` and ``fan-out`` of the service; each round takes other flows."""
    owner = service.running[0]
    watches = service.serving.target("WatchFlow", service.running)
    reports = service.serving.target("ReportProgress", service.running)
    flows = itertools.cycle(owner.flow_ids)

    def topic(watched: int, watchers: int) -> Topic:
        chosen = [next(flows) for _ in range(watched)]
        openings = [opening(flow) for flow in chosen]
        return Topic(watches, openings * watchers, reports, Turns((Tenant(owner.metadata, chosen),), 1, REPORTS), is_event)

    async def watch(seconds: float) -> Sample:
        return await paced(topic(WATCHED, 1), COMMITS_PER_SECOND, seconds)

    async def fan_out(seconds: float) -> Sample:
        return await one_after_another(topic(1, SUBSCRIBERS), seconds)

    return [Measure("watch", 1, watch), Measure("fan-out", SUBSCRIBERS, fan_out)]


def opening(flow: str) -> bytes:
    """Starts a watch of what comes after its first message."""
    request = flow_service_pb2.WatchFlowRequest(flow_id=flow, start=flow_service_pb2.WATCH_START_NOW)
    return message(request.SerializeToString())


def is_event(body: bytes) -> bool:
    """Whether a WatchFlowResponse holds an event (field 3), which follows the revision (field 1, a varint)."""
    at = 0
    if body[:1] == b"\x08":
        at = 1
        while body[at] & 0x80:
            at += 1
        at += 1
    return body[at : at + 1] == b"\x1a"


async def paced(topic: Topic, rate: float, seconds: float) -> Sample:
    """``rate`` publications a second, dealt to the watches in turn, one event each.

    A latency counts from the moment the publication is sent, so it holds the call and the commit too: an upper bound.
    """
    sent: list[deque[float]] = [deque() for _ in topic.openings]
    latencies: list[float] = []
    total = max(1, int(rate * seconds))
    async with watching(topic) as (publisher, progress):

        def heard(number: int) -> None:
            latencies.append(time.perf_counter() - sent[number].popleft())
            progress.advance()

        progress.heard = heard
        with spending(topic.watch.trees) as spent:
            start = time.perf_counter()
            for number in range(total):
                await asyncio.sleep(start + number / rate - time.perf_counter())
                sent[number % len(sent)].append(time.perf_counter())
                _publish(publisher, topic, progress)
            await progress.reach(total)
    return sample_of(latencies, spent.wall, spent.cpu)


async def one_after_another(topic: Topic, seconds: float) -> Sample:
    """The next publication as soon as every watch has heard of the last; the sample's calls are deliveries."""
    latencies: list[float] = []
    async with watching(topic) as (publisher, progress):
        begun = 0.0

        def heard(_: int) -> None:
            latencies.append(time.perf_counter() - begun)
            progress.advance()

        progress.heard = heard
        with spending(topic.watch.trees) as spent:
            deadline = time.perf_counter() + seconds
            while (begun := time.perf_counter()) < deadline:
                _publish(publisher, topic, progress)
                await progress.reach(len(latencies) + len(topic.openings))
    return sample_of(latencies, spent.wall, spent.cpu)


class Progress:
    """How many events came in all, and the first thing that went wrong."""

    def __init__(self) -> None:
        self.heard: Callable[[int], None] = lambda _: None
        self._came = 0
        self._awaited = 0
        self._there: asyncio.Future[None] | None = None
        self._fault: CallFailed | None = None

    def advance(self) -> None:
        """One more event came."""
        self._came += 1
        if self._came >= self._awaited and self._there is not None and not self._there.done():
            self._there.set_result(None)

    def fail(self, fault: CallFailed) -> None:
        """A call ended that should not have."""
        self._fault = self._fault or fault
        if self._there is not None and not self._there.done():
            self._there.set_exception(fault)

    async def reach(self, count: int) -> None:
        """Waits until ``count`` events came in all."""
        if self._fault is not None:
            raise self._fault
        if self._came >= count:
            return
        self._awaited = count
        self._there = asyncio.get_running_loop().create_future()
        try:
            await asyncio.wait_for(self._there, PATIENCE)
        except TimeoutError:
            raise RuntimeError(f"{count - self._came} of {count} messages did not reach their watch within {PATIENCE:g} s") from None


@asynccontextmanager
async def watching(topic: Topic) -> AsyncIterator[tuple[Connection, Progress]]:
    """All watches open and past their first message, on one connection; and a connection to publish on."""
    progress, opening = Progress(), Progress()
    subscriber = await connect(topic.watch.address, topic.watch.path, topic.watch.metadata[0])
    publisher = await connect(topic.publish.address, topic.publish.path, topic.publish.metadata[0])

    def ended(status: str, text: str) -> None:
        fault = CallFailed(topic.watch.path, status, text or "the watch ended")
        opening.fail(fault)
        progress.fail(fault)

    def receiver(number: int) -> Callable[[bytes], None]:
        first = True

        def received(body: bytes) -> None:
            nonlocal first
            if first:
                first = False
                opening.advance()
            elif topic.is_event(body):
                progress.heard(number)

        return received

    try:
        for number, request in enumerate(topic.openings):
            subscriber.server_stream(request, receiver(number), ended)
        subscriber.flush()
        await opening.reach(len(topic.openings))
        yield publisher, progress
    finally:
        subscriber.close()
        publisher.close()


def _publish(publisher: Connection, topic: Topic, progress: Progress) -> None:
    def ended(status: str, text: str) -> None:
        if status != OK:
            progress.fail(CallFailed(topic.publish.path, status, text))

    request = topic.publications.next(0)
    assert request is not None, "publications have no end"
    publisher.unary(request, ended)
    publisher.flush()
