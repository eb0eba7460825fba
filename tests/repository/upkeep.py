"""What audits, compaction, packing, policies and expiry can be asked for: for the tests that look at every statement and every tenant."""

from __future__ import annotations

import random
from uuid import UUID

from server.repository.audit import Audit
from server.repository.compaction import Compaction
from server.repository.history import History
from server.repository.packing import Packing
from server.repository.policies import Policies
from server.repository.request_expiry import forget
from server.repository.requests import NO_FLOW, Reply, remember, requested
from server.repository.resigning import Resigning
from server.repository.tenants import all_tenants
from server.signing import Signing
from server.statemachine.change import ReplaceDocument, UpdateFlow
from server.statemachine.policy import Policy
from server.statemachine.values import DocumentPlace, FlowKey, Tenant
from tests.repository import rows
from tests.repository.store import NOON, Store

POLICY = Policy(keep_revisions=5)
SIGNING = Signing([b"s" * 32])
_STATE = DocumentPlace("state")


def audit_of(store: Store) -> Audit:
    """Follows chains on that store."""
    return Audit(store.database, SIGNING.verifies)


def compaction_of(store: Store) -> Compaction:
    """Compacts on that store."""
    return Compaction(store.database, History(store.database), audit_of(store), SIGNING.sign)


def packing_of(store: Store) -> Packing:
    """Packs on that store."""
    return Packing(store.database, History(store.database))


def policies_of(store: Store) -> Policies:
    """Policies on that store, always read."""
    ticks = iter(range(0, 10**9, 1000))
    return Policies(store.database, lambda: float(next(ticks)))


async def grown(store: Store, elsewhere: Store, tenant: Tenant, number: int) -> FlowKey:
    """A flow at revision ``number`` with a document that two processes wrote by turns, so that there is something to pack."""
    flow_id = await store.create(tenant)
    pad = random.Random(number).randbytes(2000).hex()
    for at in range(2, number + 1):
        where = (store, elsewhere)[at % 2]
        text = f'{{"at":{at},"pad":"{pad}"}}'.encode()
        await where.commit(where.asked(tenant, flow_id, UpdateFlow(documents=(ReplaceDocument(_STATE, text),))))
    return FlowKey(tenant, flow_id)


async def exercise(store: Store, tenant: Tenant) -> None:
    """Everything, so that each statement is sent."""
    key = await grown(store, store, tenant, 20)
    audit, compaction, packing, policies = audit_of(store), compaction_of(store), packing_of(store), policies_of(store)
    assert [flow_id async for flow_id in audit.flow_ids(tenant)] == [key.flow_id]
    await audit.follow(key)
    assert [flow_id async for flow_id in packing.candidates(tenant, NOON.replace(year=2000))] in ([], [key.flow_id])
    await packing.pack(key)
    assert [flow_id async for flow_id in compaction.candidates(tenant, POLICY, 1)] == [key.flow_id]
    assert (await compaction.compact(key, POLICY, NOON)).events == 15
    assert await Resigning(store.database, Signing([b"n" * 32]).sign, SIGNING.verifies).resign(tenant) == 1
    for reply in (None, Reply(UUID(int=7), b"h" * 32, b"answer")):
        await policies.put(tenant, POLICY, 0, ("ann", NOON), lambda _, reply=reply: reply)  # type: ignore[misc]
    await policies.policy_of(tenant)
    await remember(store.database, tenant, Reply(UUID(int=8), b"h" * 32, b"answer"), NO_FLOW, NOON)
    await requested(store.database, tenant, UUID(int=8))
    await forget(store.database, rows.tenant(), NOON)
    assert tenant in [one async for one in all_tenants(store.database)]
