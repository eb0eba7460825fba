"""Audits, compaction, packing, policies and expiry are one tenant's affair: one case for each function that takes a tenant."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import timedelta

import asyncpg
import pytest

from server.repository import request_expiry
from server.repository.audit import Audit
from server.repository.compaction import Compaction
from server.repository.packing import Packing
from server.repository.policies import Policies
from server.repository.requests import NO_FLOW, Reply, remember
from server.repository.resigning import Resigning
from server.signing import Signing
from server.statemachine.errors import FlowError, FlowNotFound
from server.statemachine.policy import Policy
from server.statemachine.values import FlowKey, Tenant
from tests.repository import rows
from tests.repository.store import NOON, Store, outsiders, request
from tests.repository.test_tenants import everything, of_tenants
from tests.repository.upkeep import POLICY, SIGNING, audit_of, compaction_of, grown, packing_of, policies_of

LATER = NOON + timedelta(days=400)

Case = Callable[[Store, FlowKey, Tenant], Awaitable[None]]


async def page(store: Store, owned: FlowKey, asker: Tenant) -> None:
    found = await audit_of(store).page(FlowKey(asker, owned.flow_id), 0)
    assert (found.head, found.newest, found.links, found.anchors) == (None, None, (), ())


async def follow(store: Store, owned: FlowKey, asker: Tenant) -> None:
    with pytest.raises(FlowNotFound):
        await audit_of(store).follow(FlowKey(asker, owned.flow_id))


async def flow_ids(store: Store, owned: FlowKey, asker: Tenant) -> None:
    assert owned.flow_id not in [flow_id async for flow_id in audit_of(store).flow_ids(asker)]


async def exported(store: Store, owned: FlowKey, asker: Tenant) -> None:
    with pytest.raises(FlowNotFound):
        assert [page async for page in audit_of(store).exported(FlowKey(asker, owned.flow_id))]


async def compact(store: Store, owned: FlowKey, asker: Tenant) -> None:
    for rehearse in (True, False):
        with pytest.raises(FlowNotFound):
            await compaction_of(store).compact(FlowKey(asker, owned.flow_id), POLICY, NOON, rehearse=rehearse)


async def to_compact(store: Store, owned: FlowKey, asker: Tenant) -> None:
    assert [flow_id async for flow_id in compaction_of(store).candidates(asker, POLICY, 1)] == []


async def compacted(store: Store, owned: FlowKey, asker: Tenant) -> None:
    assert [removed async for removed in compaction_of(store).compacted(asker, POLICY, 1, lambda: NOON)] == []


async def pack(store: Store, owned: FlowKey, asker: Tenant) -> None:
    assert await packing_of(store).pack(FlowKey(asker, owned.flow_id)) == 0


async def to_pack(store: Store, owned: FlowKey, asker: Tenant) -> None:
    assert [flow_id async for flow_id in packing_of(store).candidates(asker, NOON.replace(year=2000))] == []


async def get(store: Store, owned: FlowKey, asker: Tenant) -> None:
    assert await policies_of(store).get(asker) == Policy()


async def policy_of(store: Store, owned: FlowKey, asker: Tenant) -> None:
    assert await policies_of(store).policy_of(asker) == Policy()


async def put(store: Store, owned: FlowKey, asker: Tenant) -> None:
    done = await policies_of(store).put(asker, Policy(keep_revisions=9), 0, ("eve", NOON), lambda _: None)
    assert isinstance(done, Policy)
    assert done.etag == 1


async def resign(store: Store, owned: FlowKey, asker: Tenant) -> None:
    renewing = Resigning(store.database, Signing([b"n" * 32]).sign, SIGNING.verifies)
    assert await renewing.resign(asker) == 0


async def forget(store: Store, owned: FlowKey, asker: Tenant) -> None:
    assert await request_expiry.forget(store.database, asker, LATER) == 0


CASES: dict[str, Case] = {
    "Audit.page": page,
    "Audit.follow": follow,
    "Audit.flow_ids": flow_ids,
    "Audit.exported": exported,
    "Compaction.compact": compact,
    "Compaction.candidates": to_compact,
    "Compaction.compacted": compacted,
    "Packing.pack": pack,
    "Packing.candidates": to_pack,
    "Policies.get": get,
    "Policies.policy_of": policy_of,
    "Policies.put": put,
    "Resigning.resign": resign,
    "request_expiry.forget": forget,
}


def test_every_function_that_is_told_a_tenant_has_a_case() -> None:
    assert set(CASES) == of_tenants(Audit, Compaction, Packing, Policies, Resigning, request_expiry)


async def owned_by(store: Store, elsewhere: Store, tenant: Tenant) -> FlowKey:
    """A flow that can be compacted, and beside it one that was."""
    key = await grown(store, elsewhere, tenant, 12)
    await compaction_of(store).compact(await grown(store, store, tenant, 8), POLICY, NOON)
    await policies_of(store).put(tenant, POLICY, 0, ("ann", NOON), lambda _: None)
    await remember(store.database, tenant, Reply(request().request_id, b"h" * 32, b"answer"), NO_FLOW, NOON)
    return key


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize("who", outsiders(rows.tenant()))
async def test_an_outsider_sees_and_changes_nothing(
    store: Store, elsewhere: Store, tenant: Tenant, truth: asyncpg.Connection, who: str, case: Case
) -> None:
    owned = await owned_by(store, elsewhere, tenant)
    before = await everything(truth, tenant)
    await case(store, owned, outsiders(tenant)[who])
    assert await everything(truth, tenant) == before


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
async def test_a_case_fails_when_the_owner_is_let_in(store: Store, elsewhere: Store, tenant: Tenant, case: Case) -> None:
    owned = await owned_by(store, elsewhere, tenant)
    found: BaseException | None = None
    try:
        await case(store, owned, tenant)
    except (AssertionError, FlowError, pytest.fail.Exception) as error:
        found = error
    assert found is not None
    assert not isinstance(found, FlowNotFound)
