"""The audit that the other tests rely on finds each kind of damage."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from server import app
from tests.cluster import Cluster
from tests.conftest import Urls, settings
from tests.faults.audit import audit
from tests.faults.process import connection
from tests.tenancy import Tenancy

NAME = "audited"


@pytest.fixture(scope="module")
async def tenancy(postgres: Cluster, template: str) -> AsyncIterator[Tenancy]:
    """A tenant of a database that may be damaged."""
    postgres.run(f"CREATE DATABASE {NAME} TEMPLATE {template} OWNER flowledger_owner")
    urls = Urls(NAME, postgres.url(NAME, "flowledger_owner"), postgres.url(NAME, "flowledger"))
    async with app.running(settings(urls)) as server, connection(server.address) as channel:
        yield Tenancy.fresh(channel)
    postgres.run(f"DROP DATABASE {NAME} WITH (FORCE)")


async def _written(tenancy: Tenancy) -> str:
    """A flow with something of everything."""
    flow_id = (await tenancy.create(state={"json": "{}"}, child_data={"json": "{}"})).flow_id
    await tenancy.move(flow_id, "data_import", "IN_PROGRESS")
    progress = {"phase": "data_import", "fraction": 0.3, "message": "third"}
    await tenancy.call("ReportProgress", flow_id=flow_id, progress=progress)
    await tenancy.call("UpdateFlow", flow_id=flow_id, update={"state": {"json": '{"a":1}'}, "display_name": "new"})
    return flow_id


async def test_an_undamaged_ledger_passes(tenancy: Tenancy, postgres: Cluster) -> None:
    flow_id = await _written(tenancy)
    ledger = await audit(postgres.url(NAME, "postgres"))
    assert [len(hashes) for found, hashes in ledger.hashes.items() if str(found) == flow_id] == [4]


@pytest.mark.parametrize(
    ("damage", "finding"),
    [
        ("DELETE FROM events WHERE revision = 3", "has events of"),
        ("DELETE FROM events WHERE revision = 4", "has events of"),
        ("UPDATE flows SET revision = revision + 1", "has events of"),
        ("DELETE FROM flows", "without a flow"),
        ("DELETE FROM discovery_flows", "has children"),
        ("DELETE FROM documents WHERE name = 'state'", "has documents"),
        ("UPDATE documents SET revision = 9 WHERE name = 'state'", "has documents"),
        ("UPDATE discovery_flows SET phases = jsonb_set(phases, '{0,fraction}', '0.4')", "phase data_import is"),
        ("UPDATE discovery_flows SET phases = jsonb_set(phases, '{1,state}', '\"COMPLETED\"')", "phase field_mapping is"),
        ("UPDATE flows SET progress = progress + 1", "its last event says"),
        ("UPDATE events SET actor = 'mallory' WHERE revision = 2", "the hash chain breaks at revision 2"),
        ("UPDATE flows SET head_hash = sha256('')", "the row's hash is not its last event's"),
    ],
)
async def test_damage_is_found(tenancy: Tenancy, postgres: Cluster, damage: str, finding: str) -> None:
    flow_id = await _written(tenancy)
    where = "AND" if "WHERE" in damage else "WHERE"
    # As a replica, the foreign keys look away.
    postgres.run(f"SET session_replication_role = replica; {damage} {where} flow_id = '{flow_id}'", NAME)
    try:
        with pytest.raises(AssertionError, match=finding) as found:
            await audit(postgres.url(NAME, "postgres"))
        assert flow_id in str(found.value)
    finally:
        tables = ("events", "discovery_flows", "documents", "flows")
        gone = "; ".join(f"DELETE FROM {table} WHERE flow_id = '{flow_id}'" for table in tables)
        postgres.run(f"SET session_replication_role = replica; {gone}", NAME)
