"""ListFlows, BatchGetFlows and ListFlowEvents: what is selected, in which order, and page by page nothing twice and nothing missed."""

from __future__ import annotations

from typing import Any
from uuid import UUID, uuid4

import asyncpg
import grpc
import orjson
import pytest
from flowledger.v1 import flow_pb2

from tests.cluster import Cluster
from tests.conftest import Urls
from tests.repository.test_filter import CASES, ROWS
from tests.tenancy import Tenancy


async def _pages(tenancy: Tenancy, **fields: Any) -> list[list[flow_pb2.Flow]]:
    """Every page, the last one without a token."""
    pages, token = [], ""
    while True:
        page = await tenancy.call("ListFlows", page_token=token, **fields)
        pages.append(list(page.flows))
        token = page.next_page_token
        if not token:
            return pages


def _names(pages: list[list[flow_pb2.Flow]]) -> list[str]:
    return [flow.display_name for page in pages for flow in page]


@pytest.fixture(scope="module")
async def filtered(channel: grpc.aio.Channel, postgres: Cluster, shared_urls: Urls) -> tuple[Tenancy, dict[str, str]]:
    """A tenant whose flows are the rows that the filter's cases speak of, and the letters of their ids."""
    tenancy = Tenancy.fresh(channel)
    connection = await asyncpg.connect(postgres.url(shared_urls.name, "postgres"))
    letters = {}
    for letter, row in ROWS.items():
        flow_id = (await tenancy.create(type=row.type)).flow_id
        letters[flow_id] = letter
        await connection.execute(
            "UPDATE flows SET status = $2, display_name = $3, created_by = $4, progress = $5, revision = $6, create_time = $7,"
            " update_time = $8, end_time = $9, labels = $10::jsonb WHERE flow_id = $1",
            UUID(flow_id),
            row.status,
            row.display_name,
            row.created_by,
            row.progress,
            row.revision,
            row.create_time,
            row.update_time,
            row.end_time,
            orjson.dumps(dict(row.labels)).decode(),
        )
    await connection.close()
    return tenancy, letters


@pytest.mark.parametrize(("text", "rows"), CASES)
async def test_a_filter_selects_its_rows(filtered: tuple[Tenancy, dict[str, str]], text: str, rows: str) -> None:
    tenancy, letters = filtered
    found = await tenancy.call("ListFlows", filter=text, order_by="create_time")
    assert "".join(letters[flow.flow_id] for flow in found.flows) == rows


@pytest.mark.parametrize(
    ("order", "rows"),
    [
        ("", "dcba"),
        ("create_time", "abcd"),
        ("create_time desc", "dcba"),
        ("update_time", "dabc"),
        ("update_time desc", "cbad"),
        ("display_name", "dcba"),  # by bytes: "", "100 done*", "100% done", "Move the database"
        ("display_name desc", "abcd"),
    ],
)
@pytest.mark.parametrize("size", [1, 3, 4, 500])
async def test_an_order_holds_over_pages(filtered: tuple[Tenancy, dict[str, str]], order: str, rows: str, size: int) -> None:
    tenancy, letters = filtered
    pages = await _pages(tenancy, order_by=order, page_size=size)
    assert "".join(letters[flow.flow_id] for page in pages for flow in page) == rows
    assert [len(page) for page in pages[:-1]] == [size] * (len(pages) - 1)
    assert pages[-1]


async def test_flows_of_one_moment_or_one_name_are_each_listed_once(tenancy: Tenancy, superuser: asyncpg.Connection) -> None:
    ids = {(await tenancy.create(display_name="same")).flow_id for _ in range(7)}
    await superuser.execute(
        "UPDATE flows SET create_time = '2026-01-01', update_time = '2026-01-01' WHERE client_account_id = $1", tenancy.account
    )
    for order in ("create_time", "create_time desc", "update_time", "update_time desc", "display_name", "display_name desc"):
        pages = await _pages(tenancy, order_by=order, page_size=2)
        found = [flow.flow_id for page in pages for flow in page]
        assert [len(page) for page in pages] == [2, 2, 2, 1]
        assert len(found) == 7
        assert set(found) == ids


