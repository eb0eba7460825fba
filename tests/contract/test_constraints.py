"""The database itself refuses bad rows: a case for each of its constraints, found in its own catalogue."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from math import inf, nan
from uuid import uuid4

import asyncpg
import pytest

from server.repository.table_parts import metadata
from server.repository.tables import CUSTOM, children
from server.statemachine.states import TERMINAL, FlowHold, FlowStatus, PhaseState
from server.statemachine.values import ActivityKind, DocumentName
from tests.conftest import Urls
from tests.repository import rows
from tests.repository.rows import HASH, TIME
from tests.repository.store import superuser

Change = dict[str, object]
SHORT = b"x" * 31


def _child(table: str, domain: str) -> dict[str, list[Change]]:
    types = [*(name for name in children if name != CUSTOM)] if domain == CUSTOM else ["cutover", "", domain.upper()]
    return {
        f"{table}_type_check": [{"type": name} for name in types if name != domain],
        f"{table}_progress_check": [{"progress": value} for value in (-0.001, 100.001, nan, inf, -inf)],
        f"{table}_status_check": [{"status": value} for value in ("", "initialized", "NOT_STARTED", "ACTIVE ")],
        f"{table}_phases_check": [
            {"phases": text}
            for text in (
                '[{"name": "a", "state": "DONE"}]',
                '[{"name": "a"}]',
                '[{"name": "a", "state": null}]',
                '[{"name": "a", "state": "COMPLETED"}, {"name": "b", "state": "completed"}]',
                "[1]",
                "{}",
            )
        ],
    }


CASES: dict[str, list[Change]] = {
    "flows_revision_check": [{"revision": 0}, {"revision": -1}],
    "flows_progress_check": [{"progress": value} for value in (-0.001, 100.001, nan, inf, -inf)],
    "flows_status_check": [{"status": "DONE"}, {"status": ""}, {"status": "active"}],
    "flows_hold_check": [{"hold": "HELD"}, {"hold": ""}],
    "flows_cancelled_check": [{"hold": "CANCELLED"}, {"hold": "CANCELLED", "status": "COMPLETED", "progress": 100.0, "end_time": TIME}],
    "flows_completed_check": [{"status": "COMPLETED", "progress": 99.9, "end_time": TIME}],
    "flows_end_check": [
        {"end_time": TIME},
        *(dict[str, object](status=name, progress=100.0, end_time=None) for name in sorted(status.name for status in TERMINAL)),
    ],
    "flows_totals_check": [{"totals": []}, {"totals": [0] * 6}, {"totals": [0] * 8}],
    "flows_head_hash_check": [{"head_hash": SHORT}, {"head_hash": b""}],
    **{name: changes for domain, table in children.items() for name, changes in _child(table.name, domain).items()},
    "documents_revision_check": [{"revision": 0}],
    "documents_size_check": [{"size": 1}, {"size": -1}],
    "documents_name_check": [{"name": "states"}, {"name": ""}],
    "documents_child_type_check": [{"name": "data"}, {"child_type": "discovery"}],
    "flows_origin_check": [{"origin_revision": 3}, {"origin_flow_id": uuid4()}],
    "documents_sha256_check": [{"sha256": SHORT}],
    "events_revision_check": [{"revision": 0}],
    "events_hash_check": [{"hash": SHORT}],
    "events_content_sha256_check": [{"content_sha256": SHORT, "body": "", "actor": ""}],
    "events_erased_check": [{"content_sha256": HASH}, {"content_sha256": HASH, "body": ""}, {"content_sha256": HASH, "actor": ""}],
    "bases_revision_check": [{"revision": 0}],
    "bases_hash_check": [{"hash": SHORT}],
    "document_versions_revision_check": [{"revision": 0}],
    "document_versions_kind_check": [{"kind": 0}, {"kind": 4}],
    "document_versions_sha256_check": [{"sha256": SHORT}],
    "tenant_keys_version_check": [{"version": -1}],
    "sealed_contents_size_check": [{"size": -1}, {"stored": -1}, {"chunks": -1}],
    "sealed_contents_digest_check": [{"digest": SHORT}],
    "sealed_chunks_number_check": [{"number": -1}],
    "checkpoints_revision_check": [{"revision": 0}],
    "checkpoints_kind_check": [{"kind": "MANUALLY"}, {"kind": ""}],
    "checkpoints_status_check": [{"status": "DONE"}],
    "checkpoints_payload_sha256_check": [{"payload_sha256": SHORT}],
    "policies_limits_check": [{"keep_revisions": -1}, {"keep_seconds": -0.5}, {"auto_seconds": 0.0}],
    "alerts_kind_check": [{"kind": "FIRE"}],
    "alerts_severity_check": [{"severity": "INFO"}],
    "alerts_fingerprint_check": [{"fingerprint": SHORT}],
    "erasures_digest_check": [{"digest": SHORT}],
    "requests_payload_hash_check": [{"payload_hash": SHORT}],
    "activity_kind_check": [{"kind": 0}, {"kind": len(ActivityKind) + 1}],
    "activity_slot_check": [{"slot": 1}, {"sequence": 0, "slot": -1}, {"sequence": 100, "slot": 0}, {"slot": 100}],
    "installation_singleton_check": [{"singleton": 2}],
    "installation_token_key_check": [{"token_key": SHORT}, {"token_key": b""}],
}


@pytest.fixture(scope="module")
async def connection(shared_urls: Urls) -> AsyncIterator[asyncpg.Connection]:
    """A superuser's: row level security is not what refuses here."""
    async with superuser(shared_urls.service) as connection:
        yield connection


