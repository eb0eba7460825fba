"""Earlier versions of documents take little room whoever wrote them, and are what they were."""

from __future__ import annotations

import asyncio
import random
from datetime import timedelta
from itertools import pairwise

import asyncpg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.repository.commit_statement import WHOLE_EVERY
from server.repository.history import History
from server.repository.packing import LEAST_BYTES, Packing, Stored, convertible
from server.statemachine.policy import Policy
from server.statemachine.values import DocumentPlace, FlowKey, Tenant
from tests.repository.store import NOON, Store
from tests.repository.test_compaction import METADATA, STATE, compact, stays, written
from tests.repository.test_history import LARGE, changed, document, stored_bytes

_WHOLE, _DELTA, _ABSENT = 1, 2, 3
AGES_AGO = NOON - timedelta(days=1)


def packing_of(store: Store) -> Packing:
    return Packing(store.database, History(store.database))


def stored(at: int, kind: int, size: int = 10_000) -> Stored:
    return Stored(STATE, at, kind, size, bytes(32), size)


def steps(kinds: list[int]) -> list[int]:
    """How many versions must be unpacked for each one."""
    found: list[int] = []
    for kind in reversed(kinds):
        found.append(found[-1] + 1 if kind == _DELTA else 0)
    return found[::-1]


@given(st.lists(st.sampled_from([_WHOLE, _WHOLE, _WHOLE, _DELTA, _DELTA, _ABSENT]), max_size=300), st.sampled_from([0, 1]))
def test_a_chain_stays_as_short_as_a_commit_itself_makes_it(kinds: list[int], present: int) -> None:
    kinds = [*kinds, _WHOLE] if present else kinds
    if kinds and kinds[-1] == _DELTA:
        kinds[-1] = _WHOLE  # which has nothing to be made of
    for at, (one, following) in enumerate(pairwise(kinds)):
        if one == _DELTA and following == _ABSENT:
            kinds[at] = _WHOLE
    for at, depth in enumerate(steps(kinds)):
        if depth and depth % (WHOLE_EVERY - 1) == 0:  # as commits do
            kinds[at] = _WHOLE
    versions = [stored(at, kind) for at, kind in enumerate(kinds)]
    found = list(convertible(versions))
    after = list(kinds)
    for version, later in found:
        assert kinds[version.revision] == _WHOLE
        assert later.revision == version.revision + 1
        assert later.kind != _ABSENT
        after[version.revision] = _DELTA
    assert max(steps(after), default=0) < WHOLE_EVERY


def test_what_is_small_already_and_what_was_removed_after_it_stay_whole() -> None:
    small = [stored(1, _WHOLE, LEAST_BYTES - 1), stored(2, _WHOLE), stored(3, _ABSENT), stored(4, _WHOLE), stored(5, _WHOLE)]
    assert [one.revision for one, _ in convertible(small)] == [4]
    assert list(convertible([])) == []
    assert list(convertible([stored(1, _WHOLE)])) == []


async def by_turns(
    stores: tuple[Store, ...], tenant: Tenant, place: DocumentPlace, size: int, number: int
) -> tuple[FlowKey, dict[int, bytes]]:
    """A document that processes change by turns, so that none knows the version before, and each of its versions by revision."""
    chance = random.Random(size)
    text = document(chance, size)
    key = FlowKey(tenant, await stores[0].create(tenant))
    texts = {}
    for at in range(number):
        text = changed(chance, text)
        where = stores[at % len(stores)]
        done = await where.commit(where.asked(tenant, key.flow_id, written(place, text)))
        texts[done.flow.revision] = text
    return key, texts


async def intact(store: Store, key: FlowKey, place: DocumentPlace, texts: dict[int, bytes]) -> None:
    for revision, text in texts.items():
        assert (await History(store.database).record(key, revision)).documents[place] == text


