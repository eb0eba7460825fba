"""Data keys: made once, remembered for a while, worth nothing without their rows; changed while everything goes on."""

from __future__ import annotations

import asyncio
from uuid import uuid4

import asyncpg
import pytest

from server.checkpoints.keyring import KEPT, KEPT_SECONDS, Keyring
from server.checkpoints.taking import Wanted
from server.repository.checkpoint_statements import Narrowed
from server.repository.erasure import Erasure
from server.repository.id_pages import LAST_ID
from server.repository.keys import Keys
from server.statemachine.checkpoint import Checkpoint, CheckpointKind, Unreadable
from server.statemachine.errors import CheckpointUnreadable, FlowNotFound, KeyUnavailable, NoKey, StoreUnavailable
from server.statemachine.values import FlowKey, Tenant
from server.vault import EnvironmentKeys, KeyProvider, Wrapped, written
from tests.checkpoints.bench import Bench
from tests.checkpoints.exercise import receipt
from tests.conftest import KEYS
from tests.repository import rows
from tests.repository.store import NOON

MIB = 1024 * 1024
NEW_KEK = written("new", bytes(32))


class Counting(EnvironmentKeys):
    """Counts how often a key is unwrapped."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.unwrapped = 0

    async def unwrap(self, wrapped: Wrapped, place: bytes) -> bytes:
        self.unwrapped += 1
        return await super().unwrap(wrapped, place)


def keyring(bench: Bench, provider: KeyProvider, clock: list[float]) -> Keyring:
    return Keyring(Keys(bench.store.database), provider, lambda: NOON, lambda: clock[0])


async def rotate(bench: Bench, tenant: Tenant) -> int:
    fresh = await bench.archive.keyring.fresh(tenant)
    assert await bench.archive.keys.rotate(tenant, fresh, NOON, None)
    return fresh.version


async def opens(bench: Bench, key: FlowKey, taken: Checkpoint) -> bool:
    copy = await bench.archive.opening.copy(await bench.archive.opening.header(key.tenant, taken.checkpoint_id))
    return copy.flow.flow_id == key.flow_id


async def test_a_key_is_unwrapped_once_in_a_while(here: Bench, tenant: Tenant) -> None:
    provider, clock = Counting(KEYS), [1000.0]
    ring = keyring(here, provider, clock)
    first = await ring.sealing(tenant)
    assert provider.unwrapped == 2  # the identity key too
    for _ in range(5):
        assert await ring.sealing(tenant) == first
        assert await ring.opened(tenant, first.row) == first.key
    assert provider.unwrapped == 2
    clock[0] += KEPT_SECONDS + 1
    assert await ring.sealing(tenant) == first
    assert provider.unwrapped == 4


async def test_no_more_than_so_many_keys_are_remembered(here: Bench, tenant: Tenant) -> None:
    provider = Counting(KEYS)
    ring = keyring(here, provider, [0.0])
    first = await ring.sealing(tenant)
    row = first.row
    others = [rows.tenant() for _ in range(3)]
    for other in others:
        await ring.sealing(other)
    assert len(ring._unwrapped.names()) == 8
    for at in range(KEPT):  # as if as many other tenants had come by
        ring._unwrapped.put(at, b"")
    assert len(ring._unwrapped.names()) == KEPT
    before = provider.unwrapped
    assert await ring.opened(tenant, row) == first.key
    assert provider.unwrapped == before + 1


async def test_two_processes_that_make_the_first_key_at_once_agree(here: Bench, elsewhere: Bench, tenant: Tenant) -> None:
    found = await asyncio.gather(*(bench.archive.keyring.sealing(tenant) for bench in (here, elsewhere) * 8))
    assert len(set(found)) == 1
    assert [row.version for row in await here.archive.keys.all(tenant)] == [0, 1]


async def test_keys_of_two_tenants_differ_and_do_not_open_each_others(here: Bench, tenant: Tenant) -> None:
    mine, theirs = await here.archive.keyring.sealing(tenant), await here.archive.keyring.sealing(rows.tenant())
    assert len({mine.key, mine.identity, theirs.key, theirs.identity}) == 4
    assert mine.digest(bytes(32)) != theirs.digest(bytes(32))


async def test_a_key_that_was_destroyed_opens_nothing_at_once_even_where_it_is_remembered(
    here: Bench, elsewhere: Bench, key: FlowKey, truth: asyncpg.Connection
) -> None:
    taken = await here.take(key)
    assert await opens(elsewhere, key, taken)  # and so has the key in memory
    async with truth.transaction():
        await truth.execute("SET LOCAL session_replication_role = replica")
        await truth.execute("DELETE FROM tenant_keys WHERE client_account_id = $1", key.tenant.client_account_id)
    for bench in (here, elsewhere):
        with pytest.raises(CheckpointUnreadable) as caught:
            await opens(bench, key, taken)
        assert caught.value.cause is Unreadable.KEY_MISSING
        assert await bench.archive.opening.unreadable(key) == [(taken, Unreadable.KEY_MISSING)]
        assert await bench.archive.opening.newest_readable(key) is None


async def test_nothing_is_sealed_with_a_key_that_was_destroyed_even_where_it_is_remembered(
    here: Bench, elsewhere: Bench, key: FlowKey
) -> None:
    """The tenant begins again with version 1, which must not be taken for the version 1 that another process remembers."""
    await elsewhere.take(key)
    old = await elsewhere.archive.keyring.sealing(key.tenant)
    assert await Erasure(here.store.database).erase(key.tenant, None, receipt, lambda _: None) is not None
    flow_id = await here.store.create(key.tenant)
    again = FlowKey(key.tenant, flow_id)
    for bench in (elsewhere, here):
        taken = await bench.take(again)
        assert taken.key_version == 1
        assert await opens(here, again, taken)
        assert await opens(elsewhere, again, taken)
    new = await elsewhere.archive.keyring.sealing(key.tenant)
    assert (new.row.version, old.row.version) == (1, 1)
    assert {new.key, new.identity}.isdisjoint({old.key, old.identity})


async def test_what_comes_in_while_its_tenant_is_erased_becomes_part_of_nothing(here: Bench, elsewhere: Bench, key: FlowKey) -> None:
    record = await elsewhere.store.record(key.tenant, key.flow_id)
    inflow = await elsewhere.archive.taking.inflow(key.tenant)
    await inflow.write(bytes(2 * MIB))
    assert await Erasure(here.store.database).erase(key.tenant, None, receipt, lambda _: None) is not None
    with pytest.raises(StoreUnavailable, match="begin again"):
        await inflow.write(bytes(2 * MIB))
    with pytest.raises(FlowNotFound):
        await elsewhere.archive.taking.take(record, Wanted(CheckpointKind.MANUAL, "ann"))


# ---- rotation ------------------------------------------------------------------------------------------------------------------------


async def test_after_a_rotation_everybody_seals_with_the_new_key_and_old_seals_open(here: Bench, elsewhere: Bench, key: FlowKey) -> None:
    old = await elsewhere.take(key)
    assert await rotate(here, key.tenant) == 2
    await here.write(key.tenant, key.flow_id, b'{"a":2}')
    for bench in (elsewhere, here):  # the one elsewhere remembers the old key
        assert (await bench.take(key)).key_version == 2
    assert await opens(here, key, old)
    assert await opens(elsewhere, key, old)
    assert await here.archive.opening.unreadable(key) == []


async def test_a_tenant_that_sealed_nothing_has_no_key_to_rotate(here: Bench, tenant: Tenant) -> None:
    with pytest.raises(NoKey):
        await here.archive.keyring.fresh(tenant)


async def test_sealing_anew_goes_on_where_it_was_broken_off_and_ends_with_the_old_keys_destruction(
    here: Bench, elsewhere: Bench, key: FlowKey, truth: asyncpg.Connection
) -> None:
    taken = []
    for at in range(5):
        await here.write(key.tenant, key.flow_id, b'{"a":%d,"pad":"%s"}' % (at, b"x" * (MIB + at)))
        taken.append(await here.take(key))
    before = await here.archive.rotating.progress(key.tenant)
    assert (before.version, before.older, before.remaining, before.resealed) == (
        1,
        (),
        0,
        5 + 5 + 10,
    )  # headers, flows, states in two chunks
    await rotate(here, key.tenant)
    assert (await here.archive.rotating.progress(key.tenant)).remaining == 20
    old = await truth.fetch("SELECT sealed FROM sealed_chunks WHERE client_account_id = $1", key.tenant.client_account_id)
    seen = [20]
    while done := await (here, elsewhere)[len(seen) % 2].archive.rotating.reseal(key.tenant, 3):
        assert done <= 3
        now = await elsewhere.archive.rotating.progress(key.tenant)
        assert (now.version, now.remaining, now.resealed) == (2, seen[-1] - done, 20 - seen[-1] + done)
        assert now.older == ((1,) if now.remaining else ())
        seen.append(now.remaining)
        for one in taken:  # all of it can be read all the time
            assert await opens(elsewhere, key, one)
    assert seen[-1] == 0
    assert [row.version for row in await here.archive.keys.all(key.tenant)] == [0, 2]
    new = await truth.fetch("SELECT sealed FROM sealed_chunks WHERE client_account_id = $1", key.tenant.client_account_id)
    assert {row[0] for row in old}.isdisjoint({row[0] for row in new})
    assert await elsewhere.archive.opening.unreadable(key) == []
    stored = await here.archive.checkpoints.page(key.tenant, Narrowed(), LAST_ID, 10)
    assert [(one.checkpoint_id, one.key_version, one.etag) for one in stored] == [(one.checkpoint_id, 2, 1) for one in reversed(taken)]


async def test_what_does_not_open_is_left_and_keeps_its_key(here: Bench, key: FlowKey, truth: asyncpg.Connection) -> None:
    taken = [await here.take(key)]
    await here.write(key.tenant, key.flow_id, b'{"a":2}')
    taken.append(await here.take(key))
    await truth.execute("UPDATE checkpoints SET header = 'x' WHERE checkpoint_id = $1", taken[0].checkpoint_id)
    await rotate(here, key.tenant)
    assert await here.archive.rotating.reseal(key.tenant, 1000) == 1 + 4
    assert await here.archive.rotating.reseal(key.tenant, 1000) == 0
    now = await here.archive.rotating.progress(key.tenant)
    assert (now.version, now.older, now.remaining) == (2, (1,), 1)
    assert [row.version for row in await here.archive.keys.all(key.tenant)] == [0, 1, 2]
    await here.archive.remove(key.tenant, [taken[0].checkpoint_id], NOON)
    assert await here.archive.rotating.reseal(key.tenant, 1000) == 0
    assert [row.version for row in await here.archive.keys.all(key.tenant)] == [0, 2]


async def test_checkpoints_are_taken_and_removed_while_everything_is_sealed_anew(here: Bench, elsewhere: Bench, key: FlowKey) -> None:
    for at in range(10):
        await here.write(key.tenant, key.flow_id, b'{"a":%d}' % at)
        await here.take(key)

    async def life() -> None:
        for at in range(12):
            await elsewhere.write(key.tenant, key.flow_id, b'{"b":%d}' % at)
            taken = await elsewhere.take(key)
            if at % 3 == 0:
                await elsewhere.archive.remove(key.tenant, [taken.checkpoint_id], NOON)

    async def rotation() -> None:
        for _ in range(4):
            await rotate(here, key.tenant)
            while await here.archive.rotating.reseal(key.tenant, 5):
                pass

    await asyncio.gather(life(), rotation())
    while await here.archive.rotating.reseal(key.tenant, 100):
        pass
    assert await here.archive.opening.unreadable(key) == []
    assert [row.version for row in await here.archive.keys.all(key.tenant)] == [0, 5]
    assert (await here.archive.rotating.progress(key.tenant)).remaining == 0


async def test_rotations_at_the_same_time_are_one_after_the_other(here: Bench, elsewhere: Bench, key: FlowKey) -> None:
    await here.take(key)

    async def one(bench: Bench) -> bool:
        return await bench.archive.keys.rotate(key.tenant, await bench.archive.keyring.fresh(key.tenant), NOON, None)

    done = await asyncio.gather(*(one(bench) for bench in (here, elsewhere) * 3))
    versions = [row.version for row in await here.archive.keys.all(key.tenant)]
    assert versions == list(range(len(versions)))
    assert sum(done) == len(versions) - 2 >= 1


# ---- key-encryption keys -------------------------------------------------------------------------------------------------------------


async def test_keys_are_wrapped_anew_with_a_new_key_encryption_key(here: Bench, key: FlowKey) -> None:
    taken = await here.take(key)
    changing = Bench(here.store, EnvironmentKeys(f"{NEW_KEK},{KEYS}"))
    assert await changing.archive.keyring.rewrap(key.tenant) == 2
    assert await changing.archive.keyring.rewrap(key.tenant) == 0
    changed = Bench(here.store, EnvironmentKeys(NEW_KEK))
    assert await opens(changed, key, taken)
    assert (await changed.take(key)).key_version == 1  # the data key is the same
    with pytest.raises(KeyUnavailable, match=r"new/"):
        await opens(Bench(here.store, EnvironmentKeys(KEYS)), key, taken)


async def test_a_lost_key_encryption_key_is_survived_by_a_rotation(here: Bench, key: FlowKey) -> None:
    """What was sealed is lost; what is sealed from then on is not."""
    lost = await here.take(key)
    after = Bench(here.store, EnvironmentKeys(NEW_KEK))
    for call in (after.take(key), opens(after, key, lost), after.archive.keyring.rewrap(key.tenant)):
        with pytest.raises(KeyUnavailable, match="RotateTenantKey"):
            await call
    assert await rotate(after, key.tenant) == 2
    taken = await after.take(key)
    assert await opens(after, key, taken)
    assert await after.archive.opening.unreadable(key) == [(lost, Unreadable.KEY_UNAVAILABLE)]
    found = await after.archive.opening.newest_readable(key)
    assert found is not None
    assert found[0] == taken
    assert await after.archive.rotating.reseal(key.tenant, 100) == 0
    assert (await after.archive.rotating.progress(key.tenant)).older == (1,)


async def test_wrapped_keys_are_bound_to_tenant_and_version(here: Bench, key: FlowKey, truth: asyncpg.Connection) -> None:
    taken = await here.take(key)
    for wrong in ("SELECT wrapped FROM tenant_keys WHERE client_account_id = $1 AND version = 0", "SELECT $2::bytea"):
        other = (await here.archive.keyring.sealing(Tenant(uuid4(), uuid4()))).row.wrapped
        values = [key.tenant.client_account_id, other][: 2 if "$2" in wrong else 1]
        await truth.execute(f"UPDATE tenant_keys SET wrapped = ({wrong}) WHERE client_account_id = $1 AND version = 1", *values)
        with pytest.raises(CheckpointUnreadable) as caught:
            await opens(here, key, taken)
        assert caught.value.cause is Unreadable.KEY_MISSING
