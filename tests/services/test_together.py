"""What history, checkpoints, recovery, audit and watches promise holds for a flow that has met all of them."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import UUID

import asyncpg
from flowledger.v1 import flow_pb2, recovery_pb2
from flowledger.v1 import flow_service_pb2 as pb

from tests.services.administration import call, verified
from tests.services.checkpoints import Sealing
from tests.services.sealing_calls import confirm
from tests.services.test_retention import grown, keep
from tests.tenancy import PATIENCE, Tenancy

REVISIONS = 130


async def sound(tenancy: Tenancy, flow_id: str, *noted: int) -> None:
    """Nothing is wrong with the flow, its checkpoints and its chain, but for events that a recovery ``noted`` as lost."""
    found = await tenancy.call("ValidateFlow", flow_id=flow_id)
    assert ([finding.revision for finding in found.findings], found.mendable) == (list(noted), False)
    summary, breaks = await verified(tenancy, flow_id)
    assert (summary.broken_flows, breaks) == (0, [])


async def compacted(tenancy: Tenancy) -> str:
    """A flow of whose history only the end is kept, and a checkpoint of it."""
    flow_id = await grown(tenancy, REVISIONS)
    await Sealing(tenancy).create(flow_id, pinned=True)
    await keep(tenancy, 10)
    done = await call(tenancy, "CompactFlows", flow_id=flow_id)
    assert done.events_removed > 0
    return flow_id


async def state(tenancy: Tenancy, flow_id: str) -> Any:
    """What a recovery or a restore is to bring back."""
    flow = (await tenancy.call("GetFlow", flow_id=flow_id, view="FLOW_VIEW_FULL")).flow
    return flow.state, [list(child.phases) for child in flow.children], flow.status, flow.progress_percent


async def heard(tenancy: Tenancy, start: pb.WatchFlowsStart.ValueType, count: int) -> list[int]:
    """The revisions of the first so many events of WatchFlows."""
    found: list[int] = []
    async with asyncio.timeout(PATIENCE):
        async for message in tenancy.watch_all(start=start):
            if message.HasField("change"):
                found.append(message.change.revision)
            if len(found) == count:
                break
    return found


async def test_a_compacted_flow_is_sound_and_can_be_restored_recovered_and_watched(tenancy: Tenancy, superuser: asyncpg.Connection) -> None:
    flow_id = await compacted(tenancy)
    await sound(tenancy, flow_id)
    before = await state(tenancy, flow_id)
    assert (await tenancy.call("RecoverFlow", flow_id=flow_id, validate_only=True)).plan.rung == recovery_pb2.RECOVERY_RUNG_NONE
    # A kept revision is the newest again; then the pinned checkpoint is.
    oldest = (await tenancy.refusal("GetFlow", flow_id=flow_id, at_revision=2)).metadata["oldest_revision"]
    await tenancy.call("RevertFlow", flow_id=flow_id, revision=int(oldest))
    (checkpoint,) = await Sealing(tenancy).listed()
    await Sealing(tenancy).call("RestoreCheckpoint", checkpoint_id=checkpoint.checkpoint_id)
    assert await state(tenancy, flow_id) == before
    await sound(tenancy, flow_id)
    first = int((await tenancy.refusal("ListFlowEvents", flow_id=flow_id)).metadata["oldest_revision"])
    kept = (await tenancy.call("ListFlowEvents", flow_id=flow_id, after_revision=first - 1, page_size=1000)).events
    assert await heard(tenancy, pb.WATCH_FLOWS_START_BEGINNING, len(kept)) == [event.revision for event in kept]
    # The document is damaged: the history that is left is enough.
    await superuser.execute("UPDATE documents SET body = 'damaged' WHERE flow_id = $1", UUID(flow_id))
    answer = await tenancy.call("RecoverFlow", flow_id=flow_id)
    assert answer.plan.rung in (recovery_pb2.RECOVERY_RUNG_REPAIR, recovery_pb2.RECOVERY_RUNG_CHECKPOINT)
    assert await state(tenancy, flow_id) == before
    await sound(tenancy, flow_id)


async def test_what_a_recovery_writes_holds_in_the_chain_and_is_compacted_like_the_rest(
    tenancy: Tenancy, superuser: asyncpg.Connection
) -> None:
    flow_id = await grown(tenancy, 30)
    before = await state(tenancy, flow_id)
    await superuser.execute("DELETE FROM events WHERE flow_id = $1 AND revision = 30", UUID(flow_id))
    _, breaks = await verified(tenancy, flow_id)
    assert [(flow, kind) for flow, _, kind in breaks] == [(flow_id, "MISSING")]
    await tenancy.call("RecoverFlow", flow_id=flow_id)
    assert await state(tenancy, flow_id) == before
    await sound(tenancy, flow_id, 30)
    for _ in range(10):
        await tenancy.call("UpdateFlow", flow_id=flow_id, update={"display_name": "on it goes"})
    await keep(tenancy, 5)
    assert (await call(tenancy, "CompactFlows", flow_id=flow_id)).events_removed > 0
    await sound(tenancy, flow_id)


async def test_an_erased_tenant_leaves_a_chain_that_holds_and_nothing_else(tenancy: Tenancy, superuser: asyncpg.Connection) -> None:
    flow_id, other = await compacted(tenancy), await grown(tenancy, 5)
    erased = (await call(tenancy, "EraseTenant", confirm=confirm(tenancy))).receipt
    assert (erased.flows, erased.checkpoints) == (2, 1)
    summary, breaks = await verified(tenancy)
    assert (breaks, summary.events) == ([], summary.erased_events)
    assert summary.events > 0
    for one in (flow_id, other):
        assert (await tenancy.refusal("GetFlow", flow_id=one)).reason == "FLOW_NOT_FOUND"
    # The tenant begins anew as any other.
    fresh = await grown(tenancy, 3)
    await Sealing(tenancy).create(fresh)
    await sound(tenancy, fresh)
    assert await heard(tenancy, pb.WATCH_FLOWS_START_BEGINNING, 3) == [1, 2, 3]
    assert (await tenancy.call("GetFlow", flow_id=fresh)).flow.status == flow_pb2.FLOW_STATUS_DATA_GATHERING
