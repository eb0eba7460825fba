"""Key-encryption keys: made once, never exchanged unnoticed, and what to do when one was lost."""

from __future__ import annotations

import stat
import subprocess
from pathlib import Path

import grpc
import pytest

from server import app
from server.checkpoints import kek
from server.vault import EnvironmentKeys, KeyFault, written
from tests.conftest import KEYS, Urls, settings
from tests.faults.process import command, database, environment
from tests.repository.store import opened
from tests.services.checkpoints import Sealing
from tests.tenancy import Tenancy

OTHER = written("other", bytes(32))


async def test_the_first_start_makes_a_key_file_and_the_next_ones_find_it(urls: Urls, tmp_path: Path) -> None:
    path = tmp_path / "data" / "keys"
    async with opened(urls.service) as store:
        first = await kek.provided(store.database, None, path)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert (await kek.provided(store.database, None, path)).key_id == first.key_id == await store.database.kek_id()


async def test_a_key_that_is_not_the_databases_is_refused_with_what_to_do(urls: Urls, tmp_path: Path) -> None:
    async with opened(urls.service) as store:
        await kek.provided(store.database, KEYS, tmp_path / "keys")
        with pytest.raises(KeyFault, match=r"FLOWLEDGER_KEYS has another one .*give this server that key too"):
            await kek.provided(store.database, OTHER, tmp_path / "keys")
        with pytest.raises(KeyFault, match=r"there is no key file .*copy it from the server that made it"):
            await kek.provided(store.database, None, tmp_path / "keys")
        assert not (tmp_path / "keys").exists()  # a new one would only hide that the old one is missing
        both = await kek.provided(store.database, f"{OTHER},{KEYS}", tmp_path / "keys")
        assert both.key_id.startswith("other/")
        with pytest.raises(KeyFault):  # the new one wraps now
            await kek.provided(store.database, KEYS, tmp_path / "keys")


def _flowledger(*arguments: str, **variables: object) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command(*arguments), env=environment(**variables), capture_output=True, text=True, timeout=60, check=False)
    assert "Traceback" not in done.stderr
    return done


def test_a_new_key_is_one_that_servers_take() -> None:
    one, other = [_flowledger("keys", "new", "--name", "next").stdout.strip() for _ in range(2)]
    assert one != other
    assert EnvironmentKeys(f"{one},{KEYS}").key_id.startswith("next/")


async def test_a_database_whose_key_was_lost_goes_on_after_its_adoption(urls: Urls) -> None:
    async with app.running(settings(urls)) as server, grpc.aio.insecure_channel(server.address) as channel:
        tenancy = Tenancy.fresh(channel)
        flow_id = (await tenancy.create()).flow_id
        lost = (await Sealing(tenancy).create(flow_id)).checkpoint_id
    with pytest.raises(KeyFault, match="keys adopt"):
        async with app.running(settings(urls, keys=OTHER)):
            pass
    done = _flowledger("keys", "adopt", **{**database(urls), "keys": OTHER})
    assert (done.returncode, done.stdout.split()[:6]) == (0, ["the", "tenants'", "keys", "are", "wrapped", "with"]), done.stderr
    async with app.running(settings(urls, keys=OTHER)) as server, grpc.aio.insecure_channel(server.address) as channel:
        sealing = Sealing(tenancy.on(channel))
        assert (await sealing.refusal("RestoreCheckpoint", checkpoint_id=lost)).reason == "KEY_UNAVAILABLE"
        assert (await sealing.refusal("CreateCheckpoint", flow_id=flow_id)).reason == "KEY_UNAVAILABLE"
        assert (await sealing.admin("RotateTenantKey")).key_version == 2
        fresh = (await sealing.create(flow_id)).checkpoint_id
        await sealing.call("RestoreCheckpoint", checkpoint_id=fresh)
    async with app.running(settings(urls, keys=f"{OTHER},{KEYS}")) as server, grpc.aio.insecure_channel(server.address) as channel:
        await Sealing(tenancy.on(channel)).call("RestoreCheckpoint", checkpoint_id=lost)  # it was found again
