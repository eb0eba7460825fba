"""A row for each table that the database accepts: what tests of constraints and of row level security begin with."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from uuid import UUID, uuid4

import asyncpg

from server.repository.tables import CUSTOM, children, metadata
from server.statemachine.values import Tenant

TIME = datetime(2026, 11, 22, 8, 0, tzinfo=UTC)
HASH = bytes(32)


def tenant() -> Tenant:
    """A tenant that nobody else uses."""
    return Tenant(uuid4(), uuid4())


def row(table: str, owner: Tenant, flow_id: UUID) -> dict[str, object]:
    """Values for every column of ``table`` that break no constraint of the table itself."""
    key: dict[str, object] = {"client_account_id": owner.client_account_id, "engagement_id": owner.engagement_id, "flow_id": flow_id}
    rows: dict[str, dict[str, object]] = {
        "flows": {
            **key,
            "revision": 1,
            "progress": 12.5,
            "create_time": TIME,
            "update_time": TIME,
            "end_time": None,
            "delete_time": None,
            "type": "discovery",
            "status": "INITIALIZED",
            "hold": "NONE",
            "hold_reason": "",
            "display_name": "Wave 3",
            "created_by": "ann",
            "updated_by": "ann",
            "current_child": "discovery",
            "current_phases": ["data_import"],
            "labels": "{}",
            "totals": [0, 0, 0, 0, 0, 0, 0],
            "head_hash": HASH,
        },
        "documents": {**key, "revision": 1, "size": 2, "name": "state", "child_type": "", "sha256": HASH, "body": b"{}"},
        "events": {**key, "revision": 1, "time": TIME, "actor": "ann", "body": "{}", "hash": HASH},
        "requests": {**key, "request_id": uuid4(), "create_time": TIME, "payload_hash": HASH, "answer": b""},
        "activity": {**key, "sequence": 101, "time": TIME, "kind": 1, "slot": 0, "actor": "ann", "body": "{}"},
        "installation": {"singleton": 1, "token_key": HASH},
    }
    for domain, child in children.items():
        rows[child.name] = {
            **key,
            "child_flow_id": uuid4(),
            "progress": 0.0,
            "create_time": TIME,
            "update_time": TIME,
            "definition_version": 1,
            "type": "cutover" if domain == CUSTOM else domain,
            "status": "INITIALIZED",
            "phases": '[{"name": "data_import", "state": "NOT_STARTED"}]',
        }
    return rows[table]


async def put(connection: asyncpg.Connection, table: str, values: Mapping[str, object]) -> None:
    """Insert one row as it is."""
    names = ", ".join(values)
    places = ", ".join(f"${number}" for number in range(1, len(values) + 1))
    await connection.execute(f"INSERT INTO {table} ({names}) VALUES ({places})", *values.values())


async def put_everywhere(connection: asyncpg.Connection, owner: Tenant) -> UUID:
    """One row in every tenant table, all of one new flow; its id."""
    flow_id = uuid4()
    for table in metadata.sorted_tables:  # flows before what refers to it
        if table.name != "installation":
            await put(connection, table.name, row(table.name, owner, flow_id))
    return flow_id
