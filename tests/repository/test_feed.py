"""A tenant's feed: one order for everybody, nothing passed over in whatever order transactions end, a mark where events were removed."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from itertools import pairwise
from uuid import UUID, uuid4

import asyncpg
import pytest

from server.repository.feed import Cursor, Feed, FeedEntry, FeedPage
from server.statemachine.change import DeleteFlow, UpdateFlow
from server.statemachine.errors import HistoryDamaged
from server.statemachine.values import FlowKey, Tenant
from tests.conftest import Urls
from tests.repository import rows
from tests.repository.store import Store, opened

SIZE = 100
START = Cursor(-1)


@pytest.fixture(scope="module")
async def feed(store: Store) -> Feed:
    """The feeds of the store's database."""
    return Feed(store.database)


async def everything(feed: Feed, tenant: Tenant, after: Cursor = START, size: int = SIZE) -> tuple[list[FeedEntry], FeedPage]:
    """All entries up to the horizon, page by page, and the last page."""
    found: list[FeedEntry] = []
    while True:
        page = await feed.page(tenant, after, size)
        assert len(page.entries) <= size
        assert all(after < entry.cursor <= page.after for entry in page.entries)
        assert after < page.after or page.after == Cursor(page.horizon)
        found += page.entries
        after = page.after
        if after == Cursor(page.horizon):
            return found, page


async def settled(feed: Feed, tenant: Tenant) -> list[FeedEntry]:
    """All entries, once no transaction of anybody holds one back."""
    async with asyncio.timeout(10):
        while True:
            found, page = await everything(feed, tenant)
            if page.held_since is None:
                return found


def told(entries: Sequence[FeedEntry]) -> list[tuple[UUID, int]]:
    return [(entry.flow.flow_id, entry.stored.event.revision) for entry in entries]


@asynccontextmanager
async def open_transaction(url: str) -> AsyncIterator[asyncpg.Connection]:
    """A transaction that has written something, and so has a number, somewhere else in the cluster."""
    connection = await asyncpg.connect(url)
    transaction = connection.transaction()
    await transaction.start()
    await connection.fetchval("SELECT pg_current_xact_id()")
    try:
        yield connection
    finally:
        await transaction.rollback()
        await connection.close()


async def test_events_of_all_flows_come_in_the_order_of_their_commits(store: Store, feed: Feed, tenant: Tenant) -> None:
    one, two = await store.create(tenant), await store.create(tenant)
    await store.create(rows.tenant())
    for name, flow_id in (("a", one), ("b", two), ("c", one)):
        await store.commit(store.asked(tenant, flow_id, UpdateFlow(display_name=name)))
    found = await settled(feed, tenant)
    assert told(found) == [(one, 1), (two, 1), (one, 2), (two, 2), (one, 3)]
    stored = {(flow_id, event.event.revision): event for flow_id in (one, two) for event in await store.history(tenant, flow_id)}
    assert [entry.stored for entry in found] == [stored[place] for place in told(found)]
    assert {entry.flow.display_name for entry in found if entry.flow.flow_id == one} == {"c"}  # the flow as it is
    assert all(before.cursor < after.cursor for before, after in pairwise(found))


@pytest.mark.parametrize("size", [1, 2, 3, 7])
async def test_pages_of_any_size_make_the_same_feed(store: Store, feed: Feed, tenant: Tenant, size: int) -> None:
    flows = [await store.create(tenant) for _ in range(3)]
    # Several events of one transaction, of one flow and of many.
    await store.all_of(*(store.asked(tenant, flows[at % 3], UpdateFlow(display_name=f"{at}")) for at in range(12)))
    whole = await settled(feed, tenant)
    assert len(whole) == 15
    found, _ = await everything(feed, tenant, size=size)
    assert [entry.cursor for entry in found] == [entry.cursor for entry in whole]


async def test_the_feed_waits_for_a_transaction_that_began_earlier(store: Store, feed: Feed, tenant: Tenant, shared_urls: Urls) -> None:
    flow_id = await store.create(tenant)
    await settled(feed, tenant)
    async with open_transaction(shared_urls.service):
        done = await store.commit(store.asked(tenant, flow_id, UpdateFlow(display_name="two")))
        found, page = await everything(feed, tenant)
        assert told(found) == [(flow_id, 1)]
        assert page.held_since == done.event.time
        # Who goes on from there has missed nothing.
        assert (await feed.page(tenant, page.after, SIZE)).entries == ()
    found = list((await feed.page(tenant, page.after, SIZE)).entries)
    assert told(found) == [(flow_id, 2)]


