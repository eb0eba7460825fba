"""Checkpoints that nobody asked for: before a roll-back always, before what the tenant's policy lists, and never at a cost to others."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from uuid import UUID

import pytest

from server.checkpoints.precaution import Precaution
from server.repository.checkpoint_statements import Narrowed
from server.repository.id_pages import LAST_ID
from server.repository.plan import Asked
from server.repository.requests import Answered, Committed
from server.statemachine.change import Change, MergeDocument, RetryPhase, RollbackPhase, TransitionPhase, UpdateFlow
from server.statemachine.checkpoint import Checkpoint, CheckpointKind, may_want_copy
from server.statemachine.errors import ConcurrentModification, FlowNotFound, InvalidPhaseTransition, KeyUnavailable
from server.statemachine.policy import Policy
from server.statemachine.states import FailureCode, PhaseState
from server.statemachine.values import Failure, FlowKey, Tenant
from server.vault import EnvironmentKeys, written
from tests.checkpoints.bench import STATE, Bench
from tests.repository import rows
from tests.repository.store import report, request

_S, KIND = PhaseState, CheckpointKind
PHASE = "data_import"
FAILURE = Failure(FailureCode.AGENT_TIMEOUT)
NONE = Policy()


def listing(*states: PhaseState) -> Policy:
    """A policy with checkpoints before those."""
    return Policy(checkpoint_before=frozenset(states), auto_checkpoint_ttl=timedelta(hours=2))


def to(state: PhaseState, phase: str = PHASE) -> TransitionPhase:
    return TransitionPhase(phase, state, failure=FAILURE if state is _S.FAILED else None)


def always(policy: Policy) -> Callable[[Tenant], Awaitable[Policy]]:
    async def policy_of(_: Tenant) -> Policy:
        return policy

    return policy_of


def precaution(bench: Bench, policy: Policy = NONE) -> Precaution:
    return Precaution(bench.whole, bench.archive, always(policy))


async def copies(bench: Bench, tenant: Tenant) -> list[Checkpoint]:
    """The tenant's checkpoints, the oldest first."""
    return list(reversed(await bench.archive.checkpoints.page(tenant, Narrowed(), LAST_ID, 100)))


async def at(bench: Bench, tenant: Tenant, *changes: Change) -> UUID:
    """A flow after those changes."""
    flow_id = await bench.store.create(tenant)
    for change in changes:
        await bench.store.commit(bench.store.asked(tenant, flow_id, change))
    return flow_id


COMPLETED = (to(_S.IN_PROGRESS), to(_S.COMPLETED))
DEPENDANT = (*COMPLETED, to(_S.IN_PROGRESS, "field_mapping"), to(_S.WAITING_APPROVAL, "field_mapping"))

CASES: dict[str, tuple[Policy, Sequence[Change], tuple[Change, ...], CheckpointKind | None]] = {
    "a beginning": (NONE, (), (to(_S.IN_PROGRESS),), None),
    "a failure": (NONE, (to(_S.IN_PROGRESS),), (to(_S.FAILED),), None),
    "a retry needed": (NONE, (to(_S.IN_PROGRESS),), (to(_S.RETRY_NEEDED),), None),
    "a roll-back": (NONE, COMPLETED, (RollbackPhase(PHASE),), KIND.PRE_ROLLBACK),
    "a transition that is a roll-back": (NONE, COMPLETED, (to(_S.ROLLED_BACK),), KIND.PRE_ROLLBACK),
    "a redo that rolls nothing back": (NONE, COMPLETED, (to(_S.RETRY_NEEDED),), None),
    "a redo that rolls a dependant back": (NONE, DEPENDANT, (to(_S.RETRY_NEEDED),), KIND.PRE_ROLLBACK),
    "a roll-back after other changes": (NONE, COMPLETED, (UpdateFlow(labels={"a": "b"}), RollbackPhase(PHASE)), KIND.PRE_ROLLBACK),
    "a listed state": (listing(_S.COMPLETED), (to(_S.IN_PROGRESS),), (to(_S.COMPLETED),), KIND.AUTO),
    "another than the listed one": (listing(_S.COMPLETED), (), (to(_S.IN_PROGRESS),), None),
    "a listed state by a retry": (listing(_S.IN_PROGRESS), (to(_S.IN_PROGRESS), to(_S.RETRY_NEEDED)), (RetryPhase(PHASE),), KIND.AUTO),
    "a failure that becomes a listed state": (listing(_S.RETRY_NEEDED), (to(_S.IN_PROGRESS),), (to(_S.FAILED),), KIND.AUTO),
    "a failure that does not become the listed state": (listing(_S.FAILED), (to(_S.IN_PROGRESS),), (to(_S.FAILED),), None),
    "a roll-back to a listed state": (listing(_S.ROLLED_BACK), COMPLETED, (RollbackPhase(PHASE),), KIND.PRE_ROLLBACK),
    "with a document merged": (
        listing(_S.COMPLETED),
        (to(_S.IN_PROGRESS),),
        (UpdateFlow(documents=(MergeDocument(STATE, b'{"b":2}'),)), to(_S.COMPLETED)),
        KIND.AUTO,
    ),
    "nothing that moves": (listing(*PhaseState), (to(_S.IN_PROGRESS),), (report(500),), None),
}


