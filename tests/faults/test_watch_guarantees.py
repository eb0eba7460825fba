"""What etcd promises of a watch (ordered, unique, reliable, atomic, resumable, bookmarkable, filtered), over three mortal processes."""

from __future__ import annotations

import asyncio
import random
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import grpc
import pytest

from tests.cluster import Cluster
from tests.conftest import Urls
from tests.faults.audit import audit
from tests.faults.followers import Follower, Told, elsewhere
from tests.faults.load import Commit, send_until_acknowledged
from tests.faults.process import connection
from tests.faults.test_workers import Served, served
from tests.redis_server import RedisServer, redis_server
from tests.services.administration import call
from tests.tenancy import Refusal, Tenancy
from tests.waiting import until

WORKERS, FLOWS, WRITERS = 3, 3, 2  # writers of each flow
BETWEEN = 15  # commits of each flow between two faults
MORE = 3  # commits of each flow after its history was compacted
# A process takes some seconds to start, and three are replaced one after another.
SECONDS = 120.0
RENAMES = "EVENT_KIND_FIELDS_CHANGED"


class Writing:
    """Writers of some flows: every third commit renames the flow and records activity, in one commit; others only one of them."""

    def __init__(self, tenancy: Tenancy, address: str, flow_ids: Sequence[str]) -> None:
        self._tenancy, self._address = tenancy, address
        self.heads = dict.fromkeys(flow_ids, 1)
        # Of each commit, whether it renamed the flow, and how many changes it had.
        self.made: dict[tuple[str, int], tuple[bool, int]] = {}
        self.enough = asyncio.Event()

    async def run(self, flow_id: str, number: int) -> None:
        """Commits, each until it is acknowledged, until it is enough."""
        activity = {"activity": {"entries": [{"kind": "ACTIVITY_KIND_MEMORY"}]}}
        async with elsewhere(self._tenancy, self._address) as tenancy:
            turn = 0
            while not self.enough.is_set():
                turn += 1
                rename = {"update": {"display_name": f"turn {turn} of writer {number}"}}
                changes = ([rename], [activity], [rename, activity])[turn % 3]
                done = await send_until_acknowledged(tenancy, Commit.of("CommitFlow", flow_id=flow_id, changes=changes), 60.0)
                self.made[flow_id, done.revision] = rename in changes, len(changes)
                self.heads[flow_id] = max(self.heads[flow_id], done.revision)

    async def further(self, count: int) -> None:
        """Returns when every flow has come so much further."""
        goals = {flow_id: head + count for flow_id, head in self.heads.items()}
        await until(lambda: all(self.heads[flow_id] >= goal for flow_id, goal in goals.items()), SECONDS)


