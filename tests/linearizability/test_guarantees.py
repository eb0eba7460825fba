"""The promises of etcd's watch hold of `serve --workers 3` while writers write, and workers, Redis and all of it end and begin again."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
import signal
import time
from dataclasses import replace
from pathlib import Path
from uuid import UUID, uuid4

import grpc
import pytest
from flowledger.v1 import change_pb2, document_pb2, event_pb2, flow_pb2
from flowledger.v1 import flow_service_pb2 as pb
from flowledger_client import AsyncClient, Caller, Patience
from google.protobuf import duration_pb2

from server.workers import SHORT_SECONDS
from tests.conftest import Urls
from tests.faults.test_workers import Served, alive
from tests.linearizability.fleet import lives
from tests.linearizability.guarantees import Entry, Stream, Told, broken
from tests.linearizability.progress import Progress
from tests.linearizability.recorder import PAUSE_SECONDS, RESUMABLE, UNKNOWN
from tests.redis_server import redis_server
from tests.tenancy import Tenancy
from tests.waiting import until

FLOWS, WORKERS = 2, 3
CONNECTION = [("grpc.use_local_subchannel_pool", 1), ("grpc.initial_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 200)]
_log = logging.getLogger(__name__)  # pytest --log-cli-level info shows the figures

ONE, TWO, THREE = (Entry(bytes([at]), ("fields", "phase", "document")) for at in range(3))
LEDGER = (ONE, TWO, THREE)
KEPT = (Stream(0, (Told(0), Told(1, ONE), Told(1), Told(2, TWO))), Stream(2, ()), Stream(2, (Told(3, THREE), Told(3))))
BROKEN = {
    "ordered": (Stream(0, (Told(2, TWO), Told(1, ONE), Told(3, THREE))),),
    "unique": (Stream(0, (Told(1, ONE), Told(2, TWO))), Stream(1, (Told(2, TWO), Told(3, THREE)))),
    "reliable: never told of [2]": (Stream(0, (Told(1, ONE), Told(3, THREE))),),
    "reliable: revision 2 is not": (Stream(0, (Told(1, ONE), Told(2, replace(TWO, hash=b"x")), Told(3, THREE))),),
    "atomic": (Stream(0, (Told(1, ONE), Told(2, replace(TWO, changes=("fields",))), Told(3, THREE))),),
    "resumable": (Stream(0, (Told(1, ONE),)), Stream(2, (Told(3, THREE),))),
    "bookmarkable: position 2 where it was 1": (Stream(0, (Told(1, ONE), Told(2), Told(2, TWO), Told(3, THREE))),),
}


def test_a_watcher_that_was_told_everything_has_nothing_to_complain_of() -> None:
    assert broken(KEPT, LEDGER) == []
    assert broken((Stream(2, (Told(3, THREE),)),), LEDGER) == []


@pytest.mark.parametrize("promise", BROKEN)
def test_a_promise_that_is_broken_is_named(promise: str) -> None:
    found = broken(BROKEN[promise], LEDGER)
    assert any(fault.startswith(promise) for fault in found), found


def entry(event: event_pb2.FlowEvent) -> Entry:
    """What the event says was committed."""
    return Entry(event.hash, tuple(change.WhichOneof("kind") or "" for change in event.changes))


def changes(at: int) -> list[change_pb2.Change]:
    """Three changes that are one commit."""
    state = document_pb2.Document(json=json.dumps({"at": at}))
    return [
        change_pb2.Change(update=change_pb2.FlowUpdate(display_name=f"{at}")),
        change_pb2.Change(progress=change_pb2.ProgressReport(phase="data_import", fraction=at % 100 / 100, message=f"{at}")),
        change_pb2.Change(update=change_pb2.FlowUpdate(state=state)),
    ]


class Watcher:
    """Follows a flow from a revision on; a restless one leaves its stream now and then and takes it up again elsewhere."""

    def __init__(self, address: str, tenancy: Tenancy, flow_id: str, after: int, leaving: float, seed: int) -> None:
        """``leaving`` is how probable that is after each message."""
        self._address, self._tenancy, self._flow_id = address, tenancy, flow_id
        self._after, self._leaving, self._chance = after, leaving, random.Random(seed)
        self.streams: list[Stream] = []

    async def run(self) -> None:
        """Returns when the flow is over."""
        position, over = self._after, False
        while not over:
            told: list[Told] = []
            # A connection of its own, so that any worker may get it.
            async with grpc.aio.insecure_channel(self._address, options=CONNECTION) as channel:
                try:
                    over = await self._follow(channel, position, told)
                except grpc.aio.AioRpcError as error:
                    if error.code() not in UNKNOWN:
                        raise
            self.streams.append(Stream(position, tuple(told)))
            position = told[-1].revision if told else position
            await asyncio.sleep(PAUSE_SECONDS if told else 5 * PAUSE_SECONDS)

    async def _follow(self, channel: grpc.aio.Channel, position: int, told: list[Told]) -> bool:
        start, beat = pb.WATCH_START_AFTER_REVISION, duration_pb2.Duration(seconds=1)
        stream = self._tenancy.on(channel).watch(self._flow_id, start=start, after_revision=position, heartbeat_interval=beat)
        async for message in stream:
            told.append(Told(message.revision, entry(message.event) if message.HasField("event") else None))
            if message.HasField("end"):
                return message.end.reason not in RESUMABLE
            if self._chance.random() < self._leaving:
                return False
        return False


class Flow:
    """A flow with its writer and its watchers, over whatever happens to the service."""

    def __init__(self, client: AsyncClient, address: str, tenancy: Tenancy, seed: int) -> None:
        self._client, self._address, self._tenancy, self._seed = client, address, tenancy, seed
        self.flow_id, self.watchers, self.written = "", list[Watcher](), 0

    async def make(self) -> None:
        """Create it and begin its first phase."""
        self.flow_id = (await self._client.flows.CreateFlow(pb.CreateFlowRequest(type="discovery"))).flow.flow_id
        begun = change_pb2.PhaseTransition(phase="data_import", to=flow_pb2.PHASE_STATE_IN_PROGRESS)
        await self._client.flows.TransitionPhase(pb.TransitionPhaseRequest(flow_id=self.flow_id, transition=begun))
        for number, leaving in enumerate((0.0, 0.05, 0.3)):
            seed = 10 * self._seed + number
            self.watchers.append(Watcher(self._address, self._tenancy, self.flow_id, number, leaving, seed))

    async def write(self, progress: Progress, enough: asyncio.Event) -> None:
        """One commit after the other, and at last the one that ends the flow."""
        while not enough.is_set():
            await self._client.flows.CommitFlow(pb.CommitFlowRequest(flow_id=self.flow_id, changes=changes(self.written)))
            self.written += 1
            progress()
            await asyncio.sleep(PAUSE_SECONDS)
        await self._client.flows.CancelFlow(pb.CancelFlowRequest(flow_id=self.flow_id))

    async def stored(self) -> list[Entry]:
        """Every revision as it is stored."""
        found: list[Entry] = []
        token = ""
        while token or not found:
            request = pb.ListFlowEventsRequest(flow_id=self.flow_id, page_size=500, page_token=token)
            page = await self._client.flows.ListFlowEvents(request)
            found += [entry(event) for event in page.events]
            token = page.next_page_token
        return found


async def harmed(workers: Served, kills: int, progress: Progress) -> None:
    """Kill workers, never one that is so young that its keeper would take it for one that cannot serve."""
    for at in range(kills):
        await progress.more(15)
        await until(lambda: len([worker for worker in workers.workers() if alive(worker)]) == WORKERS)
        oldest = min(workers.workers(), key=lambda worker: worker.create_time())
        if at:
            await until(lambda: time.time() - oldest.create_time() > SHORT_SECONDS + 1)  # noqa: B023 - it is awaited here
        os.kill(oldest.pid, signal.SIGKILL)
    await progress.more(15)


@pytest.mark.timeout(900)
async def test_every_promise_of_a_watch_is_kept_by_three_workers_whatever_is_killed(
    urls: Urls, tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    rounds, progress, enough = pytestconfig.getoption("--rounds"), Progress(), asyncio.Event()
    caller = Caller(uuid4(), uuid4(), "ada")
    with redis_server(tmp_path) as redis:
        variables = {"redis_url": redis.url, "watch_poll_seconds": "0.3", "watch_max_age_seconds": "3"}
        async with (
            lives(urls, tmp_path, WORKERS, variables) as service,
            AsyncClient(service.address, caller, patience=Patience(call=120.0)) as client,
            grpc.aio.insecure_channel(service.address) as channel,
        ):
            tenancy = Tenancy(channel, UUID(str(caller.account)), UUID(str(caller.engagement)))
            flows = [Flow(client, service.address, tenancy, seed) for seed in range(FLOWS)]
            await asyncio.gather(*(flow.make() for flow in flows))
            async with asyncio.TaskGroup() as tasks:
                for flow in flows:
                    tasks.create_task(flow.write(progress, enough))
                    for watcher in flow.watchers:
                        tasks.create_task(watcher.run())
                await harmed(service.workers, 1, progress)
                for at in range(rounds):
                    await (asyncio.to_thread(redis.start) if at % 2 else asyncio.to_thread(redis.kill))
                    await progress.more(15)
                    await service.end()  # asked to stop, with everybody connected
                    await service.begin()
                    await harmed(service.workers, 1 if rounds == 1 else 3, progress)
                enough.set()
            ledgers = [await flow.stored() for flow in flows]
    for flow, ledger in zip(flows, ledgers, strict=True):
        whole = [one for one in ledger if one.changes == ("fields", "phase", "document")]
        assert (len(ledger), len(whole)) == (flow.written + 3, flow.written)
        assert [broken(watcher.streams, ledger) for watcher in flow.watchers] == [[]] * len(flow.watchers)
    streams = [stream for flow in flows for watcher in flow.watchers for stream in watcher.streams]
    _log.info("%d revisions, %d streams, %d messages", sum(map(len, ledgers)), len(streams), sum(len(stream.told) for stream in streams))
