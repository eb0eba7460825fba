"""What is stored is looked at as a whole: nothing is found in what is right, and whatever is wrong is found."""

from __future__ import annotations

import random

import asyncpg
import pytest

from server.repository.examiner import Examiner
from server.statemachine.finding import FindingKind
from server.statemachine.values import FlowKey, Tenant
from tests.repository.store import Store, report
from tests.repository.test_history import STORY, lived, written, STATE


async def findings(store: Store, key: FlowKey) -> list[tuple[FindingKind, str, int, str]]:
    found = await Examiner(store.database).examine(key)
    return [(finding.kind, finding.field, finding.revision, finding.description) for finding in found.evidence.findings()]


async def test_nothing_is_found_in_what_is_right(store: Store, tenant: Tenant) -> None:
    flow_id = await store.create(tenant)
    key = FlowKey(tenant, flow_id)
    assert await findings(store, key) == []
    await lived(store, tenant, flow_id, STORY)
    assert await findings(store, key) == []
    for _ in range(3):
        await store.commit(await store.replacing(tenant, flow_id))
        assert await findings(store, key) == []
    flow_id = await store.begun(tenant)
    key = FlowKey(tenant, flow_id)
    for at in range(230):
        await store.commit(
            store.asked(
                tenant, flow_id, report(at), *([written(STATE, b'{"at":%d,"x":"%s"}' % (at, b"y" * 20_000))] if at % 3 == 0 else [])
            )
        )
    assert await findings(store, key) == []