@asynccontextmanager
async def _running(*calls: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """The calls while the block lasts; the first that fails ends it."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(call) for call in calls]
        yield
        for task in tasks:
            task.cancel()


def _ordered_and_unique(told: Sequence[Told]) -> None:
    of: dict[str, list[int]] = {}
    for flow_id, revision, _, _ in told:
        of.setdefault(flow_id, []).append(revision)
    for revisions in of.values():
        assert revisions == sorted(set(revisions))


async def _kill_a_worker(workers: Served, chance: random.Random) -> None:
    chosen = chance.choice(workers.workers())
    chosen.send_signal(signal.SIGKILL)
    await until(lambda: chosen.pid not in {worker.pid for worker in workers.workers()} and len(workers.workers()) == WORKERS, SECONDS)


async def _replace_them_all(workers: Served) -> None:
    before = {worker.pid for worker in workers.workers()}
    workers.process.send_signal(signal.SIGHUP)
    await until(lambda: len(workers.workers()) == WORKERS and not before & {worker.pid for worker in workers.workers()}, SECONDS)


async def _restart_redis(redis: RedisServer) -> None:
    await asyncio.to_thread(redis.kill)
    await asyncio.to_thread(redis.start)


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("hints", ["redis", "none"])
async def test_watches_hold_what_etcd_promises(
    hints: str, urls: Urls, postgres: Cluster, tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    """With hints over a Redis that dies, and with every hint between processes dropped."""
    with redis_server(tmp_path) as redis:
        way = {"redis_url": redis.url} if hints == "redis" else {"wakeups": "local"}
        options = {"watch_poll_seconds": "0.2", "drain_seconds": "1", "watch_max_age_seconds": "3", **way}
        async with served(urls, tmp_path, count=WORKERS, **options) as workers, connection(workers.address) as channel:
            through = redis if hints == "redis" else None
            ledger_url, count = postgres.url(urls.name, "postgres"), pytestconfig.getoption("--faults")
            await _watched_through_faults(Tenancy.fresh(channel), workers, through, ledger_url, count)


async def _watched_through_faults(tenancy: Tenancy, workers: Served, redis: RedisServer | None, ledger_url: str, count: int) -> None:
    chance = random.Random(20261125)
    flow_ids = [(await tenancy.create(labels={"n": str(number)})).flow_id for number in range(FLOWS)]
    each = {flow_id: Follower(tenancy, workers.address, flow_id) for flow_id in flow_ids}
    renames = {flow_id: Follower(tenancy, workers.address, flow_id, kinds=[RENAMES]) for flow_id in flow_ids}
    everything = Follower(tenancy, workers.address)
    labelled = Follower(tenancy, workers.address, filter='labels.n = "1"', kinds=[RENAMES])
    followers = (*each.values(), *renames.values(), everything, labelled)
    writing = Writing(tenancy, workers.address, flow_ids)
    faults: list[Callable[[], Awaitable[None]]] = [lambda: _kill_a_worker(workers, chance), lambda: _replace_them_all(workers)]
    if redis is not None:
        faults.insert(0, lambda: _restart_redis(redis))
    async with _running(*(follower.run() for follower in followers)):
        async with asyncio.TaskGroup() as writers:
            for flow_id in flow_ids:
                for number in range(WRITERS):
                    writers.create_task(writing.run(flow_id, number))
            for number in range(count):
                await writing.further(BETWEEN)
                await faults[number % len(faults)]()
            writing.enough.set()
        stored = (await audit(ledger_url)).hashes
        renamed = {flow_id: {at for (of, at), (was, _) in writing.made.items() if of == flow_id and was} for flow_id in flow_ids}
        await until(lambda: len(everything.told) >= sum(map(len, stored.values())), SECONDS)
        for flow_id in flow_ids:
            await until(lambda flow_id=flow_id: len(each[flow_id].told) >= len(stored[UUID(flow_id)]), SECONDS)  # type: ignore[misc]
            await until(lambda flow_id=flow_id: len(renames[flow_id].told) >= len(renamed[flow_id]), SECONDS)  # type: ignore[misc]
        await until(lambda: len(labelled.told) >= len(renamed[flow_ids[1]]), SECONDS)
        await until(lambda: all(follower.streams > 1 for follower in followers), SECONDS)
        await _goes_on_from_any_token(tenancy, workers.address, everything, chance)
        for follower in followers:
            _ordered_and_unique(follower.told)
        for flow_id in flow_ids:
            told = each[flow_id].told
            # Reliable: every revision, as it is stored.
            assert tuple(link for _, _, link, _ in told) == stored[UUID(flow_id)]
            # Atomic: all of a commit in one message.
            assert {(of, at): count for of, at, _, count in told[1:]} == {
                key: count for key, (_, count) in writing.made.items() if key[0] == flow_id
            }
            # Filtered: no more and no less.
            assert renames[flow_id].told == [event for event in told if event[1] in renamed[flow_id]]
            assert told == [event for event in everything.told if event[0] == flow_id]
        assert labelled.told == renames[flow_ids[1]].told
        await _goes_on_over_compaction(tenancy, workers.address, each, everything, followers)


async def _goes_on_from_any_token(tenancy: Tenancy, address: str, follower: Follower, chance: random.Random) -> None:
    """Resumable and bookmarkable: after a token comes, on any process, what came after it, in the same order."""
    for token, before in follower.some_tokens(5, chance):
        again, rest = Follower(tenancy, address), follower.told[before:]
        async with _running(again.run(token)):
            await until(lambda again=again, rest=rest: again.opened.is_set() and len(again.told) >= len(rest), SECONDS)  # type: ignore[misc]
        assert again.told == rest


async def _goes_on_over_compaction(
    tenancy: Tenancy, address: str, each: Mapping[str, Follower], everything: Follower, followers: Sequence[Follower]
) -> None:
    """Reliable: whoever has heard what is compacted misses nothing afterwards, and whoever has not is told so."""
    told = [len(follower.tokens) for follower in followers]
    # A heartbeat later the position is past what a filter left out, too.
    await until(lambda: all(len(follower.tokens) > count for follower, count in zip(followers, told, strict=True)), SECONDS)
    heads = {flow_id: follower.told[-1][1] for flow_id, follower in each.items()}
    async with elsewhere(tenancy, address) as there:
        await call(there, "UpdatePolicy", policy={"keep_revisions": 5})
        assert (await call(there, "CompactFlows")).events_removed > 0
        for flow_id in each:
            for at in range(MORE):
                await send_until_acknowledged(there, Commit.of("UpdateFlow", flow_id=flow_id, update={"display_name": f"later {at}"}), 60.0)
    for flow_id, follower in each.items():
        rest = [(flow_id, heads[flow_id] + at) for at in range(1, MORE + 1)]
        await until(lambda follower=follower, rest=rest: [one[:2] for one in follower.told[-MORE:]] == rest, SECONDS)  # type: ignore[misc]
    everywhere = sorted(one for follower in each.values() for one in follower.told)
    await until(lambda: sorted(everything.told) == everywhere, SECONDS)
    for flow_id, reason in ((next(iter(each)), "REVISION_COMPACTED"), ("", "POSITION_COMPACTED")):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await Follower(tenancy, address, flow_id).run((each[flow_id] if flow_id else everything).tokens[1][0])
        assert Refusal.of(refused.value).reason == reason