@pytest.mark.parametrize(("policy", "before", "changes", "kind"), CASES.values(), ids=CASES)
async def test_a_checkpoint_is_taken_where_one_is_wanted_and_of_the_revision_before(
    here: Bench, tenant: Tenant, policy: Policy, before: Sequence[Change], changes: tuple[Change, ...], kind: CheckpointKind | None
) -> None:
    flow_id = await at(here, tenant, *before)
    record = await here.store.record(tenant, flow_id)
    done = await precaution(here, policy).commit(here.store.asked(tenant, flow_id, *changes))
    assert isinstance(done, Committed)
    taken = await copies(here, tenant)
    assert [one.kind for one in taken] == ([] if kind is None else [kind])
    for one in taken:
        assert (one.revision, one.created_by) == (done.flow.revision - 1, "ann")
        assert one.reason.startswith("before phase ")
        assert one.expire_time is not None
        assert one.expire_time - one.create_time == (timedelta(hours=2) if kind is KIND.AUTO else timedelta(days=30))
        opened = await here.archive.opening.header(tenant, one.checkpoint_id)
        assert (await here.archive.opening.copy(opened)).flow == record.head.flow


async def test_what_needs_no_checkpoint_costs_nothing_more(here: Bench, tenant: Tenant) -> None:
    flow_id = await at(here, tenant, to(_S.IN_PROGRESS))
    asked = [here.store.asked(tenant, flow_id, report(1)), here.store.asked(tenant, flow_id, to(_S.COMPLETED))]
    here.store.sent.clear()
    for one in asked:
        await precaution(here).commit(one)
    assert len(here.store.sent) == 2  # the two commits themselves
    assert not any(may_want_copy(NONE, one.changes) for one in asked)


@pytest.mark.parametrize("change", [RollbackPhase(PHASE), to(_S.ROLLED_BACK)])
async def test_what_the_rules_refuse_leaves_no_checkpoint(here: Bench, tenant: Tenant, change: Change) -> None:
    flow_id = await at(here, tenant)
    with pytest.raises(InvalidPhaseTransition):
        await precaution(here).commit(here.store.asked(tenant, flow_id, change))
    done = await at(here, tenant, *COMPLETED)
    with pytest.raises(ConcurrentModification):
        await precaution(here).commit(here.store.asked(tenant, done, change, expected=1))
    with pytest.raises(FlowNotFound):
        await precaution(here).commit(here.store.asked(tenant, rows.tenant().engagement_id, change))
    assert await copies(here, tenant) == []


async def test_a_repeated_request_takes_no_second_checkpoint(here: Bench, elsewhere: Bench, tenant: Tenant) -> None:
    flow_id, asking = await at(here, tenant, *COMPLETED), request()

    async def once(bench: Bench) -> Committed | Answered:
        return await precaution(bench).commit(bench.store.asked(tenant, flow_id, RollbackPhase(PHASE), request=asking))

    done = await asyncio.gather(*(once(bench) for bench in (here, elsewhere) * 4))
    assert sum(isinstance(one, Committed) for one in done) == 1
    assert len(await copies(here, tenant)) == 1
    assert isinstance(await once(elsewhere), Answered)
    await here.store.commit(here.store.asked(tenant, flow_id, to(_S.IN_PROGRESS)))
    await here.store.commit(here.store.asked(tenant, flow_id, to(_S.COMPLETED)))
    assert isinstance(await once(here), Answered)  # although it would be possible again
    assert len(await copies(here, tenant)) == 1


