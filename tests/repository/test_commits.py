"""Commits: combined but each guarded by itself, in order, chained, and rung."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from dataclasses import replace
from uuid import UUID, uuid4

import asyncpg
import pytest

from server.repository.commits import BATCH_COMMITS
from server.repository.requests import Committed
from server.statemachine.change import PauseFlow, ReportProgress, StartChild, TransitionPhase, UpdateFlow
from server.statemachine.errors import (
    ConcurrentModification,
    Draining,
    FlowExists,
    FlowNotFound,
    InvalidPhaseTransition,
    InvalidRequest,
)
from server.statemachine.states import PhaseState
from server.statemachine.values import FlowKey, Tenant
from tests.conftest import Urls
from tests.repository import rows
from tests.repository.store import Store, opened, report


def writes(store: Store) -> int:
    """How many writing statements were sent."""
    return sum("INSERT INTO events" in sent.text for sent in store.sent)


def revisions(results: list[object]) -> list[int]:
    return [result.flow.revision for result in results if isinstance(result, Committed)]


async def test_commits_of_many_flows_that_arrive_together_go_out_in_one_statement(store: Store, tenant: Tenant) -> None:
    flows = [await store.begun(tenant) for _ in range(20)]
    store.sent.clear()
    results = await store.all_of(*(store.asked(tenant, flow_id, report(at)) for at, flow_id in enumerate(flows, 1)))
    assert revisions(list(results)) == [3] * 20
    assert writes(store) == 1
    fractions = [(await store.head(tenant, flow_id)).flow.children[0].phases[0].fraction for flow_id in flows]
    assert fractions == [at / 1000 for at in range(1, 21)]


async def test_several_commits_of_one_flow_go_out_in_one_statement_in_the_order_in_which_they_came(store: Store, tenant: Tenant) -> None:
    flow_id = await store.begun(tenant)
    store.sent.clear()
    results = await store.all_of(*(store.asked(tenant, flow_id, report(at)) for at in range(1, 31)))
    assert revisions(list(results)) == list(range(3, 33))
    assert writes(store) == 1
    history = await store.history(tenant, flow_id)
    assert [stored.event.revision for stored in history] == list(range(1, 33))
    told = [fact.after.fraction for stored in history[2:] for fact in stored.event.facts]  # type: ignore[union-attr]
    assert told == [at / 1000 for at in range(1, 31)]


async def test_what_a_caller_is_told_is_of_its_own_commit(store: Store, tenant: Tenant, elsewhere: Store) -> None:
    def told(results: Sequence[Committed]) -> bytes:
        return b"%d: %d" % (results[0].flow.flow_id.int, results[0].event.revision)

    flows = [await store.begun(tenant) for _ in range(3)]
    await elsewhere.commit(elsewhere.asked(tenant, flows[1], report(1)))  # so that the first attempt for this one is in vain
    twice = [*flows, *flows]
    results = await store.all_of(*(replace(store.asked(tenant, flow_id, report(at)), answer=told) for at, flow_id in enumerate(twice)))
    expected = {flows[0]: [3, 4], flows[1]: [4, 5], flows[2]: [3, 4]}
    assert [done.answer for done in results if isinstance(done, Committed)] == [
        b"%d: %d" % (flow_id.int, expected[flow_id][at // 3]) for at, flow_id in enumerate(twice)
    ]


async def test_an_answer_that_cannot_be_made_is_its_callers_trouble_alone(store: Store, tenant: Tenant) -> None:
    def impossible(_: Sequence[Committed]) -> bytes:
        raise ZeroDivisionError

    flows = [await store.begun(tenant) for _ in range(3)]
    answers = [lambda _: b"one", impossible, lambda _: b"three"]
    asked = [replace(store.asked(tenant, flow_id, report(1)), answer=answer) for flow_id, answer in zip(flows, answers, strict=True)]
    store.sent.clear()
    results = await store.all_of(*asked)
    assert writes(store) == 1
    assert [done.answer for done in results if isinstance(done, Committed)] == [b"one", b"", b"three"]
    assert [(await store.head(tenant, flow_id)).flow.revision for flow_id in flows] == [3, 3, 3]


async def test_new_flows_and_old_ones_arrive_together(store: Store, tenant: Tenant) -> None:
    old = await store.begun(tenant)
    new = store.birth(tenant)
    results = await store.all_of(store.asked(tenant, old, report(1)), new, store.asked(tenant, old, report(2)))
    assert revisions(list(results)) == [3, 1, 4]
    assert (await store.head(tenant, new.flow_id)).flow.children[0].type == "discovery"


async def test_a_commit_to_a_flow_that_is_being_born_finds_it(store: Store, tenant: Tenant) -> None:
    new = store.birth(tenant)
    results = await store.all_of(new, store.asked(tenant, new.flow_id, PauseFlow("lunch")))
    assert revisions(list(results)) == [1, 2]


async def test_more_commits_than_one_batch_holds_are_all_stored(store: Store, tenant: Tenant) -> None:
    flow_id = await store.begun(tenant)
    many = 2 * BATCH_COMMITS + 7
    results = await store.all_of(*(store.asked(tenant, flow_id, report(at)) for at in range(many)))
    assert revisions(list(results)) == list(range(3, 3 + many))


async def test_what_one_flow_refuses_its_neighbours_in_the_batch_do_not_feel(store: Store, tenant: Tenant) -> None:
    good, bad = await store.begun(tenant), await store.create(tenant)
    results = await store.all_of(
        store.asked(tenant, good, report(1)),
        store.asked(tenant, bad, TransitionPhase("data_import", PhaseState.COMPLETED)),
        store.asked(tenant, uuid4(), report(1)),
        store.asked(tenant, good, report(2), expected=9),
        store.asked(tenant, good, report(3)),
        store.asked(rows.tenant(), good, report(4)),
    )
    assert [type(result) for result in results] == [
        Committed,
        InvalidPhaseTransition,
        FlowNotFound,
        ConcurrentModification,
        Committed,
        FlowNotFound,
    ]
    assert (await store.head(tenant, good)).flow.revision == 4
    assert (await store.head(tenant, bad)).flow.revision == 1


async def test_an_error_of_the_database_in_one_flow_fails_that_flow_alone(store: Store, tenant: Tenant) -> None:
    flows = [await store.create(tenant) for _ in range(3)]
    # PostgreSQL's text cannot hold U+0000; what the door lets through by mistake stops here.
    results = await store.all_of(
        store.asked(tenant, flows[0], UpdateFlow(display_name="one")),
        store.asked(tenant, flows[1], UpdateFlow(display_name="t\x00wo")),
        store.asked(tenant, flows[2], UpdateFlow(display_name="three")),
    )
    assert [type(result) for result in results] == [Committed, asyncpg.CharacterNotInRepertoireError, Committed]
    names = [(await store.head(tenant, flow_id)).flow.display_name for flow_id in flows]
    assert names == ["one", "Wave 3", "three"]
    assert (await store.commit(store.asked(tenant, flows[1], UpdateFlow(display_name="two")))).flow.revision == 2


async def test_the_births_of_a_batch_fail_alone_as_well(store: Store, tenant: Tenant) -> None:
    good, bad = store.birth(tenant), store.birth(tenant, UpdateFlow(display_name="\x00"))
    results = await store.all_of(good, bad, store.birth(tenant))
    assert [type(result) for result in results] == [Committed, asyncpg.CharacterNotInRepertoireError, Committed]
    assert list(await store.flows.heads([good.key, bad.key])) == [good.key]


async def test_a_flow_that_cannot_be_read_fails_alone(store: Store, elsewhere: Store, tenant: Tenant, truth: asyncpg.Connection) -> None:
    """A row of a newer version, or damage: its neighbours in the batch and in the read, other tenants' among them, go on."""
    other = rows.tenant()
    good, bad = await store.begun(tenant), await store.begun(other)
    await truth.execute("UPDATE flows SET type = 'of tomorrow' WHERE flow_id = $1", bad)
    asked = [elsewhere.asked(other, bad, report(1)), elsewhere.asked(tenant, good, report(1))]
    results = await elsewhere.all_of(*asked)
    assert isinstance(results[0], KeyError)
    assert isinstance(results[1], Committed)
    read = await asyncio.gather(elsewhere.flows.flows(other, [bad]), elsewhere.flows.flows(tenant, [good]), return_exceptions=True)
    assert isinstance(read[0], KeyError)
    assert [flow.revision for flow in read[1]] == [3]  # type: ignore[union-attr]


