"""What lies in the database: documents exact and compressed, rings capped with exact totals, updates that stay HOT."""

from __future__ import annotations

import asyncio
import hashlib
import random
from dataclasses import replace

import asyncpg
import pytest
import zstandard

from server.repository.requests import Committed
from server.statemachine.change import MergeDocument, RecordActivity, ReplaceDocument, StartChild, UpdateFlow
from server.statemachine.values import ActivityEntry, ActivityKind, DocumentPlace, Tenant
from tests.cluster import Cluster
from tests.conftest import Urls
from tests.repository import rows
from tests.repository.store import Store, opened, report, superuser

STATE, DATA = DocumentPlace("state"), DocumentPlace("data", "discovery")
EXACT = '{"big":9007199254740993,"small":1e-7,"text":"é\\u2028😀","nested":{"list":[1,2.50,null,true]},"":""}'.encode()
LARGE = b'{"rows":[' + b",".join(b'{"host":"h%05d","cores":%d}' % (at, at % 64) for at in range(20_000)) + b"]}"
INCOMPRESSIBLE = b'{"noise":"' + random.Random(7).randbytes(150_000).hex().encode() + b'"}'


def replacing(*documents: tuple[DocumentPlace, bytes]) -> UpdateFlow:
    return UpdateFlow(documents=tuple(ReplaceDocument(place, text) for place, text in documents))


@pytest.mark.parametrize("text", [b"{}", EXACT, LARGE, INCOMPRESSIBLE], ids=["empty", "exact", "large", "incompressible"])
async def test_a_document_comes_back_byte_for_byte(store: Store, elsewhere: Store, tenant: Tenant, text: bytes) -> None:
    flow_id = await store.create(tenant)
    await store.commit(store.asked(tenant, flow_id, replacing((STATE, text), (DATA, text))))
    for where in (store, elsewhere):
        assert await where.text(tenant, flow_id, STATE) == text
        assert dict((await where.record(tenant, flow_id)).documents) == {STATE: text, DATA: text}


async def test_a_document_lies_as_zstd_beside_its_size_and_hash(store: Store, tenant: Tenant, truth: asyncpg.Connection) -> None:
    flow_id = await store.create(tenant)
    await store.commit(store.asked(tenant, flow_id, replacing((STATE, LARGE))))
    row = await truth.fetchrow("SELECT revision, size, name, child_type, sha256, body FROM documents WHERE flow_id = $1", flow_id)
    assert row is not None
    assert tuple(row)[:5] == (2, len(LARGE), "state", "", hashlib.sha256(LARGE).digest())
    assert row["body"].startswith(b"\x28\xb5\x2f\xfd")  # RFC 8878 section 3.1.1
    assert len(row["body"]) < len(LARGE) / 3
    assert zstandard.ZstdDecompressor().decompress(row["body"]) == LARGE
    # PostgreSQL keeps it as it is, beside the row.
    assert await truth.fetchval("SELECT pg_column_compression(body) FROM documents WHERE flow_id = $1", flow_id) is None


async def test_a_document_is_written_only_when_it_changes(store: Store, tenant: Tenant, truth: asyncpg.Connection) -> None:
    flow_id = await store.begun(tenant)
    await store.commit(store.asked(tenant, flow_id, replacing((STATE, EXACT))))
    query = "SELECT revision, xmin::text FROM documents WHERE flow_id = $1"
    before = await truth.fetchrow(query, flow_id)
    await store.commit(store.asked(tenant, flow_id, report(1)))
    await store.commit(store.asked(tenant, flow_id, UpdateFlow(display_name="other")))
    assert await truth.fetchrow(query, flow_id) == before
    await store.commit(store.asked(tenant, flow_id, replacing((STATE, b'{"a":1}'))))
    assert await truth.fetchval(query, flow_id) == 6


async def test_merges_that_arrive_together_are_all_in_the_document(store: Store, elsewhere: Store, tenant: Tenant) -> None:
    flow_id = await store.create(tenant, replacing((STATE, b'{"start":0}')))

    def merges(where: Store, first: int) -> list[object]:
        patches = [b'{"k%d":%d}' % (at, at) for at in range(first, first + 10)]
        return [where.asked(tenant, flow_id, UpdateFlow(documents=(MergeDocument(STATE, patch),))) for patch in patches]

    both = await asyncio.gather(store.all_of(*merges(store, 0)), elsewhere.all_of(*merges(elsewhere, 10)))  # type: ignore[arg-type]
    assert all(isinstance(one, Committed) for some in both for one in some)
    text = await store.text(tenant, flow_id, STATE)
    assert text is not None
    assert sorted(text.strip(b"{}").split(b",")) == sorted([b'"start":0', *(b'"k%d":%d' % (at, at) for at in range(20))])


async def test_of_documents_in_one_batch_the_last_is_kept(store: Store, tenant: Tenant) -> None:
    flow_id = await store.create(tenant)
    await store.all_of(*(store.asked(tenant, flow_id, replacing((STATE, b'{"at":%d}' % at))) for at in range(10)))
    assert await store.text(tenant, flow_id, STATE) == b'{"at":9}'


