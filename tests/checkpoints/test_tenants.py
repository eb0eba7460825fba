"""Whoever asks for another tenant's checkpoints, contents or keys sees nothing and changes nothing: one case for each function."""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID, uuid4

import asyncpg
import pytest

from server.app import new_id
from server.checkpoints.taking import Wanted
from server.repository.checkpoint_removal import Release, Removal
from server.repository.checkpoint_statements import Narrowed
from server.repository.checkpoints import Checkpoints, NewCheckpoint
from server.repository.contents import Contents
from server.repository.erasure import Erasure
from server.repository.id_pages import LAST_ID
from server.repository.keys import KeyRow, Keys
from server.repository.requests import Reply, requested
from server.repository.resealing import Resealing
from server.statemachine.checkpoint import Checkpoint, CheckpointKind
from server.statemachine.errors import CheckpointNotFound, FlowNotFound
from server.statemachine.values import FlowKey, Tenant
from tests.checkpoints.bench import Bench
from tests.checkpoints.exercise import receipt
from tests.repository import rows
from tests.repository.store import NOON, outsiders
from tests.repository.test_tenants import everything, of_tenants

EVER = NOON + timedelta(days=10_000)
NEW_KEY = KeyRow(7, "k", b"x")


@dataclass(frozen=True, slots=True)
class Owned:
    """What the tenant has: a flow, a checkpoint with a payload, an older one under an older key, what nobody needs, an answered request."""

    key: FlowKey
    newest: Checkpoint
    stale: Checkpoint
    content_id: UUID
    stale_id: UUID
    unneeded_id: UUID
    digest: bytes
    keys: list[KeyRow]
    reply: Reply

    @property
    def tenant(self) -> Tenant:
        """Whose all of it is."""
        return self.key.tenant


Case = Callable[[Bench, Owned, Tenant], Awaitable[object]]


async def refused(call: Awaitable[object], error: type[Exception] = CheckpointNotFound) -> None:
    with pytest.raises(error):
        await call


async def keys_all(bench: Bench, owned: Owned, asker: Tenant) -> None:
    assert await bench.archive.keys.all(asker) == []


async def keys_add(bench: Bench, owned: Owned, asker: Tenant) -> None:
    await bench.archive.keys.add(asker, owned.keys, NOON)
    assert await bench.archive.keys.all(asker) == owned.keys  # which open nothing: they are wrapped for another place
    await refused(bench.take(FlowKey(asker, await bench.store.create(asker))), Exception)


async def keys_rotate(bench: Bench, owned: Owned, asker: Tenant) -> None:
    assert await bench.archive.keys.rotate(asker, NEW_KEY, NOON, owned.reply)  # that id was answered for somebody else


async def keys_exchange(bench: Bench, owned: Owned, asker: Tenant) -> None:
    assert not await bench.archive.keys.exchange(asker, owned.keys[1], NEW_KEY)


async def keys_destroy_unused(bench: Bench, owned: Owned, asker: Tenant) -> None:
    assert await bench.archive.keys.destroy_unused(asker) == []


async def contents_known(bench: Bench, owned: Owned, asker: Tenant) -> None:
    assert await bench.archive.contents.known(asker, [owned.digest]) == {}


async def contents_begin(bench: Bench, owned: Owned, asker: Tenant) -> None:
    await bench.archive.contents.begin(asker, owned.content_id, NOON)  # of the same id, and another one


async def contents_put(bench: Bench, owned: Owned, asker: Tenant) -> None:
    for key in (owned.keys[-1], (await bench.archive.keyring.sealing(asker)).row):
        assert not await bench.archive.contents.put(asker, owned.content_id, 9, b"x", key)


async def contents_complete(bench: Bench, owned: Owned, asker: Tenant) -> None:
    assert not await bench.archive.contents.complete(asker, owned.content_id, 0, 0, bytes(32))


async def contents_chunks(bench: Bench, owned: Owned, asker: Tenant) -> None:
    assert await bench.archive.contents.chunks(asker, owned.newest.checkpoint_id, [(owned.content_id, 0)]) == {}


async def contents_held(bench: Bench, owned: Owned, asker: Tenant) -> None:
    assert await bench.archive.contents.held(asker, owned.newest.checkpoint_id) == set()


async def contents_unreferenced(bench: Bench, owned: Owned, asker: Tenant) -> None:
    assert await bench.archive.contents.unreferenced(asker, EVER, 10) == []


