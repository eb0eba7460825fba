"""After the key that signs was changed, bases carry the new one's signature, and the old one can be given up."""

from __future__ import annotations

import asyncpg
import pytest

from server.repository import resigning as module
from server.repository.audit import Audit
from server.repository.compaction import Compaction
from server.repository.history import History
from server.repository.resigning import Resigning
from server.signing import Signing
from server.statemachine.audit import BreakKind
from server.statemachine.values import FlowKey, Tenant
from tests.repository.store import NOON, Store
from tests.repository.upkeep import POLICY, grown

OLD, NEW = b"o" * 32, b"n" * 32


async def compacted(store: Store, tenant: Tenant) -> FlowKey:
    """A flow that was compacted when the old key signed."""
    key, signing = await grown(store, store, tenant, 12), Signing([OLD])
    compaction = Compaction(store.database, History(store.database), Audit(store.database, signing.verifies), signing.sign)
    assert (await compaction.compact(key, POLICY, NOON)).events == 7
    return key


async def found(store: Store, key: FlowKey, *secrets: bytes) -> BreakKind | None:
    """What an audit says that has these keys."""
    broken = (await Audit(store.database, Signing(secrets).verifies).follow(key)).broken
    return None if broken is None else broken.kind


def resigning(store: Store, *secrets: bytes) -> Resigning:
    signing = Signing(secrets)
    return Resigning(store.database, signing.sign, signing.verifies)


async def test_what_the_old_key_signed_holds_with_the_new_one_alone(store: Store, tenant: Tenant, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAGE", 2)
    keys = [await compacted(store, tenant) for _ in range(5)]
    assert [await found(store, key, NEW) for key in keys] == [BreakKind.BASE] * 5
    assert [await found(store, key, NEW, OLD) for key in keys] == [None] * 5
    assert await resigning(store, NEW, OLD).resign(tenant) == 5
    assert [await found(store, key, NEW) for key in keys] == [None] * 5
    assert await resigning(store, NEW, OLD).resign(tenant) == 0


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE bases SET body = 'x' WHERE flow_id = $1",
        "UPDATE bases SET body = '' WHERE flow_id = $1",  # as if its tenant had been erased
        "UPDATE bases SET hash = sha256(hash) WHERE flow_id = $1",
        "UPDATE bases SET signature = sha256('a') || sha256('b') WHERE flow_id = $1",
        "UPDATE bases SET signature = 'x' WHERE flow_id = $1",
    ],
)
async def test_what_does_not_hold_gets_no_signature(store: Store, tenant: Tenant, truth: asyncpg.Connection, damage: str) -> None:
    key = await compacted(store, tenant)
    await truth.execute(damage, key.flow_id)
    assert await resigning(store, NEW, OLD).resign(tenant) == 0
    assert await found(store, key, NEW, OLD) is BreakKind.BASE


async def test_a_key_that_is_not_here_renews_nothing(store: Store, tenant: Tenant) -> None:
    key = await compacted(store, tenant)
    assert await resigning(store, NEW).resign(tenant) == 0
    assert await found(store, key, OLD) is None


def test_signing_says_whether_there_is_something_to_renew() -> None:
    assert not Signing([NEW]).renews
    assert Signing([NEW, OLD]).renews
