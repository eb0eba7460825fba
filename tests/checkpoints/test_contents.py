"""Contents: each stored once for its tenant, and gone when the last checkpoint that holds it is."""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta

import asyncpg
import pytest

from server.checkpoints.taking import Wanted
from server.repository.checkpoint_statements import Narrowed
from server.repository.id_pages import LAST_ID
from server.statemachine.checkpoint import PAYLOAD, Checkpoint, CheckpointKind
from server.statemachine.errors import StoreUnavailable
from server.statemachine.values import DocumentPlace, FlowKey, Tenant
from tests.checkpoints.bench import Bench
from tests.repository import rows
from tests.repository.store import NOON

MIB = 1024 * 1024
METADATA = DocumentPlace("metadata")


def text(seed: int, size: int) -> bytes:
    """JSON that does not compress."""
    return b'{"hex":"' + random.Random(seed).randbytes(size // 2).hex().encode() + b'"}'


async def stored(truth: asyncpg.Connection, tenant: Tenant) -> tuple[int, int, int]:
    """How many contents and chunks there are of the tenant, and how many bytes."""
    query = """
        SELECT (SELECT count(*) FROM sealed_contents WHERE client_account_id = $1), count(*), coalesce(sum(octet_length(sealed)), 0)
        FROM sealed_chunks WHERE client_account_id = $1"""
    row = await truth.fetchrow(query, tenant.client_account_id)
    assert row is not None
    return row[0], row[1], row[2]


async def upload(bench: Bench, key: FlowKey, payload: bytes) -> Checkpoint:
    inflow = await bench.archive.taking.inflow(key.tenant)
    await inflow.write(payload)
    await inflow.end()
    record = await bench.store.record(key.tenant, key.flow_id)
    taken = await bench.archive.taking.take(record, Wanted(CheckpointKind.MANUAL, "ann"), inflow)
    assert isinstance(taken, Checkpoint)
    return taken


async def test_a_document_that_did_not_change_is_stored_once(
    here: Bench, elsewhere: Bench, key: FlowKey, truth: asyncpg.Connection
) -> None:
    """A hundred checkpoints of a flow with a document of 3 MiB that stays the same and one of 1 KiB that does not."""
    await here.write(key.tenant, key.flow_id, text(1, 3 * MIB))
    for at in range(100):
        await here.write(key.tenant, key.flow_id, text(at, 1024), METADATA)
        await (here, elsewhere)[at % 2].take(key)
    contents, chunks, size = await stored(truth, key.tenant)
    assert (contents, chunks) == (1 + 100 + 100, 4 + 100 + 100)  # the state; the flow and the metadata of each
    whole = 100 * 3 * MIB // 2  # half of it, since hexadecimal digits compress
    assert size < whole / 60


async def test_equal_contents_are_one_whatever_they_are_called(here: Bench, key: FlowKey, truth: asyncpg.Connection) -> None:
    same = text(2, 2 * MIB)
    await here.write(key.tenant, key.flow_id, same)
    await here.write(key.tenant, key.flow_id, same, METADATA)
    first = await upload(here, key, same)
    before = await stored(truth, key.tenant)
    assert before[0] == 2  # the flow, and that one
    second = await upload(here, key, same)
    assert (await stored(truth, key.tenant))[0] == 2
    for taken in (first, second):
        opened = await here.archive.opening.header(key.tenant, taken.checkpoint_id)
        assert len({part.content_id for part in opened.header.parts}) == 2
        part = opened.header.part(PAYLOAD)
        assert part is not None
        assert b"".join([chunk async for chunk in here.archive.opening.part(opened, part, 0)]) == same


async def test_equal_contents_of_two_tenants_are_two(here: Bench, key: FlowKey, truth: asyncpg.Connection) -> None:
    other = rows.tenant()
    theirs = FlowKey(other, await here.store.create(other))
    same = text(3, 4096)
    for one in (key, theirs):
        await here.write(one.tenant, one.flow_id, same)
        await here.take(one)
    query = "SELECT digest FROM sealed_contents WHERE size = $1 AND client_account_id = ANY($2)"
    digests = await truth.fetch(query, len(same), [key.tenant.client_account_id, other.client_account_id])
    assert len({row[0] for row in digests}) == 2


async def test_what_only_a_checkpoint_held_goes_with_it(here: Bench, key: FlowKey, truth: asyncpg.Connection) -> None:
    await here.write(key.tenant, key.flow_id, text(4, 2 * MIB))
    one = await here.take(key)
    before = await stored(truth, key.tenant)
    await here.write(key.tenant, key.flow_id, text(5, 3 * MIB), METADATA)
    other = await here.take(key)
    both = await stored(truth, key.tenant)
    done = await here.archive.remove(key.tenant, [other.checkpoint_id], NOON)
    assert done is not None
    assert (done[0], done[1].stored) == (1, both[2] - before[2])
    assert await stored(truth, key.tenant) == before
    assert await here.archive.opening.unreadable(key) == []
    assert await here.archive.remove(key.tenant, [other.checkpoint_id], NOON) is not None
    await here.archive.remove(key.tenant, [one.checkpoint_id], NOON)
    assert await stored(truth, key.tenant) == (0, 0, 0)


async def test_what_became_part_of_nothing_is_removed_after_a_while(here: Bench, key: FlowKey, truth: asyncpg.Connection) -> None:
    await here.take(key)
    before = await stored(truth, key.tenant)
    broken = await here.archive.taking.inflow(key.tenant)
    await broken.write(bytes(3 * MIB))
    assert (await stored(truth, key.tenant))[1] == before[1] + 2
    begun = await truth.fetchval("SELECT create_time FROM sealed_contents WHERE content_id = $1", broken.content_id)
    assert await here.archive.remove_unreferenced(key.tenant, begun + timedelta(hours=2), 10) == 0  # it may still be under way
    assert await here.archive.remove_unreferenced(key.tenant, begun + timedelta(hours=2, seconds=1), 10) == 1
    assert await stored(truth, key.tenant) == before


async def test_checkpoints_are_removed_when_their_time_has_come_unless_they_are_pinned(here: Bench, key: FlowKey) -> None:
    record = await here.store.record(key.tenant, key.flow_id)
    wanted = [
        Wanted(CheckpointKind.AUTO, "ann", expires=timedelta(hours=1)),
        Wanted(CheckpointKind.AUTO, "ann", expires=timedelta(hours=1), pinned=True),
        Wanted(CheckpointKind.MANUAL, "ann"),
        Wanted(CheckpointKind.MANUAL, "ann", expires=NOON + timedelta(days=500)),
        Wanted(CheckpointKind.PRE_ROLLBACK, "ann"),
    ]
    taken = [await here.archive.taking.take(record, one) for one in wanted]
    assert all(isinstance(one, Checkpoint) for one in taken)
    assert await here.archive.remove_expired(key.tenant, NOON, 10) == 0
    assert await here.archive.remove_expired(key.tenant, NOON + timedelta(days=20), 10) == 1
    assert await here.archive.remove_expired(key.tenant, NOON + timedelta(days=50), 10) == 1
    assert await here.archive.remove_expired(key.tenant, NOON + timedelta(days=1000), 10) == 1
    left = await here.archive.checkpoints.page(key.tenant, Narrowed(), LAST_ID, 10)
    assert {one.checkpoint_id for one in left} == {taken[1].checkpoint_id, taken[2].checkpoint_id}  # type: ignore[union-attr]


async def test_one_whose_owner_keeps_it_at_the_last_moment_stays(here: Bench, key: FlowKey) -> None:
    record = await here.store.record(key.tenant, key.flow_id)
    taken = await here.archive.taking.take(record, Wanted(CheckpointKind.AUTO, "ann", expires=timedelta(hours=1)))
    assert isinstance(taken, Checkpoint)
    late = NOON + timedelta(days=20)
    expired = Narrowed(expired_at=late)
    assert await here.archive.removal.prunable(key.tenant, expired, 0, 10) == [taken.checkpoint_id]
    kept = replace(taken, expire_time=None)
    assert await here.archive.checkpoints.change(key.tenant, taken, kept, NOON, None)
    done = await here.archive.remove(key.tenant, [taken.checkpoint_id], late, expired)
    assert done is not None
    assert done[0] == 0


@pytest.mark.parametrize("size", [100, 2 * MIB])
async def test_taking_and_removing_at_the_same_time_leaves_every_checkpoint_whole(
    here: Bench, elsewhere: Bench, key: FlowKey, truth: asyncpg.Connection, size: int
) -> None:
    """All of them hold the same few contents, so that each removal is about to take away what another one is about to need."""
    await here.write(key.tenant, key.flow_id, text(7, size))
    kept: list[Checkpoint] = []
    chance = random.Random(8)
    # What is written in several steps must not be swept in between: that is what the two hours are for.
    late = NOON + timedelta(days=9999) if size < MIB else NOON

    async def take(bench: Bench) -> Checkpoint:
        while True:
            with suppress(StoreUnavailable):  # the others may be in the way for long on a slow machine: so a caller is told to come back
                return await bench.take(key)

    async def life(bench: Bench) -> None:
        for at in range(12):
            taken = await take(bench)
            if at % 4 == 3:
                kept.append(taken)
            else:
                await bench.archive.remove(key.tenant, [taken.checkpoint_id], NOON)
            if chance.random() < 0.3:
                await bench.archive.remove_unreferenced(key.tenant, late, 100)

    await asyncio.gather(*(life(bench) for bench in (here, elsewhere) * 2))
    assert len(kept) == 12
    assert await here.archive.opening.unreadable(key) == []
    await here.archive.remove_unreferenced(key.tenant, NOON + timedelta(days=9999), 100)
    assert (await stored(truth, key.tenant))[0] == 2
    await here.archive.remove(key.tenant, [one.checkpoint_id for one in kept], NOON)
    assert await stored(truth, key.tenant) == (0, 0, 0)