async def test_the_same_flow_id_belongs_to_each_tenant_that_chooses_it(store: Store, tenant: Tenant) -> None:
    flow_id, other = uuid4(), rows.tenant()
    results = await store.all_of(store.birth(tenant, flow_id=flow_id), store.birth(other, flow_id=flow_id))
    assert revisions(list(results)) == [1, 1]
    await store.commit(store.asked(tenant, flow_id, PauseFlow()))
    assert ((await store.head(tenant, flow_id)).flow.revision, (await store.head(other, flow_id)).flow.revision) == (2, 1)


async def test_a_birth_that_the_rules_refuse_writes_nothing(store: Store, tenant: Tenant) -> None:
    new = store.birth(tenant, StartChild("planning"))
    with pytest.raises(InvalidRequest):
        await store.commit(new)
    assert await store.flows.heads([new.key]) == {}


async def test_every_event_is_chained_to_the_one_before_it(
    store: Store, elsewhere: Store, tenant: Tenant, truth: asyncpg.Connection
) -> None:
    flow_id = await store.begun(tenant)
    await store.all_of(*(store.asked(tenant, flow_id, report(at)) for at in range(5)))  # one batch
    await elsewhere.commit(elsewhere.asked(tenant, flow_id, PauseFlow("grüße")))
    found = await truth.fetch(
        "SELECT revision, time AT TIME ZONE 'UTC' AS time, actor, body, hash FROM events WHERE flow_id = $1 ORDER BY revision", flow_id
    )
    last = bytes(32)
    for at, row in enumerate(found, 1):
        last = _link(last, tenant, flow_id, row)
        assert (row["revision"], row["hash"]) == (at, last)
    assert len(found) == 8
    assert await truth.fetchval("SELECT head_hash FROM flows WHERE flow_id = $1", flow_id) == last


