"""What each RPC does, seen from its caller."""

from __future__ import annotations

import pytest

from tests.tenancy import Tenancy


async def test_a_created_flow_has_its_first_child_and_revision_1(tenancy: Tenancy) -> None:
    flow = await tenancy.create(type="migration", display_name="move", labels={"wave": "3"})
    assert (flow.revision, flow.current_child, [child.type for child in flow.children]) == (1, "discovery", ["discovery"])
    assert flow.labels == {"wave": "3"}
    assert list(flow.journey) == ["discovery", "assessment", "planning", "execution"]


@pytest.mark.parametrize("view", ["SUMMARY", "BASIC", "FULL"])
async def test_a_flow_is_read_back_in_every_view(tenancy: Tenancy, view: str) -> None:
    made = await tenancy.create(state={"json": '{"big":9007199254740993}'})
    flow = (await tenancy.call("GetFlow", flow_id=made.flow_id, view=f"FLOW_VIEW_{view}")).flow
    assert flow.flow_id == made.flow_id
    assert len(flow.children) == (0 if view == "SUMMARY" else 1)
    assert flow.state.json == ('{"big":9007199254740993}' if view == "FULL" else "")