async def test_a_childs_document_is_its_own(store: Store, tenant: Tenant) -> None:
    new = replace(store.birth(tenant), changes=())  # without a child
    await store.commit(new)
    await store.commit(store.asked(tenant, new.flow_id, StartChild("discovery", b'{"of":"child"}'), replacing((STATE, b'{"of":"flow"}'))))
    record = await store.record(tenant, new.flow_id)
    assert dict(record.documents) == {STATE: b'{"of":"flow"}', DATA: b'{"of":"child"}'}


def entries(kind: ActivityKind, first: int, many: int) -> RecordActivity:
    return RecordActivity(tuple(ActivityEntry(kind, message=f"entry {at}", participants=("a", "b")) for at in range(first, first + many)))


@pytest.mark.parametrize("sizes", [[250], [1] * 130, [99, 1, 1], [60, 60, 60], [100], [3]], ids=str)
async def test_the_last_100_entries_are_kept_and_the_total_is_exact(store: Store, tenant: Tenant, sizes: list[int]) -> None:
    flow_id, total = await store.create(tenant), sum(sizes)
    asked, first = [], 1
    for size in sizes:
        asked.append(store.asked(tenant, flow_id, entries(ActivityKind.COLLABORATION, first, size)))
        first += size
    results = await store.all_of(*asked)
    assert all(isinstance(one, Committed) for one in results), results
    record = await store.record(tenant, flow_id)
    newest_first = [entry for entry in record.activity if entry.kind is ActivityKind.COLLABORATION]
    kept = range(total, max(total - 100, 0), -1)
    assert [entry.sequence for entry in newest_first] == list(kept)
    assert [entry.message for entry in newest_first] == [f"entry {at}" for at in kept]
    assert record.head.flow.totals[ActivityKind.COLLABORATION] == total


async def test_the_rings_of_the_kinds_do_not_crowd_each_other(store: Store, tenant: Tenant) -> None:
    flow_id = await store.create(tenant)
    kinds = [kind for kind in ActivityKind if kind not in (ActivityKind.TRANSITION, ActivityKind.RETRY)]
    await store.commit(store.asked(tenant, flow_id, *(entries(kind, 1, 101) for kind in kinds)))
    record = await store.record(tenant, flow_id)
    assert {kind: sum(entry.kind is kind for entry in record.activity) for kind in kinds} == dict.fromkeys(kinds, 100)
    assert {kind: record.head.flow.totals[kind] for kind in kinds} == dict.fromkeys(kinds, 101)


async def test_entries_of_two_processes_have_numbers_of_their_own(store: Store, elsewhere: Store, tenant: Tenant) -> None:
    flow_id = await store.create(tenant)
    await asyncio.gather(
        store.all_of(*(store.asked(tenant, flow_id, entries(ActivityKind.MEMORY, at, 1)) for at in range(20))),
        elsewhere.all_of(*(elsewhere.asked(tenant, flow_id, entries(ActivityKind.MEMORY, at, 1)) for at in range(20, 40))),
    )
    record = await store.record(tenant, flow_id)
    assert [entry.sequence for entry in record.activity] == list(range(40, 0, -1))
    assert {entry.message for entry in record.activity} == {f"entry {at}" for at in range(40)}


async def updates(urls: Urls, table: str) -> tuple[int, int]:
    """After some 200 commits: how many updates the table had, and how many of them were HOT."""
    tenant = rows.tenant()
    async with opened(urls.service) as store:
        flows = [await store.begun(tenant) for _ in range(4)]
        for at in range(1, 51):
            results = await store.all_of(*(store.asked(tenant, flow_id, report(at)) for flow_id in flows))
            assert all(isinstance(one, Committed) for one in results)
    # A connection's statistics are there for all to see when it is closed, or a moment later.
    async with superuser(urls.service) as truth, asyncio.timeout(10):
        query = "SELECT ARRAY[n_tup_upd, n_tup_hot_upd] FROM pg_stat_user_tables WHERE relname = $1"
        while (found := await truth.fetchval(query, table))[0] < 204:
            await truth.execute("SELECT pg_stat_clear_snapshot()")
        return found[0], found[1]


@pytest.mark.parametrize("table", ["flows", "discovery_flows"])
async def test_updates_stay_hot(urls: Urls, table: str) -> None:
    """No index changes and the page has room. An update that is not HOT would write every index again, and leave them to vacuum."""
    changed, hot = await updates(urls, table)
    assert changed == 204
    # PostgreSQL clears a full page only when nobody else has it pinned at that moment (autovacuum, the checkpointer): one may go astray.
    assert hot >= 202


async def test_an_index_on_what_changes_would_show(postgres: Cluster, urls: Urls) -> None:
    postgres.run("CREATE INDEX seeded ON flows (update_time)", urls.name)
    assert await updates(urls, "flows") == (204, 0)
