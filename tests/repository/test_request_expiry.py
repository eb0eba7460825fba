"""A request id is forgotten when it is old and nothing can come of a repeat any more."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from uuid import UUID, uuid4

import asyncpg
import pytest

from server.repository import request_expiry
from server.repository.request_expiry import forget
from server.repository.requests import NO_FLOW
from server.statemachine.change import CancelFlow, DeleteFlow, UndeleteFlow, UpdateFlow
from server.statemachine.flow import Occasion
from server.statemachine.values import Tenant
from tests.repository import rows
from tests.repository.store import NOON, Store, request

DAY = timedelta(days=1)
CUT = NOON - 30 * DAY
OLD, NEW = CUT - DAY, CUT + DAY


async def flow_with(store: Store, tenant: Tenant, *changes: tuple[object, datetime]) -> UUID:
    """A flow that was made long ago with a request id, and changed at these times."""
    birth = store.birth(tenant, request=request())
    await store.commit(replace(birth, occasion=Occasion("ann", OLD - 10 * DAY, uuid4)))
    for change, time in changes:
        asked = store.asked(tenant, birth.flow_id, change, request=request())  # type: ignore[arg-type]
        await store.commit(replace(asked, occasion=Occasion("ann", time, uuid4)))
    return birth.flow_id


async def known(truth: asyncpg.Connection, flow_id: UUID) -> int:
    found: int = await truth.fetchval("SELECT count(*) FROM requests WHERE flow_id = $1", flow_id)
    return found


@pytest.mark.parametrize(
    ("changes", "stays"),
    [
        ([], 1),  # it can still be changed
        ([(UpdateFlow(display_name="a"), OLD)], 2),
        ([(CancelFlow(), OLD)], 0),
        ([(CancelFlow(), NEW)], 2),  # ended, not long ago
        ([(DeleteFlow(), OLD)], 0),
        ([(DeleteFlow(), NEW)], 2),
        ([(DeleteFlow(), OLD), (UndeleteFlow(), OLD)], 3),
        ([(CancelFlow(), OLD), (DeleteFlow(), NEW)], 3),  # not rested
    ],
)
async def test_an_id_stays_while_its_flow_lives_and_for_as_long_after(
    store: Store, tenant: Tenant, truth: asyncpg.Connection, changes: list[tuple[object, datetime]], stays: int
) -> None:
    flow_id = await flow_with(store, tenant, *changes)
    before = await known(truth, flow_id)
    assert await forget(store.database, tenant, CUT) == before - stays
    assert await known(truth, flow_id) == stays


async def test_a_young_id_of_a_flow_that_is_gone_stays(store: Store, tenant: Tenant, truth: asyncpg.Connection) -> None:
    for time in (OLD, NEW):
        for flow_id in (NO_FLOW, uuid4()):
            await rows.put(truth, "requests", {**rows.row("requests", tenant, flow_id), "create_time": time})
    assert await forget(store.database, tenant, CUT) == 2
    query = "SELECT create_time FROM requests WHERE client_account_id = $1"
    assert {row[0] for row in await truth.fetch(query, tenant.client_account_id)} == {NEW}


async def test_all_of_many_are_looked_at(store: Store, tenant: Tenant, truth: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_expiry, "PAGE", 7)
    ids = [UUID(int=0), UUID(int=2**128 - 1), *(uuid4() for _ in range(33))]
    for at, request_id in enumerate(ids):
        values = {"request_id": request_id, "create_time": OLD if at % 2 else NEW}
        await rows.put(truth, "requests", {**rows.row("requests", tenant, uuid4()), **values})
    assert await forget(store.database, tenant, CUT) == 17
    assert await forget(store.database, tenant, CUT) == 0


async def test_other_tenants_keep_theirs(store: Store, tenant: Tenant, truth: asyncpg.Connection) -> None:
    other = rows.tenant()
    for owner in (tenant, other):
        await rows.put(truth, "requests", {**rows.row("requests", owner, NO_FLOW), "create_time": OLD})
    assert await forget(store.database, tenant, CUT) == 1
    assert await forget(store.database, other, CUT) == 1
