"""Many writers at once: one commit per revision, no revision without its event, nothing lost and nothing twice."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from typing import Any
from uuid import uuid4

import grpc
import pytest

from server import app
from tests.cluster import Cluster
from tests.conftest import Urls, settings
from tests.faults.audit import audit
from tests.faults.load import Acknowledged, Commit, assert_each_is_there_once, send, send_until_acknowledged
from tests.faults.locks import blocked, held
from tests.faults.process import connection, database, serving
from tests.tenancy import Refusal, Tenancy

WRITERS = 64
ROUNDS = 5


@pytest.fixture(scope="module")
async def second(shared_urls: Urls, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[grpc.aio.Channel]:
    """A second server process on the shared server's database."""
    async with serving(tmp_path_factory.mktemp("second"), **database(shared_urls)) as process, connection(process.address) as channel:
        yield channel


@pytest.fixture
def ledger_url(postgres: Cluster, shared_urls: Urls) -> str:
    """The shared database as the superuser sees it."""
    return postgres.url(shared_urls.name, "postgres")


async def _revision(tenancy: Tenancy, flow_id: str) -> int:
    return int((await tenancy.call("GetFlow", flow_id=flow_id)).flow.revision)


async def _race(callers: Sequence[Tenancy], flow_id: str, expected: int) -> tuple[list[Any], list[Refusal]]:
    async def write(at: int) -> Any:
        update = {"display_name": f"writer {at} at {expected}"}
        return await callers[at % len(callers)].call("UpdateFlow", flow_id=flow_id, update=update, expected_revision=expected)

    ended = await asyncio.gather(*(write(at) for at in range(WRITERS)), return_exceptions=True)
    won = [one for one in ended if not isinstance(one, BaseException)]
    lost = [Refusal.of(one) for one in ended if isinstance(one, grpc.aio.AioRpcError)]
    assert len(won) + len(lost) == WRITERS, ended
    return won, lost


async def _assert_one_wins_each_round(callers: Sequence[Tenancy], ledger_url: str) -> None:
    flow = await callers[0].create()
    for expected in range(flow.revision, flow.revision + ROUNDS):
        won, lost = await _race(callers, flow.flow_id, expected)
        assert [one.flow.revision for one in won] == [expected + 1]
        assert {(one.code, one.reason) for one in lost} == {(grpc.StatusCode.ABORTED, "CONCURRENT_MODIFICATION")}
        revisions = {"expected_revision": str(expected), "current_revision": str(expected + 1)}
        assert all(revisions.items() <= one.metadata.items() for one in lost)
    events = (await callers[0].call("ListFlowEvents", flow_id=flow.flow_id)).events
    assert [event.revision for event in events] == list(range(1, flow.revision + ROUNDS + 1))
    await audit(ledger_url)


async def test_of_64_writers_with_one_expected_revision_exactly_one_wins(tenancy: Tenancy, ledger_url: str) -> None:
    await _assert_one_wins_each_round([tenancy], ledger_url)


async def test_of_64_writers_on_two_server_processes_exactly_one_wins(tenancy: Tenancy, second: grpc.aio.Channel, ledger_url: str) -> None:
    await _assert_one_wins_each_round([tenancy, tenancy.on(second)], ledger_url)


async def test_writers_without_an_expected_revision_all_succeed_with_a_revision_each(
    tenancy: Tenancy, second: grpc.aio.Channel, ledger_url: str
) -> None:
    flow = await tenancy.create()
    await tenancy.move(flow.flow_id, "data_import", "IN_PROGRESS")
    callers = [tenancy, tenancy.on(second)]

    async def write(at: int) -> int:
        progress = {"phase": "data_import", "fraction": at / 40}
        report = Commit.of("ReportProgress", flow_id=flow.flow_id, progress=progress)
        # Two processes may pass each other again and again; what is told to come back may.
        return (await send_until_acknowledged(callers[at % 2], report)).revision

    one_server = await asyncio.gather(
        *(tenancy.call("UpdateFlow", flow_id=flow.flow_id, update={"labels": {"at": str(at)}}) for at in range(40))
    )
    assert sorted(one.flow.revision for one in one_server) == list(range(3, 43))
    assert sorted(await asyncio.gather(*(write(at) for at in range(40)))) == list(range(43, 83))
    assert await _revision(tenancy, flow.flow_id) == 82
    await audit(ledger_url)


