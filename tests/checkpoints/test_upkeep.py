"""What is done without anybody asking: by a running server, by one of several at a time, to be broken off at any point."""

from __future__ import annotations

from datetime import datetime, timedelta

import asyncpg
import grpc

from server import app
from server.checkpoints.taking import Wanted
from server.checkpoints.upkeep import REMOVED, CheckpointUpkeep
from server.repository.checkpoint_statements import Narrowed
from server.repository.id_pages import LAST_ID
from server.statemachine.checkpoint import CheckpointKind
from server.statemachine.values import FlowKey
from server.vault import EnvironmentKeys, written
from tests.checkpoints.bench import Bench
from tests.conftest import KEYS, Urls, settings
from tests.repository.store import NOON
from tests.services.checkpoints import Sealing
from tests.tenancy import Tenancy
from tests.waiting import eventually

EXPIRY = timedelta(hours=1)


def upkeep(bench: Bench, at: datetime) -> CheckpointUpkeep:
    return CheckpointUpkeep(bench.archive, lambda: at)


async def test_everything_whose_time_has_come_goes_however_much_it_is(here: Bench, key: FlowKey) -> None:
    record = await here.store.record(key.tenant, key.flow_id)
    for _ in range(REMOVED + 3):
        await here.archive.taking.take(record, Wanted(CheckpointKind.AUTO, "ann", expires=NOON + EXPIRY))
    kept = await here.take(key)
    assert await upkeep(here, NOON).expire(key.tenant) == 0
    assert await upkeep(here, NOON + 2 * EXPIRY).expire(key.tenant) == REMOVED + 3
    assert await here.archive.checkpoints.page(key.tenant, Narrowed(), LAST_ID, 10) == [kept]


async def test_what_a_broken_upload_left_goes_after_hours(here: Bench, key: FlowKey, truth: asyncpg.Connection) -> None:
    broken = await here.archive.taking.inflow(key.tenant)
    begun = await truth.fetchval("SELECT create_time FROM sealed_contents WHERE content_id = $1", broken.content_id)
    assert await upkeep(here, begun + timedelta(hours=1)).collect(key.tenant) == 0
    assert await upkeep(here, begun + timedelta(hours=3)).collect(key.tenant) == 1


async def test_a_new_key_encryption_key_takes_over_and_one_that_is_missing_stops_nothing(
    here: Bench, elsewhere: Bench, key: FlowKey
) -> None:
    taken = await here.take(key)
    both = Bench(here.store, EnvironmentKeys(f"{written('next', bytes(32))},{KEYS}"))
    assert await upkeep(both, NOON).reseal(key.tenant) == 0
    assert {row.kek_id.partition("/")[0] for row in await here.archive.keys.all(key.tenant)} == {"next"}
    await both.archive.opening.header(key.tenant, taken.checkpoint_id)
    await both.archive.keys.rotate(key.tenant, await both.archive.keyring.fresh(key.tenant), NOON, None)
    assert await upkeep(elsewhere, NOON).reseal(key.tenant) == 0  # it does not have that key: it leaves it to others
    assert await upkeep(both, NOON).reseal(key.tenant) > 0
    assert (await both.archive.rotating.progress(key.tenant)).remaining == 0


async def test_running_servers_seal_anew_and_take_away_what_has_expired(urls: Urls) -> None:
    running = settings(urls, sweep_seconds=0.05)
    async with (
        app.running(running) as one,
        app.running(running) as other,
        grpc.aio.insecure_channel(one.address) as channel,
        grpc.aio.insecure_channel(other.address) as second,
    ):
        tenancy = Tenancy.fresh(channel)
        sealing, elsewhere = Sealing(tenancy), Sealing(tenancy.on(second))
        flow_id = (await tenancy.create(state={"json": '{"n":1}'})).flow_id
        payload = b"some payload" * 100_000
        taken = (await sealing.upload(payload, flow_id=flow_id)).checkpoint
        await sealing.create(flow_id, ttl={"seconds": 1})
        assert (await sealing.admin("RotateTenantKey")).key_version == 2

        async def done() -> bool:
            progress = await elsewhere.admin("GetKeyRotation")
            return [one.key_version for one in await elsewhere.listed()] == [2] and not progress.remaining and not progress.old_versions

        await eventually(done)
        progress = await elsewhere.admin("GetKeyRotation")
        assert (progress.key_version, list(progress.old_versions)) == (2, [])
        assert await elsewhere.download(taken.checkpoint_id, part="CHECKPOINT_PART_PAYLOAD") == payload
