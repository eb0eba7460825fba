"""A row for each table that the database accepts: what tests of constraints and of row level security begin with."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from uuid import UUID, uuid4

import asyncpg

from server.repository.table_parts import metadata
from server.repository.tables import CUSTOM, children
from server.statemachine.values import Tenant

TIME = datetime(2026, 11, 22, 8, 0, tzinfo=UTC)
HASH = bytes(32)


def tenant() -> Tenant:
    """A tenant that nobody else uses."""
    return Tenant(uuid4(), uuid4())


def row(table: str, owner: Tenant, flow_id: UUID) -> dict[str, object]:
    """Values for every column of ``table`` that break no constraint of the table itself."""
    mine: dict[str, object] = {"client_account_id": owner.client_account_id, "engagement_id": owner.engagement_id}
    key: dict[str, object] = {**mine, "flow_id": flow_id}
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
            "origin_flow_id": None,
            "origin_revision": None,
        },
        "documents": {**key, "revision": 1, "size": 2, "name": "state", "child_type": "", "sha256": HASH, "body": b"{}", "number": 1},
        "events": {
            **key,
            "revision": 1,
            "time": TIME,
            "actor": "ann",
            "body": "{}",
            "hash": HASH,
            "format": 2,
            "content_sha256": None,
            "position": 1,
        },
        "removals": {**mine, "position": 1},
        "requests": {**key, "request_id": uuid4(), "create_time": TIME, "payload_hash": HASH, "answer": b""},
        "activity": {**key, "sequence": 101, "time": TIME, "kind": 1, "slot": 0, "actor": "ann", "body": "{}"},
        "installation": {"singleton": 1, "token_key": HASH, "kek_id": None, "position_base": 0, "cluster_id": None},
        "bases": {**key, "revision": 100, "hash": HASH, "body": b"{}", "signature": None},
        "document_versions": {
            **key,
            "revision": 1,
            "size": 2,
            "kind": 1,
            "name": "state",
            "child_type": "",
            "sha256": HASH,
            "body": b"{}",
        },
        "tenants": {**mine, "create_time": TIME},
        "tenant_keys": {**mine, "version": 1, "create_time": TIME, "kek_id": "k", "wrapped": b"x"},
        "sealed_contents": {
            **mine,
            "content_id": flow_id,
            "size": 2,
            "stored": 2,
            "create_time": TIME,
            "chunks": 1,
            "key_version": 1,
            "digest": HASH,
        },
        "sealed_chunks": {**mine, "content_id": flow_id, "number": 0, "sealed": b"x"},
        "checkpoints": {
            **mine,
            "checkpoint_id": flow_id,
            "flow_id": flow_id,
            "revision": 1,
            "etag": 1,
            "size": 2,
            "payload_size": 0,
            "progress": 0.0,
            "create_time": TIME,
            "expire_time": None,
            "key_version": 1,
            "pinned": False,
            "kind": "MANUAL",
            "status": "ACTIVE",
            "created_by": "ann",
            "reason": "",
            "labels": "{}",
            "header": b"x",
            "payload_sha256": None,
        },
        "checkpoint_parts": {**mine, "checkpoint_id": flow_id, "content_id": flow_id, "name": "flow", "child_type": ""},
        "policies": {
            **mine,
            "etag": 1,
            "keep_seconds": 0.0,
            "auto_seconds": 1.0,
            "update_time": TIME,
            "keep_revisions": 0,
            "keep_last_good": True,
            "keep_terminal": True,
            "checkpoint_before": [],
            "updated_by": "ann",
        },
        "quarantine": {
            **mine,
            "quarantine_id": flow_id,
            "flow_id": flow_id,
            "create_time": TIME,
            "actor": "ann",
            "reason": "",
            "body": b"x",
        },
        "alerts": {
            **mine,
            "alert_id": flow_id,
            "flow_id": None,
            "checkpoint_id": None,
            "create_time": TIME,
            "kind": "FLOW_STUCK",
            "severity": "WARNING",
            "child_type": "",
            "phase": "",
            "message": "",
            "fingerprint": HASH,
        },
        "erasures": {
            **mine,
            "receipt_id": flow_id,
            "create_time": TIME,
            "flows": 1,
            "events": 1,
            "documents": 1,
            "checkpoints": 1,
            "keys": 1,
            "actor": "ann",
            "reason": "",
            "digest": HASH,
        },
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


async def put_below(connection: asyncpg.Connection, table: str, owner: Tenant, flow_id: UUID) -> None:
    """Every row that a row of ``table`` refers to, and what those refer to."""
    wanted, named = set[str](), [table]
    while named:
        for key in metadata.tables[named.pop()].foreign_key_constraints:
            if key.referred_table.name not in wanted:
                wanted.add(key.referred_table.name)
                named.append(key.referred_table.name)
    for found in metadata.sorted_tables:
        if found.name in wanted:
            await put(connection, found.name, row(found.name, owner, flow_id))
