"""Row level security: without the gate nobody sees anything, through it each sees its own, and nothing stays open behind it."""

from __future__ import annotations

import asyncio

import asyncpg
import pytest
from sqlalchemy import BigInteger, bindparam, func, select, update

from server.repository.requests import Committed
from server.repository.statement import Statement, gate, named
from server.repository.tables import TENANT_TABLES, TENANTS_SETTING, flows
from server.statemachine.change import PauseFlow, UpdateFlow
from server.statemachine.values import FlowKey, Tenant
from tests.repository import rows
from tests.repository.store import Store, outsiders, report

TABLES = [table.name for table in TENANT_TABLES]
NAME = f"SELECT set_config('{TENANTS_SETTING}', $1, true)"


@pytest.fixture(scope="module")
async def filled(truth: asyncpg.Connection) -> Tenant:
    """A tenant with a row in every table."""
    owner = rows.tenant()
    await rows.put_everywhere(truth, owner)
    return owner


async def rows_seen(connection: asyncpg.Connection, table: str) -> int:
    count: int = await connection.fetchval(f"SELECT count(*) FROM {table}")
    return count


@pytest.mark.parametrize("table", TABLES)
class TestWithoutTheGate:
    async def test_no_row_is_seen(self, service: asyncpg.Connection, truth: asyncpg.Connection, filled: Tenant, table: str) -> None:
        assert await rows_seen(service, table) == 0
        assert await rows_seen(truth, table) > 0

    async def test_no_row_is_changed(self, service: asyncpg.Connection, filled: Tenant, table: str) -> None:
        assert await service.execute(f"UPDATE {table} SET engagement_id = engagement_id") == "UPDATE 0"

    async def test_no_row_is_deleted(self, service: asyncpg.Connection, filled: Tenant, table: str) -> None:
        assert await service.execute(f"DELETE FROM {table}") == "DELETE 0"

    async def test_no_row_is_inserted(self, service: asyncpg.Connection, filled: Tenant, table: str) -> None:
        with pytest.raises(asyncpg.InsufficientPrivilegeError, match="row-level security"):
            await rows.put(service, table, rows.row(table, filled, flow_id=rows.tenant().engagement_id))

    async def test_an_empty_or_foreign_name_opens_nothing(self, service: asyncpg.Connection, filled: Tenant, table: str) -> None:
        for name in ("", ",", "/", "%", "null", named([rows.tenant()]), f" {named([filled])}", named([filled]).upper().replace("/", "//")):
            async with service.transaction():
                await service.execute(NAME, name)
                assert await rows_seen(service, table) == 0


@pytest.mark.parametrize("table", TABLES)
class TestThroughTheGate:
    async def test_a_tenant_sees_its_rows_and_no_others(
        self, service: asyncpg.Connection, truth: asyncpg.Connection, filled: Tenant, table: str
    ) -> None:
        await rows.put_everywhere(truth, outsiders(filled)["the account with another engagement"])
        await rows.put_everywhere(truth, outsiders(filled)["the engagement under another account"])
        async with service.transaction():
            await service.execute(NAME, named([filled]))
            found = await service.fetch(f"SELECT client_account_id, engagement_id FROM {table}")
        assert [tuple(row) for row in found] == [(filled.client_account_id, filled.engagement_id)]

    async def test_a_row_cannot_be_handed_to_another_tenant(self, service: asyncpg.Connection, filled: Tenant, table: str) -> None:
        async with service.transaction():
            await service.execute(NAME, named([filled]))
            with pytest.raises(asyncpg.InsufficientPrivilegeError, match="row-level security"):
                await service.execute(f"UPDATE {table} SET engagement_id = gen_random_uuid()")

    async def test_a_row_cannot_be_made_for_another_tenant(self, service: asyncpg.Connection, filled: Tenant, table: str) -> None:
        other = rows.tenant()
        async with service.transaction():
            await service.execute(NAME, named([filled]))
            with pytest.raises(asyncpg.InsufficientPrivilegeError, match="row-level security"):
                await rows.put(service, table, rows.row(table, other, other.engagement_id))


