"""Policies and compaction over the wire: what a tenant wants kept stays, and of what went it is said that it went."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import grpc
import pytest
from flowledger.v1 import admin_service_pb2 as pb
from flowledger.v1 import flow_pb2

from server import app
from server.services.audit_admin import AuditAdmin
from server.services.retention_admin import STATES, RetentionAdmin
from tests.conftest import Urls, settings
from tests.services.administration import call, refusal, verified
from tests.tenancy import Refusal, Tenancy
from tests.waiting import eventually

PHASE = "data_import"
DAY = 86_400


async def grown(tenancy: Tenancy, number: int = 40) -> str:
    """A flow at revision ``number``, with a document that every third commit changes."""
    flow_id = (await tenancy.create(state={"json": '{"at":1}'})).flow_id
    await tenancy.move(flow_id, PHASE, "IN_PROGRESS")
    for at in range(3, number + 1):
        if at % 3:
            await tenancy.call("ReportProgress", flow_id=flow_id, progress={"phase": PHASE, "fraction": at / 1000})
        else:
            await tenancy.call("UpdateFlow", flow_id=flow_id, update={"state": {"json": f'{{"at":{at}}}'}})
    return flow_id


async def keep(tenancy: Tenancy, revisions: int, **more: Any) -> Any:
    return (await call(tenancy, "UpdatePolicy", policy={"keep_revisions": revisions, **more})).policy


async def at(tenancy: Tenancy, flow_id: str, revision: int) -> bytes:
    """The flow as it was."""
    flow = (await tenancy.call("GetFlow", flow_id=flow_id, at_revision=revision, view="FLOW_VIEW_FULL")).flow
    assert flow.revision == revision
    found: bytes = flow.SerializeToString(deterministic=True)
    return found


# ---- GetPolicy, UpdatePolicy ----------------------------------------------------------------------------------------------------------


async def test_without_one_of_its_own_a_tenant_keeps_everything(tenancy: Tenancy) -> None:
    policy = (await call(tenancy, "GetPolicy")).policy
    assert (policy.keep_revisions, policy.etag, policy.updated_by) == (0, 0, "")
    assert (policy.keep_last_good, policy.keep_terminal, list(policy.checkpoint_before)) == (True, True, [])
    assert policy.auto_checkpoint_ttl.seconds == DAY
    assert not policy.HasField("update_time")
    await grown(tenancy)
    assert await call(tenancy, "CompactFlows") == pb.CompactFlowsResponse()


async def test_a_policy_is_returned_as_it_was_set_and_can_be_changed_and_sent_again(tenancy: Tenancy) -> None:
    wanted = {
        "keep_revisions": 7,
        "keep_duration": {"seconds": 3 * DAY, "nanos": 5000},
        "checkpoint_before": ["PHASE_STATE_ROLLED_BACK", "PHASE_STATE_COMPLETED"],
        "auto_checkpoint_ttl": {"seconds": 90},
    }
    done = (await call(tenancy, "UpdatePolicy", policy=wanted)).policy
    assert (done.etag, done.updated_by, done.keep_last_good, done.keep_terminal) == (1, "ada", False, False)
    assert (done.keep_duration.seconds, done.keep_duration.nanos, done.auto_checkpoint_ttl.seconds) == (3 * DAY, 5000, 90)
    assert set(done.checkpoint_before) == {flow_pb2.PHASE_STATE_ROLLED_BACK, flow_pb2.PHASE_STATE_COMPLETED}
    assert (await call(tenancy, "GetPolicy")).policy == done
    done.keep_revisions = 8
    again = (await call(tenancy, "UpdatePolicy", policy=done)).policy
    assert (again.etag, again.keep_revisions) == (2, 8)
    found = await refusal(tenancy, "UpdatePolicy", policy=done)  # whose etag is not current any more
    assert (found.code, found.reason) == (grpc.StatusCode.ABORTED, "CONCURRENT_MODIFICATION")
    assert found.metadata == {"expected_etag": "1", "current_etag": "2"}


async def test_a_repeat_is_answered_as_the_first_time(tenancy: Tenancy) -> None:
    request_id, flow_id = str(uuid4()), await grown(tenancy)
    policy = {"keep_revisions": 10, "etag": 0}
    first = await call(tenancy, "UpdatePolicy", policy=policy, request_id=request_id)
    await keep(tenancy, 20)
    assert await call(tenancy, "UpdatePolicy", policy=policy, request_id=request_id) == first
    assert (await call(tenancy, "GetPolicy")).policy.keep_revisions == 20
    for name, fields in (("UpdatePolicy", {"policy": {"keep_revisions": 11}}), ("CompactFlows", {})):
        assert (await refusal(tenancy, name, request_id=request_id, **fields)).reason == "REQUEST_ID_REUSED"
    another = str(uuid4())
    would = await call(tenancy, "CompactFlows", flow_id=flow_id, request_id=another, validate_only=True)  # which remembers nothing
    first = await call(tenancy, "CompactFlows", flow_id=flow_id, request_id=another)
    assert (first.events_removed, would.events_removed) == (20, 20)
    assert await call(tenancy, "CompactFlows", flow_id=flow_id, request_id=another) == first
    assert (await call(tenancy, "CompactFlows", flow_id=flow_id)).events_removed == 0


MALFORMED: list[tuple[str, dict[str, Any], set[str]]] = [
    ("UpdatePolicy", {}, {"policy"}),
    ("UpdatePolicy", {"policy": {"keep_revisions": -1}}, {"policy.keep_revisions"}),
    ("UpdatePolicy", {"policy": {"keep_duration": {"seconds": -1}}}, {"policy.keep_duration"}),
    ("UpdatePolicy", {"policy": {"keep_duration": {"seconds": 36_501 * DAY}}}, {"policy.keep_duration"}),
    ("UpdatePolicy", {"policy": {"keep_duration": {"nanos": -1}}}, {"policy.keep_duration"}),
    ("UpdatePolicy", {"policy": {"keep_duration": {"seconds": 2**62}}}, {"policy.keep_duration"}),
    ("UpdatePolicy", {"policy": {"auto_checkpoint_ttl": {}}}, {"policy.auto_checkpoint_ttl"}),
    ("UpdatePolicy", {"policy": {"auto_checkpoint_ttl": {"seconds": 36_501 * DAY}}}, {"policy.auto_checkpoint_ttl"}),
    ("UpdatePolicy", {"policy": {"checkpoint_before": [0]}}, {"policy.checkpoint_before[0]"}),
    ("UpdatePolicy", {"policy": {"checkpoint_before": [2, 99]}}, {"policy.checkpoint_before[1]"}),
    ("UpdatePolicy", {"policy": {"checkpoint_before": [2] * (STATES + 1)}}, {"policy.checkpoint_before"}),
    ("UpdatePolicy", {"policy": {"etag": -1}}, {"policy.etag"}),
    ("UpdatePolicy", {"policy": {"keep_revisions": -1}, "request_id": "x"}, {"policy.keep_revisions", "request_id"}),
    ("CompactFlows", {"flow_id": "x", "request_id": "\0"}, {"flow_id", "request_id"}),
    ("CompactFlows", {"flow_id": "9" * 100_000}, {"flow_id"}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "fields", "wrong"), MALFORMED)
async def test_what_is_malformed_is_named_and_changes_nothing(tenancy: Tenancy, name: str, fields: dict[str, Any], wrong: set[str]) -> None:
    await keep(tenancy, 5)
    found = await refusal(tenancy, name, **fields)
    assert (found.code, found.reason, set(found.violations)) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST", wrong)
    assert (await call(tenancy, "GetPolicy")).policy.etag == 1


# ---- CompactFlows ---------------------------------------------------------------------------------------------------------------------


async def test_of_what_was_compacted_every_rpc_says_so_and_names_the_oldest_that_is_kept(tenancy: Tenancy) -> None:
    flow_id = await grown(tenancy)
    before = {revision: await at(tenancy, flow_id, revision) for revision in range(30, 41)}
    await keep(tenancy, 10)
    would = await call(tenancy, "CompactFlows", flow_id=flow_id, validate_only=True)
    assert [event.revision for event in (await tenancy.call("ListFlowEvents", flow_id=flow_id)).events] == list(range(1, 41))
    done = await call(tenancy, "CompactFlows", flow_id=flow_id)
    assert done == would
    assert (done.flows, done.events_removed, done.flows_damaged) == (1, 30, 0)
    assert done.versions_removed > 0
    assert {revision: await at(tenancy, flow_id, revision) for revision in before} == before  # 30 is what all later ones start from
    assert [event.revision for event in (await tenancy.call("ListFlowEvents", flow_id=flow_id, after_revision=30)).events] == list(
        range(31, 41)
    )
    watching = {"flow_id": flow_id, "start": "WATCH_START_AFTER_REVISION"}
    asked: list[tuple[str, dict[str, Any], int]] = [
        ("GetFlow", {"flow_id": flow_id, "at_revision": 29}, 30),
        ("DiffFlow", {"flow_id": flow_id, "from_revision": 12, "to_revision": 40}, 30),
        ("RevertFlow", {"flow_id": flow_id, "revision": 1}, 30),
        ("ForkFlow", {"flow_id": flow_id, "revision": 29}, 30),
        ("ListFlowEvents", {"flow_id": flow_id}, 31),
        ("ListFlowEvents", {"flow_id": flow_id, "after_revision": 29}, 31),
        ("ListFlowEvents", {"flow_id": flow_id, "phases": [PHASE]}, 31),
        ("WatchFlow", {**watching, "after_revision": 29}, 31),
        ("WatchFlow", watching, 31),
    ]
    for name, fields, oldest in asked:
        found = await (refused_watch(tenancy, fields) if name == "WatchFlow" else tenancy.refusal(name, **fields))
        assert (found.code, found.reason) == (grpc.StatusCode.OUT_OF_RANGE, "REVISION_COMPACTED"), name
        assert (found.metadata["oldest_revision"], found.metadata["head_revision"]) == (str(oldest), "40"), name
    stream = tenancy.watch(after_revision=30, **watching)
    events = [message.event.revision async for message in until_event(stream)]
    stream.cancel()
    assert events == [31]
    assert (await verified(tenancy, flow_id))[1] == []


async def until_event(stream: Any) -> AsyncIterator[Any]:
    """The first message that has an event, whatever came before it."""
    async for message in stream:
        if message.HasField("event"):
            yield message
            return


async def refused_watch(tenancy: Tenancy, fields: dict[str, Any]) -> Refusal:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await anext(aiter(tenancy.watch(**fields)))
    return Refusal.of(caught.value)


async def test_a_list_whose_events_go_while_it_is_read_is_refused_and_not_shortened(tenancy: Tenancy) -> None:
    flow_id = await grown(tenancy)
    page = await tenancy.call("ListFlowEvents", flow_id=flow_id, page_size=5)
    await keep(tenancy, 10)
    await call(tenancy, "CompactFlows")
    found = await tenancy.refusal("ListFlowEvents", flow_id=flow_id, page_size=5, page_token=page.next_page_token)
    assert (found.reason, found.metadata["oldest_revision"]) == ("REVISION_COMPACTED", "31")


async def test_the_revision_at_which_a_flow_ended_stays_however_old(tenancy: Tenancy) -> None:
    flow_id = await grown(tenancy, 10)
    await tenancy.call("CancelFlow", flow_id=flow_id)
    ended = await at(tenancy, flow_id, 11)
    for _ in range(10):
        await tenancy.call("DeleteFlow", flow_id=flow_id)
        await tenancy.call("UndeleteFlow", flow_id=flow_id)
    await keep(tenancy, 5, keep_terminal=True)
    assert (await call(tenancy, "CompactFlows")).events_removed == 26
    assert await at(tenancy, flow_id, 11) == ended
    assert (await tenancy.refusal("GetFlow", flow_id=flow_id, at_revision=12)).reason == "REVISION_COMPACTED"


async def test_a_flow_whose_chain_was_damaged_is_counted_and_left_alone(tenancy: Tenancy, superuser: asyncpg.Connection) -> None:
    sound, damaged = await grown(tenancy), await grown(tenancy)
    await superuser.execute("UPDATE events SET actor = 'eve' WHERE flow_id = $1 AND revision = 9", UUID(damaged))
    await keep(tenancy, 10)
    done = await call(tenancy, "CompactFlows")
    assert (done.flows, done.events_removed, done.flows_damaged) == (1, 30, 1)
    assert (await verified(tenancy))[1] == [(damaged, 9, "CHANGED")]
    assert len((await tenancy.call("ListFlowEvents", flow_id=damaged)).events) == 40
    assert (await verified(tenancy, sound))[1] == []


# ---- Tenants --------------------------------------------------------------------------------------------------------------------------

STRANGERS: dict[str, Callable[[Tenancy], Tenancy]] = {
    "another tenant": lambda owner: Tenancy.fresh(owner.channel),
    "another engagement": lambda owner: owner.other_engagement(),
    "another account": lambda owner: replace(owner, account=uuid4()),
    "the ids exchanged": lambda owner: replace(owner, account=owner.engagement, engagement=owner.account),
}


async def not_found(other: Tenancy, name: str, flow_id: str) -> None:
    assert (await refusal(other, name, flow_id=flow_id)).reason == "FLOW_NOT_FOUND"


async def reads_nothing(other: Tenancy, name: str, flow_id: str) -> None:
    await not_found(other, name, flow_id)
    assert (await call(other, name))[-1].summary.events == 0


async def has_its_own(other: Tenancy, name: str, _: str) -> None:
    assert (await call(other, name)).policy.etag == 0


async def sets_its_own(other: Tenancy, name: str, _: str) -> None:
    assert (await call(other, name, policy={"keep_revisions": 1})).policy.etag == 1


async def compacts_its_own(other: Tenancy, name: str, flow_id: str) -> None:
    await keep(other, 1)
    await not_found(other, name, flow_id)
    assert await call(other, name) == pb.CompactFlowsResponse()


CASES: dict[str, Callable[[Tenancy, str, str], Awaitable[None]]] = {
    "VerifyAudit": reads_nothing,
    "ExportAudit": reads_nothing,
    "GetPolicy": has_its_own,
    "UpdatePolicy": sets_its_own,
    "CompactFlows": compacts_its_own,
}


def test_every_rpc_has_a_case() -> None:
    assert set(CASES) == {name for servicer in (AuditAdmin, RetentionAdmin) for name in vars(servicer) if name[0].isupper()}


@pytest.mark.parametrize("stranger", STRANGERS.values(), ids=STRANGERS)
@pytest.mark.parametrize("name", CASES)
async def test_another_tenant_sees_and_changes_nothing(tenancy: Tenancy, name: str, stranger: Callable[[Tenancy], Tenancy]) -> None:
    flow_id = await grown(tenancy, 12)
    policy = await keep(tenancy, 5)
    await CASES[name](stranger(tenancy), name, flow_id)
    assert (await call(tenancy, "GetPolicy")).policy == policy
    assert len((await tenancy.call("ListFlowEvents", flow_id=flow_id)).events) == 12


# ---- By itself ------------------------------------------------------------------------------------------------------------------------


async def test_the_sweeper_of_a_server_compacts_by_itself(urls: Urls, superuser_of: Any) -> None:
    async with app.running(settings(urls, sweep_seconds=0.1)) as server, grpc.aio.insecure_channel(server.address) as channel:
        tenancy = Tenancy.fresh(channel)
        truth = await superuser_of(urls)
        await keep(tenancy, 10)
        flow_id = await grown(tenancy)

        async def compacted() -> bool:
            return bool(await truth.fetchval("SELECT count(*) < 31 FROM events WHERE flow_id = $1", UUID(flow_id)))

        await eventually(compacted)
        assert (await verified(tenancy))[1] == []
        assert (await tenancy.refusal("GetFlow", flow_id=flow_id, at_revision=1)).reason == "REVISION_COMPACTED"
