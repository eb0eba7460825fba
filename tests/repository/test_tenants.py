"""Whoever asks for another tenant's flow sees nothing and changes nothing: one case for each function that takes a tenant."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from uuid import UUID

import asyncpg
import pytest

from server.repository import requests
from server.repository.commits import Commits
from server.repository.events import Events, Narrowing
from server.repository.feed import Cursor, Feed
from server.repository.filter import parse, parse_order
from server.repository.flows import DeletedFlows, Flows
from server.repository.history import History
from server.repository.requests import Request, answered
from server.repository.tables import TENANT_TABLES
from server.statemachine.change import MergeDocument, PauseFlow, RecordActivity, ReplaceDocument, UpdateFlow
from server.statemachine.errors import FlowError, FlowNotFound, RevisionCompacted
from server.statemachine.history import Kept
from server.statemachine.values import ActivityEntry, ActivityKind, DocumentPlace, FlowKey, Tenant
from tests.repository import rows
from tests.repository.store import Store, outsiders, report, request

STATE = DocumentPlace("state")
NEWEST = parse_order("")


@dataclass(frozen=True, slots=True)
class Owned:
    """What the tenant has: a flow with everything that a flow can have, and the request that was answered."""

    tenant: Tenant
    flow_id: UUID
    asking: Request


Case = Callable[[Store, Owned, Tenant], Awaitable[None]]


async def summary(store: Store, owned: Owned, asker: Tenant) -> None:
    with pytest.raises(FlowNotFound):
        await store.flows.summary(asker, owned.flow_id)


async def summaries(store: Store, owned: Owned, asker: Tenant) -> None:
    mine = await store.create(asker)
    with pytest.raises(FlowNotFound):
        await store.flows.summaries(asker, [mine, owned.flow_id])


async def head(store: Store, owned: Owned, asker: Tenant) -> None:
    assert await store.flows.head(FlowKey(asker, owned.flow_id)) is None


async def lock(store: Store, owned: Owned, asker: Tenant) -> None:
    async with store.database.begin([asker]) as transaction:
        assert await store.flows.lock(transaction, FlowKey(asker, owned.flow_id)) is None


async def revision(store: Store, owned: Owned, asker: Tenant) -> None:
    assert await store.flows.revision(FlowKey(asker, owned.flow_id)) is None


async def kept(store: Store, owned: Owned, asker: Tenant) -> None:
    assert await store.flows.kept(FlowKey(asker, owned.flow_id)) == Kept()


async def kept_within(store: Store, owned: Owned, asker: Tenant) -> None:
    async with store.database.begin([asker]) as transaction:
        assert await store.flows.kept_within(transaction, FlowKey(asker, owned.flow_id)) == Kept()


async def past_record(store: Store, owned: Owned, asker: Tenant) -> None:
    with pytest.raises(FlowNotFound):
        await History(store.database).record(FlowKey(asker, owned.flow_id), 1)


async def past_base(store: Store, owned: Owned, asker: Tenant) -> None:
    with pytest.raises(FlowNotFound):
        await History(store.database).base(FlowKey(asker, owned.flow_id), 1)


async def past_documents(store: Store, owned: Owned, asker: Tenant) -> None:
    versions = (await store.flows.kept(FlowKey(owned.tenant, owned.flow_id))).versions
    assert versions
    with pytest.raises(RevisionCompacted):  # what a tenant never had is no longer kept
        await History(store.database).documents(FlowKey(asker, owned.flow_id), versions)


async def heads(store: Store, owned: Owned, asker: Tenant) -> None:
    assert await store.flows.heads([FlowKey(asker, owned.flow_id)]) == {}


async def flows(store: Store, owned: Owned, asker: Tenant) -> None:
    with pytest.raises(FlowNotFound):
        await store.flows.flows(asker, [owned.flow_id])


async def records(store: Store, owned: Owned, asker: Tenant) -> None:
    with pytest.raises(FlowNotFound):
        await store.flows.records(asker, [owned.flow_id])
    same_id = await store.commit(store.birth(asker, flow_id=owned.flow_id))
    record = await store.record(asker, same_id.flow.flow_id)
    assert (record.head.flow.revision, dict(record.documents), record.activity) == (1, {}, ())


async def document(store: Store, owned: Owned, asker: Tenant) -> None:
    assert await store.flows.document(asker, owned.flow_id, STATE) is None


async def page(store: Store, owned: Owned, asker: Tenant) -> None:
    assert await store.flows.page(asker, parse(""), NEWEST, None, 100, DeletedFlows.SHOWN) == []
    # A condition that is always true must not open the list.
    always = parse('status = PAUSED OR NOT status = PAUSED OR labels.wave = "3"')
    assert await store.flows.page(asker, always, NEWEST, None, 100, DeletedFlows.SHOWN) == []


async def span(store: Store, owned: Owned, asker: Tenant) -> None:
    with pytest.raises(FlowNotFound):
        await store.events.span(asker, owned.flow_id)


async def moved(store: Store, owned: Owned, asker: Tenant) -> None:
    assert await store.events.moved({FlowKey(asker, owned.flow_id): 0}) == []


async def feed_page(store: Store, owned: Owned, asker: Tenant) -> None:
    feed = Feed(store.database)
    for after in (Cursor(0), Cursor(0, owned.flow_id, 1)):
        found = await feed.page(asker, after, 100)
        assert (found.entries, found.removed, found.held_since) == ((), -1, None)
    same_id = await store.commit(store.birth(asker, flow_id=owned.flow_id))
    (entry,) = (await feed.page(asker, Cursor(0), 100)).entries
    assert (entry.stored.event, entry.flow.tenant) == (same_id.event, asker)


async def event_page(store: Store, owned: Owned, asker: Tenant) -> None:
    with pytest.raises(FlowNotFound):
        await store.events.page(asker, owned.flow_id, 0, 100)
    same_id = await store.commit(store.birth(asker, flow_id=owned.flow_id))
    assert len((await store.events.page(asker, same_id.flow.flow_id, 0, 100)).events) == 1


async def narrowed(store: Store, owned: Owned, asker: Tenant) -> None:
    with pytest.raises(FlowNotFound):
        await store.events.narrowed(asker, owned.flow_id, 0, 100, Narrowing(actor="ann"))
    same_id = await store.commit(store.birth(asker, flow_id=owned.flow_id))
    found = await store.events.narrowed(asker, same_id.flow.flow_id, 0, 100, Narrowing(actor="ann"))
    assert len(found.page.events) == 1


async def commit(store: Store, owned: Owned, asker: Tenant) -> None:
    merge = UpdateFlow(documents=(MergeDocument(STATE, b'{"stolen":true}'),))
    for change in (PauseFlow(), merge):
        for expected in (0, 3):
            with pytest.raises(FlowNotFound):
                await store.commits.commit(store.asked(asker, owned.flow_id, change, expected=expected))
    with pytest.raises(FlowNotFound):  # not the owner's answer
        await store.commits.commit(store.asked(asker, owned.flow_id, report(1), request=owned.asking))


async def rehearse(store: Store, owned: Owned, asker: Tenant) -> None:
    with pytest.raises(FlowNotFound):
        await store.commits.rehearse(store.asked(asker, owned.flow_id, PauseFlow()))
    # That the id is taken elsewhere must not show.
    assert (await store.commits.rehearse(store.birth(asker, flow_id=owned.flow_id))).flow.revision == 1


async def commit_together(store: Store, owned: Owned, asker: Tenant) -> None:
    mine = await store.create(asker)
    asked = [store.asked(asker, mine, PauseFlow()), store.asked(asker, owned.flow_id, PauseFlow())]
    for asking in (None, owned.asking):
        with pytest.raises(FlowNotFound):
            await store.commits.commit_together(asked, asking)
    assert (await store.head(asker, mine)).flow.revision == 1


async def rehearse_together(store: Store, owned: Owned, asker: Tenant) -> None:
    with pytest.raises(FlowNotFound):
        await store.commits.rehearse_together([store.asked(asker, owned.flow_id, PauseFlow())])


async def request_answered(store: Store, owned: Owned, asker: Tenant) -> None:
    assert await answered(store.database, asker, owned.asking) is None
    other_payload = request(b"other", owned.asking.request_id)
    assert await answered(store.database, asker, other_payload) is None  # not "reused" either


CASES: dict[str, Case] = {
    "Flows.summary": summary,
    "Flows.summaries": summaries,
    "Flows.head": head,
    "Flows.lock": lock,
    "History.record": past_record,
    "History.base": past_base,
    "History.documents": past_documents,
    "Flows.revision": revision,
    "Flows.kept": kept,
    "Flows.kept_within": kept_within,
    "Flows.heads": heads,
    "Flows.flows": flows,
    "Flows.records": records,
    "Flows.document": document,
    "Flows.page": page,
    "Events.span": span,
    "Events.page": event_page,
    "Events.moved": moved,
    "Events.narrowed": narrowed,
    "Feed.page": feed_page,
    "Commits.commit": commit,
    "Commits.rehearse": rehearse,
    "Commits.commit_together": commit_together,
    "Commits.rehearse_together": rehearse_together,
    "requests.answered": request_answered,
}


def of_tenants(*owners: object) -> set[str]:
    """The public async functions of classes and modules that are told a tenant."""
    found = set()
    for owner in owners:
        name = getattr(owner, "__name__", "").rpartition(".")[2]
        for attribute, function in vars(owner).items():
            if attribute.startswith("_") or not inspect.iscoroutinefunction(function):
                continue
            if _told_a_tenant(inspect.signature(function).parameters.values()):
                found.add(f"{name}.{attribute}")
    return found


def _told_a_tenant(parameters: Iterable[inspect.Parameter]) -> bool:
    return any(word in str(parameter.annotation) for parameter in parameters for word in ("Tenant", "Key", "Asked"))


def test_every_function_that_is_told_a_tenant_has_a_case() -> None:
    assert set(CASES) == of_tenants(Flows, Events, Feed, History, Commits, requests)


def test_a_new_function_would_be_missed() -> None:
    class Seeded:
        async def steal(self, tenant: Tenant) -> None: ...

        async def close(self, patience: float) -> None: ...

        async def _own(self, tenant: Tenant) -> None: ...

    assert of_tenants(Seeded) == {"Seeded.steal"}


async def owned_by(store: Store, tenant: Tenant) -> Owned:
    flow_id, asking = await store.create(tenant, UpdateFlow(documents=(ReplaceDocument(STATE, b'{"secret":1}'),))), request()
    entry = ActivityEntry(ActivityKind.COLLABORATION, participants=("a", "b"))
    await store.commit(store.asked(tenant, flow_id, RecordActivity((entry,))))
    await store.commit(store.asked(tenant, flow_id, PauseFlow("secret"), request=asking))
    return Owned(tenant, flow_id, asking)


async def everything(truth: asyncpg.Connection, tenant: Tenant) -> list[object]:
    """All rows of the tenant, in all tables."""
    query = "SELECT {0}::text FROM {0} WHERE client_account_id = $1 AND engagement_id = $2 ORDER BY 1"
    return [
        record[0]
        for table in TENANT_TABLES
        for record in await truth.fetch(query.format(table.name), tenant.client_account_id, tenant.engagement_id)
    ]


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize("who", outsiders(rows.tenant()))
async def test_an_outsider_sees_and_changes_nothing(
    store: Store, elsewhere: Store, tenant: Tenant, truth: asyncpg.Connection, who: str, case: Case
) -> None:
    owned = await owned_by(store, tenant)
    before = await everything(truth, tenant)
    assert len(before) >= 7  # a flow, a child, a document, three events, an entry, a request
    # Asked of the process that has the flow in memory, and of one that has not.
    await case(store, owned, outsiders(tenant)[who])
    await case(elsewhere, owned, rows.tenant() if who == "another tenant" else _another(tenant, who))
    assert await everything(truth, tenant) == before


def _another(tenant: Tenant, who: str) -> Tenant:
    fresh = outsiders(tenant)[who]
    return fresh if who != "the two ids swapped" else outsiders(tenant)["the account with another engagement"]


async def test_the_owner_sees_and_changes_all_of_it(store: Store, tenant: Tenant) -> None:
    """What the cases above would look like if they proved nothing."""
    owned = await owned_by(store, tenant)
    record = await store.record(tenant, owned.flow_id)
    assert (record.documents[STATE], len(record.activity)) == (b'{"secret":1}', 1)
    assert await store.text(tenant, owned.flow_id, STATE) == b'{"secret":1}'
    assert len(await store.flows.page(tenant, parse(""), NEWEST, None, 100, DeletedFlows.SHOWN)) == 1
    assert len(await store.history(tenant, owned.flow_id)) == 3
    assert await answered(store.database, tenant, owned.asking) is not None


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
async def test_a_case_fails_when_the_owner_is_let_in(store: Store, tenant: Tenant, case: Case) -> None:
    owned = await owned_by(store, tenant)
    found: BaseException | None = None
    try:
        await case(store, owned, tenant)
    except (AssertionError, FlowError, pytest.fail.Exception) as error:
        found = error
    assert found is not None
    assert not isinstance(found, FlowNotFound)
