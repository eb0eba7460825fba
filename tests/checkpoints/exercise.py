"""Everything that the repositories of what is sealed can be asked for."""

from __future__ import annotations

from datetime import timedelta
from uuid import uuid4

from server.app import new_id
from server.checkpoints.taking import Wanted
from server.repository.checkpoint_statements import Narrowed
from server.repository.erasure import Erasure
from server.repository.id_pages import LAST_ID
from server.repository.requests import Reply, requested
from server.statemachine.checkpoint import Checkpoint, CheckpointKind
from server.statemachine.erasure import Erased, Receipt
from server.statemachine.values import FlowKey, Tenant
from server.vault import EnvironmentKeys, written
from tests.checkpoints.bench import Bench
from tests.conftest import KEYS
from tests.repository.store import NOON, Store


def reply() -> Reply:
    """A reply to a request that nobody else makes."""
    return Reply(uuid4(), b"payload".ljust(32, b"."), b"answer")


async def exercise(store: Store, tenant: Tenant) -> None:
    """Checkpoints of every kind, taken, opened, listed, changed, sealed anew and removed; at the end nothing of the tenant is left."""
    bench = Bench(store, EnvironmentKeys(KEYS))
    archive = bench.archive
    flow_id = await store.create(tenant)
    key = FlowKey(tenant, flow_id)
    await bench.write(tenant, flow_id, b'{"a":"' + b"x" * (2 * 1024 * 1024) + b'"}')
    inflow = await archive.taking.inflow(tenant)
    await inflow.write(b"payload")
    await inflow.end()
    record = await store.record(tenant, flow_id)
    taken = await archive.taking.take(record, Wanted(CheckpointKind.MANUAL, "ann"), inflow, lambda _: reply())
    assert isinstance(taken, Checkpoint)
    other = await bench.take(key)
    await requested(store.database, tenant, uuid4())
    await archive.opening.copy(await archive.opening.header(tenant, taken.checkpoint_id))
    await archive.opening.unreadable(key)
    await archive.checkpoints.get(tenant, taken.checkpoint_id)
    for narrowed in (
        Narrowed(),
        Narrowed(flow_id, CheckpointKind.AUTO, {"a": "b"}, True),
        Narrowed(kind=CheckpointKind.MANUAL, labels={"a": "b"}),
        Narrowed(created_before=NOON, expired_at=NOON),
    ):
        await archive.checkpoints.page(tenant, narrowed, LAST_ID, 10)
        await archive.removal.prunable(tenant, narrowed, 1, 10)
    await archive.checkpoints.change(tenant, taken, taken, NOON, None)
    await archive.checkpoints.change(tenant, other, other, NOON, reply())
    for told in (None, reply()):
        await archive.keys.rotate(tenant, await archive.keyring.fresh(tenant), NOON, told)
    await archive.rotating.reseal(tenant, 100)
    await archive.rotating.progress(tenant)
    await Bench(store, EnvironmentKeys(f"{written('new', bytes(32))},{KEYS}")).archive.keyring.rewrap(tenant)
    await archive.removal.release(tenant, [other.checkpoint_id])
    await archive.remove(tenant, [other.checkpoint_id], NOON)
    await archive.remove(tenant, [uuid4()], NOON, Narrowed(flow_id), lambda *_: reply())
    await archive.remove_expired(tenant, NOON, 10)
    await archive.remove_unreferenced(tenant, NOON + timedelta(days=365), 10)
    erasure = Erasure(store.database)
    await erasure.count(tenant)
    for told in (None, reply()):
        await erasure.erase(tenant, told, receipt, lambda _, told=told: told)  # type: ignore[misc]


def receipt(erased: Erased) -> Receipt:
    """A receipt for what was erased."""
    return Receipt(new_id(), NOON, "ann", "", erased)