async def insert(connection: asyncpg.Connection, tenant: Tenant, flow_id: UUID, revision: int) -> None:
    body = '{"status": "INITIALIZED", "progress": 0.0, "facts": []}'
    values = {**rows.row("events", tenant, flow_id), "revision": revision, "body": body}
    del values["position"]
    await rows.put(connection, "events", values)


@pytest.mark.parametrize("seed", range(6))
async def test_nothing_is_passed_over_in_whatever_order_transactions_end(
    store: Store, feed: Feed, truth: asyncpg.Connection, shared_urls: Urls, seed: int
) -> None:
    """Transactions by hand: each writes events of flows of its own, some are rolled back, and a reader goes on between any two steps."""
    rng, tenant = random.Random(seed), rows.tenant()
    url = shared_urls.service.replace("flowledger@", "postgres@", 1)
    connections = [await asyncpg.connect(url) for _ in range(4)]
    under_way: dict[int, tuple[asyncpg.transaction.Transaction, list[tuple[UUID, int]]]] = {}
    committed: list[tuple[UUID, int]] = []
    found: list[FeedEntry] = []
    after = START
    try:
        for _ in range(120):
            at = rng.randrange(len(connections))
            if at not in under_way:
                transaction = connections[at].transaction()
                await transaction.start()
                under_way[at] = transaction, []
            elif rng.random() < 0.5:
                flow_id = uuid4()
                await rows.put(connections[at], "flows", rows.row("flows", tenant, flow_id))
                for revision in range(1, rng.randrange(2, 4)):
                    await insert(connections[at], tenant, flow_id, revision)
                    under_way[at][1].append((flow_id, revision))
            else:
                transaction, written = under_way.pop(at)
                if rng.random() < 0.8:
                    await transaction.commit()
                    committed += written
                else:
                    await transaction.rollback()
            if rng.random() < 0.5:
                page = await feed.page(tenant, after, rng.randrange(1, 5))
                found += page.entries
                after = page.after
        for transaction, written in under_way.values():
            await transaction.commit()
            committed += written
        rest, _ = await everything(feed, tenant, after)
        found += rest
        async with asyncio.timeout(10):  # autovacuum and other tests' connections may have numbers too
            while (page := await feed.page(tenant, found[-1].cursor, SIZE)).held_since is not None:
                found += page.entries
        found += page.entries
    finally:
        for connection in connections:
            await connection.close()
    assert len(told(found)) == len(set(told(found)))
    assert set(told(found)) == set(committed)
    assert all(before.cursor < later.cursor for before, later in pairwise(found))
    assert told(found) == told(await settled(feed, tenant))


async def test_of_one_flow_positions_follow_the_revisions_however_it_is_committed(feed: Feed, shared_urls: Urls) -> None:
    """Two processes with several lanes fight over a few flows: combined commits, commits of several flows together, and locked ones."""
    tenant = rows.tenant()
    url = shared_urls.service
    async with opened(url, lanes=3) as one, opened(url, lanes=3) as two:
        flows = [await one.create(tenant) for _ in range(3)]

        async def alone(store: Store, number: int) -> None:
            for at in range(15):
                await asyncio.gather(
                    *(store.commits.commit(store.asked(tenant, flow, UpdateFlow(display_name=f"{number} {at}"))) for flow in flows),
                    return_exceptions=True,
                )

        async def together(store: Store) -> None:
            for at in range(10):
                asked = [store.asked(tenant, flow, UpdateFlow(display_name=f"all {at}")) for flow in flows]
                await asyncio.gather(store.commits.commit_together(asked, None), return_exceptions=True)

        await asyncio.gather(*(alone(store, at) for at, store in enumerate((one, two, one, two))), together(one), together(two))
        found = await settled(feed, tenant)
        for flow_id in flows:
            revisions = [entry.stored.event.revision for entry in found if entry.flow.flow_id == flow_id]
            assert revisions == list(range(1, len(await one.history(tenant, flow_id)) + 1))
            assert len(revisions) > 20