def _link(before: bytes, tenant: Tenant, flow_id: UUID, row: asyncpg.Record) -> bytes:
    """The chain's rule, written a second time: whoever audits the log has only the rows."""
    parts = [f"{row['time'].isoformat()}+00:00", row["actor"], row["body"]]
    content = hashlib.sha256(b"".join(len(part.encode()).to_bytes(8, "big") + part.encode() for part in parts)).digest()
    ids = tenant.client_account_id.bytes + tenant.engagement_id.bytes + flow_id.bytes
    return hashlib.sha256(before + ids + row["revision"].to_bytes(8, "big") + content).digest()


async def test_whoever_waits_for_a_flow_is_rung_once_it_moved_and_only_then(store: Store, tenant: Tenant) -> None:
    flow_id = await store.begun(tenant)
    store.rung.clear()
    with pytest.raises(InvalidPhaseTransition):
        await store.commit(store.asked(tenant, flow_id, TransitionPhase("data_import", PhaseState.ROLLED_BACK)))
    assert store.rung == []
    await store.commit(store.asked(tenant, flow_id, report(1)))
    assert store.rung == [FlowKey(tenant, flow_id)]


async def test_a_rehearsal_says_what_would_be_and_writes_nothing(store: Store, tenant: Tenant) -> None:
    flow_id = await store.begun(tenant)
    would = await store.commits.rehearse(store.asked(tenant, flow_id, report(5)))
    born = await store.commits.rehearse(store.birth(tenant))
    assert (would.flow.revision, born.flow.revision) == (3, 1)
    assert (await store.head(tenant, flow_id)).flow.revision == 2
    assert await store.flows.heads([FlowKey(tenant, born.flow.flow_id)]) == {}
    with pytest.raises(FlowExists):
        await store.commits.rehearse(store.birth(tenant, flow_id=flow_id))
    with pytest.raises(ConcurrentModification):
        await store.commits.rehearse(store.asked(tenant, flow_id, report(5), expected=1))


async def test_commits_together_are_stored_together(store: Store, tenant: Tenant) -> None:
    flows = [await store.begun(tenant) for _ in range(3)]
    results = await store.commits.commit_together([store.asked(tenant, flow_id, report(7)) for flow_id in flows], None)
    assert revisions(list(results)) == [3, 3, 3]  # type: ignore[arg-type]
    assert [(await store.head(tenant, flow_id)).flow.revision for flow_id in flows] == [3, 3, 3]


async def test_of_commits_together_none_is_stored_when_one_is_refused(store: Store, tenant: Tenant) -> None:
    flows = [await store.begun(tenant) for _ in range(3)]
    asked = [store.asked(tenant, flow_id, report(7), expected=expected) for flow_id, expected in zip(flows, (2, 1, 2), strict=True)]
    for attempt in (store.commits.commit_together(asked, None), store.commits.rehearse_together(asked)):
        with pytest.raises(ConcurrentModification) as caught:
            await attempt
        assert (caught.value.metadata["flow_id"], caught.value.metadata["commit_index"]) == (str(flows[1]), "1")
    assert [(await store.head(tenant, flow_id)).flow.revision for flow_id in flows] == [2, 2, 2]


async def test_a_caller_who_went_away_leaves_the_others_their_commits(store: Store, tenant: Tenant) -> None:
    flow_id = await store.begun(tenant)
    tasks = [asyncio.create_task(store.commits.commit(store.asked(tenant, flow_id, report(at)))) for at in range(3)]
    await asyncio.sleep(0)  # all three are waiting now
    tasks[1].cancel()
    first, second, third = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(second, asyncio.CancelledError)
    assert isinstance(first, Committed)
    assert isinstance(third, Committed)
    assert third.flow.children[0].phases[0].fraction == 0.002


async def test_a_closed_store_takes_no_more_commits_and_ends_those_under_way(shared_urls: Urls, tenant: Tenant) -> None:
    async with opened(shared_urls.service) as store:
        flow_id = await store.begun(tenant)
        under_way = asyncio.create_task(store.commits.commit(store.asked(tenant, flow_id, report(1))))
        await asyncio.sleep(0)
        await store.commits.close(5.0)
        with pytest.raises(Draining):
            await store.commits.commit(store.asked(tenant, flow_id, report(2)))
        assert isinstance(await under_way, Committed)


async def test_a_fraction_is_stored_to_the_last_bit(store: Store, tenant: Tenant) -> None:
    flow_id = await store.begun(tenant)
    await store.commit(store.asked(tenant, flow_id, ReportProgress("data_import", 0.1 + 0.2)))
    assert (await store.head(tenant, flow_id)).flow.children[0].phases[0].fraction == 0.1 + 0.2