async def contents_remove(bench: Bench, owned: Owned, asker: Tenant) -> None:
    assert await bench.archive.contents.remove(asker, [owned.unneeded_id]) == 0


async def checkpoints_store(bench: Bench, owned: Owned, asker: Tenant) -> None:
    """Neither under another's key nor of another's flow."""
    mine = (await bench.archive.keyring.sealing(asker)).row
    flow = (await bench.store.head(owned.tenant, owned.key.flow_id)).flow
    for key in (owned.keys[-1], mine):
        new = NewCheckpoint(asker, dataclasses.replace(owned.newest, checkpoint_id=uuid4()), b"x", key, (), (), flow.create_time)
        assert not await bench.archive.checkpoints.store(new)


async def checkpoints_get(bench: Bench, owned: Owned, asker: Tenant) -> None:
    await refused(bench.archive.checkpoints.get(asker, owned.newest.checkpoint_id))


async def checkpoints_sealed(bench: Bench, owned: Owned, asker: Tenant) -> None:
    await refused(bench.archive.checkpoints.sealed(asker, owned.newest.checkpoint_id))


async def checkpoints_of_flow(bench: Bench, owned: Owned, asker: Tenant) -> None:
    assert await bench.archive.checkpoints.of_flow(FlowKey(asker, owned.key.flow_id), LAST_ID, 10) == []


async def checkpoints_page(bench: Bench, owned: Owned, asker: Tenant) -> None:
    for narrowed in (Narrowed(), Narrowed(owned.key.flow_id)):
        assert await bench.archive.checkpoints.page(asker, narrowed, LAST_ID, 10) == []


async def checkpoints_change(bench: Bench, owned: Owned, asker: Tenant) -> None:
    assert not await bench.archive.checkpoints.change(asker, owned.newest, dataclasses.replace(owned.newest, pinned=True), NOON, None)


async def removal_prunable(bench: Bench, owned: Owned, asker: Tenant) -> None:
    assert await bench.archive.removal.prunable(asker, Narrowed(), 0, 10) == []


async def removal_release(bench: Bench, owned: Owned, asker: Tenant) -> None:
    assert await bench.archive.removal.release(asker, [owned.newest.checkpoint_id]) == Release((), 0)


async def removal_delete(bench: Bench, owned: Owned, asker: Tenant) -> None:
    done = await bench.archive.removal.delete(asker, [owned.newest.checkpoint_id], Narrowed(), NOON, lambda *_: None)
    assert done == (0, Release((), 0))


async def resealing_seals(bench: Bench, owned: Owned, asker: Tenant) -> None:
    assert await Resealing(bench.store.database).seals(asker) == {}


async def resealing_headers(bench: Bench, owned: Owned, asker: Tenant) -> None:
    assert await Resealing(bench.store.database).headers(asker, 99, None, 10) == []


async def resealing_chunks(bench: Bench, owned: Owned, asker: Tenant) -> None:
    assert await Resealing(bench.store.database).chunks(asker, 99, None, 10) == []


async def resealing_put_headers(bench: Bench, owned: Owned, asker: Tenant) -> None:
    mine = (await bench.archive.keyring.sealing(asker)).row
    for key in (owned.keys[-1], mine):
        assert await Resealing(bench.store.database).put_headers(asker, [(owned.stale.checkpoint_id, b"x")], key) == 0


async def resealing_put_chunks(bench: Bench, owned: Owned, asker: Tenant) -> None:
    mine = (await bench.archive.keyring.sealing(asker)).row
    for key in (owned.keys[-1], mine):
        assert await Resealing(bench.store.database).put_chunks(asker, [(owned.stale_id, 0, b"x")], key) == 0


async def erasure_count(bench: Bench, owned: Owned, asker: Tenant) -> None:
    found = await Erasure(bench.store.database).count(asker)
    assert (found.flows, found.events, found.documents, found.checkpoints, found.keys) == (0, 0, 0, 0, 0)


async def erasure_erase(bench: Bench, owned: Owned, asker: Tenant) -> None:
    done = await Erasure(bench.store.database).erase(asker, owned.reply, receipt, lambda _: owned.reply)
    assert done is not None
    assert (done[0].erased.flows, done[0].erased.events, done[0].erased.keys, done[1]) == (0, 0, 0, [])


async def requests_requested(bench: Bench, owned: Owned, asker: Tenant) -> None:
    assert not await requested(bench.store.database, asker, owned.reply.request_id)