async def test_a_request_id_that_races_with_itself_on_two_processes_commits_once(
    tenancy: Tenancy, second: grpc.aio.Channel, ledger_url: str
) -> None:
    flow = await tenancy.create()
    callers = [tenancy, tenancy.on(second)]
    for at in range(10):
        twin = Commit.of("UpdateFlow", flow_id=flow.flow_id, update={"display_name": f"name {at}"})
        told = await asyncio.gather(*(send(caller, twin) for caller in callers * 3))
        assert {one.revision for one in told} == {at + 2}
        birth = Commit.of("CreateFlow", type="discovery")
        assert len({one.flow_id for one in await asyncio.gather(*(send(caller, birth) for caller in callers * 3))}) == 1
    listed = (await tenancy.call("ListFlows", page_size=100)).flows
    assert len(listed) == 11
    await audit(ledger_url)


async def test_a_batch_that_races_single_commits_changes_all_its_flows_or_none(
    tenancy: Tenancy, second: grpc.aio.Channel, ledger_url: str
) -> None:
    flows = [(await tenancy.create()).flow_id for _ in range(3)]
    callers = [tenancy, tenancy.on(second)]

    async def batch(at: int) -> str | None:
        name = f"batch {at}"
        caller = callers[at % 2]
        heads = await asyncio.gather(*(_revision(caller, flow_id) for flow_id in flows))
        commits = [
            {"flow_id": flow_id, "expected_revision": head, "changes": [{"update": {"display_name": name}}]}
            for flow_id, head in zip(flows, heads, strict=True)
        ]
        try:
            response = await caller.call("BatchUpdateFlows", commits=commits)
        except grpc.aio.AioRpcError as error:
            refusal = Refusal.of(error)
            assert (refusal.code, refusal.reason) == (grpc.StatusCode.ABORTED, "CONCURRENT_MODIFICATION")
            assert refusal.metadata["flow_id"] == flows[int(refusal.metadata["commit_index"])]
            return None
        assert [one.flow.flow_id for one in response.results] == flows
        assert [one.flow.revision for one in response.results] == [head + 1 for head in heads]
        return name

    async def single(at: int) -> None:
        commit = Commit.of("UpdateFlow", flow_id=flows[at % 3], update={"labels": {"at": str(at)}})
        await send_until_acknowledged(callers[at % 2], commit)

    done: set[str] = set()
    for start in range(0, 30, 3):  # three batches at once and a few singles: batches may win or lose
        ended = await asyncio.gather(*(batch(at) for at in range(start, start + 3)), *(single(at) for at in range(start, start + 3)))
        done |= {name for name in ended if name is not None}
    # Three batches among themselves: whichever is first read what still stands, so one at least wins, on any machine.
    ended = await asyncio.gather(*(batch(at) for at in range(30, 33)))
    assert any(ended)
    done |= {name for name in ended if name is not None}
    for flow_id in flows:
        events = (await tenancy.call("ListFlowEvents", flow_id=flow_id, page_size=1000)).events
        names = [change.fields.to_display_name for event in events for change in event.changes if change.fields.to_display_name]
        assert (set(names), len(names)) == (done, len(done))
    await audit(ledger_url)


async def test_two_processes_that_batch_the_same_flows_in_opposite_orders_lose_nothing(
    tenancy: Tenancy, second: grpc.aio.Channel, ledger_url: str
) -> None:
    flows = [(await tenancy.create()).flow_id for _ in range(10)]
    callers = [tenancy, tenancy.on(second)]

    async def write(side: int, at: int) -> int:
        order = flows if side == 0 else flows[::-1]
        commits = [{"flow_id": flow_id, "changes": [{"update": {"display_name": f"side {side} at {at}"}}]} for flow_id in order]
        batch = Commit.of("BatchUpdateFlows", commits=commits)
        async with asyncio.timeout(30):
            while True:
                try:
                    return len((await callers[side].send(batch.rpc, batch.request)).results)
                except grpc.aio.AioRpcError as error:
                    # Told to come back is no loss; anything else, a deadlock's own error above all, is.
                    if Refusal.of(error).reason != "STORE_UNAVAILABLE":
                        raise

    for at in range(0, 12, 3):
        written = await asyncio.gather(*(write(side, at + more) for side in (0, 1) for more in range(3)))
        assert written == [10] * 6
    assert {await _revision(tenancy, flow_id) for flow_id in flows} == {1 + 24}
    await audit(ledger_url)


