"""What a page of an audit or the rebuilding of a revision reads does not grow with the history, though one flow has all rows there are.

Counted are rows, by the plans that are run: the time that it takes says more about the machine.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from sqlalchemy import func, select

from server.repository.history import History
from server.repository.statement import Statement, gated
from server.repository.tables import events
from server.statemachine.change import ReplaceDocument, UpdateFlow
from server.statemachine.errors import HistoryDamaged
from server.statemachine.history import Version
from server.statemachine.values import DocumentPlace, FlowKey, Tenant
from tests.conftest import Urls
from tests.repository.store import Sent, Store, opened, report, superuser
from tests.repository.upkeep import audit_of

NUMBER, MOST = 20_000, 1_100
STATE = DocumentPlace("state")
_ALL = Statement(gated(select(func.count(events.c.actor))))


async def multiply(truth: asyncpg.Connection, table: str, flow_id: UUID, revisions: str) -> None:
    """Repeat the flow's last row in the table, at those revisions."""
    query = "SELECT attname FROM pg_attribute WHERE attrelid = $1::text::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum"
    names = [row[0] for row in await truth.fetch(query, table)]
    values = ", ".join("g" if name == "revision" else name for name in names)
    last = f"SELECT * FROM {table} WHERE flow_id = $1 ORDER BY revision DESC LIMIT 1"
    await truth.execute(f"INSERT INTO {table} SELECT {values} FROM ({last}) AS last, {revisions} AS g", flow_id)


@pytest.fixture
async def store(urls: Urls) -> AsyncIterator[Store]:
    """On a database of this test's own: what is known of the size of tables changes how others' statements are run."""
    async with opened(urls.service) as store:
        yield store


@pytest.fixture
async def long(store: Store, tenant: Tenant, urls: Urls) -> FlowKey:
    """A flow with 20,000 events, every hundredth with a base, and 20,000 versions of its document, every 64th whole."""
    async with superuser(urls.service) as truth:
        return await lengthened(store, tenant, truth)


async def lengthened(store: Store, tenant: Tenant, truth: asyncpg.Connection) -> FlowKey:
    flow_id = await store.begun(tenant)
    for at in range(3):
        text = json.dumps({"at": at, "pad": "x" * 2000}).encode()
        await store.commit(store.asked(tenant, flow_id, UpdateFlow(documents=(ReplaceDocument(STATE, text),))))
    await store.all_of(*(store.asked(tenant, flow_id, report(at)) for at in range(200)))
    head = await truth.fetchval("SELECT revision FROM flows WHERE flow_id = $1", flow_id)
    await multiply(truth, "events", flow_id, f"generate_series({head + 1}, {NUMBER})")
    await multiply(truth, "bases", flow_id, f"generate_series(300, {NUMBER}, 100)")
    await multiply(truth, "document_versions", flow_id, f"generate_series({head + 1}, {NUMBER})")
    await truth.execute("UPDATE document_versions SET kind = CASE WHEN revision % 64 = 0 THEN 1 ELSE 2 END WHERE flow_id = $1", flow_id)
    await truth.execute("UPDATE flows SET revision = $2 WHERE flow_id = $1", flow_id, NUMBER)
    await truth.execute("ANALYZE events, bases, document_versions, flows, documents")
    return FlowKey(tenant, flow_id)


async def rows_read(store: Store, sent: Sent) -> int:
    """How many rows of tables the statement looks at."""
    connection = await store.database.connections.lend()
    try:
        found = await connection.fetchval(f"EXPLAIN (ANALYZE, FORMAT JSON) {sent.text}", *sent.values)
    finally:
        await store.database.connections.take_back(connection)
    return sum(_read(json.loads(found)[0]["Plan"]))


def _read(node: dict[str, Any]) -> Iterator[int]:
    if "Relation Name" in node:
        each = node["Actual Rows"] + node.get("Rows Removed by Filter", 0) + node.get("Rows Removed by Index Recheck", 0)
        yield int(each * node["Actual Loops"])
    for child in node.get("Plans", []):
        yield from _read(child)


async def test_neither_a_page_of_an_audit_nor_an_old_revision_reads_the_whole_history(store: Store, long: FlowKey) -> None:
    for at in (500, NUMBER // 2, NUMBER - 1):
        store.sent.clear()
        await audit_of(store).page(long, at)
        with contextlib.suppress(HistoryDamaged):  # what was multiplied fits together nowhere
            await History(store.database).base(long, at)
        with contextlib.suppress(HistoryDamaged):
            await History(store.database).documents(long, {STATE: Version(at, 1, b"")})
        asked = [sent for sent in store.sent if "gate" in sent.text]  # the driver looks at types, too
        assert len(asked) == 3
        for sent in asked:
            assert await rows_read(store, sent) < MOST, sent.text


async def test_a_statement_that_reads_it_all_would_be_found(store: Store, long: FlowKey) -> None:
    store.sent.clear()
    await store.database.read([long.tenant], _ALL, {})
    assert await rows_read(store, store.sent[-1]) > MOST