@pytest.mark.parametrize("order", ["create_time", "create_time desc"])
async def test_flows_made_and_moved_while_paging_neither_skip_nor_double_others(tenancy: Tenancy, order: str) -> None:
    names = [f"{at:02}" for at in range(10)]
    flows = {name: (await tenancy.create(display_name=name)).flow_id for name in names}
    found, token = [], ""
    for at in range(20):
        page = await tenancy.call("ListFlows", order_by=order, page_size=3, page_token=token)
        found += [flow.display_name for flow in page.flows if flow.display_name in flows]
        token = page.next_page_token
        if not token:
            break
        await tenancy.create(display_name=f"new {at}")
        for flow_id in flows.values():
            await tenancy.call("UpdateFlow", flow_id=flow_id, update={"labels": {"round": str(at)}})
        assert at < 19
    assert found == (names if order == "create_time" else names[::-1])


async def test_a_list_has_pages_of_fifty_and_never_more_than_five_hundred(tenancy: Tenancy) -> None:
    for _ in range(51):
        await tenancy.create(type="migration", skip_first_child=True)
    assert [len(page) for page in await _pages(tenancy)] == [50, 1]
    assert [len(page) for page in await _pages(tenancy, page_size=2_000_000_000)] == [51]
    assert [len(page) for page in await _pages(tenancy, page_size=51)] == [51]  # no empty page after a full one
    refusal = await tenancy.refusal("ListFlows", page_size=-1)
    assert refusal.violations.keys() == {"page_size"}


async def test_deleted_flows_are_listed_on_request_only(tenancy: Tenancy) -> None:
    kept, gone = await tenancy.create(display_name="kept"), await tenancy.create(display_name="gone")
    await tenancy.call("DeleteFlow", flow_id=gone.flow_id)
    assert _names(await _pages(tenancy)) == ["kept"]
    pages = await _pages(tenancy, show_deleted=True, page_size=1)
    assert _names(pages) == ["gone", "kept"]
    assert [flow.HasField("delete_time") for page in pages for flow in page] == [True, False]
    await tenancy.call("UndeleteFlow", flow_id=gone.flow_id)
    assert _names(await _pages(tenancy)) == ["gone", "kept"]
    assert kept.flow_id != gone.flow_id


async def test_a_list_gives_summaries_or_the_basic_view(tenancy: Tenancy) -> None:
    for _ in range(3):
        await tenancy.create(state={"json": '{"a":1}'}, labels={"wave": "1"})
    flows = (await tenancy.call("ListFlows")).flows
    for flow in flows:
        whole = (await tenancy.call("GetFlow", flow_id=flow.flow_id, view="FLOW_VIEW_SUMMARY")).flow
        assert flow == whole
        assert not flow.children
    basic = (await tenancy.call("ListFlows", view="FLOW_VIEW_BASIC")).flows
    assert [flow.flow_id for flow in basic] == [flow.flow_id for flow in flows]
    for flow in basic:
        assert flow == (await tenancy.call("GetFlow", flow_id=flow.flow_id)).flow
        assert len(flow.children[0].phases) == 7
        assert not flow.HasField("state")
    assert (await tenancy.refusal("ListFlows", view="FLOW_VIEW_FULL")).violations.keys() == {"view"}


@pytest.mark.parametrize(
    "change", [{"filter": "type = discovery"}, {"order_by": "create_time"}, {"show_deleted": True}, {"order_by": "create_time desc"}]
)
async def test_a_page_token_belongs_to_its_query(tenancy: Tenancy, change: dict[str, Any]) -> None:
    await tenancy.create()
    await tenancy.create()
    token = (await tenancy.call("ListFlows", page_size=1)).next_page_token
    assert (await tenancy.refusal("ListFlows", page_token=token, **change)).violations.keys() == {"page_token"}
    assert len((await tenancy.call("ListFlows", page_size=5, page_token=token)).flows) == 1  # the size may change


