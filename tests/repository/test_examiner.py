"""What is stored is looked at as a whole: nothing is found in what is right, and whatever is wrong is found."""

from __future__ import annotations

from collections.abc import AsyncIterator
from uuid import UUID

import asyncpg
import pytest

from server.repository.examiner import Examiner
from server.statemachine.change import RecordActivity, TransitionPhase
from server.statemachine.errors import FlowNotFound
from server.statemachine.finding import Finding, FindingKind
from server.statemachine.states import PhaseState
from server.statemachine.values import ActivityEntry, ActivityKind, FlowKey, Tenant
from tests.cluster import Cluster
from tests.conftest import Urls
from tests.damage import UNBOUND
from tests.repository.store import Store, opened, outsiders, report, superuser
from tests.repository.test_history import STATE, STORY, lived, written


async def findings(store: Store, key: FlowKey) -> tuple[Finding, ...]:
    """What is wrong with the flow."""
    return (await Examiner(store.database).examine(key)).evidence.findings()


async def test_nothing_is_found_in_what_is_right(store: Store, tenant: Tenant) -> None:
    flow_id = await store.create(tenant)
    key = FlowKey(tenant, flow_id)
    assert await findings(store, key) == ()
    await lived(store, tenant, flow_id, STORY)
    assert await findings(store, key) == ()
    for _ in range(3):
        await store.commit(await store.replacing(tenant, flow_id))
        assert await findings(store, key) == ()
    flow_id = await store.begun(tenant)
    for at in range(230):
        document = [written(STATE, b'{"at":%d,"x":"%s"}' % (at, b"y" * 20_000))] if at % 3 == 0 else []
        await store.commit(store.asked(tenant, flow_id, report(at), *document))
    assert await findings(store, FlowKey(tenant, flow_id)) == ()


@pytest.fixture(scope="module")
async def unbound(postgres: Cluster, template: str) -> AsyncIterator[Urls]:
    """A database without constraints."""
    from tests.conftest import cloned

    for urls in cloned(postgres, template):
        postgres.run(UNBOUND, urls.name)
        yield urls


@pytest.fixture(scope="module")
async def there(unbound: Urls) -> AsyncIterator[Store]:
    """A store on it."""
    async with opened(unbound.service) as store:
        yield store


@pytest.fixture(scope="module")
async def hand(unbound: Urls) -> AsyncIterator[asyncpg.Connection]:
    """Who does the damage."""
    async with superuser(unbound.service) as connection:
        yield connection


async def grown(store: Store, tenant: Tenant) -> UUID:
    """A flow that can be damaged in every way: 110 revisions, a base, a document with earlier versions, activity, a phase under way."""
    flow_id = await store.create(tenant, written(STATE, b'{"a":1}'))
    await store.commit(store.asked(tenant, flow_id, TransitionPhase("data_import", PhaseState.IN_PROGRESS), written(STATE, b'{"a":2}')))
    await store.commit(store.asked(tenant, flow_id, RecordActivity((ActivityEntry(ActivityKind.TIMING, value=1.0),))))
    for at in range(107):
        await store.commit(store.asked(tenant, flow_id, report(at)))
    return flow_id


async def test_what_nobody_has_is_not_found(there: Store, tenant: Tenant, hand: asyncpg.Connection) -> None:
    flow_id = await grown(there, tenant)
    for stranger in outsiders(tenant).values():
        with pytest.raises(FlowNotFound):
            await findings(there, FlowKey(stranger, flow_id))
    for table in ("flows", "discovery_flows", "documents", "activity", "bases", "document_versions"):
        await hand.execute(f"DELETE FROM {table} WHERE flow_id = $1", flow_id)
        assert await findings(there, FlowKey(tenant, flow_id))
    await hand.execute("UPDATE events SET content_sha256 = sha256('x'), body = '', actor = '' WHERE flow_id = $1", flow_id)
    with pytest.raises(FlowNotFound):  # it was erased
        await findings(there, FlowKey(tenant, flow_id))


async def test_a_history_without_a_beginning_is_missing_it_unless_it_was_compacted(
    there: Store, tenant: Tenant, hand: asyncpg.Connection
) -> None:
    flow_id = await grown(there, tenant)
    await hand.execute("DELETE FROM events WHERE flow_id = $1 AND revision <= 100", flow_id)
    (found,) = await findings(there, FlowKey(tenant, flow_id))
    assert (found.kind, found.revision) == (FindingKind.EVENT_MISSING, 1)
    await hand.execute("UPDATE bases SET signature = 'signed' WHERE flow_id = $1", flow_id)
    assert await findings(there, FlowKey(tenant, flow_id)) == ()