@pytest.mark.parametrize(("place", "size"), [(STATE, LARGE), (METADATA, 8 * 1024)])
async def test_what_processes_wrote_by_turns_is_stored_as_if_one_had(
    store: Store, elsewhere: Store, tenant: Tenant, truth: asyncpg.Connection, place: DocumentPlace, size: int
) -> None:
    key, texts = await by_turns((store, elsewhere), tenant, place, size, 80)
    before = await stored_bytes(truth, key.flow_id)
    saved = await packing_of(store).pack(key)
    after = await stored_bytes(truth, key.flow_id)
    assert before - after == saved
    assert after < before / 8
    await intact(store, key, place, texts)
    assert await packing_of(store).pack(key) == 0
    await compact(store, key, Policy(keep_revisions=30))
    await packing_of(store).pack(key)
    await intact(store, key, place, {revision: text for revision, text in texts.items() if revision >= 51})


async def test_packing_compaction_and_commits_at_the_same_time_do_each_other_no_harm(
    store: Store, elsewhere: Store, tenant: Tenant
) -> None:
    key, _ = await by_turns((store, elsewhere), tenant, METADATA, 4000, 30)
    chance = random.Random(2)
    seen = {31: await store.record(tenant, key.flow_id)}
    ended = asyncio.Event()

    async def write() -> None:
        text = seen[31].documents[METADATA]
        for at in range(120):
            text = changed(chance, text)
            where = (store, elsewhere)[at % 2]
            if at % 29 == 0:
                done = await where.commit(await where.replacing(tenant, key.flow_id))
            else:
                done = await where.commit(where.asked(tenant, key.flow_id, written(METADATA, text)))
            seen[done.flow.revision] = await where.record(tenant, key.flow_id)
        ended.set()

    async def pack(where: Store) -> None:
        while not ended.is_set():
            await packing_of(where).pack(key)

    async def keep_compacting() -> None:
        while not ended.is_set():
            await compact(elsewhere, key, Policy(keep_revisions=60))
            await asyncio.sleep(0.02)  # so that the others are in the middle of something

    await asyncio.gather(write(), pack(store), pack(elsewhere), keep_compacting())
    await compact(store, key, Policy(keep_revisions=60))
    await packing_of(store).pack(key)
    await stays(store, key, seen, set(range(91, 152)))


_OTHER = "SELECT body FROM document_versions WHERE flow_id = $1 AND revision = 4"


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE document_versions SET body = '' WHERE flow_id = $1 AND revision = 5",
        f"UPDATE document_versions SET body = ({_OTHER}) WHERE flow_id = $1 AND revision = 5",
        "UPDATE document_versions SET sha256 = sha256(sha256) WHERE flow_id = $1 AND revision = 5",
    ],
)
async def test_what_is_damaged_stays_as_it_is(
    store: Store, elsewhere: Store, tenant: Tenant, truth: asyncpg.Connection, damage: str
) -> None:
    key, texts = await by_turns((store, elsewhere), tenant, METADATA, 4000, 12)
    await truth.execute(damage, key.flow_id)
    query = "SELECT t::text FROM document_versions t WHERE flow_id = $1 AND revision = 5"
    before = await truth.fetchval(query, key.flow_id)
    assert await packing_of(store).pack(key) > 0
    assert await truth.fetchval(query, key.flow_id) == before
    await intact(store, key, METADATA, {revision: text for revision, text in texts.items() if revision != 5})


async def test_what_shares_nothing_with_the_next_version_stays_whole(store: Store, elsewhere: Store, tenant: Tenant) -> None:
    key = FlowKey(tenant, await store.create(tenant))
    for at in range(6):
        text = b'{"a":"%s"}' % random.Random(at).randbytes(2000).hex().encode()
        where = (store, elsewhere)[at % 2]
        await where.commit(where.asked(tenant, key.flow_id, written(METADATA, text)))
    assert await packing_of(store).pack(key) == 0


async def test_candidates_are_flows_that_changed_and_have_whole_versions(store: Store, elsewhere: Store, tenant: Tenant) -> None:
    key, _ = await by_turns((store, elsewhere), tenant, METADATA, 4000, 3)
    plain = await store.begun(tenant)
    packing = packing_of(store)
    assert [flow_id async for flow_id in packing.candidates(tenant, AGES_AGO)] == [key.flow_id]
    assert [flow_id async for flow_id in packing.candidates(tenant, NOON + timedelta(days=30))] == []
    assert plain != key.flow_id