async def taking_take(bench: Bench, owned: Owned, asker: Tenant) -> None:
    await refused(bench.take(FlowKey(asker, owned.key.flow_id)), FlowNotFound)


CASES: dict[str, Case] = {
    "Keys.all": keys_all,
    "Keys.add": keys_add,
    "Keys.rotate": keys_rotate,
    "Keys.exchange": keys_exchange,
    "Keys.destroy_unused": keys_destroy_unused,
    "Contents.known": contents_known,
    "Contents.begin": contents_begin,
    "Contents.put": contents_put,
    "Contents.complete": contents_complete,
    "Contents.chunks": contents_chunks,
    "Contents.held": contents_held,
    "Contents.unreferenced": contents_unreferenced,
    "Contents.remove": contents_remove,
    "Checkpoints.get": checkpoints_get,
    "Checkpoints.sealed": checkpoints_sealed,
    "Checkpoints.of_flow": checkpoints_of_flow,
    "Checkpoints.page": checkpoints_page,
    "Checkpoints.change": checkpoints_change,
    "Removal.prunable": removal_prunable,
    "Removal.release": removal_release,
    "Removal.delete": removal_delete,
    "Resealing.seals": resealing_seals,
    "Resealing.headers": resealing_headers,
    "Resealing.chunks": resealing_chunks,
    "Resealing.put_headers": resealing_put_headers,
    "Resealing.put_chunks": resealing_put_chunks,
    "Erasure.count": erasure_count,
    "Erasure.erase": erasure_erase,
}
MORE: dict[str, Case] = {"Checkpoints.store": checkpoints_store, "requests.requested": requests_requested, "Taking.take": taking_take}


def test_every_function_that_is_told_a_tenant_has_a_case() -> None:
    assert set(CASES) == of_tenants(Keys, Contents, Checkpoints, Removal, Resealing, Erasure)


async def owned_by(bench: Bench, tenant: Tenant) -> Owned:
    archive, flow_id = bench.archive, await bench.store.begun(tenant)
    key = FlowKey(tenant, flow_id)
    await bench.write(tenant, flow_id, b'{"secret":1}')
    stale = await bench.take(key)
    reply = Reply(new_id(), bytes(32), b"answer")
    for told in (reply, None):  # the key between the two seals nothing
        assert await archive.keys.rotate(tenant, await archive.keyring.fresh(tenant), NOON, told)
    unneeded = await archive.taking.inflow(tenant)
    inflow = await archive.taking.inflow(tenant)
    await inflow.write(b"payload")
    await inflow.end()
    newest = await archive.taking.take(await bench.store.record(tenant, flow_id), Wanted(CheckpointKind.MANUAL, "ann"), inflow)
    assert isinstance(newest, Checkpoint)
    sealing = await archive.keyring.sealing(tenant)
    stale_id = (await archive.contents.held(tenant, stale.checkpoint_id)).pop()
    digest, keys = sealing.digest(inflow.sha256), await archive.keys.all(tenant)
    return Owned(key, newest, stale, inflow.content_id, stale_id, unneeded.content_id, digest, keys, reply)


@pytest.mark.parametrize("case", [*CASES.values(), *MORE.values()], ids=[*CASES, *MORE])
@pytest.mark.parametrize("who", outsiders(rows.tenant()))
async def test_an_outsider_sees_and_changes_nothing(
    here: Bench, elsewhere: Bench, tenant: Tenant, truth: asyncpg.Connection, who: str, case: Case
) -> None:
    owned = await owned_by(here, tenant)
    before = await everything(truth, tenant)
    assert len(before) >= 15
    # Asked of the process that has the keys in memory, and of one that has not.
    asker = outsiders(tenant)[who]
    await case(here, owned, asker)
    assert await everything(truth, tenant) == before
    if who == "another tenant":
        await case(elsewhere, owned, outsiders(tenant)[who])
        assert await everything(truth, tenant) == before


@pytest.mark.parametrize("case", [*CASES.values(), *MORE.values()], ids=[*CASES, *MORE])
async def test_a_case_fails_when_the_owner_is_let_in(here: Bench, tenant: Tenant, truth: asyncpg.Connection, case: Case) -> None:
    owned = await owned_by(here, tenant)
    before = await everything(truth, tenant)
    refusal: BaseException | None = None
    try:
        await case(here, owned, tenant)
    except (AssertionError, asyncpg.PostgresError, pytest.fail.Exception) as error:
        refusal = error
    assert refusal is not None or await everything(truth, tenant) != before