async def test_single_commits_on_two_processes_in_opposite_orders_lose_nothing(
    tenancy: Tenancy, second: grpc.aio.Channel, ledger_url: str
) -> None:
    flows = [(await tenancy.create()).flow_id for _ in range(20)]
    callers = [tenancy, tenancy.on(second)]

    async def write(side: int, flow_id: str) -> Acknowledged:
        update = Commit.of("UpdateFlow", flow_id=flow_id, update={"display_name": f"side {side}"})
        return await send_until_acknowledged(callers[side], update)

    acknowledged: list[Acknowledged] = []
    for _ in range(10):
        acknowledged += await asyncio.gather(*(write(0, flow_id) for flow_id in flows), *(write(1, flow_id) for flow_id in flows[::-1]))
    assert {await _revision(tenancy, flow_id) for flow_id in flows} == {1 + 20}
    assert_each_is_there_once(await audit(ledger_url), acknowledged)


async def test_callers_that_cancel_mid_flight_take_nobody_along(tenancy: Tenancy, ledger_url: str) -> None:
    locked, free = (await tenancy.create()).flow_id, (await tenancy.create()).flow_id
    chance = random.Random(20251122)
    commits = [Commit.of("UpdateFlow", flow_id=chance.choice((locked, free)), update={"display_name": f"name {at}"}) for at in range(60)]
    first = Commit.of("UpdateFlow", flow_id=locked, update={"display_name": "first"})
    async with held(ledger_url, locked):
        calls = [asyncio.ensure_future(send(tenancy, first))]
        await blocked(ledger_url, 1)
        calls += [asyncio.ensure_future(send(tenancy, commit)) for commit in commits]
        await tenancy.call("GetFlow", flow_id=free)  # on the same connection: by now the commits have arrived
        for call in calls[::2]:  # the one on its way to disk, and half of those that wait behind it
            call.cancel()
        await asyncio.wait(calls[::2], timeout=10)
        assert all(call.cancelled() for call in calls[::2])
    stayed = await asyncio.gather(*calls[1::2])
    returned = await asyncio.gather(*(send(tenancy, commit) for commit in [first, *commits][::2]))
    ledger = await audit(ledger_url)
    assert_each_is_there_once(ledger, [*stayed, *returned])
    assert await _revision(tenancy, locked) + await _revision(tenancy, free) == 2 + 61


async def test_a_bad_commit_does_not_fail_its_neighbours_in_a_combined_batch(urls: Urls, postgres: Cluster) -> None:
    superuser = postgres.url(urls.name, "postgres")
    # Something that our rules let through and the database does not: a fault that shows only when the batch is sent.
    postgres.run("ALTER TABLE flows ADD CONSTRAINT no_poison CHECK (display_name <> 'poison')", urls.name)
    async with app.running(settings(urls, commit_lanes=1)) as server, connection(server.address) as channel:
        tenancy = Tenancy.fresh(channel)
        flows = [(await tenancy.create()).flow_id for _ in range(30)]

        def write(at: int, flow_id: str) -> Any:
            match at % 5:
                case 0 if at == 15:  # one is enough: its error is logged with its trace
                    return tenancy.call("UpdateFlow", flow_id=flow_id, update={"display_name": "poison"})
                case 1:
                    return tenancy.call("UpdateFlow", flow_id=flow_id, update={"display_name": "stale"}, expected_revision=77)
                case 2:
                    return tenancy.move(flow_id, "data_cleansing", "IN_PROGRESS")
                case 3:
                    return tenancy.call("UpdateFlow", flow_id=str(uuid4()), update={"display_name": "nobody"})
                case _:
                    return tenancy.call("UpdateFlow", flow_id=flow_id, update={"display_name": f"good {at}"})

        async with held(superuser, flows[0]):
            blocker = asyncio.ensure_future(tenancy.call("UpdateFlow", flow_id=flows[0], update={"display_name": "first"}))
            await blocked(superuser, 1)  # the only lane is out: what comes now is combined
            calls = [asyncio.ensure_future(write(at, flow_id)) for at, flow_id in enumerate(flows)]
            await tenancy.call("GetFlow", flow_id=flows[0])
        await blocker
        ended: list[Any] = await asyncio.gather(*calls, return_exceptions=True)
        told = [one.code() if isinstance(one, grpc.aio.AioRpcError) else one.flow.display_name for one in ended]
        refused = {1: grpc.StatusCode.ABORTED, 2: grpc.StatusCode.FAILED_PRECONDITION, 3: grpc.StatusCode.NOT_FOUND}
        expected = [refused.get(at % 5, f"good {at}") for at in range(30)]
        expected[15] = grpc.StatusCode.INTERNAL
        assert told == expected
        assert (await audit(superuser)).events == 30 + 1 + 11