async def test_a_soft_deleted_flow_is_told_of_to_its_end(store: Store, feed: Feed, tenant: Tenant) -> None:
    flow_id = await store.create(tenant)
    await store.commit(store.asked(tenant, flow_id, DeleteFlow("enough")))
    found = await settled(feed, tenant)
    assert told(found) == [(flow_id, 1), (flow_id, 2)]
    assert found[-1].flow.delete_time is not None


async def test_what_is_removed_leaves_a_mark_whoever_removes_it(
    store: Store, feed: Feed, tenant: Tenant, truth: asyncpg.Connection
) -> None:
    other = rows.tenant()
    one, two = await store.create(tenant), await store.create(tenant)
    await store.create(other)
    entries = await settled(feed, tenant)
    assert (await feed.page(tenant, Cursor(0), SIZE)).removed == -1
    await truth.execute("DELETE FROM events WHERE flow_id = $1", two)
    assert (await feed.page(tenant, Cursor(0), SIZE)).removed == entries[1].cursor.position
    await truth.execute("DELETE FROM events WHERE flow_id = $1", one)  # an older one: the mark stays where it was
    page = await feed.page(tenant, Cursor(0), SIZE)
    assert (page.entries, page.removed) == ((), entries[1].cursor.position)
    assert (await feed.page(other, Cursor(0), SIZE)).removed == -1


async def test_the_service_itself_can_remove_events_of_the_tenants_it_names(store: Store, tenant: Tenant, shared_urls: Urls) -> None:
    flow_id = await store.create(tenant)
    service = await asyncpg.connect(shared_urls.service)
    async with service.transaction():
        name = f"{tenant.client_account_id}/{tenant.engagement_id}"
        await service.execute("SELECT set_config('flowledger.tenants', $1, true)", name)
        assert await service.execute("DELETE FROM events WHERE flow_id = $1", flow_id) == "DELETE 1"
        assert await service.fetchval("SELECT count(*) FROM removals") == 1
    await service.close()


async def test_a_page_ends_before_an_event_that_cannot_be_read(store: Store, feed: Feed, tenant: Tenant, truth: asyncpg.Connection) -> None:
    flow_id = await store.create(tenant)
    for name in ("two", "three"):
        await store.commit(store.asked(tenant, flow_id, UpdateFlow(display_name=name)))
    await truth.execute("UPDATE events SET body = '{}' WHERE flow_id = $1 AND revision = 2", flow_id)
    page = await feed.page(tenant, Cursor(0), SIZE)
    assert told(page.entries) == [(flow_id, 1)]
    assert page.after == page.entries[-1].cursor
    with pytest.raises(HistoryDamaged) as damaged:
        await feed.page(tenant, page.after, SIZE)
    assert damaged.value.metadata == {"revision": "2", "flow_id": str(flow_id)}


async def test_events_that_only_fill_a_gap_and_erased_ones_are_left_out(
    store: Store, feed: Feed, tenant: Tenant, truth: asyncpg.Connection
) -> None:
    flow_id = await store.create(tenant)
    for name in ("two", "three", "four"):
        await store.commit(store.asked(tenant, flow_id, UpdateFlow(display_name=name)))
    lost = '{"status": "INITIALIZED", "progress": 0.0, "facts": [{"fact": "lost"}]}'
    await truth.execute("UPDATE events SET body = $2 WHERE flow_id = $1 AND revision = 2", flow_id, lost)
    erased = "UPDATE events SET body = '', actor = '', content_sha256 = hash WHERE flow_id = $1 AND revision = 3"
    await truth.execute(erased, flow_id)
    assert told(await settled(feed, tenant)) == [(flow_id, 1), (flow_id, 4)]


async def test_only_flows_that_came_further_have_moved(store: Store, tenant: Tenant) -> None:
    flows = [await store.create(tenant) for _ in range(300)]  # more than one statement asks for
    known = {FlowKey(tenant, flow_id): 1 for flow_id in flows}
    assert await store.events.moved(known) == []
    for at in (0, 299):
        await store.commit(store.asked(tenant, flows[at], UpdateFlow(display_name="two")))
    assert {key.flow_id for key in await store.events.moved(known)} == {flows[0], flows[299]}
    assert await store.events.moved({**known, FlowKey(tenant, flows[0]): 2}) == [FlowKey(tenant, flows[299])]
    assert await store.events.moved({}) == []
