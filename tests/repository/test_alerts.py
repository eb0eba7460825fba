"""Alerts: each told once, counted without a gap in the order of their commits."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from uuid import UUID, uuid4

import asyncpg

from server.repository.alerts import Alerts
from server.statemachine.alert import AlertKind, AlertSeverity
from server.statemachine.values import Tenant
from tests.conftest import Urls
from tests.faults.locks import blocked
from tests.repository.store import NOON, Store, alert


async def test_the_same_thing_is_told_once(store: Store, elsewhere: Store, tenant: Tenant) -> None:
    alerts, others = Alerts(store.database), Alerts(elsewhere.database)
    assert await alerts.put(tenant, alert("a"))
    assert not await alerts.put(tenant, alert("a", 5))
    assert not await others.put(tenant, alert("a", 6, message="in other words"))
    assert await others.put(tenant, alert("a", 7, kind=AlertKind.RETRY_STORM))
    assert [(one.number, one.alert.kind.name) for one in await alerts.after(tenant, 0, 10)] == [(1, "FLOW_STUCK"), (2, "RETRY_STORM")]


async def test_an_alert_comes_back_as_it_was_raised(store: Store, tenant: Tenant) -> None:
    told = alert(
        "a", 3, flow_id=uuid4(), child_type="discovery", phase="data_import", checkpoint_id=uuid4(), severity=AlertSeverity.CRITICAL
    )
    await Alerts(store.database).put(tenant, told)
    (found,) = await Alerts(store.database).page(tenant, None, None, None, None, 10)
    told_of = ("alert_id", "kind", "severity", "create_time", "message", "flow_id", "child_type", "phase", "checkpoint_id")
    assert [getattr(found.alert, name) for name in told_of] == [getattr(told, name) for name in told_of]


async def test_many_at_once_have_numbers_without_a_gap(store: Store, elsewhere: Store, tenant: Tenant) -> None:
    subjects = [f"{at % 12}" for at in range(36)]
    where = (Alerts(store.database), Alerts(elsewhere.database))
    stored = await asyncio.gather(*(where[at % 2].put(tenant, alert(subject)) for at, subject in enumerate(subjects)))
    assert sum(stored) == 12
    assert [one.number for one in await where[0].after(tenant, 0, 100)] == list(range(1, 13))


async def test_a_later_number_is_never_seen_before_an_earlier_one(
    store: Store, tenant: Tenant, truth: asyncpg.Connection, shared_urls: Urls
) -> None:
    """A watch goes by the number: one that is committed late must not get a number that has been passed."""
    alerts = Alerts(store.database)
    await alerts.put(tenant, alert("first"))
    async with truth.transaction():
        await truth.execute(
            "INSERT INTO alerts SELECT client_account_id, engagement_id, gen_random_uuid(), flow_id, checkpoint_id, 2, create_time, kind, "
            "severity, child_type, phase, message, sha256('slow') FROM alerts WHERE client_account_id = $1",
            tenant.client_account_id,
        )
        quick = asyncio.create_task(alerts.put(tenant, alert("quick")))
        await blocked(shared_urls.service, 1)
        assert [one.number for one in await alerts.after(tenant, 0, 10)] == [1]
    assert await quick
    assert [one.number for one in await alerts.after(tenant, 1, 10)] == [2, 3]


async def test_lists_are_narrowed_and_paged(store: Store, tenant: Tenant) -> None:
    alerts, flow_id = Alerts(store.database), uuid4()
    for at in range(6):
        kind, severity = list(AlertKind)[at % 3], list(AlertSeverity)[at % 2]
        await alerts.put(tenant, alert(f"{at}", at, kind=kind, severity=severity, flow_id=flow_id if at < 4 else None))

    async def numbers(flow: UUID | None, kind: AlertKind | None, severity: AlertSeverity | None, before: int | None) -> list[int]:
        return [one.number for one in await alerts.page(tenant, flow, kind, severity, before, 10)]

    assert await numbers(None, None, None, None) == [6, 5, 4, 3, 2, 1]
    assert await numbers(flow_id, None, None, None) == [4, 3, 2, 1]
    assert await numbers(None, AlertKind(1), None, None) == [4, 1]
    assert await numbers(None, AlertKind(1), AlertSeverity.WARNING, None) == [1]
    assert await numbers(None, None, None, 3) == [2, 1]
    assert [one.number for one in await alerts.page(tenant, None, None, None, None, 2)] == [6, 5]


async def test_where_to_begin_is_told_by_time_and_by_id(store: Store, tenant: Tenant) -> None:
    alerts = Alerts(store.database)
    assert await alerts.before(tenant, NOON) == 0
    told = [alert(f"{at}", at) for at in range(3)]
    for one in told:
        await alerts.put(tenant, one)
    moments = (timedelta(minutes=-1), timedelta(), timedelta(minutes=1), timedelta(minutes=1.5), timedelta(minutes=3))
    assert [await alerts.before(tenant, NOON + moment) for moment in moments] == [0, 0, 1, 2, 3]
    assert [await alerts.number_of(tenant, one.alert_id) for one in told] == [1, 2, 3]
    assert await alerts.number_of(tenant, uuid4()) is None