async def test_a_checkpoint_is_of_the_revision_right_before_also_when_others_commit(here: Bench, elsewhere: Bench, tenant: Tenant) -> None:
    flow_id = await at(here, tenant, *COMPLETED)

    async def others(bench: Bench) -> None:
        for number in range(10):
            await bench.write(tenant, flow_id, b'{"at":%d}' % number)

    rollback, *_ = await asyncio.gather(
        precaution(here).commit(here.store.asked(tenant, flow_id, RollbackPhase(PHASE))), others(here), others(elsewhere)
    )
    assert isinstance(rollback, Committed)
    assert [one.revision for one in await copies(here, tenant)] == [rollback.flow.revision - 1]


async def test_a_flow_that_never_rests_is_rolled_back_all_the_same(here: Bench, tenant: Tenant) -> None:
    """Somebody is quicker each time: in the end a copy of a moment before has to do, and the rolled-back state is not lost."""
    flow_id = await at(here, tenant, *COMPLETED)

    class Hurried(Precaution):
        async def _secured(self, policy: Policy, asked: Asked) -> tuple[Asked, list[Checkpoint]]:
            found = await super()._secured(policy, asked)
            await here.write(tenant, flow_id, b"{}")
            return found

    hurried = Hurried(here.whole, here.archive, always(NONE))
    done = await hurried.commit(here.store.asked(tenant, flow_id, RollbackPhase(PHASE)))
    assert isinstance(done, Committed)
    assert [one.revision for one in await copies(here, tenant)] == [done.flow.revision - 2]
    with pytest.raises(ConcurrentModification):
        await hurried.commit(here.store.asked(tenant, flow_id, to(_S.NOT_STARTED), RollbackPhase(PHASE), expected=done.flow.revision - 1))


async def test_a_batch_takes_a_checkpoint_of_each_flow_that_wants_one(here: Bench, tenant: Tenant) -> None:
    flows = [await at(here, tenant, *COMPLETED) for _ in range(3)]
    changes: list[Change] = [RollbackPhase(PHASE), UpdateFlow(display_name="x"), to(_S.ROLLED_BACK)]

    def batch(**expected: int) -> list[Asked]:
        return [
            here.store.asked(tenant, flow_id, change, expected=expected.get(f"at{number}", 0))
            for number, (flow_id, change) in enumerate(zip(flows, changes, strict=True))
        ]

    with pytest.raises(ConcurrentModification) as caught:
        await precaution(here).commit_together(batch(at1=1), None)
    assert caught.value.metadata["commit_index"] == "1"
    assert await copies(here, tenant) == []
    asking = request()
    done = await precaution(here).commit_together(batch(), asking)
    assert isinstance(done, list)
    taken = await copies(here, tenant)
    assert [(one.flow_id, one.revision, one.kind) for one in taken] == [(flow_id, 3, KIND.PRE_ROLLBACK) for flow_id in (flows[0], flows[2])]
    assert isinstance(await precaution(here).commit_together(batch(), asking), Answered)
    assert len(await copies(here, tenant)) == 2
    missing = here.store.asked(tenant, rows.tenant().engagement_id, RollbackPhase(PHASE))
    with pytest.raises(FlowNotFound):
        await precaution(here).commit_together([missing], None)


async def test_a_roll_back_whose_checkpoint_cannot_be_taken_is_not_done(here: Bench, tenant: Tenant) -> None:
    flow_id = await at(here, tenant, *COMPLETED)
    await here.take(FlowKey(tenant, flow_id))
    without = Bench(here.store, EnvironmentKeys(written("another", bytes(32))))
    for call in (
        precaution(without).commit(here.store.asked(tenant, flow_id, RollbackPhase(PHASE))),
        precaution(without).commit_together([here.store.asked(tenant, flow_id, RollbackPhase(PHASE))], None),
    ):
        with pytest.raises(KeyUnavailable, match="nothing was changed, since the checkpoint before it cannot be taken"):
            await call
    assert (await here.store.head(tenant, flow_id)).flow.revision == 3
    await precaution(without).commit(here.store.asked(tenant, flow_id, UpdateFlow(display_name="x")))  # all else goes on


async def test_a_phase_that_takes_nothing_back_is_sent_back_without_a_look_at_the_flow_before(here: Bench, tenant: Tenant) -> None:
    class Unlooked(Precaution):
        async def _secured(self, policy: Policy, asked: Asked) -> tuple[Asked, list[Checkpoint]]:
            raise AssertionError("it was looked at")

    flow_id = await at(here, tenant, to(_S.IN_PROGRESS))
    unlooked = Unlooked(here.whole, here.archive, always(NONE))
    assert isinstance(await unlooked.commit(here.store.asked(tenant, flow_id, to(_S.RETRY_NEEDED))), Committed)
    assert await copies(here, tenant) == []
