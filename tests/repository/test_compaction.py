"""Compaction takes away what the policy does not keep, and nothing else: what stays is exactly what it was, and the chain holds."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Mapping
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest

from server.repository import compaction as module
from server.repository.compaction import Compaction, Removed
from server.repository.flows import Record
from server.repository.history import History
from server.statemachine.audit import BreakKind
from server.statemachine.change import (
    Change,
    DeleteFlow,
    MergeDocument,
    PauseFlow,
    ReplaceDocument,
    ResumeFlow,
    TransitionPhase,
    UndeleteFlow,
    UpdateFlow,
)
from server.statemachine.errors import FlowNotFound, RevisionCompacted, StoreUnavailable
from server.statemachine.policy import Policy
from server.statemachine.retention import surplus
from server.statemachine.states import FailureCode, PhaseState
from server.statemachine.values import DocumentPlace, Failure, FlowKey, Tenant
from tests.repository import rows
from tests.repository.store import NOON, Store, report
from tests.repository.test_audit import audit_of, sign

STATE, METADATA, DATA = DocumentPlace("state"), DocumentPlace("metadata"), DocumentPlace("data", "discovery")
MANY = Policy(keep_revisions=20)
BARE = Policy(keep_revisions=20, keep_last_good=False, keep_terminal=False)
_S = PhaseState


def compaction_of(store: Store) -> Compaction:
    return Compaction(store.database, History(store.database), audit_of(store), sign)


async def compact(store: Store, key: FlowKey, policy: Policy = MANY, **more: Any) -> Removed:
    return await compaction_of(store).compact(key, policy, NOON, **more)


async def record_at(store: Store, key: FlowKey, revision: int) -> Record:
    return await History(store.database).record(key, revision)


def written(place: DocumentPlace, text: bytes) -> UpdateFlow:
    return UpdateFlow(documents=(ReplaceDocument(place, text),))


def padded(at: int, size: int) -> bytes:
    return b'{"at":%d,"pad":"%s"}' % (at, random.Random(size).randbytes(size // 2).hex().encode())


def some_change(chance: random.Random, at: int) -> tuple[Change, ...]:
    """One of many things that can happen to a flow whose first phase is IN_PROGRESS."""
    return chance.choice(
        [
            (report(at % 1000),),
            (report(at % 1000), UpdateFlow(labels={"at": str(at)})),
            (written(STATE, padded(at, 40_000)),),
            (written(METADATA, b'{"at":%d}' % at),),
            (UpdateFlow(documents=(MergeDocument(METADATA, b'{"merged":%d}' % at),)),),
            (written(DATA, padded(at, 300)), report(at % 1000)),
        ]
    )


async def lived(
    store: Store, tenant: Tenant, number: int, seed: int = 1, replaced: tuple[int, ...] = ()
) -> tuple[FlowKey, dict[int, Record]]:
    """A flow at revision ``number``, and how it was read after each commit."""
    chance = random.Random(seed)
    flow_id = await store.begun(tenant)
    key = FlowKey(tenant, flow_id)
    seen = {2: await store.record(tenant, flow_id)}
    for at in range(3, number + 1):
        children = seen[at - 1].head.flow.children
        if at in replaced:  # without its child, or with it again
            asked = await store.replacing(tenant, flow_id)
        elif children and children[0].phases[0].state is _S.IN_PROGRESS:
            asked = store.asked(tenant, flow_id, *some_change(chance, at))
        else:
            asked = store.asked(tenant, flow_id, written(METADATA, b'{"at":%d}' % at))
        done = await store.commit(asked)
        assert done.flow.revision == at
        seen[at] = await store.record(tenant, flow_id)
    return key, seen


async def stays(store: Store, key: FlowKey, seen: Mapping[int, Record], revisions: set[int]) -> None:
    """Exactly these revisions can be rebuilt, as they were; of the others it is said that they were compacted."""
    for revision, record in seen.items():
        if revision in revisions:
            assert await record_at(store, key, revision) == record, revision
        else:
            with pytest.raises(RevisionCompacted):
                await record_at(store, key, revision)
    assert (await audit_of(store).follow(key)).broken is None


async def counts(truth: asyncpg.Connection, key: FlowKey) -> dict[str, int]:
    return {
        table: await truth.fetchval(f"SELECT count(*) FROM {table} WHERE flow_id = $1", key.flow_id)
        for table in ("events", "bases", "document_versions")
    }


async def everything(truth: asyncpg.Connection, key: FlowKey) -> list[str]:
    found = []
    for table in ("flows", "events", "bases", "document_versions", "documents"):
        found += [row[0] for row in await truth.fetch(f"SELECT t::text FROM {table} t WHERE flow_id = $1 ORDER BY 1", key.flow_id)]
    return found


async def pin(truth: asyncpg.Connection, key: FlowKey, *revisions: int) -> None:
    """Pins a checkpoint of each of the revisions."""
    await truth.execute("SET session_replication_role = replica")  # without the keys that they are sealed with
    for revision in revisions:
        checkpoint = {**rows.row("checkpoints", key.tenant, uuid4()), "flow_id": key.flow_id, "revision": revision, "pinned": True}
        await rows.put(truth, "checkpoints", checkpoint)
    await truth.execute("SET session_replication_role = origin")


@pytest.mark.parametrize("seed", range(2))
async def test_what_stays_is_what_it_was(store: Store, tenant: Tenant, truth: asyncpg.Connection, seed: int) -> None:
    key, seen = await lived(store, tenant, 260, seed)
    chance = random.Random(seed)
    pinned = set(chance.sample(range(2, 239), 6))
    await pin(truth, key, *pinned)
    before = await counts(truth, key)
    removed = await compact(store, key)
    assert removed.broken is None
    assert removed.events == 240
    await stays(store, key, seen, {*pinned, *range(240, 261)})
    after = await counts(truth, key)
    assert after["events"] == before["events"] - 240 == 20
    assert after["document_versions"] == before["document_versions"] - removed.versions
    signed = await truth.fetch("SELECT revision, signature IS NOT NULL FROM bases WHERE flow_id = $1", key.flow_id)
    assert {row[0] for row in signed if row[1]} == {*pinned, 240}


async def test_what_replaced_a_flow_can_be_compacted_too(store: Store, tenant: Tenant, truth: asyncpg.Connection) -> None:
    key, seen = await lived(store, tenant, 120, 7, replaced=(40, 60, 80, 110))
    await pin(truth, key, 39, 40, 59, 61, 79)
    await compact(store, key)
    await stays(store, key, seen, {39, 40, 59, 61, 79, *range(100, 121)})


async def test_a_second_compaction_goes_on_where_the_first_one_ended(store: Store, tenant: Tenant, truth: asyncpg.Connection) -> None:
    key, seen = await lived(store, tenant, 150, 3)
    await pin(truth, key, 30, 31, 90)
    await compact(store, key, Policy(keep_revisions=70))
    await stays(store, key, seen, {30, 31, *range(80, 151)})
    await truth.execute("UPDATE checkpoints SET pinned = false WHERE flow_id = $1 AND revision = 30", key.flow_id)
    removed = await compact(store, key, Policy(keep_revisions=20))
    assert removed.events == 50
    await stays(store, key, seen, {31, 90, *range(130, 151)})
    before = await everything(truth, key)
    assert await compact(store, key, Policy(keep_revisions=20)) == Removed()
    assert await everything(truth, key) == before
    assert await compact(store, key, Policy(keep_revisions=100)) == Removed()  # what went does not come back
    await truth.execute("DELETE FROM checkpoints WHERE flow_id = $1", key.flow_id)
    assert (await compact(store, key, Policy(keep_revisions=20))).events == 0  # only the single ones
    await stays(store, key, seen, set(range(130, 151)))


async def test_a_compacted_flow_goes_on_and_is_compacted_again(store: Store, tenant: Tenant) -> None:
    key, seen = await lived(store, tenant, 60, 4)
    chance = random.Random(9)
    for _ in range(3):
        await compact(store, key)
        for at in range(45):
            done = await store.commit(store.asked(tenant, key.flow_id, *some_change(chance, at)))
            seen[done.flow.revision] = await store.record(tenant, key.flow_id)
    await compact(store, key)
    await stays(store, key, seen, set(range(175, 196)))


async def test_small_steps_come_to_the_same_end(
    store: Store, tenant: Tenant, truth: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, seen = await lived(store, tenant, 200, 5)
    pinned = {10, 11, 12, 13, 14, 55, 56, 57, 99, 100, 101, 150}
    await pin(truth, key, *pinned)
    monkeypatch.setattr(module, "STEP_EVENTS", 37)
    monkeypatch.setattr(module, "STEP_SINGLE", 3)
    sent = len(store.sent)
    removed = await compact(store, key)
    assert sum("pg_advisory_xact_lock" in one.text for one in store.sent[sent:]) >= 6
    assert removed.events == 180
    await stays(store, key, seen, {*pinned, *range(180, 201)})


async def test_the_last_good_revision_stays_however_old(store: Store, tenant: Tenant) -> None:
    key, seen = await lived(store, tenant, 30, 6)
    failure = Failure(FailureCode.AGENT_TIMEOUT)
    moves: list[Change] = [TransitionPhase("data_import", _S.RETRY_NEEDED, failure=failure)]
    moves += [written(METADATA, b'{"later":%d}' % at) for at in range(60)]
    for change in moves:
        done = await store.commit(store.asked(tenant, key.flow_id, change))
        seen[done.flow.revision] = await store.record(tenant, key.flow_id)
    await compact(store, key)
    await stays(store, key, seen, {30, *range(71, 92)})
    for at in range(30):
        done = await store.commit(store.asked(tenant, key.flow_id, written(METADATA, b'{"%d":1}' % at)))
        seen[done.flow.revision] = await store.record(tenant, key.flow_id)
    await compact(store, key)  # the one that is good is found among what the first compaction left
    await stays(store, key, seen, {30, *range(101, 122)})
    await store.commit(store.asked(tenant, key.flow_id, TransitionPhase("data_import", _S.IN_PROGRESS)))
    await compact(store, key)  # a newer one is
    await stays(store, key, seen, set(range(102, 122)))


async def test_the_revision_at_which_a_flow_ended_stays(store: Store, tenant: Tenant) -> None:
    flow_id = await store.begun(tenant)
    key = FlowKey(tenant, flow_id)
    changes: list[Change] = [report(at) for at in range(10)]
    changes += [TransitionPhase("data_import", _S.FAILED, failure=Failure(FailureCode.PERMISSION_DENIED))]
    changes += [written(METADATA, b'{"a":%d}' % at) for at in range(60)]
    seen = {}
    for change in changes:
        done = await store.commit(store.asked(tenant, flow_id, change))
        seen[done.flow.revision] = await store.record(tenant, flow_id)
    await compact(store, key, Policy(keep_revisions=20, keep_last_good=False))
    await stays(store, key, seen, {13, *range(53, 74)})
    for at in range(30):
        done = await store.commit(store.asked(tenant, flow_id, written(METADATA, b'{"b":%d}' % at)))
    await compact(store, key, Policy(keep_revisions=20, keep_last_good=False))
    await stays(store, key, {13: seen[13]}, {13})
    await compact(store, key, BARE)
    await stays(store, key, {13: seen[13]}, set())


async def test_what_is_young_stays_whatever_its_number(store: Store, tenant: Tenant) -> None:
    key, seen = await lived(store, tenant, 100, 8)
    times = {revision: record.head.flow.update_time for revision, record in seen.items()}
    policy = Policy(keep_revisions=5, keep_duration=timedelta(minutes=30))
    await compaction_of(store).compact(key, policy, times[100])
    young = {revision for revision, time in times.items() if times[100] - time <= timedelta(minutes=30)}
    assert len(young) > 5
    await stays(store, key, seen, {min(young) - 1, *young})


async def test_a_policy_that_keeps_everything_takes_nothing(store: Store, tenant: Tenant, truth: asyncpg.Connection) -> None:
    key, _ = await lived(store, tenant, 120, 2)
    before = await everything(truth, key)
    for policy in (Policy(), Policy(keep_revisions=120), Policy(keep_revisions=5, keep_duration=timedelta(days=36500))):
        assert await compact(store, key, policy) == Removed()
    assert await everything(truth, key) == before


async def test_a_rehearsal_says_what_would_go_and_takes_nothing(store: Store, tenant: Tenant, truth: asyncpg.Connection) -> None:
    key, _ = await lived(store, tenant, 150, 11)
    await pin(truth, key, 33, 70)
    before = await everything(truth, key)
    would = await compact(store, key, rehearse=True)
    assert await everything(truth, key) == before
    assert would.events == 130
    assert would.versions > 50
    assert would.bytes > 10_000
    assert await compact(store, key) == would


async def test_a_flow_whose_chain_does_not_hold_is_left_alone(store: Store, tenant: Tenant, truth: asyncpg.Connection) -> None:
    key, _ = await lived(store, tenant, 60, 12)
    await truth.execute("UPDATE events SET actor = 'mallory' WHERE flow_id = $1 AND revision = 7", key.flow_id)
    before = await everything(truth, key)
    removed = await compact(store, key)
    assert removed.broken is not None
    assert (removed.broken.revision, removed.broken.kind, removed.events) == (7, BreakKind.CHANGED, 0)
    assert await everything(truth, key) == before


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE bases SET body = '' WHERE flow_id = $1",
        "UPDATE bases SET hash = sha256(hash) WHERE flow_id = $1",
        "UPDATE document_versions SET body = '' WHERE flow_id = $1",
        "DELETE FROM document_versions WHERE flow_id = $1",
    ],
)
async def test_a_flow_whose_history_is_damaged_is_left_alone(store: Store, tenant: Tenant, truth: asyncpg.Connection, damage: str) -> None:
    key, _ = await lived(store, tenant, 140, 13)
    await pin(truth, key, 100, 105)
    await truth.execute(damage, key.flow_id)
    before = await everything(truth, key)
    removed = await compact(store, key)
    assert (removed.events, removed.broken is None) == (0, False)
    assert await everything(truth, key) == before


async def test_a_flow_that_is_not_there_is_not_found(store: Store, tenant: Tenant) -> None:
    with pytest.raises(FlowNotFound):
        await compact(store, FlowKey(tenant, uuid4()))


async def test_compactions_and_commits_at_the_same_time_do_each_other_no_harm(store: Store, elsewhere: Store, tenant: Tenant) -> None:
    """Two processes compact by different policies while both commit."""
    key, seen = await lived(store, tenant, 40, 14)
    chance = random.Random(15)
    ended = asyncio.Event()

    async def write() -> None:
        for at in range(150):
            where = chance.choice((store, elsewhere))
            done = await where.commit(where.asked(tenant, key.flow_id, *some_change(chance, at)))
            seen[done.flow.revision] = await where.record(tenant, key.flow_id)
        ended.set()

    async def keep_compacting(where: Store, policy: Policy) -> None:
        while not ended.is_set():
            with contextlib.suppress(StoreUnavailable):  # the others were quicker again and again
                removed = await compact(where, key, policy)
                assert removed.broken is None
            await asyncio.sleep(0)

    one = Policy(keep_revisions=25)
    await asyncio.gather(
        keep_compacting(store, one), keep_compacting(elsewhere, Policy(keep_revisions=30)), keep_compacting(elsewhere, one), write()
    )
    await compact(store, key, one)
    await stays(store, key, seen, set(range(165, 191)))


async def test_who_was_second_begins_again(store: Store, elsewhere: Store, tenant: Tenant) -> None:
    key, seen = await lived(store, tenant, 100, 16)
    done = await asyncio.gather(*(compact(where, key, MANY) for where in (store, elsewhere) * 3))
    assert sum(one.events for one in done) == 80
    await stays(store, key, seen, set(range(80, 101)))


async def test_candidates_are_those_with_enough_to_take_away(store: Store, tenant: Tenant) -> None:
    sizes = {await grown(store, tenant, number): number for number in (5, 29, 30, 31, 60)}
    compaction = compaction_of(store)

    async def candidates(policy: Policy, least: int) -> list[int]:
        return sorted([sizes[flow_id] async for flow_id in compaction.candidates(tenant, policy, least)])

    assert await candidates(MANY, surplus(MANY)) == [30, 31, 60]
    assert await candidates(MANY, 1) == [29, 30, 31, 60]
    assert await candidates(Policy(), 1) == []
    big = next(flow_id for flow_id, number in sizes.items() if number == 60)
    await compact(store, FlowKey(tenant, big))
    assert await candidates(MANY, 1) == [29, 30, 31]


async def grown(store: Store, tenant: Tenant, number: int) -> UUID:
    """The id of a flow at revision ``number``."""
    flow_id = await store.begun(tenant)
    await store.all_of(*(store.asked(tenant, flow_id, report(at)) for at in range(number - 2)))
    return flow_id


async def test_what_is_held_deleted_and_undeleted_is_compacted_like_anything_else(store: Store, tenant: Tenant) -> None:
    flow_id = await store.begun(tenant)
    key, seen = FlowKey(tenant, flow_id), {}
    for _ in range(15):
        for change in (PauseFlow("a"), ResumeFlow(), DeleteFlow("b"), UndeleteFlow()):
            done = await store.commit(store.asked(tenant, flow_id, change))
            seen[done.flow.revision] = await store.record(tenant, flow_id)
    await compact(store, key)
    await stays(store, key, seen, set(range(42, 63)))
