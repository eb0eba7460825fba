"""`flowledger compact`, killed at any point: of each flow all went that should, or nothing, and it can be run again.

What stays is what it was, whatever happened. Two kills by default; `--kills 50` for more.
"""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
from dataclasses import dataclass
from uuid import UUID

import asyncpg
import grpc
import pytest

from server import app
from tests.conftest import Urls, settings
from tests.faults.process import START_SECONDS, command, database, environment
from tests.repository.store import superuser
from tests.services.administration import call, verified
from tests.tenancy import Tenancy
from tests.waiting import eventually

FLOWS, REVISIONS, KEPT = 6, 24, 10
PAD = "x" * 2000


@dataclass(frozen=True, slots=True)
class Lived:
    """A flow, and how it was read at each revision that is to stay."""

    flow_id: str
    seen: dict[int, bytes]


async def at(tenancy: Tenancy, flow_id: str, revision: int) -> bytes:
    flow = (await tenancy.call("GetFlow", flow_id=flow_id, at_revision=revision, view="FLOW_VIEW_FULL")).flow
    found: bytes = flow.SerializeToString(deterministic=True)
    return found


async def lived(tenancy: Tenancy) -> Lived:
    flow_id = (await tenancy.create(state={"json": "{}"})).flow_id
    for number in range(2, REVISIONS + 1):
        await tenancy.call("UpdateFlow", flow_id=flow_id, update={"state": {"json": json.dumps({"at": number, "pad": PAD})}})
    return Lived(
        flow_id, {revision: await at(tenancy, flow_id, revision) for revision in (REVISIONS - KEPT, REVISIONS - KEPT + 1, REVISIONS)}
    )


async def left(truth: asyncpg.Connection, flows: list[Lived]) -> list[int]:
    """How many events of each flow are left."""
    query = "SELECT count(*) FROM events WHERE flow_id = $1"
    return [await truth.fetchval(query, UUID(one.flow_id)) for one in flows]


async def intact(tenancy: Tenancy, flows: list[Lived]) -> None:
    for one in flows:
        assert {revision: await at(tenancy, one.flow_id, revision) for revision in one.seen} == one.seen
    assert (await verified(tenancy))[1] == []


def compacting(urls: Urls) -> subprocess.Popen[str]:
    return subprocess.Popen(command("compact", "--json"), env=environment(**database(urls)), stdout=subprocess.PIPE, text=True)


@pytest.fixture
def kills(request: pytest.FixtureRequest) -> int:
    number: int = request.config.getoption("--kills")
    return number


async def test_kill_9_during_compaction_leaves_each_flow_as_it_was_or_as_it_shall_be(urls: Urls, kills: int) -> None:
    chance, between = random.Random(kills), 0
    async with (
        app.running(settings(urls)) as server,
        grpc.aio.insecure_channel(server.address) as channel,
        superuser(urls.service) as truth,
    ):
        for number in range(kills):
            tenancy = Tenancy.fresh(channel)
            await call(tenancy, "UpdatePolicy", policy={"keep_revisions": KEPT})
            flows = await asyncio.gather(*(lived(tenancy) for _ in range(FLOWS)))
            victim = compacting(urls)
            try:

                async def begun(flows: list[Lived] = flows, victim: subprocess.Popen[str] = victim) -> bool:
                    return victim.poll() is not None or min(await left(truth, flows)) < REVISIONS

                await eventually(begun, START_SECONDS)
                await asyncio.sleep(chance.uniform(0.0, 0.15))
            finally:
                victim.kill()
                victim.communicate()
            counts = await left(truth, flows)
            assert set(counts) <= {KEPT, REVISIONS}, number
            between += len(set(counts)) == 2
            await intact(tenancy, flows)
            again = compacting(urls)
            output, _ = await asyncio.to_thread(again.communicate, timeout=START_SECONDS)
            assert again.returncode == 0
            assert json.loads(output)["flows"] == counts.count(REVISIONS)
            assert await left(truth, flows) == [KEPT] * FLOWS
            await intact(tenancy, flows)
    print(f"{between} of {kills} kills came between two flows")  # noqa: T201 - shown with -s