async def constraints(connection: asyncpg.Connection, kinds: str) -> dict[str, str]:
    """Name and table of each constraint of those kinds."""
    found = await connection.fetch(
        "SELECT conname, conrelid::regclass::text FROM pg_constraint "
        "WHERE connamespace = 'public'::regnamespace AND contype::text = ANY($1) AND conrelid::regclass::text <> 'alembic_version'",
        list(kinds),
    )
    return {name: table for name, table in found}


async def test_every_check_has_a_case(connection: asyncpg.Connection) -> None:
    assert set(CASES) == set(await constraints(connection, "c"))


async def test_a_new_check_would_be_missed(connection: asyncpg.Connection) -> None:
    transaction = connection.transaction()
    await transaction.start()
    try:
        await connection.execute("ALTER TABLE flows ADD CONSTRAINT seeded CHECK (revision <> 7) NOT VALID")
        assert set(await constraints(connection, "c")) - set(CASES) == {"seeded"}
    finally:
        await transaction.rollback()


@pytest.mark.parametrize(("name", "change"), [(name, change) for name, changes in CASES.items() for change in changes])
async def test_a_row_that_breaks_the_check_is_refused(connection: asyncpg.Connection, name: str, change: Change) -> None:
    table = (await constraints(connection, "c"))[name]
    transaction = connection.transaction()
    await transaction.start()
    try:
        owner, flow_id = rows.tenant(), uuid4()
        await rows.put_below(connection, table, owner, flow_id)
        with pytest.raises(asyncpg.CheckViolationError) as caught:
            await rows.put(connection, table, {**rows.row(table, owner, flow_id), **change})
        assert caught.value.constraint_name == name
    finally:
        await transaction.rollback()


async def test_every_reference_refuses_a_row_without_its_flow(connection: asyncpg.Connection) -> None:
    found = await constraints(connection, "f")
    assert len(found) >= 11
    refused = set[str]()
    for table in set(found.values()):
        with pytest.raises(asyncpg.ForeignKeyViolationError) as caught:
            await rows.put(connection, table, rows.row(table, rows.tenant(), uuid4()))
        refused.add(str(caught.value.constraint_name))
    # A row of checkpoint_parts lacks both that it refers to; PostgreSQL tells of the first.
    assert set(found) - refused <= {"checkpoint_parts_content_fkey", "checkpoint_parts_checkpoint_fkey"}
    assert {found[name] for name in refused} == set(found.values())


async def test_every_key_refuses_a_second_row(connection: asyncpg.Connection) -> None:
    found = await constraints(connection, "pu")
    assert len(found) == 24
    for name, table in found.items():
        transaction = connection.transaction()
        await transaction.start()
        try:
            owner, flow_id = rows.tenant(), uuid4()
            values = rows.row(table, owner, flow_id)
            await rows.put_below(connection, table, owner, flow_id)
            if table != "installation":  # has its row since the migration
                await rows.put(connection, table, values)
            with pytest.raises(asyncpg.UniqueViolationError) as caught:
                await rows.put(connection, table, values)
            assert caught.value.constraint_name == name
        finally:
            await transaction.rollback()


async def test_every_column_that_must_be_filled_refuses_null(connection: asyncpg.Connection) -> None:
    owner, flow_id = rows.tenant(), uuid4()
    for table in (table.name for table in metadata.sorted_tables):
        for column, value in rows.row(table, owner, flow_id).items():
            if metadata.tables[table].c[column].nullable:
                assert value is None or (table, column) == ("sealed_contents", "digest")
                continue
            with pytest.raises(asyncpg.NotNullViolationError) as caught:
                await rows.put(connection, table, {**rows.row(table, owner, flow_id), column: None})
            assert caught.value.column_name == column


async def accepted(connection: asyncpg.Connection, table: str, change: Change) -> None:
    """Raises unless the database takes the row; leaves none."""
    transaction = connection.transaction()
    await transaction.start()
    try:
        owner, flow_id = rows.tenant(), uuid4()
        await rows.put_below(connection, table, owner, flow_id)
        await rows.put(connection, table, {**rows.row(table, owner, flow_id), **change})
    finally:
        await transaction.rollback()


async def test_whatever_the_machine_can_make_is_accepted(connection: asyncpg.Connection) -> None:
    for status in FlowStatus:
        ended = {"end_time": TIME + timedelta(days=1)} if status in TERMINAL else {}
        await accepted(connection, "flows", {"status": status.name, "progress": 100.0, **ended})
        await accepted(connection, "planning_flows", {"status": status.name, "progress": 0.0})
    for hold in FlowHold:
        cancelled = {"status": "CANCELLED", "end_time": TIME} if hold is FlowHold.CANCELLED else {}
        await accepted(connection, "flows", {"hold": hold.name, **cancelled})
    for state in PhaseState:
        await accepted(connection, "custom_flows", {"phases": f'[{{"name": "a", "state": "{state.name}"}}]'})
    for name in DocumentName:
        await accepted(connection, "documents", {"name": name.value, "child_type": "discovery" if name is DocumentName.DATA else ""})
    for kind in ActivityKind:
        await accepted(connection, "activity", {"kind": kind.value, "sequence": 200, "slot": 99})
