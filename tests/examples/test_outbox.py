"""The outbox example: every event of a tenant once in its file, whoever is killed meanwhile."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from server.app import Server
from tests.clients.program import ROOT, run, started
from tests.conftest import Urls
from tests.faults.load import Commit, send_until_acknowledged
from tests.faults.process import connection, database, serving
from tests.tenancy import Tenancy
from tests.waiting import until

EXAMPLE = ROOT / "examples" / "outbox" / "outbox.py"
KILLS = 2
FLOWS = 4


def command(address: str, path: Path, tenancy: Tenancy, *options: str) -> tuple[object, ...]:
    tenant = ("--account", tenancy.account, "--engagement", tenancy.engagement)
    return sys.executable, "-W", "error", EXAMPLE, address, path, *tenant, *options


def lines(path: Path) -> list[dict[str, Any]]:
    """The events in the file; what is being written is not one yet."""
    whole = path.read_bytes().rpartition(b"\n")[0] if path.exists() else b""
    return [json.loads(line) for line in whole.splitlines()]


def holds(path: Path, count: int) -> Callable[[], bool]:
    return lambda: path.exists() and path.read_bytes().count(b"\n") >= count


def told(path: Path) -> dict[str, list[int]]:
    """The revisions of each flow, in the order of the file."""
    found: dict[str, list[int]] = {}
    for line in lines(path):
        found.setdefault(line["flow_id"], []).append(int(line["revision"]))
    return found


async def write(tenancy: Tenancy, flow_id: str, enough: asyncio.Event) -> int:
    """Commits until it is enough; the last revision that was acknowledged."""
    revision = 1
    while not enough.is_set():
        update = {"display_name": f"after {revision}"}
        revision = (await send_until_acknowledged(tenancy, Commit.of("UpdateFlow", flow_id=flow_id, update=update))).revision
    return revision


async def test_the_outbox_holds_every_event_once_though_it_and_the_server_are_killed(urls: Urls, tmp_path: Path) -> None:
    path, enough = tmp_path / "events.jsonl", asyncio.Event()
    async with serving(tmp_path, **database(urls)) as first, connection(first.address) as channel:
        tenancy = Tenancy.fresh(channel)
        flows = [(await tenancy.create()).flow_id for _ in range(FLOWS)]
        writers = [asyncio.create_task(write(tenancy, flow_id, enough)) for flow_id in flows]
        for _ in range(KILLS):
            async with started(*command(first.address, path, tenancy)) as outbox:
                size = path.read_bytes().count(b"\n") if path.exists() else 0
                await until(holds(path, size + 20))
                await outbox.stop(signal.SIGKILL)
        with path.open("ab") as file:  # as if the last kill had come in the middle of a line
            file.write(b'{"flow_id": "01a2')
        async with started(*command(first.address, path, tenancy)) as outbox:
            size = path.read_bytes().count(b"\n")
            await until(holds(path, size + 20))
            await first.kill()
            await outbox.line(lambda line: line.startswith("resuming: "))
            port = first.address.rpartition(":")[2]
            async with serving(tmp_path, **database(urls), port=port):
                size = path.read_bytes().count(b"\n")
                await until(holds(path, size + 20))
                enough.set()
                heads = dict(zip(flows, await asyncio.gather(*writers), strict=True))
                await until(holds(path, sum(heads.values())))
    assert told(path) == {flow_id: list(range(1, head + 1)) for flow_id, head in heads.items()}
    assert all(line["event"]["hash"] for line in lines(path))


async def test_the_outbox_forwards_what_the_filter_lets_through(server: Server, tenancy: Tenancy, tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    await tenancy.create(labels={"wave": "1"})
    wanted = (await tenancy.create(labels={"wave": "3"})).flow_id
    async with started(*command(server.address, path, tenancy, "--filter", 'labels.wave = "3"')) as outbox:
        await until(holds(path, 1))
        await second_is_refused(path, tenancy, server)
        await outbox.stop(signal.SIGKILL)
    assert told(path) == {wanted: [1]}


async def second_is_refused(path: Path, tenancy: Tenancy, server: Server) -> None:
    """Two outboxes of one file would write everything twice."""
    ran = await run(*command(server.address, path, tenancy))
    assert ran.code == 1
    assert ran.err == f"another outbox writes to {path}: two of them would write everything twice\n"


@pytest.mark.parametrize("filter", ["status = ", "labels.wave = "])
async def test_an_outbox_that_asks_nonsense_ends_with_what_the_service_says(
    filter: str, server: Server, tenancy: Tenancy, tmp_path: Path
) -> None:
    ran = await run(*command(server.address, tmp_path / "events.jsonl", tenancy, "--filter", filter))
    assert ran.code == 1
    assert ran.err.startswith("refused: INVALID_ARGUMENT: ")
    assert (tmp_path / "events.jsonl").read_bytes() == b""