async def test_nothing_stays_open_on_a_connection_after_any_of_the_stores_calls(store: Store, tenant: Tenant) -> None:
    flow_id = await store.begun(tenant)
    await store.commits.commit_together([store.asked(tenant, flow_id, report(1))], None)
    await store.record(tenant, flow_id)
    await store.history(tenant, flow_id)
    # Every connection, also those that were kept.
    lent = [await store.database.connections.lend() for _ in range(8)]
    try:
        for connection in lent:
            assert not await connection.fetchval(f"SELECT current_setting('{TENANTS_SETTING}', true)")
            assert await connection.fetchval("SELECT count(*) FROM flows") == 0
    finally:
        for connection in lent:
            await store.database.connections.take_back(connection)


async def test_nothing_stays_open_after_a_call_that_failed_or_was_cancelled(store: Store, tenant: Tenant) -> None:
    await store.begun(tenant)

    async def stuck() -> None:
        async with store.database.begin([tenant]) as transaction:
            await transaction.connection.execute("SELECT pg_sleep(30)")

    task = asyncio.create_task(stuck())
    with pytest.raises(RuntimeError):
        async with store.database.begin([tenant]):
            raise RuntimeError
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    lent = [await store.database.connections.lend() for _ in range(8)]
    try:
        assert [await connection.fetchval("SELECT count(*) FROM flows") for connection in lent] == [0] * 8
    finally:
        for connection in lent:
            await store.database.connections.take_back(connection)


async def test_a_combined_transaction_touches_only_the_rows_of_its_tenants(store: Store) -> None:
    tenants = [rows.tenant() for _ in range(4)]
    named_ones = tenants[:2]
    for tenant in tenants:
        await store.begun(tenant)
    everybody = update(flows).values(hold_reason="touched").returning(flows.c.client_account_id)
    async with store.database.begin(named_ones) as transaction:
        # Even a statement that forgot its conditions.
        found = await transaction.rows(Statement(everybody), {})
    assert {row[0] for row in found} == {tenant.client_account_id for tenant in named_ones}


async def test_commits_of_several_tenants_go_out_together_and_reach_only_their_own(store: Store) -> None:
    tenants = [rows.tenant() for _ in range(5)]
    flows_of = [await store.begun(tenant) for tenant in tenants]
    store.sent.clear()
    changes = [UpdateFlow(display_name=f"of {at}") for at in range(5)]
    results = await store.all_of(*(store.asked(t, f, c) for t, f, c in zip(tenants[:4], flows_of, changes, strict=False)))
    assert all(isinstance(result, Committed) for result in results)
    sent = [one for one in store.sent if "INSERT INTO events" in one.text]
    assert len(sent) == 1
    assert named(tenants[:4]) in sent[0].values
    names = [(await store.head(tenant, flow_id)).flow.display_name for tenant, flow_id in zip(tenants, flows_of, strict=True)]
    assert names == ["of 0", "of 1", "of 2", "of 3", "Wave 3"]


async def test_reads_of_several_tenants_that_are_gathered_reach_only_their_own(store: Store) -> None:
    tenants = [rows.tenant() for _ in range(4)]
    flows_of = [await store.begun(tenant) for tenant in tenants]
    mixed = [FlowKey(tenant, flow_id) for tenant in tenants for flow_id in flows_of]
    found = await asyncio.gather(*(store.flows.summary(key.tenant, key.flow_id) for key in mixed), return_exceptions=True)
    seen = [key for key, one in zip(mixed, found, strict=True) if not isinstance(one, BaseException)]
    assert seen == [FlowKey(tenant, flow_id) for tenant, flow_id in zip(tenants, flows_of, strict=True)]
    assert set(await store.flows.heads(mixed)) == set(seen)


async def test_the_gate_alone_decides_what_a_statement_counts(store: Store, tenant: Tenant) -> None:
    """A statement behind the gate but without conditions on the tenant is still bound by the policy."""
    await store.begun(tenant)
    await store.begun(rows.tenant())
    opener = gate()
    count = select(func.count()).select_from(flows).where(select(opener.c.tenants).scalar_subquery().is_not(None))
    limited = count.limit(bindparam("size", type_=BigInteger))
    assert (await store.database.read([tenant], Statement(limited), {"size": 1}))[0][0] == 1


async def test_a_commit_of_one_tenant_is_not_seen_in_anothers_list(store: Store, tenant: Tenant) -> None:
    flow_id = await store.begun(tenant)
    await store.commit(store.asked(tenant, flow_id, PauseFlow()))
    for outsider in outsiders(tenant).values():
        assert await store.flows.heads([FlowKey(outsider, flow_id)]) == {}
