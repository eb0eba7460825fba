"""How current reads are: STRONG sees whatever was committed, CACHED what was so a moment ago, and neither goes back behind min_revision."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import grpc
import pytest
from flowledger.v1 import flow_service_pb2 as pb

from server import app
from server.services.reads import Reads
from tests.conftest import Urls, settings
from tests.tenancy import PATIENCE, Tenancy

VIEWS = ("FLOW_VIEW_SUMMARY", "FLOW_VIEW_BASIC", "FLOW_VIEW_FULL")
STRONG, CACHED = "READ_CONSISTENCY_STRONG", "READ_CONSISTENCY_CACHED"


@asynccontextmanager
async def two_servers(urls: Urls, **more: Any) -> AsyncIterator[tuple[Tenancy, Tenancy]]:
    """The same tenant on two servers of one database."""
    async with AsyncExitStack() as stack:
        channels = []
        for _ in range(2):
            server = await stack.enter_async_context(app.running(settings(urls, **more)))
            channels.append(await stack.enter_async_context(grpc.aio.insecure_channel(server.address)))
        tenancy = Tenancy.fresh(channels[0])
        yield tenancy, tenancy.on(channels[1])


async def renamed(tenancy: Tenancy, flow_id: str, name: str) -> int:
    return int((await tenancy.call("UpdateFlow", flow_id=flow_id, update={"display_name": name})).flow.revision)


async def name_of(tenancy: Tenancy, flow_id: str, **more: Any) -> str:
    return str((await tenancy.call("GetFlow", flow_id=flow_id, **more)).flow.display_name)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was read from the database, each a view's number: what is answered from memory is not among it."""
    seen: list[str] = []
    read = Reads._read

    async def counted(self: Reads, key: Any, view: Any, form: Any) -> Any:
        seen.append(pb.GetFlowRequest(view=view, form=form).SerializeToString().hex())
        return await read(self, key, view, form)

    monkeypatch.setattr(Reads, "_read", counted)
    return seen


@pytest.mark.parametrize("view", VIEWS)
async def test_a_flow_that_did_not_move_is_read_and_written_once(tenancy: Tenancy, reads: list[str], view: str) -> None:
    flow_id = (await tenancy.create(state={"json": '{"a":1}'})).flow_id
    found = [await tenancy.call("GetFlow", flow_id=flow_id, view=view) for _ in range(5)]
    assert all(one == found[0] for one in found)
    assert len(reads) == 1


async def test_views_and_forms_are_kept_apart(tenancy: Tenancy, reads: list[str]) -> None:
    flow_id = (await tenancy.create(state={"json": '{"a":1}'})).flow_id
    for _ in range(2):
        full = {form: (await tenancy.call("GetFlow", flow_id=flow_id, view=VIEWS[2], form=form)).flow.state for form in (0, 1, 2)}
        assert (full[0].json, full[1].json, full[2].struct["a"]) == ('{"a":1}', '{"a":1}', 1)
        assert not (await tenancy.call("GetFlow", flow_id=flow_id, view=VIEWS[1])).flow.HasField("state")
    assert len(reads) == 3  # FULL in two forms, BASIC


@pytest.mark.parametrize("view", VIEWS)
async def test_a_strong_read_sees_what_another_server_committed(urls: Urls, view: str) -> None:
    async with two_servers(urls, wakeups="local", cache_seconds=1000) as (one, two):
        flow_id = (await one.create()).flow_id
        for at in range(5):
            assert await name_of(two, flow_id, view=view) == ("" if at == 0 else f"name {at - 1}")
            await renamed(one, flow_id, f"name {at}")
            assert await name_of(two, flow_id, view=view, consistency=STRONG) == f"name {at}"


async def test_a_cached_read_may_be_behind_but_never_behind_the_callers_own_revision(urls: Urls) -> None:
    async with two_servers(urls, wakeups="local", cache_seconds=1000) as (one, two):
        flow_id = (await one.create(display_name="old")).flow_id
        assert await name_of(two, flow_id, consistency=CACHED) == "old"
        revision = await renamed(one, flow_id, "new")
        assert await name_of(two, flow_id, consistency=CACHED) == "old"
        assert await name_of(two, flow_id, consistency=CACHED, min_revision=revision) == "new"
        assert await name_of(two, flow_id, consistency=CACHED) == "new"  # what was seen once is not unseen
        refusal = await two.refusal("GetFlow", flow_id=flow_id, consistency=CACHED, min_revision=revision + 1)
        assert refusal.reason == "REVISION_IN_FUTURE"


async def test_a_cached_read_of_several_flows_is_each_as_it_is_alone(urls: Urls) -> None:
    async with two_servers(urls, wakeups="local", cache_seconds=1000) as (one, two):
        ids = [(await one.create(display_name=f"flow {at}")).flow_id for at in range(3)]
        assert await name_of(two, ids[1], consistency=CACHED) == "flow 1"
        await renamed(one, ids[1], "later")
        batch = await two.call("BatchGetFlows", flow_ids=ids, consistency=CACHED)
        assert [flow.display_name for flow in batch.flows] == ["flow 0", "flow 1", "flow 2"]
        batch = await two.call("BatchGetFlows", flow_ids=ids)
        assert [flow.display_name for flow in batch.flows] == ["flow 0", "later", "flow 2"]


async def test_a_cached_read_is_not_older_than_it_may_be(urls: Urls) -> None:
    async with two_servers(urls, wakeups="local", cache_seconds=0) as (one, two):
        flow_id = (await one.create()).flow_id
        for at in range(3):
            await renamed(one, flow_id, f"name {at}")
            assert await name_of(two, flow_id, consistency=CACHED) == f"name {at}"


async def test_a_hint_from_another_server_ends_what_was_cached(urls: Urls) -> None:
    async with two_servers(urls, cache_seconds=1000) as (one, two):
        flow_id = (await one.create(display_name="first")).flow_id
        assert await name_of(two, flow_id, consistency=CACHED) == "first"
        async with asyncio.timeout(PATIENCE):
            at = 0
            while await name_of(two, flow_id, consistency=CACHED) == "first":  # until the two have heard of each other
                at += 1
                await renamed(one, flow_id, f"name {at}")


@pytest.mark.parametrize("consistency", [STRONG, CACHED])
async def test_another_tenant_is_not_answered_from_memory(tenancy: Tenancy, consistency: str) -> None:
    flow_id = (await tenancy.create()).flow_id
    for _ in range(2):
        await tenancy.call("GetFlow", flow_id=flow_id, consistency=consistency)
    for other in (Tenancy.fresh(tenancy.channel), tenancy.other_engagement()):
        assert (await other.refusal("GetFlow", flow_id=flow_id, consistency=consistency)).reason == "FLOW_NOT_FOUND"
        assert (await other.refusal("BatchGetFlows", flow_ids=[flow_id], consistency=consistency)).reason == "FLOW_NOT_FOUND"


async def test_a_consistency_that_does_not_exist_is_refused(tenancy: Tenancy) -> None:
    flow_id = (await tenancy.create()).flow_id
    assert (await tenancy.refusal("GetFlow", flow_id=flow_id, consistency=9)).violations.keys() == {"consistency"}
    assert (await tenancy.refusal("BatchGetFlows", flow_ids=[flow_id], consistency=9)).violations.keys() == {"consistency"}
