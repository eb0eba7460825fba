"""The audit follows every link of every chain, and finds whatever was changed, taken away or exchanged by SQL, in every column."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from uuid import UUID, uuid4

import asyncpg
import pytest

from server.repository import event_codec
from server.repository.audit import FLOWS, PAGE_BYTES, Audit
from server.repository.chain import Anchor
from server.repository.tables import events
from server.statemachine.audit import BreakKind
from server.statemachine.change import PauseFlow, RecordActivity, ReplaceDocument, ResumeFlow, UpdateFlow
from server.statemachine.document import sha256
from server.statemachine.errors import FlowNotFound
from server.statemachine.values import ActivityEntry, ActivityKind, DocumentPlace, FlowKey, Tenant
from tests.repository import rows
from tests.repository.store import Store, report

B = BreakKind
KEY = b"k" * 32


def sign(text: bytes) -> bytes:
    return hmac.digest(KEY, text, "sha256")


def verifies(text: bytes, signature: bytes) -> bool:
    return hmac.compare_digest(sign(text), signature)


def audit_of(store: Store) -> Audit:
    return Audit(store.database, verifies)


async def lived(store: Store, tenant: Tenant) -> FlowKey:
    """A flow at revision 8."""
    flow_id = await store.begun(tenant)
    for changes in (
        (report(1),),
        (UpdateFlow(documents=(ReplaceDocument(DocumentPlace("state"), b"{}"),)),),
        (PauseFlow(),),
        (ResumeFlow(),),
    ):
        await store.commit(store.asked(tenant, flow_id, *changes))
    entry = RecordActivity((ActivityEntry(ActivityKind.TIMING, value=1.0),))
    await store.commit(store.asked(tenant, flow_id, entry))
    await store.commit(store.asked(tenant, flow_id, report(2)))
    return FlowKey(tenant, flow_id)


async def found(store: Store, key: FlowKey) -> tuple[int, BreakKind] | None:
    """Where and how the chain is broken."""
    audited = await audit_of(store).follow(key)
    return None if audited.broken is None else (audited.broken.revision, audited.broken.kind)


async def test_a_chain_that_holds_is_followed_to_its_end(store: Store, tenant: Tenant) -> None:
    key = await lived(store, tenant)
    audited = await audit_of(store).follow(key)
    head = await store.head(tenant, key.flow_id)
    assert (audited.events, audited.erased, audited.broken) == (8, 0, None)
    assert audited.head == (8, head.hash)


_COPIED = "client_account_id, engagement_id, flow_id, 9, time, actor, body, hash, format, NULL"
_EXCHANGE = "UPDATE events SET revision = CASE revision"
DAMAGE = [
    # Each column of an event.
    ("UPDATE events SET client_account_id = gen_random_uuid() WHERE revision = 4 AND flow_id = $1", 4, B.MISSING),
    ("UPDATE events SET engagement_id = gen_random_uuid() WHERE revision = 4 AND flow_id = $1", 4, B.MISSING),
    ("UPDATE events SET flow_id = gen_random_uuid() WHERE revision = 4 AND flow_id = $1", 4, B.MISSING),
    ("UPDATE events SET revision = 40 WHERE revision = 4 AND flow_id = $1", 4, B.MISSING),
    ("UPDATE events SET time = time + interval '1 microsecond' WHERE revision = 4 AND flow_id = $1", 4, B.CHANGED),
    ("UPDATE events SET actor = 'mallory' WHERE revision = 4 AND flow_id = $1", 4, B.CHANGED),
    ("UPDATE events SET body = replace(body, 'DATA', 'data') WHERE revision = 4 AND flow_id = $1", 4, B.CHANGED),
    ("UPDATE events SET body = body || ' ' WHERE revision = 4 AND flow_id = $1", 4, B.CHANGED),
    ("UPDATE events SET hash = sha256(hash) WHERE revision = 4 AND flow_id = $1", 4, B.CHANGED),
    ("UPDATE events SET format = 1 WHERE revision = 4 AND flow_id = $1", 4, B.CHANGED),
    ("UPDATE events SET format = 3 WHERE revision = 4 AND flow_id = $1", 4, B.CHANGED),
    ("UPDATE events SET content_sha256 = sha256(body::bytea), body = '', actor = '' WHERE revision = 4 AND flow_id = $1", 4, B.CHANGED),
    ("UPDATE events SET content_sha256 = hash, body = '', actor = '', format = 1 WHERE revision = 1 AND flow_id = $1", 1, B.CHANGED),
    # Rows.
    ("DELETE FROM events WHERE revision = 1 AND flow_id = $1", 1, B.MISSING),
    ("DELETE FROM events WHERE revision = 4 AND flow_id = $1", 4, B.MISSING),
    ("DELETE FROM events WHERE revision = 8 AND flow_id = $1", 8, B.MISSING),
    ("DELETE FROM events WHERE revision > 4 AND flow_id = $1", 5, B.MISSING),
    ("DELETE FROM events WHERE flow_id = $1", 1, B.MISSING),
    (f"INSERT INTO events SELECT {_COPIED} FROM events WHERE revision = 8 AND flow_id = $1", 8, B.HEAD),
    # Order: two events in each other's place, all but their revisions.
    (f"{_EXCHANGE} WHEN 4 THEN -5 ELSE -4 END WHERE revision IN (4, 5) AND flow_id = $1", 4, B.REORDERED),
    (f"{_EXCHANGE} WHEN 3 THEN -7 ELSE -3 END WHERE revision IN (3, 7) AND flow_id = $1", 3, B.REORDERED),
    # The flow's row.
    ("UPDATE flows SET head_hash = sha256(head_hash) WHERE flow_id = $1", 8, B.HEAD),
    ("UPDATE flows SET revision = revision + 1 WHERE flow_id = $1", 9, B.MISSING),
    ("UPDATE flows SET revision = revision - 1 WHERE flow_id = $1", 7, B.HEAD),
    ("DELETE FROM flows WHERE flow_id = $1", 8, B.HEAD),
]  # fmt: skip


@pytest.mark.parametrize(("damage", "revision", "kind"), DAMAGE)
async def test_damage_is_found_where_it_is(
    store: Store, tenant: Tenant, truth: asyncpg.Connection, damage: str, revision: int, kind: BreakKind
) -> None:
    key, other = await lived(store, tenant), await lived(store, tenant)
    async with truth.transaction():
        await truth.execute("SET LOCAL session_replication_role = replica")  # foreign keys look away
        if _EXCHANGE in damage:  # in two steps, so that the key is never twice there
            await truth.execute("ALTER TABLE events DROP CONSTRAINT events_revision_check")
            await truth.execute(damage, key.flow_id)
            await truth.execute("UPDATE events SET revision = -revision WHERE revision < 0")
            await truth.execute("ALTER TABLE events ADD CONSTRAINT events_revision_check CHECK (revision >= 1)")
        else:
            await truth.execute(damage, key.flow_id)
    assert await found(store, key) == (revision, kind)
    assert await found(store, other) is None


def test_every_column_of_an_event_has_its_damage() -> None:
    columns = {column.name for column in events.columns} - {"position"}  # where in the feed it stands is the database's own affair
    assert {name for name in columns for damage, _, _ in DAMAGE if f"SET {name} =" in damage} == columns


async def test_a_change_that_recomputes_its_own_hash_breaks_the_next_link(store: Store, tenant: Tenant, truth: asyncpg.Connection) -> None:
    key = await lived(store, tenant)
    one = (await audit_of(store).page(key, 3, 1)).links[0]
    before = (await audit_of(store).page(key, 2, 1)).links[0].hash
    content = sha256(event_codec.content_of(one.time, "mallory", one.body))
    forged = event_codec.chained(before, key, 4, content)
    await truth.execute("UPDATE events SET actor = 'mallory', hash = $2 WHERE flow_id = $1 AND revision = 4", key.flow_id, forged)
    assert await found(store, key) == (5, B.CHANGED)


async def test_a_forger_of_the_whole_rest_is_found_by_the_head_alone(store: Store, tenant: Tenant, truth: asyncpg.Connection) -> None:
    key = await lived(store, tenant)
    last = (await audit_of(store).page(key, 7, 1)).links[0]
    before = (await audit_of(store).page(key, 6, 1)).links[0].hash
    forged = event_codec.chained(before, key, 8, sha256(event_codec.content_of(last.time, "mallory", last.body)))
    await truth.execute("UPDATE events SET actor = 'mallory', hash = $2 WHERE flow_id = $1 AND revision = 8", key.flow_id, forged)
    assert await found(store, key) == (8, B.HEAD)


async def old_format(truth: asyncpg.Connection, store: Store, key: FlowKey, number: int) -> None:
    """Makes the first events what they would be had they been written before format 2; the later ones follow them."""
    links = (await audit_of(store).page(key, 0)).links
    before = event_codec.NO_HASH
    for link in links:
        if link.revision <= number:
            content = event_codec.content_of_1(link.revision, link.time, link.actor, link.body)
            before = event_codec.chained_1(before, key, content)
        else:
            before = event_codec.chained(before, key, link.revision, sha256(event_codec.content_of(link.time, link.actor, link.body)))
        query = "UPDATE events SET hash = $3, format = $4 WHERE flow_id = $1 AND revision = $2"
        await truth.execute(query, key.flow_id, link.revision, before, 1 if link.revision <= number else 2)
    await truth.execute("UPDATE flows SET head_hash = $2 WHERE flow_id = $1", key.flow_id, before)


async def test_links_of_both_formats_are_followed(store: Store, tenant: Tenant, truth: asyncpg.Connection) -> None:
    key = await lived(store, tenant)
    await old_format(truth, store, key, 5)
    assert await found(store, key) is None
    await truth.execute("UPDATE events SET actor = 'mallory' WHERE flow_id = $1 AND revision = 3", key.flow_id)
    assert await found(store, key) == (3, B.CHANGED)
    await truth.execute("UPDATE events SET actor = 'ann' WHERE flow_id = $1 AND revision = 3", key.flow_id)
    assert await found(store, key) is None
    await truth.execute("UPDATE events SET format = 1 WHERE flow_id = $1 AND revision = 7", key.flow_id)
    assert await found(store, key) == (7, B.CHANGED)  # nothing goes back to the old format


async def erased(truth: asyncpg.Connection, store: Store, tenant: Tenant) -> None:
    """Erases what all events of the tenant say, leaves a receipt and takes the flows away."""
    async for flow_id in audit_of(store).flow_ids(tenant):
        key = FlowKey(tenant, flow_id)
        for link in (await audit_of(store).page(key, 0)).links:
            content = sha256(event_codec.content_of(link.time, link.actor, link.body))
            query = "UPDATE events SET content_sha256 = $3, body = '', actor = '' WHERE flow_id = $1 AND revision = $2"
            await truth.execute(query, flow_id, link.revision, content)
    await rows.put(truth, "erasures", rows.row("erasures", tenant, uuid4()))
    async with truth.transaction():
        await truth.execute("SET LOCAL session_replication_role = replica")
        await truth.execute("DELETE FROM flows WHERE client_account_id = $1", tenant.client_account_id)


async def test_the_chain_of_erased_events_holds(store: Store, tenant: Tenant, truth: asyncpg.Connection) -> None:
    key = await lived(store, tenant)
    head = await store.head(tenant, key.flow_id)
    await erased(truth, store, tenant)
    audited = await audit_of(store).follow(key)
    assert (audited.events, audited.erased, audited.broken) == (8, 8, None)
    assert audited.head == (8, head.hash)
    await truth.execute("UPDATE events SET content_sha256 = sha256(content_sha256) WHERE flow_id = $1 AND revision = 3", key.flow_id)
    assert await found(store, key) == (3, B.CHANGED)


async def test_of_erased_events_of_the_old_format_the_links_after_them_still_tell(
    store: Store, tenant: Tenant, truth: asyncpg.Connection
) -> None:
    key = await lived(store, tenant)
    await old_format(truth, store, key, 5)
    await erased(truth, store, tenant)
    assert await found(store, key) is None
    await truth.execute("UPDATE events SET hash = sha256(hash) WHERE flow_id = $1 AND revision = 5", key.flow_id)
    assert await found(store, key) == (6, B.CHANGED)


async def test_what_one_flow_lost_is_no_erasure(store: Store, tenant: Tenant, truth: asyncpg.Connection) -> None:
    """Neither for a flow that stands, nor in a tenant that nobody erased."""
    key = await lived(store, tenant)
    await erased(truth, store, tenant)
    await truth.execute("DELETE FROM erasures WHERE client_account_id = $1", tenant.client_account_id)
    assert await found(store, key) == (1, B.CHANGED)


def anchored(key: FlowKey, revision: int, link: bytes, body: bytes) -> bytes:
    return Anchor(revision, link, None, hashlib.sha256(body).digest()).signed(key, sign)


async def cut(truth: asyncpg.Connection, store: Store, key: FlowKey, revision: int) -> None:
    """Takes the events up to that revision away as compaction does."""
    link = (await audit_of(store).page(key, revision - 1, 1)).links[0]
    base = {**rows.row("bases", key.tenant, key.flow_id), "revision": revision, "hash": link.hash}
    await rows.put(truth, "bases", {**base, "signature": anchored(key, revision, link.hash, b"{}")})
    await truth.execute("DELETE FROM events WHERE flow_id = $1 AND revision <= $2", key.flow_id, revision)


async def test_a_signed_base_stands_for_the_events_before_it(store: Store, tenant: Tenant, truth: asyncpg.Connection) -> None:
    key = await lived(store, tenant)
    await cut(truth, store, key, 5)
    audited = await audit_of(store).follow(key)
    assert (audited.events, audited.broken) == (3, None)
    await truth.execute("DELETE FROM events WHERE flow_id = $1 AND revision = 6", key.flow_id)
    assert await found(store, key) == (6, B.MISSING)


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE bases SET hash = sha256(hash) WHERE flow_id = $1",
        "UPDATE bases SET body = '{ }' WHERE flow_id = $1",
        "UPDATE bases SET signature = sha256(signature) WHERE flow_id = $1",
        "UPDATE bases SET signature = substr(signature, 1, 32) || sha256('') WHERE flow_id = $1",
        "UPDATE bases SET signature = substr(signature, 1, 32), body = '' WHERE flow_id = $1",
        "UPDATE bases SET body = '' WHERE flow_id = $1",
        "UPDATE bases SET signature = NULL WHERE flow_id = $1",
    ],
)
async def test_a_base_that_was_changed_stands_for_nothing(store: Store, tenant: Tenant, truth: asyncpg.Connection, damage: str) -> None:
    key = await lived(store, tenant)
    await cut(truth, store, key, 5)
    await truth.execute(damage, key.flow_id)
    assert await found(store, key) == (5, B.BASE)


@pytest.mark.parametrize(
    "damage",
    [
        "DELETE FROM bases WHERE flow_id = $1",
        "UPDATE bases SET revision = 6 WHERE flow_id = $1",
        "UPDATE bases SET flow_id = gen_random_uuid() WHERE flow_id = $1",
    ],
)
async def test_a_base_that_was_taken_away_or_moved_is_missed(store: Store, tenant: Tenant, truth: asyncpg.Connection, damage: str) -> None:
    key = await lived(store, tenant)
    await cut(truth, store, key, 5)
    await truth.execute(damage, key.flow_id)
    assert await found(store, key) == (1, B.MISSING)


async def test_the_chain_of_erased_events_that_were_compacted_holds(store: Store, tenant: Tenant, truth: asyncpg.Connection) -> None:
    key = await lived(store, tenant)
    await cut(truth, store, key, 5)
    await erased(truth, store, tenant)
    await truth.execute("UPDATE bases SET body = '' WHERE flow_id = $1", key.flow_id)
    audited = await audit_of(store).follow(key)
    assert (audited.events, audited.erased, audited.broken, audited.head[0]) == (3, 3, None, 8)
    await truth.execute("UPDATE bases SET hash = sha256(hash) WHERE flow_id = $1", key.flow_id)
    assert await found(store, key) == (5, B.BASE)


async def test_another_flows_signature_is_not_taken(store: Store, tenant: Tenant, truth: asyncpg.Connection) -> None:
    key, other = await lived(store, tenant), await lived(store, tenant)
    for one in (key, other):
        await cut(truth, store, one, 5)
    query = "UPDATE bases SET (hash, signature) = (SELECT hash, signature FROM bases WHERE flow_id = $2) WHERE flow_id = $1"
    await truth.execute(query, key.flow_id, other.flow_id)
    assert await found(store, key) == (5, B.BASE)


async def test_a_base_that_anybody_put_there_does_not_excuse_missing_events(
    store: Store, tenant: Tenant, truth: asyncpg.Connection
) -> None:
    key = await lived(store, tenant)
    link = (await audit_of(store).page(key, 4, 1)).links[0]
    await rows.put(truth, "bases", {**rows.row("bases", tenant, key.flow_id), "revision": 5, "hash": link.hash, "signature": bytes(64)})
    await truth.execute("DELETE FROM events WHERE flow_id = $1 AND revision <= 5", key.flow_id)
    assert await found(store, key) == (5, B.BASE)


async def test_a_flow_that_is_not_there_is_not_found(store: Store, tenant: Tenant) -> None:
    with pytest.raises(FlowNotFound):
        await audit_of(store).follow(FlowKey(tenant, uuid4()))


async def test_every_flow_is_come_to_once_and_in_order(store: Store, tenant: Tenant, truth: asyncpg.Connection) -> None:
    flow_ids = [UUID(int=0), UUID(int=2**128 - 1), *(uuid4() for _ in range(FLOWS + 20))]
    births = [store.birth(tenant, flow_id=flow_id) for flow_id in flow_ids]
    await asyncio.gather(*(store.commits.commit(birth) for birth in births))
    await truth.execute("DELETE FROM events WHERE flow_id = $1", flow_ids[5])  # which leaves its row
    async with truth.transaction():
        await truth.execute("SET LOCAL session_replication_role = replica")
        await truth.execute("DELETE FROM flows WHERE flow_id = ANY($1)", flow_ids[6:9])  # which leaves their events
    listed = [flow_id async for flow_id in audit_of(store).flow_ids(tenant)]
    assert listed == sorted(flow_ids)


async def test_commits_and_an_audit_go_on_beside_each_other(store: Store, elsewhere: Store, tenant: Tenant) -> None:
    key = await lived(store, tenant)
    ended = asyncio.Event()

    async def write() -> None:
        for at in range(300):
            await elsewhere.commit(elsewhere.asked(tenant, key.flow_id, report(at)))
        ended.set()

    writing = asyncio.create_task(write())
    looks = 0
    while not ended.is_set():
        assert await found(store, key) is None
        looks += 1
    await writing
    assert looks > 3


async def test_a_page_is_bounded_by_its_bytes_and_holds_one_event_at_least(store: Store, tenant: Tenant) -> None:
    flow_id = await store.begun(tenant)
    large = tuple(ActivityEntry(ActivityKind.ERROR, message="x" * 1900) for _ in range(100))
    for _ in range(8):
        await store.commit(store.asked(tenant, flow_id, *(RecordActivity(large) for _ in range(2))))
    huge = [RecordActivity(large) for _ in range(8)]
    await store.commit(store.asked(tenant, flow_id, *huge))
    audit, key = audit_of(store), FlowKey(tenant, flow_id)
    sizes, after = [], 0
    while links := (page := await audit.page(key, after)).links:
        sizes.append((len(links), page.size))
        after = links[-1].revision
    assert sum(number for number, _ in sizes) == 11
    assert all(size <= PAGE_BYTES or number == 1 for number, size in sizes)
    assert max(size for _, size in sizes) > PAGE_BYTES
    assert (await audit.follow(key)).broken is None


async def test_hashes_that_are_asked_for_are_noted(store: Store, tenant: Tenant) -> None:
    key = await lived(store, tenant)
    links = (await audit_of(store).page(key, 0)).links
    audited = await audit_of(store).follow(key, 6, frozenset({2, 6, 7}))
    assert audited.noted == {2: links[1].hash, 6: links[5].hash}
    assert audited.events == 6
