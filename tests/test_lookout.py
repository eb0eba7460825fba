"""Flows that are stuck are told of, once each, whoever looks and however often."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from uuid import UUID, uuid4

import asyncpg
import grpc
import pytest

from server import app
from server.lookout import Lookout
from server.repository.alerts import Alerts
from server.repository.standing import PAGE, Standing
from server.statemachine.alert import Alert, AlertKind
from server.statemachine.change import CancelFlow, Change, DeleteFlow, PauseFlow, RecordActivity, RetryPhase, TransitionPhase
from server.statemachine.states import FailureCode, PhaseState
from server.statemachine.stuck import STORM
from server.statemachine.values import ActivityEntry, ActivityKind, Failure, FlowKey, Tenant
from tests.conftest import Urls, settings
from tests.repository import rows
from tests.repository.store import NOON, Store, opened, outsiders, superuser
from tests.services.checkpoints import Sealing
from tests.tenancy import PATIENCE, Tenancy

S = PhaseState
DAY = timedelta(days=1)


@pytest.fixture
async def store(urls: Urls) -> AsyncIterator[Store]:
    """A store on a database of the test's own."""
    async with opened(urls.service) as store:
        yield store


@pytest.fixture
async def hand(urls: Urls) -> AsyncIterator[asyncpg.Connection]:
    """Who sees everything."""
    async with superuser(urls.service) as connection:
        yield connection


async def told(store: Store, tenant: Tenant, at: datetime) -> list[Alert]:
    """What the tenant has been told of after a look at that time, in order."""
    alerts = Alerts(store.database)

    async def tell(tenant: Tenant, alert: Alert) -> None:
        await alerts.put(tenant, alert)

    await Lookout(Standing(store.database), tell, lambda: at, uuid4).look(tenant)
    return [one.alert for one in await alerts.after(tenant, 0, 1000)]


async def test_a_phase_that_stays_too_long_is_told_of_once_each_time(store: Store) -> None:
    tenant = rows.tenant()
    flow_id = await store.begun(tenant)
    assert await told(store, tenant, NOON + DAY / 2) == []
    (one,) = await told(store, tenant, NOON + 2 * DAY)
    assert (one.kind, one.flow_id, one.child_type, one.phase) == (AlertKind.FLOW_STUCK, flow_id, "discovery", "data_import")
    assert await told(store, tenant, NOON + 3 * DAY) == [one]
    await store.commit(store.asked(tenant, flow_id, TransitionPhase("data_import", S.COMPLETED)))
    await store.commit(store.asked(tenant, flow_id, TransitionPhase("field_mapping", S.IN_PROGRESS)))
    await store.commit(store.asked(tenant, flow_id, TransitionPhase("field_mapping", S.WAITING_APPROVAL)))
    assert await told(store, tenant, NOON + 6 * DAY) == [one]
    _, second = await told(store, tenant, NOON + 8 * DAY)
    assert (second.kind, second.phase) == (AlertKind.FLOW_STUCK, "field_mapping")
    assert "WAITING_APPROVAL" in second.message
    assert len(await told(store, tenant, NOON + 9 * DAY)) == 2


@pytest.mark.parametrize("change", [PauseFlow("lunch"), CancelFlow("no budget"), DeleteFlow("mistake")], ids=lambda one: type(one).__name__)
async def test_who_was_stopped_is_not_stuck(store: Store, change: Change) -> None:
    tenant = rows.tenant()
    flow_id = await store.begun(tenant)
    await store.commit(store.asked(tenant, flow_id, change))
    assert await told(store, tenant, NOON + 30 * DAY) == []


async def test_retry_after_retry_is_told_of_once(store: Store) -> None:
    tenant = rows.tenant()
    quiet, busy = await store.begun(tenant), await store.begun(tenant)
    failure = Failure(FailureCode.AGENT_TIMEOUT)
    for flow_id, retries in ((quiet, 1), (busy, 3)):
        for _ in range(retries):
            await store.commit(store.asked(tenant, flow_id, TransitionPhase("data_import", S.FAILED, failure=failure)))
            await store.commit(store.asked(tenant, flow_id, RetryPhase("data_import")))
    assert await told(store, tenant, NOON + DAY / 24) == []  # as often as any phase may
    entries = RecordActivity((ActivityEntry(ActivityKind.RETRY, "data_import", "discovery"),) * (STORM - 3))
    await store.commit(store.asked(tenant, busy, entries))  # an agent's own
    (one,) = await told(store, tenant, NOON + DAY / 24)
    assert (one.kind, one.flow_id, one.phase) == (AlertKind.RETRY_STORM, busy, "data_import")
    assert await told(store, tenant, NOON + DAY / 23) == [one]
    assert [alert for alert in await told(store, tenant, NOON + DAY / 4) if alert.kind is AlertKind.RETRY_STORM] == [one]


async def test_a_row_that_cannot_be_read_hides_no_other(store: Store, hand: asyncpg.Connection) -> None:
    tenant = rows.tenant()
    damaged, stuck = [await store.begun(tenant) for _ in range(4)], await store.begun(tenant)
    for flow_id, value in zip(damaged, ('"yesterday"', "12", "null", '"1000-99-99"'), strict=True):
        await hand.execute(
            f"UPDATE discovery_flows SET phases = jsonb_set(phases, '{{0,state_time}}', '{value}') WHERE flow_id = $1", flow_id
        )
    assert [one.flow_id for one in await told(store, tenant, NOON + 2 * DAY)] == [stuck]


async def test_everybody_is_looked_at_page_by_page(store: Store) -> None:
    tenant = rows.tenant()
    flows = {await store.begun(tenant) for _ in range(PAGE + 3)}
    found: set[UUID] = set()

    async def tell(_: Tenant, alert: Alert) -> None:
        assert alert.flow_id is not None
        found.add(alert.flow_id)

    await Lookout(Standing(store.database), tell, lambda: NOON + 2 * DAY, uuid4).look(tenant)
    assert found == flows


async def test_another_tenants_flows_are_nobodys(store: Store) -> None:
    tenant = rows.tenant()
    flow_id = await store.begun(tenant)
    for stranger in outsiders(tenant).values():
        assert await told(store, stranger, NOON + 30 * DAY) == []
    assert [one.flow_id for one in await told(store, tenant, NOON + 2 * DAY)] == [flow_id]


async def test_running_servers_tell_of_each_once(urls: Urls, hand: asyncpg.Connection, store: Store) -> None:
    tenant = rows.tenant()
    flow_id = await store.begun(tenant)
    at = app.now() - 2 * DAY
    await hand.execute("UPDATE discovery_flows SET phases = jsonb_set(phases, '{0,state_time}', to_jsonb($2::text)) WHERE flow_id = $1",
                       flow_id, at.isoformat())  # fmt: skip
    running = settings(urls, sweep_seconds=0.05)
    async with (
        app.running(running) as one,
        app.running(running),
        grpc.aio.insecure_channel(one.address) as channel,
    ):
        sealing = Sealing(Tenancy(channel, tenant.client_account_id, tenant.engagement_id))
        async with asyncio.timeout(PATIENCE):
            while not (alerts := (await sealing.admin("ListAlerts")).alerts):  # noqa: ASYNC110 - the job is another process'
                await asyncio.sleep(0.02)
        assert [alert.flow_id for alert in alerts] == [str(flow_id)]
    assert await store.head(tenant, flow_id) == await store.flows.head(FlowKey(tenant, flow_id))
    assert len(await Alerts(store.database).after(tenant, 0, 10)) == 1
