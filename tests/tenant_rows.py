"""What there is of a tenant, table by table, as nobody but a superuser sees it."""

from __future__ import annotations

import asyncpg

from server.repository.tables import TENANT_TABLES
from tests.tenancy import Tenancy


async def held(connection: asyncpg.Connection, tenancy: Tenancy) -> dict[str, tuple[int, int]]:
    """Of every table of tenants, how many rows the tenant has, and a digest of all that they hold."""
    found = {}
    for table in TENANT_TABLES:
        query = (
            f"SELECT count(*), coalesce(sum(hashtextextended(t::text, 0)), 0) FROM {table.name} t "
            "WHERE client_account_id = $1 AND engagement_id = $2"
        )
        row = await connection.fetchrow(query, tenancy.account, tenancy.engagement)
        assert row is not None
        found[table.name] = (int(row[0]), int(row[1]))
    return found
