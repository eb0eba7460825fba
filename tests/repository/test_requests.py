"""Request ids: a repeat is answered as the first time and changes nothing, whoever asks and whenever."""

from __future__ import annotations

import asyncio
from uuid import UUID, uuid4

import asyncpg
import pytest

from server.repository.requests import Answered, Committed, answered
from server.repository.statement import named
from server.repository.tables import TENANTS_SETTING
from server.statemachine.change import CancelFlow, DeleteFlow, PauseFlow
from server.statemachine.errors import FlowExists, FlowNotFound, RequestIdReused
from server.statemachine.values import Tenant
from tests.repository import rows
from tests.repository.store import Store, report, request


def answer(flow_id: UUID, revision: int) -> Answered:
    return Answered(f"{flow_id}@{revision}".encode())


async def test_a_repeat_is_answered_as_the_first_time(store: Store, elsewhere: Store, tenant: Tenant) -> None:
    flow_id, asking = await store.begun(tenant), request()
    assert (await store.commit(store.asked(tenant, flow_id, report(1), request=asking))).flow.revision == 3
    await store.commit(store.asked(tenant, flow_id, report(2)))
    for where in (store, elsewhere):
        assert await where.commits.commit(where.asked(tenant, flow_id, report(1), request=asking)) == answer(flow_id, 3)
    assert (await store.head(tenant, flow_id)).flow.revision == 4


async def test_a_repeat_is_answered_though_its_revision_is_no_longer_current(store: Store, tenant: Tenant) -> None:
    flow_id, asking = await store.begun(tenant), request()
    await store.commit(store.asked(tenant, flow_id, report(1), expected=2, request=asking))
    assert await store.commits.commit(store.asked(tenant, flow_id, report(1), expected=2, request=asking)) == answer(flow_id, 3)


async def test_a_repeat_is_answered_after_the_flow_ended(store: Store, elsewhere: Store, tenant: Tenant) -> None:
    flow_id, asking = await store.begun(tenant), request()
    await store.commit(store.asked(tenant, flow_id, report(1), request=asking))
    await store.commit(store.asked(tenant, flow_id, CancelFlow()))
    await store.commit(store.asked(tenant, flow_id, DeleteFlow()))
    for where in (store, elsewhere):
        assert await where.commits.commit(where.asked(tenant, flow_id, report(1), request=asking)) == answer(flow_id, 3)


async def test_a_repeated_birth_is_answered_as_the_first_time(store: Store, elsewhere: Store, tenant: Tenant) -> None:
    flow_id, asking = uuid4(), request()
    await store.commit(store.birth(tenant, flow_id=flow_id, request=asking))
    for where in (store, elsewhere):
        assert await where.commits.commit(where.birth(tenant, flow_id=flow_id, request=asking)) == answer(flow_id, 1)
        # The service makes another id when the caller gives none: the answer is the first flow all the same.
        other = where.birth(tenant, request=asking)
        assert await where.commits.commit(other) == answer(flow_id, 1)
        assert await where.flows.heads([other.key]) == {}


async def test_repeats_that_arrive_together_change_the_flow_once(store: Store, elsewhere: Store, tenant: Tenant) -> None:
    flow_id, asking = await store.begun(tenant), request()
    here = [store.asked(tenant, flow_id, report(1), request=asking) for _ in range(5)]
    there = [elsewhere.asked(tenant, flow_id, report(1), request=asking) for _ in range(5)]
    results = [one for some in await asyncio.gather(store.all_of(*here), elsewhere.all_of(*there)) for one in some]
    assert sorted(type(one).__name__ for one in results) == [*["Answered"] * 9, "Committed"]
    assert [one for one in results if isinstance(one, Answered)] == [answer(flow_id, 3)] * 9
    assert (await store.head(tenant, flow_id)).flow.revision == 3


async def test_one_id_for_births_in_two_processes_makes_one_flow(store: Store, elsewhere: Store, tenant: Tenant) -> None:
    for _ in range(10):
        asking = request()
        twins = [store.birth(tenant, request=asking), elsewhere.birth(tenant, request=asking)]
        results = await asyncio.gather(store.commits.commit(twins[0]), elsewhere.commits.commit(twins[1]))
        made = [one for one in results if isinstance(one, Committed)]
        assert len(made) == 1
        assert [one for one in results if isinstance(one, Answered)] == [answer(made[0].flow.flow_id, 1)]
        assert len(await store.flows.heads([twin.key for twin in twins])) == 1


async def test_a_twin_that_is_stored_a_moment_earlier_gives_the_answer(store: Store, tenant: Tenant, truth: asyncpg.Connection) -> None:
    """The unique index is where the two meet: ours waits there until the other's transaction ends, and is refused."""
    asking, flow_id = request(), await store.begun(tenant)
    twin = truth.transaction()
    await twin.start()
    values = {**rows.row("requests", tenant, flow_id), "request_id": asking.request_id, "payload_hash": asking.payload_hash}
    await rows.put(truth, "requests", {**values, "answer": b"the twin's"})
    waiting = asyncio.create_task(store.commits.commit(store.asked(tenant, flow_id, report(1), request=asking)))
    blocked = "SELECT count(*) FROM pg_stat_activity WHERE pg_backend_pid() = ANY (pg_blocking_pids(pid))"
    async with asyncio.timeout(10):
        while not await truth.fetchval(blocked):
            await truth.execute("SELECT pg_stat_clear_snapshot()")
    await twin.commit()
    assert await waiting == Answered(b"the twin's")
    assert (await store.head(tenant, flow_id)).flow.revision == 2


