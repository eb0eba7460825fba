"""Erasing a tenant: keys and rows are gone, hashes of events and a receipt are left, neighbours notice nothing."""

from __future__ import annotations

import asyncio
import hashlib
from datetime import UTC, datetime, timedelta, timezone
from uuid import UUID, uuid4

import asyncpg
import pytest

from server.checkpoints.taking import Wanted
from server.repository.admin_tables import erasures
from server.repository.erasure import Erasure
from server.repository.event_codec import chained, content_of
from server.repository.requests import Reply
from server.repository.tables import TENANT_TABLES
from server.statemachine.change import PauseFlow, RecordActivity
from server.statemachine.checkpoint import Checkpoint, CheckpointKind
from server.statemachine.erasure import Receipt
from server.statemachine.errors import FlowError, FlowExists, FlowNotFound
from server.statemachine.values import ActivityEntry, ActivityKind, FlowKey, Tenant
from server.vault import EnvironmentKeys, written
from tests.checkpoints.bench import Bench
from tests.checkpoints.exercise import receipt, reply
from tests.conftest import KEYS
from tests.repository import rows
from tests.repository.store import report
from tests.repository.test_tenants import everything


async def erase(bench: Bench, tenant: Tenant) -> Receipt:
    done = await Erasure(bench.store.database).erase(tenant, None, receipt, lambda _: None)
    assert done is not None
    return done[0]


async def counts(truth: asyncpg.Connection, tenant: Tenant) -> dict[str, int]:
    """How many rows of the tenant there are in each table that has any."""
    query = "SELECT count(*) FROM {} WHERE client_account_id = $1 AND engagement_id = $2"
    found = {
        table.name: await truth.fetchval(query.format(table.name), tenant.client_account_id, tenant.engagement_id)
        for table in TENANT_TABLES
    }
    return {name: count for name, count in found.items() if count}


async def lived(bench: Bench, tenant: Tenant) -> FlowKey:
    """A flow with everything that a flow can have."""
    flow_id = await bench.store.begun(tenant)
    key = FlowKey(tenant, flow_id)
    for at in range(3):
        await bench.write(tenant, flow_id, b'{"a":%d}' % at)
        await bench.take(key)
    entry = ActivityEntry(ActivityKind.MEMORY, value=1.5, unit="MiB")
    await bench.store.commit(bench.store.asked(tenant, flow_id, RecordActivity((entry,))))
    return key


async def test_nothing_is_left_but_hashes_and_a_receipt(here: Bench, tenant: Tenant, truth: asyncpg.Connection) -> None:
    keys = [await lived(here, tenant) for _ in range(2)]
    known = await counts(truth, tenant)
    for table in TENANT_TABLES:  # a row in every table, also in those that nothing above touches
        if table.name not in known and table is not erasures:
            await rows.put(truth, table.name, rows.row(table.name, tenant, keys[0].flow_id))
    before = await counts(truth, tenant)
    assert set(before) == {table.name for table in TENANT_TABLES if table is not erasures}
    neighbour = rows.tenant()
    await lived(here, neighbour)
    theirs = await everything(truth, neighbour)
    told = await Erasure(here.store.database).count(tenant)
    made = await erase(here, tenant)
    assert made.erased == told
    erased = made.erased
    assert (erased.flows, erased.events, erased.documents) == (before["flows"], before["events"], before["documents"])
    assert (erased.checkpoints, erased.keys, erased.kek_ids[-1][:5]) == (before["checkpoints"], before["tenant_keys"], "test/")
    assert await counts(truth, tenant) == {"events": before["events"], "erasures": 1}
    assert await everything(truth, neighbour) == theirs
    left = await truth.fetch("SELECT actor, body, content_sha256 FROM events WHERE client_account_id = $1", tenant.client_account_id)
    assert {(actor, body, len(content)) for actor, body, content in left} == {("", "", 32)}
    for key in keys:
        with pytest.raises(FlowNotFound):
            await here.store.flows.summary(tenant, key.flow_id)
        assert await here.archive.opening.newest_readable(key) is None


TIMES = [
    datetime(2026, 11, 22, 12, 0, tzinfo=UTC),
    datetime(2026, 11, 22, 12, 0, 59, 1, tzinfo=UTC),
    datetime(2026, 1, 2, 3, 4, 5, 120_000, tzinfo=UTC),
    datetime(1999, 12, 31, 23, 59, 59, 999_999, tzinfo=timezone(timedelta(hours=5, minutes=45))),
]