async def test_a_batch_is_read_in_the_order_asked_for(tenancy: Tenancy) -> None:
    ids = [(await tenancy.create()).flow_id for _ in range(5)]
    asked = [ids[3], ids[0], ids[4], ids[0]]
    for view in ("SUMMARY", "BASIC", "FULL"):
        flows = (await tenancy.call("BatchGetFlows", flow_ids=asked, view=f"FLOW_VIEW_{view}")).flows
        assert [flow.flow_id for flow in flows] == asked
    missing, other = str(uuid4()), str(uuid4())
    refusal = await tenancy.refusal("BatchGetFlows", flow_ids=[ids[0], missing, other])
    assert (refusal.reason, refusal.metadata["flow_id"]) == ("FLOW_NOT_FOUND", missing)
    assert (await tenancy.refusal("BatchGetFlows")).violations.keys() == {"flow_ids"}
    refusal = await tenancy.refusal("BatchGetFlows", flow_ids=ids[:1] * 101)
    assert (refusal.reason, refusal.metadata["limit"], refusal.metadata["actual"]) == ("LIMIT_EXCEEDED", "100", "101")
    assert len((await tenancy.call("BatchGetFlows", flow_ids=ids[:1] * 100)).flows) == 100


async def test_events_come_oldest_first_page_by_page(tenancy: Tenancy) -> None:
    flow_id = (await tenancy.create()).flow_id
    for at in range(6):
        await tenancy.call("UpdateFlow", flow_id=flow_id, update={"display_name": str(at)})
    found: list[int] = []
    sizes: list[int] = []
    token = ""
    while True:
        page = await tenancy.call("ListFlowEvents", flow_id=flow_id, page_size=3, page_token=token)
        assert page.oldest_revision == 1
        assert page.head_revision == 7 + len(sizes)
        found += [event.revision for event in page.events]
        sizes.append(len(page.events))
        token = page.next_page_token
        if not token:
            break
        await tenancy.call("UpdateFlow", flow_id=flow_id, update={"display_name": f"later {len(sizes)}"})
    assert found == list(range(1, len(found) + 1))
    assert sizes == [3, 3, 3]


async def test_events_can_start_after_a_revision(tenancy: Tenancy) -> None:
    flow_id = (await tenancy.create()).flow_id
    await tenancy.move(flow_id, "data_import", "IN_PROGRESS", "COMPLETED")
    assert [event.revision for event in (await tenancy.call("ListFlowEvents", flow_id=flow_id, after_revision=1)).events] == [2, 3]
    page = await tenancy.call("ListFlowEvents", flow_id=flow_id, after_revision=3)
    assert (list(page.events), page.next_page_token, page.oldest_revision, page.head_revision) == ([], "", 1, 3)
    refusal = await tenancy.refusal("ListFlowEvents", flow_id=flow_id, after_revision=4)
    assert (refusal.code, refusal.metadata["head_revision"]) == (grpc.StatusCode.OUT_OF_RANGE, "3")
    token = (await tenancy.call("ListFlowEvents", flow_id=flow_id, page_size=1)).next_page_token
    for other in ({"after_revision": 1}, {"flow_id": (await tenancy.create()).flow_id}):
        fields = {"flow_id": flow_id, **other}
        assert (await tenancy.refusal("ListFlowEvents", page_token=token, **fields)).violations.keys() == {"page_token"}
    assert (await tenancy.refusal("ListFlowEvents", flow_id=flow_id, page_size=-1)).violations.keys() == {"page_size"}


async def test_compacted_history_says_where_it_starts(tenancy: Tenancy, superuser: asyncpg.Connection) -> None:
    flow_id = (await tenancy.create()).flow_id
    for at in range(4):
        await tenancy.call("UpdateFlow", flow_id=flow_id, update={"display_name": str(at)})
    await superuser.execute("DELETE FROM events WHERE flow_id = $1 AND revision <= 3", UUID(flow_id))
    for after in (0, 1, 2):
        refusal = await tenancy.refusal("ListFlowEvents", flow_id=flow_id, after_revision=after)
        assert (refusal.code, refusal.metadata["oldest_revision"]) == (grpc.StatusCode.OUT_OF_RANGE, "4")
    page = await tenancy.call("ListFlowEvents", flow_id=flow_id, after_revision=3)
    assert ([event.revision for event in page.events], page.oldest_revision) == ([4, 5], 4)
