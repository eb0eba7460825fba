"""Two processes on one database: nothing is lost, and what one remembers of a flow neither refuses nor allows anything wrongly."""

from __future__ import annotations

import asyncio
from uuid import uuid4

import pytest

from server.repository.plan import Asked
from server.repository.requests import Committed
from server.statemachine.change import CancelFlow, TransitionPhase, UpdateFlow
from server.statemachine.errors import (
    ConcurrentModification,
    FlowExists,
    FlowNotActive,
    StoreUnavailable,
)
from server.statemachine.states import FlowHold, PhaseState
from server.statemachine.values import Tenant
from tests.repository.store import Store, report


def revisions(results: list[object]) -> list[int]:
    return [result.flow.revision for result in results if isinstance(result, Committed)]


async def persistent(store: Store, asked: Asked) -> Committed:
    """The commit, asked for again for as long as others are faster: attempts are bounded, and a refusal is an answer too."""
    async with asyncio.timeout(20):
        while True:
            try:
                return await store.commit(asked)
            except (ConcurrentModification, StoreUnavailable):
                continue


async def test_of_commits_that_expect_one_revision_exactly_one_is_stored(store: Store, elsewhere: Store, tenant: Tenant) -> None:
    flow_id = await store.begun(tenant)
    for revision in range(2, 12):
        racers = [where.asked(tenant, flow_id, report(revision), expected=revision) for where in (store, elsewhere) for _ in range(4)]
        both = await asyncio.gather(store.all_of(*racers[:4]), elsewhere.all_of(*racers[4:]))
        results = [result for some in both for result in some]
        lost = [result for result in results if isinstance(result, ConcurrentModification)]
        assert (revisions(list(results)), len(lost)) == ([revision + 1], 7)
        assert {(error.expected, error.current) for error in lost} == {(revision, revision + 1)}
    assert [stored.event.revision for stored in await store.history(tenant, flow_id)] == list(range(1, 13))


async def test_no_update_is_lost_between_two_processes(store: Store, elsewhere: Store, tenant: Tenant) -> None:
    flow_id = await store.begun(tenant)

    async def work(where: Store, first: int) -> list[Committed]:
        return [await persistent(where, where.asked(tenant, flow_id, report(at))) for at in range(first, first + 40)]

    done = [one for some in await asyncio.gather(work(store, 1), work(elsewhere, 101)) for one in some]
    assert sorted(one.flow.revision for one in done) == list(range(3, 83))
    history = await store.history(tenant, flow_id)
    told = [fact.after.fraction for stored in history[2:] for fact in stored.event.facts]  # type: ignore[union-attr]
    assert sorted(told) == [at / 1000 for at in (*range(1, 41), *range(101, 141))]
    assert [stored.hash for stored in history] == [stored.hash for stored in await elsewhere.history(tenant, flow_id)]


async def test_a_stale_head_does_not_refuse_what_the_flow_allows(store: Store, elsewhere: Store, tenant: Tenant) -> None:
    flow_id = await store.create(tenant)  # this store remembers NOT_STARTED
    await elsewhere.commit(elsewhere.asked(tenant, flow_id, TransitionPhase("data_import", PhaseState.IN_PROGRESS)))
    assert (await store.commit(store.asked(tenant, flow_id, report(1)))).flow.revision == 3


async def test_a_stale_head_does_not_refuse_the_revision_that_is_current(store: Store, elsewhere: Store, tenant: Tenant) -> None:
    flow_id = await store.create(tenant)
    await elsewhere.commit(elsewhere.asked(tenant, flow_id, UpdateFlow(display_name="moved")))
    done = await store.commit(store.asked(tenant, flow_id, UpdateFlow(labels={}), expected=2))
    assert (done.flow.revision, done.flow.display_name) == (3, "moved")


async def test_a_stale_head_does_not_allow_what_the_flow_refuses(store: Store, elsewhere: Store, tenant: Tenant) -> None:
    flow_id = await store.begun(tenant)
    await elsewhere.commit(elsewhere.asked(tenant, flow_id, CancelFlow("enough")))
    with pytest.raises(FlowNotActive):
        await store.commit(store.asked(tenant, flow_id, report(1)))
    assert (await store.head(tenant, flow_id)).flow.hold is FlowHold.CANCELLED


async def test_a_stale_head_does_not_hide_another_process_flow(store: Store, elsewhere: Store, tenant: Tenant) -> None:
    flow_id = await elsewhere.begun(tenant)
    assert (await store.commit(store.asked(tenant, flow_id, report(1)))).flow.revision == 3


async def test_a_refusal_names_the_current_revision(store: Store, elsewhere: Store, tenant: Tenant) -> None:
    flow_id = await store.begun(tenant)
    for at in range(3):
        await elsewhere.commit(elsewhere.asked(tenant, flow_id, report(at)))
    with pytest.raises(ConcurrentModification) as caught:
        await store.commit(store.asked(tenant, flow_id, report(9), expected=2))
    assert (caught.value.expected, caught.value.current) == (2, 5)


async def test_an_id_that_is_taken_is_refused_and_the_flow_untouched(store: Store, elsewhere: Store, tenant: Tenant) -> None:
    flow_id = await store.begun(tenant)
    for where in (store, elsewhere):
        with pytest.raises(FlowExists):
            await where.commit(where.birth(tenant, UpdateFlow(display_name="usurper"), flow_id=flow_id))
    head = await store.head(tenant, flow_id)
    assert (head.flow.revision, head.flow.display_name) == (2, "Wave 3")


async def test_of_births_with_one_id_at_the_same_time_one_is_stored(store: Store, elsewhere: Store, tenant: Tenant) -> None:
    flow_id = uuid4()
    here = [store.birth(tenant, flow_id=flow_id) for _ in range(3)]
    there = [elsewhere.birth(tenant, flow_id=flow_id) for _ in range(3)]
    results = [one for some in await asyncio.gather(store.all_of(*here), elsewhere.all_of(*there)) for one in some]
    assert sorted(type(one).__name__ for one in results) == ["Committed", *["FlowExists"] * 5]
    assert len(await store.history(tenant, flow_id)) == 1


async def test_commits_together_and_single_ones_lose_nothing_of_each_other(store: Store, elsewhere: Store, tenant: Tenant) -> None:
    flows = [await store.begun(tenant) for _ in range(3)]

    async def together() -> None:
        for at in range(10):
            asked = [store.asked(tenant, flow_id, report(at)) for flow_id in flows]
            while True:
                try:
                    await store.commits.commit_together(asked, None)
                    break
                except StoreUnavailable:
                    continue

    async def apart() -> None:
        for at in range(10):
            asked = [elsewhere.asked(tenant, flow_id, report(at + 100)) for flow_id in reversed(flows)]
            await asyncio.gather(*(persistent(elsewhere, one) for one in asked))

    await asyncio.gather(together(), apart())
    assert [(await store.head(tenant, flow_id)).flow.revision for flow_id in flows] == [22, 22, 22]
    assert [len(await store.history(tenant, flow_id)) for flow_id in flows] == [22, 22, 22]