async def test_the_chain_can_still_be_followed_by_the_hashes(here: Bench, tenant: Tenant, truth: asyncpg.Connection) -> None:
    key = await lived(here, tenant)
    told = [(event.event, event.hash) for event in await here.store.history(tenant, key.flow_id)]
    stored = await truth.fetch("SELECT time, actor, body FROM events WHERE flow_id = $1 ORDER BY revision", key.flow_id)
    contents = [hashlib.sha256(content_of(*row)).digest() for row in stored]
    await erase(here, tenant)
    left = await truth.fetch("SELECT revision, content_sha256, hash, format FROM events WHERE flow_id = $1 ORDER BY revision", key.flow_id)
    assert [row["content_sha256"] for row in left] == contents
    link = bytes(32)
    for row, (event, known) in zip(left, told, strict=True):
        link = chained(link, key, row["revision"], row["content_sha256"])
        assert (row["revision"], row["hash"], row["format"]) == (event.revision, known, 2)
        assert link == known


@pytest.mark.parametrize("time", TIMES, ids=str)
@pytest.mark.parametrize("text", ["", "plain", "Zürich \U0001f4a5 \t\n\"'\\"])
async def test_the_database_makes_the_same_hash_of_an_event_as_we_do(
    here: Bench, tenant: Tenant, truth: asyncpg.Connection, time: datetime, text: str
) -> None:
    await rows.put(truth, "events", {**rows.row("events", tenant, uuid4()), "time": time, "actor": text, "body": text * 3, "format": 1})
    await erase(here, tenant)
    row = await truth.fetchrow("SELECT content_sha256, format FROM events WHERE client_account_id = $1", tenant.client_account_id)
    assert row is not None
    assert tuple(row) == (hashlib.sha256(content_of(time, text, text * 3)).digest(), 1)


async def test_the_digest_is_over_the_heads_in_the_order_of_their_ids(here: Bench, tenant: Tenant) -> None:
    keys = [await lived(here, tenant) for _ in range(4)]
    heads = [await here.store.head(tenant, key.flow_id) for key in keys]
    heads.sort(key=lambda head: head.flow.flow_id.bytes)
    joined = b"".join(head.flow.flow_id.bytes + head.flow.revision.to_bytes(8, "big") + head.hash for head in heads)
    assert (await erase(here, tenant)).erased.digest == hashlib.sha256(joined).digest()


async def test_a_tenant_that_was_erased_can_begin_again(here: Bench, elsewhere: Bench, tenant: Tenant) -> None:
    key = await lived(here, tenant)
    await elsewhere.store.commit(elsewhere.store.asked(tenant, key.flow_id, report(1)))  # so that it remembers the flow
    first = await erase(here, tenant)
    with pytest.raises(FlowNotFound):
        await elsewhere.store.commit(elsewhere.store.asked(tenant, key.flow_id, report(2)))
    with pytest.raises(FlowExists):  # hashes of its events are left
        await elsewhere.store.commit(elsewhere.store.birth(tenant, flow_id=key.flow_id))
    again = await lived(elsewhere, tenant)
    assert await here.archive.opening.newest_readable(again) is not None
    second = await erase(elsewhere, tenant)
    assert (first.erased.flows, second.erased.flows) == (1, 1)
    assert second.erased.events == 6  # those of the first time are empty already


async def test_an_empty_tenant_can_be_erased_and_so_can_an_erased_one(here: Bench, tenant: Tenant) -> None:
    for _ in range(2):
        erased = (await erase(here, tenant)).erased
        assert (erased.flows, erased.events, erased.checkpoints, erased.keys, erased.kek_ids) == (0, 0, 0, 0, ())


async def test_a_repeated_request_erases_nothing_that_has_come_since(here: Bench, elsewhere: Bench, tenant: Tenant) -> None:
    asking, other = reply(), reply()
    await lived(here, tenant)

    async def asked(bench: Bench, told: Reply) -> object:
        return await Erasure(bench.store.database).erase(tenant, told, receipt, lambda _: told)

    done = await asyncio.gather(*(asked(bench, asking) for bench in (here, elsewhere) * 3))
    assert sum(one is not None for one in done) == 1
    assert await asked(here, other) is not None
    key = await lived(here, tenant)
    for told in (asking, other):
        assert await asked(here, told) is None
    assert await here.archive.opening.newest_readable(key) is not None


