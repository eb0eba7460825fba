"""Every statement that the service sends: behind the gate, bound to its tenant by its key, with its values in their places."""

from __future__ import annotations

import asyncio
import re
from dataclasses import replace
from uuid import uuid4

import asyncpg
import pytest
from sqlalchemy import BigInteger, bindparam, func, select

from server.repository.events import Narrowing
from server.repository.feed import Cursor, Feed
from server.repository.filter import parse, parse_order
from server.repository.flows import DeletedFlows
from server.repository.history import History
from server.repository.requests import answered
from server.repository.statement import Statement, gated, mine, named
from server.repository.tables import TENANT_TABLES, flows
from server.statemachine.change import (
    CancelFlow,
    DeleteFlow,
    MergeDocument,
    PauseFlow,
    RecordActivity,
    ReplaceDocument,
    ResumeFlow,
    StartChild,
    TransitionPhase,
    UndeleteFlow,
    UpdateFlow,
)
from server.statemachine.event_filter import EventFilter, EventKind
from server.statemachine.states import PhaseState
from server.statemachine.values import ActivityEntry, ActivityKind, DocumentPlace, FlowKey, Tenant
from tests.repository import rows
from tests.repository.plan import TENANT_TABLE_NAMES, scans_and_insertions
from tests.repository.store import Store, report, request

STATE = DocumentPlace("state")
ENTRY = RecordActivity((ActivityEntry(ActivityKind.MEMORY, value=1.5, unit="MiB"),))


# Tables that no statement touches yet.
LATER = {
    "tenant_keys",
    "sealed_contents",
    "sealed_chunks",
    "checkpoints",
    "checkpoint_parts",
    "policies",
    "quarantine",
    "alerts",
    "erasures",
}


async def exercise(store: Store, tenant: Tenant) -> None:
    """Everything that the store can be asked for: commits of every shape, and every read."""
    other = rows.tenant()
    replaced = UpdateFlow(documents=(ReplaceDocument(STATE, b"{}"),))
    merged = UpdateFlow(documents=(MergeDocument(STATE, b'{"a":1}'),))
    full = store.birth(tenant, replaced, ENTRY, request=request())
    for birth in (full, store.birth(other), store.birth(other, request=request()), store.birth(other, replaced), store.birth(other, ENTRY)):
        await store.commit(birth)
    flow_id = full.flow_id
    begin = TransitionPhase("data_import", PhaseState.IN_PROGRESS)
    for changes in (
        (begin,),
        (report(1),),
        (merged,),
        (ENTRY,),
        (report(2), merged, ENTRY),
        (PauseFlow(),),
        (ResumeFlow(),),
        (UpdateFlow(labels={"a": "b"}, display_name="c"), ENTRY),
        (DeleteFlow(),),
        (UndeleteFlow(),),
    ):
        for asking in (None, request()):
            if asking is None or not isinstance(changes[0], TransitionPhase | PauseFlow | ResumeFlow | DeleteFlow | UndeleteFlow):
                await store.commit(store.asked(tenant, flow_id, *changes, request=asking))
    bare = store.birth(tenant)  # without its child
    await store.commit(replace(bare, changes=()))
    await store.commit(store.asked(tenant, bare.flow_id, StartChild("discovery", b"{}")))
    await store.commits.commit_together(
        [store.asked(tenant, flow_id, CancelFlow()), store.asked(tenant, bare.flow_id, CancelFlow())], request()
    )
    await asyncio.gather(*(store.flows.summary(tenant, flow_id) for _ in range(3)))
    await store.flows.summaries(tenant, [flow_id, bare.flow_id])
    await store.flows.flows(tenant, [flow_id])
    await store.record(tenant, flow_id)
    await store.flows.document(tenant, flow_id, STATE)
    await store.history(tenant, flow_id)
    await store.events.span(tenant, flow_id)
    await store.events.moved({FlowKey(tenant, flow_id): 1})
    await Feed(store.database).page(tenant, Cursor(0), 10)
    await store.events.narrowed(tenant, flow_id, 0, 10, Narrowing(EventFilter(frozenset({EventKind.HOLD_CHANGED})), "ann"))
    await answered(store.database, tenant, request())
    for order in ("", "display_name", "update_time desc"):
        page = await store.flows.page(
            tenant, parse('status = CANCELLED AND labels.a = "b"'), parse_order(order), None, 1, DeletedFlows.HIDDEN
        )
        last = (page[0].display_name if order == "display_name" else page[0].create_time, page[0].flow_id)
        await store.flows.page(tenant, parse(""), parse_order(order), last, 10, DeletedFlows.SHOWN)
    await exercise_replacement(store, tenant)


