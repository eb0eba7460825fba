"""A tenant's policy is set as a whole, under its etag, and read from memory for some seconds."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta
from uuid import uuid4

import asyncpg
import pytest

from server.repository import policies as module
from server.repository.policies import FRESH_SECONDS, Policies
from server.repository.requests import Answered, Reply
from server.statemachine.errors import EtagChanged, RequestIdReused
from server.statemachine.policy import Policy
from server.statemachine.states import PhaseState
from server.statemachine.values import Tenant
from tests.repository import rows
from tests.repository.store import NOON, Store

BY_ANN = ("ann", NOON)
WANTED = Policy(
    100, timedelta(days=7, microseconds=250), False, False, frozenset({PhaseState.COMPLETED, PhaseState.ROLLED_BACK}), timedelta(hours=3)
)


class Clock:
    """Time that goes on when it is told to."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def policies_of(store: Store, clock: Clock | None = None) -> Policies:
    return Policies(store.database, clock or Clock())


def no_reply(_: Policy) -> None:
    return None


async def test_without_one_of_its_own_a_tenant_has_the_default(store: Store, tenant: Tenant) -> None:
    assert await policies_of(store).get(tenant) == Policy() == await policies_of(store).policy_of(tenant)


async def test_what_was_set_is_read(store: Store, elsewhere: Store, tenant: Tenant) -> None:
    done = await policies_of(store).put(tenant, WANTED, 0, BY_ANN, no_reply)
    assert done == replace(WANTED, etag=1, update_time=NOON, updated_by="ann")
    assert await policies_of(elsewhere).get(tenant) == done
    again = await policies_of(elsewhere).put(tenant, Policy(), 1, ("bob", NOON), no_reply)
    assert again == Policy(etag=2, update_time=NOON, updated_by="bob")
    assert await policies_of(store).get(tenant) == again


async def test_a_policy_is_set_only_at_the_etag_that_was_expected(store: Store, tenant: Tenant) -> None:
    policies = policies_of(store)
    for expected, current in ((1, 0), (2, 1), (5, 2)):
        with pytest.raises(EtagChanged) as caught:
            await policies.put(tenant, WANTED, expected, BY_ANN, no_reply)
        assert caught.value.metadata == {"expected_etag": str(expected), "current_etag": str(current)}
        await policies.put(tenant, WANTED, current, BY_ANN, no_reply)


async def test_of_many_who_expect_the_same_one_wins(store: Store, elsewhere: Store, tenant: Tenant) -> None:
    await policies_of(store).put(tenant, WANTED, 0, BY_ANN, no_reply)
    setting = [
        policies_of(where).put(tenant, replace(WANTED, keep_revisions=at), 1, BY_ANN, no_reply)
        for at, where in enumerate((store, elsewhere) * 5)
    ]
    done = await asyncio.gather(*setting, return_exceptions=True)
    (winner,) = [one for one in done if isinstance(one, Policy)]
    assert sum(isinstance(one, EtagChanged) for one in done) == 9
    assert await policies_of(store).get(tenant) == winner


async def test_many_who_expect_nothing_all_come_through(store: Store, elsewhere: Store, tenant: Tenant) -> None:
    setting = [policies_of(where).put(tenant, WANTED, 0, BY_ANN, no_reply) for where in (store, elsewhere) * 2]
    done = await asyncio.gather(*setting)
    assert sorted(one.etag for one in done if isinstance(one, Policy)) == [1, 2, 3, 4]


async def test_a_repeated_request_gets_its_first_answer(store: Store, elsewhere: Store, tenant: Tenant) -> None:
    request_id = uuid4()

    def reply(made: Policy) -> Reply:
        return Reply(request_id, b"p" * 32, f"etag {made.etag}".encode())

    asked = [policies_of(where).put(tenant, WANTED, 0, BY_ANN, reply) for where in (store, elsewhere) * 3]
    done = await asyncio.gather(*asked)
    assert [one.answer for one in done if isinstance(one, Answered)] == [b"etag 1"] * 5
    await policies_of(store).put(tenant, Policy(), 0, BY_ANN, no_reply)
    assert await policies_of(store).put(tenant, WANTED, 7, BY_ANN, reply) == Answered(b"etag 1")
    with pytest.raises(RequestIdReused):
        await policies_of(store).put(tenant, WANTED, 0, BY_ANN, lambda _: Reply(request_id, b"q" * 32, b""))
    assert (await policies_of(store).get(tenant)).etag == 2


async def test_a_policy_is_taken_for_current_for_some_seconds(store: Store, elsewhere: Store, tenant: Tenant) -> None:
    clock = Clock()
    policies = policies_of(store, clock)
    assert await policies.policy_of(tenant) == Policy()
    made = await policies_of(elsewhere).put(tenant, WANTED, 0, BY_ANN, no_reply)
    clock.now = FRESH_SECONDS - 0.1
    sent = len(store.sent)
    assert await policies.policy_of(tenant) == Policy()
    assert len(store.sent) == sent
    clock.now = FRESH_SECONDS
    assert await policies.policy_of(tenant) == made
    own = await policies.put(tenant, Policy(), 0, BY_ANN, no_reply)  # one's own change is known at once
    assert await policies.policy_of(tenant) == own


async def test_those_who_ask_at_the_same_time_read_once(store: Store, tenant: Tenant) -> None:
    policies, sent = policies_of(store), len(store.sent)
    assert len(set(await asyncio.gather(*(policies.policy_of(tenant) for _ in range(50))))) == 1
    assert len(store.sent) == sent + 1
    first, *others = [asyncio.create_task(policies.policy_of(rows.tenant())) for _ in range(3)]
    await asyncio.sleep(0)
    first.cancel()  # which is nobody else's loss
    assert await asyncio.gather(*others) == [Policy()] * 2


async def test_what_is_remembered_is_bounded(store: Store, tenant: Tenant, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REMEMBERED", 3)
    policies = policies_of(store)
    for owner in (tenant, *(rows.tenant() for _ in range(3))):
        await policies.policy_of(owner)
    sent = len(store.sent)
    await policies.policy_of(tenant)
    assert len(store.sent) == sent + 1


async def test_limits_are_the_databases_too(truth: asyncpg.Connection, tenant: Tenant) -> None:
    for column, value in (("keep_revisions", -1), ("keep_seconds", -0.1), ("auto_seconds", 0.0)):
        with pytest.raises(asyncpg.CheckViolationError):
            await rows.put(truth, "policies", {**rows.row("policies", tenant, uuid4()), column: value})
