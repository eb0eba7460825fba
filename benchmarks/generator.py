"""Unary load over several connections, from callers that never wait or at a fixed rate."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Protocol

from benchmarks.processor import spending
from benchmarks.sample import Sample, sample_of
from benchmarks.wire import OK, Connection, Metadata, connect

MOST_CONNECTIONS = 4  # as a few client processes would open; 1 and 16 gave the same rates


class Requests(Protocol):
    """What the callers send."""

    def next(self, caller: int) -> bytes | None:
        """The next framed request of ``caller``, who has no other call open; None when it shall make no more."""


@dataclass(frozen=True, slots=True)
class Target:
    """The method to call, as whom, and the process trees to account processor time to.

    Connection number n calls with the metadata number n modulo their number, and caller number n uses connection number n likewise.
    """

    address: tuple[str, int]
    path: str
    metadata: Sequence[Metadata]
    trees: Mapping[str, int]


class CallFailed(RuntimeError):
    """A call under load was answered with something other than OK."""

    def __init__(self, path: str, status: str, text: str) -> None:
        super().__init__(f"{path} answered with grpc-status {status}: {text}")


class _Round:
    """The calls of one round: how long they took, and whether one failed."""

    def __init__(self, path: str) -> None:
        self.latencies: list[float] = []
        self.open = 0
        self.done = asyncio.get_running_loop().create_future()
        self._path = path

    def failed(self, status: str, text: str) -> None:
        if not self.done.done():
            self.done.set_exception(CallFailed(self._path, status, text))


async def unary_load(target: Target, requests: Requests, callers: int, seconds: float) -> Sample:
    """Each of ``callers`` makes its next call as soon as its last is answered; at the end all open calls are awaited.

    Raises CallFailed at the first answer that is not OK.
    """
    async with AsyncExitStack() as stack:
        connections = await _connections(stack, target, callers)
        run = _Round(target.path)
        clock = time.perf_counter
        with spending(target.trees) as spent:
            deadline = clock() + seconds
            run.open = callers
            for caller in range(callers):
                _start_caller(run, connections[caller % len(connections)], requests, caller, clock, deadline)
            for connection in connections:
                connection.flush()
            await asyncio.wait_for(run.done, seconds + 30)
    return sample_of(run.latencies, spent.wall, spent.cpu)


def _start_caller(
    run: _Round, connection: Connection, requests: Requests, caller: int, clock: Callable[[], float], deadline: float
) -> None:
    begun = clock()

    def ended(status: str, text: str) -> None:
        nonlocal begun
        if status != OK:
            run.failed(status, text)
            return
        now = clock()
        run.latencies.append(now - begun)
        begun = now
        proceed()

    def proceed() -> None:
        request = requests.next(caller) if begun < deadline else None
        if request is not None:
            connection.unary(request, ended)  # flushed by the connection when it has read all that came
            return
        run.open -= 1
        if run.open == 0 and not run.done.done():
            run.done.set_result(None)

    proceed()


async def paced_load(target: Target, requests: Requests, callers: int, rate: float, seconds: float) -> Sample:
    """Calls at ``rate`` a second, evenly spaced, whatever the answers do; a call's latency counts from when it was due.

    A due call takes the caller that has been free longest; when all ``callers`` are busy it waits, and its waiting counts.
    """
    loop = asyncio.get_running_loop()
    async with AsyncExitStack() as stack:
        connections = await _connections(stack, target, callers)
        run = _Round(target.path)
        free = list(range(callers))
        due: list[float] = []
        start = loop.time()
        total = int(rate * seconds)
        scheduled = 0

        def send_due() -> None:
            while due and free:
                _paced(free.pop(0), due.pop(0))

        def _paced(caller: int, at: float) -> None:
            def ended(status: str, text: str) -> None:
                if status != OK:
                    run.failed(status, text)
                    return
                run.latencies.append(loop.time() - at)
                free.append(caller)
                if due:
                    _paced(free.pop(0), due.pop(0))
                elif len(run.latencies) == total and not run.done.done():
                    run.done.set_result(None)

            request = requests.next(caller)
            assert request is not None, "paced load needs requests without an end"
            connection = connections[caller % len(connections)]
            connection.unary(request, ended)
            connection.flush()

        def tick() -> None:
            nonlocal scheduled
            now = loop.time()
            while scheduled < total and start + scheduled / rate <= now:
                due.append(start + scheduled / rate)
                scheduled += 1
            send_due()
            if scheduled < total and not run.done.done():
                loop.call_at(start + scheduled / rate, tick)

        with spending(target.trees) as spent:
            tick()
            await asyncio.wait_for(run.done, seconds + 30)
    return sample_of(run.latencies, spent.wall, spent.cpu)


async def _connections(stack: AsyncExitStack, target: Target, callers: int) -> list[Connection]:
    identities = len(target.metadata)
    count = min(callers, max(MOST_CONNECTIONS, identities))
    connections = [await connect(target.address, target.path, target.metadata[number % identities]) for number in range(count)]
    for connection in connections:
        stack.callback(connection.close)
    return connections