async def exercise_replacement(store: Store, tenant: Tenant) -> None:
    """What replaces a flow as a whole, and several versions of a document in one batch."""
    flow_id = await store.create(tenant, UpdateFlow(documents=(ReplaceDocument(STATE, b"{}"),)))
    for _ in range(2):
        await store.commit(await store.replacing(tenant, flow_id))
    await store.flows.kept(FlowKey(tenant, flow_id))
    await History(store.database).record(FlowKey(tenant, flow_id), 2)
    for count in (1, 2, 3):
        texts = [UpdateFlow(documents=(ReplaceDocument(STATE, b"[%d]" % at),)) for at in range(count)]
        await store.all_of(*(store.asked(tenant, flow_id, change) for change in texts))


def touches_tenants(text: str) -> bool:
    """Whether the statement names a tenant table; the driver's own look at types has words of its own."""
    return any(re.search(rf"\b{name}\b", text) for name in TENANT_TABLE_NAMES)


@pytest.fixture(scope="module")
async def sent(store: Store) -> dict[str, int]:
    """Every statement that touches a tenant table, and how many values it takes."""
    store.sent.clear()
    await exercise(store, rows.tenant())
    found = {one.text: len(one.values) for one in store.sent}
    return {text: values for text, values in found.items() if touches_tenants(text)}


def test_every_shape_was_sent(sent: dict[str, int]) -> None:
    """So that the tests below prove something."""
    writing = [text for text in sent if "INSERT INTO events" in text]
    births = [text for text in writing if "INSERT INTO flows" in text]
    assert len(births) >= 4
    assert len(writing) - len(births) >= 8
    assert len(sent) - len(writing) >= 12
    for table in TENANT_TABLES:
        assert any(re.search(rf"\b{table.name}\b", text) for text in sent) != (table.name in LATER), table.name


async def test_the_gate_is_opened_before_any_row_is_touched(sent: dict[str, int], service: asyncpg.Connection) -> None:
    for text, values in sent.items():
        scans, insertions = await scans_and_insertions(service, text, values)
        assert scans or insertions, text
        assert [scan for scan in scans if not scan.guarded] == [], text
        assert [insertion for insertion in insertions if not insertion.guarded] == [], text


async def test_every_row_is_found_by_its_tenants_key(sent: dict[str, int], service: asyncpg.Connection) -> None:
    for text, values in sent.items():
        scans, _ = await scans_and_insertions(service, text, values)
        assert [scan for scan in scans if not scan.of_one_tenant] == [], text


async def test_a_statement_without_gate_or_key_would_be_found(service: asyncpg.Connection) -> None:
    open_wide = Statement(select(flows.c.revision).where(flows.c.revision == bindparam("at", type_=BigInteger)))
    without_key = Statement(gated(select(func.max(flows.c.revision))))
    proper = Statement(gated(select(flows.c.revision).where(*mine(flows))))
    asked = ((open_wide.text, 1), (without_key.text, 1), (proper.text, 3))
    plans = [await scans_and_insertions(service, text, values) for text, values in asked]
    found = [[(scan.guarded, scan.of_one_tenant) for scan in scans] for scans, _ in plans]
    assert found == [[(False, False)], [(True, False)], [(True, True)]]


async def test_an_insertion_without_gate_would_be_found(service: asyncpg.Connection) -> None:
    text = "INSERT INTO events SELECT client_account_id, engagement_id, flow_id, revision + 1, time, actor, body, hash, 2, NULL FROM events"
    scans, insertions = await scans_and_insertions(service, text, 0)
    assert ([scan.guarded for scan in scans], [insertion.guarded for insertion in insertions]) == ([False], [False])


async def test_no_statement_carries_a_value_in_its_text(sent: dict[str, int], store: Store) -> None:
    """Values in the text would fill the cache of prepared statements, and worse."""
    texts = list(sent)
    store.sent.clear()
    await exercise(store, rows.tenant())
    again = {one.text for one in store.sent if touches_tenants(one.text)}
    assert again <= set(texts)


def test_a_statements_values_stand_in_the_order_of_its_placeholders() -> None:
    query = select(flows.c.revision).where(flows.c.revision > bindparam("low"), flows.c.revision < bindparam("high"), flows.c.type == "x")
    statement = Statement(query)
    assert statement.arguments({"high": 9, "low": 1}) == [1, 9, "x"]
    assert [f"${number}" in statement.text for number in (1, 2, 3, 4)] == [True, True, True, False]


def test_a_value_that_is_forgotten_is_an_error_and_not_null() -> None:
    statement = Statement(select(flows.c.revision).where(flows.c.revision > bindparam("low")))
    with pytest.raises(KeyError, match="low"):
        statement.arguments({"lower": 1})


def test_tenants_are_named_as_the_policy_reads_them() -> None:
    one, two = rows.tenant(), Tenant(uuid4(), uuid4())
    assert named([one, two]) == f"{one.client_account_id}/{one.engagement_id},{two.client_account_id}/{two.engagement_id}"
    assert named([]) == ""


async def test_a_database_without_the_gate_parameter_is_an_error(store: Store) -> None:
    with pytest.raises(asyncpg.PostgresError):
        await store.database.read([rows.tenant()], Statement(gated(select(func.no_such_function()))), {})