@pytest.mark.parametrize("round_", range(3))
async def test_what_goes_on_meanwhile_is_erased_whole_or_happened_afterwards(
    here: Bench, elsewhere: Bench, tenant: Tenant, truth: asyncpg.Connection, round_: int
) -> None:
    """Commits, new flows, checkpoints and uploads of the tenant run against its erasure."""
    flows = [await lived(here, tenant) for _ in range(3)]
    born: list[UUID] = []
    done = asyncio.Event()

    async def work(bench: Bench, at: int) -> None:
        step = 0
        while not done.is_set():
            step += 1
            key = flows[at % len(flows)]
            try:
                await bench.store.commit(bench.store.asked(tenant, key.flow_id, report(step % 1000)))
                await bench.take(key)
            except FlowError:
                pass
            if step < 20:
                made = await bench.store.create(tenant)
                born.append(made)
                await bench.store.commit(bench.store.asked(tenant, made, PauseFlow("secret")))
            await asyncio.sleep(0)

    workers = [asyncio.create_task(work(bench, at)) for at, bench in enumerate((here, elsewhere) * 2)]
    await asyncio.sleep(0.02 * (round_ + 1))
    made = await erase(elsewhere, tenant)
    await asyncio.sleep(0.05)
    done.set()
    for ended in await asyncio.gather(*workers, return_exceptions=True):
        assert ended is None or isinstance(ended, FlowNotFound)  # its flow was erased between birth and pause
    assert made.erased.flows >= 3
    # Of flows that are gone nothing but hashes is left; those that are there are whole.
    account = tenant.client_account_id
    query = "SELECT count(*) FROM {0} WHERE client_account_id = $1 AND NOT EXISTS (SELECT FROM flows WHERE flows.flow_id = {0}.flow_id)"
    for table in ("documents", "discovery_flows", "activity", "bases", "document_versions", "checkpoints"):
        assert await truth.fetchval(query.format(table), account) == 0, table
    assert await truth.fetchval(query.format("events") + " AND (body <> '' OR actor <> '' OR content_sha256 IS NULL)", account) == 0
    left = await truth.fetch("SELECT flow_id, revision FROM flows WHERE client_account_id = $1", account)
    for flow_id, revision in left:
        assert len(await here.store.history(tenant, flow_id)) == revision
        assert await truth.fetchval("SELECT count(*) FROM discovery_flows WHERE flow_id = $1", flow_id) == 1
        assert await here.archive.opening.unreadable(FlowKey(tenant, flow_id)) == []


async def test_a_backup_opens_only_while_the_key_encryption_key_of_then_is_there(
    here: Bench, key: FlowKey, truth: asyncpg.Connection
) -> None:
    """What README says of backups: they hold the wrapped keys, so that it is the receipt's key-encryption keys that have to go."""
    taken = await here.archive.taking.take(await here.store.record(key.tenant, key.flow_id), Wanted(CheckpointKind.MANUAL, "ann"))
    assert isinstance(taken, Checkpoint)
    tables = ("tenant_keys", "sealed_contents", "sealed_chunks", "checkpoints", "checkpoint_parts")
    account = key.tenant.client_account_id
    backup = {table: await truth.fetch(f"SELECT * FROM {table} WHERE client_account_id = $1", account) for table in tables}
    made = await erase(here, key.tenant)
    assert made.erased.kek_ids == (EnvironmentKeys(KEYS).key_id,)
    for table in tables:
        for row in backup[table]:
            await rows.put(truth, table, dict(row))
    assert await here.archive.opening.newest_readable(key) is not None
    after = Bench(here.store, EnvironmentKeys(written("after", bytes(32))))
    with pytest.raises(FlowError, match=made.erased.kek_ids[0]):
        await after.archive.opening.newest_readable(key)


async def test_erasing_a_large_tenant_takes_no_longer_than_a_statement_may(here: Bench, tenant: Tenant, truth: asyncpg.Connection) -> None:
    """Many events by SQL: the statements have a limit of their own."""
    flow_id = await here.store.create(tenant)
    await truth.execute(
        "INSERT INTO events SELECT client_account_id, engagement_id, flow_id, n, time, actor, body, hash, format, content_sha256 "
        "FROM events, generate_series(2, 20001) n WHERE flow_id = $1",
        flow_id,
    )
    assert (await erase(here, tenant)).erased.events == 20_001