async def test_a_twin_that_is_rolled_back_is_as_if_it_had_never_been(store: Store, tenant: Tenant, truth: asyncpg.Connection) -> None:
    asking, flow_id = request(), await store.begun(tenant)
    twin = truth.transaction()
    await twin.start()
    await rows.put(truth, "requests", {**rows.row("requests", tenant, flow_id), "request_id": asking.request_id})
    waiting = asyncio.create_task(store.commits.commit(store.asked(tenant, flow_id, report(1), request=asking)))
    blocked = "SELECT count(*) FROM pg_stat_activity WHERE pg_backend_pid() = ANY (pg_blocking_pids(pid))"
    async with asyncio.timeout(10):
        while not await truth.fetchval(blocked):
            await truth.execute("SELECT pg_stat_clear_snapshot()")
    await twin.rollback()
    assert isinstance(await waiting, Committed)


async def test_an_id_with_another_payload_is_refused(store: Store, elsewhere: Store, tenant: Tenant) -> None:
    flow_id, asking = await store.begun(tenant), request(b"one")
    await store.commit(store.asked(tenant, flow_id, report(1), request=asking))
    other = request(b"two", asking.request_id)
    for where in (store, elsewhere):
        for asked in (where.asked(tenant, flow_id, report(2), request=other), where.birth(tenant, request=other)):
            with pytest.raises(RequestIdReused):
                await where.commits.commit(asked)
    assert (await store.head(tenant, flow_id)).flow.revision == 3


async def test_an_id_with_two_payloads_at_once_serves_one_of_them(store: Store, tenant: Tenant) -> None:
    flow_id, asking = await store.begun(tenant), request(b"one")
    results = await store.all_of(
        store.asked(tenant, flow_id, report(1), request=asking),
        store.asked(tenant, flow_id, report(2), request=request(b"two", asking.request_id)),
        store.asked(tenant, flow_id, report(3)),
    )
    assert [type(one) for one in results] == [Committed, RequestIdReused, Committed]


async def test_a_reused_id_is_its_callers_fault_and_not_its_neighbours(store: Store, elsewhere: Store, tenant: Tenant) -> None:
    used, asking = await elsewhere.begun(tenant), request(b"one")
    await elsewhere.commit(elsewhere.asked(tenant, used, report(1), request=asking))
    other = rows.tenant()
    neighbour = await store.begun(other)
    results = await store.all_of(
        store.asked(tenant, used, report(2), request=request(b"two", asking.request_id)),
        store.asked(other, neighbour, report(1), request=request()),
    )
    assert [type(one) for one in results] == [RequestIdReused, Committed]


async def test_a_refusal_is_not_remembered(store: Store, tenant: Tenant) -> None:
    flow_id, asking = uuid4(), request()
    with pytest.raises(FlowNotFound):
        await store.commits.commit(store.asked(tenant, flow_id, PauseFlow(), request=asking))
    assert await answered(store.database, tenant, asking) is None
    await store.commit(store.birth(tenant, flow_id=flow_id))
    assert (await store.commit(store.asked(tenant, flow_id, PauseFlow(), request=asking))).flow.revision == 2


async def test_a_new_request_for_a_flow_that_exists_is_no_repeat(store: Store, tenant: Tenant) -> None:
    flow_id = uuid4()
    await store.commit(store.birth(tenant, flow_id=flow_id, request=request()))
    with pytest.raises(FlowExists):
        await store.commits.commit(store.birth(tenant, flow_id=flow_id, request=request()))


async def test_commits_together_are_repeated_together(store: Store, elsewhere: Store, tenant: Tenant) -> None:
    flows, asking = [await store.begun(tenant) for _ in range(3)], request()

    def asked(where: Store) -> list[object]:
        return [where.asked(tenant, flow_id, report(1)) for flow_id in flows]

    attempts = [where.commits.commit_together(asked(where), asking) for where in (store, elsewhere)]  # type: ignore[arg-type]
    results = await asyncio.gather(*attempts)
    first = Answered(",".join(f"{flow_id}@3" for flow_id in flows).encode())
    assert first in results
    assert await store.commits.commit_together(asked(store), asking) == first  # type: ignore[arg-type]
    assert [(await store.head(tenant, flow_id)).flow.revision for flow_id in flows] == [3, 3, 3]
    with pytest.raises(RequestIdReused):
        await store.commits.commit_together(asked(store), request(b"two", asking.request_id))  # type: ignore[arg-type]


async def test_a_tenants_ids_are_its_own(store: Store, tenant: Tenant) -> None:
    asking, other = request(), rows.tenant()
    mine, theirs = await store.begun(tenant), await store.begun(other)
    assert isinstance(await store.commits.commit(store.asked(tenant, mine, report(1), request=asking)), Committed)
    assert isinstance(await store.commits.commit(store.asked(other, theirs, report(1), request=asking)), Committed)


async def test_what_is_remembered_outlives_the_flow(store: Store, tenant: Tenant, truth: asyncpg.Connection) -> None:
    flow_id, asking = await store.begun(tenant), request()
    await store.commit(store.asked(tenant, flow_id, report(1), request=asking))
    async with truth.transaction():
        await truth.execute(f"SELECT set_config('{TENANTS_SETTING}', $1, true)", named([tenant]))
        for table in ("discovery_flows", "documents", "activity", "events", "flows"):
            await truth.execute(f"DELETE FROM {table} WHERE flow_id = $1", flow_id)
    assert await answered(store.database, tenant, asking) == answer(flow_id, 3)
