"""The Node client of clients/node: npm's own gRPC, our protos, a real server."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest

from server.app import Server
from tests.clients.program import ROOT, Program, run, started
from tests.conftest import Urls
from tests.tenancy import Tenancy

CLIENT = ROOT / "clients" / "node"


@pytest.fixture(scope="session")
def drive() -> tuple[object, ...]:
    """The command that drives a flow; npm installs what it needs where git does not look, once for each lock."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        pytest.skip("node and npm are not installed: NOTHING proves that the Node client works; install Node.js 20 or newer")
    lock, stamp = (CLIENT / "package-lock.json").read_text(), CLIENT / "node_modules" / ".installed-lock"
    if not stamp.exists() or stamp.read_text() != lock:
        done = subprocess.run([npm, "ci", "--prefer-offline"], cwd=CLIENT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"npm ci failed:\n{done.stdout}{done.stderr}"
        stamp.write_text(lock)
    return node, CLIENT / "drive.mjs"


def tenant_options(tenancy: Tenancy) -> tuple[str, ...]:
    return "--account", str(tenancy.account), "--engagement", str(tenancy.engagement)


def revisions(lines: list[str]) -> list[int]:
    """The revisions that the watch printed, in its order."""
    return [int(found[1]) for line in lines if (found := re.match(r"revision (\d+) ", line))]


def flow_id(lines: list[str]) -> str:
    return lines[0].removeprefix("flow ")


async def test_a_node_client_drives_a_flow_to_its_end_and_sees_every_revision(
    drive: tuple[object, ...], server: Server, tenancy: Tenancy
) -> None:
    ran = await run(*drive, "--address", server.address, *tenant_options(tenancy), "--user", "nadia")
    assert (ran.code, ran.err) == (0, "")
    lines = ran.out.splitlines()
    flow = (await tenancy.call("GetFlow", flow_id=flow_id(lines), view="FLOW_VIEW_FULL")).flow
    assert (flow.status, flow.progress_percent, flow.created_by) == (11, 100.0, "nadia")
    assert json.loads(flow.state.json) == {"started_by": "drive.mjs"}
    events = (await tenancy.call("ListFlowEvents", flow_id=flow.flow_id)).events
    assert revisions(lines) == [event.revision for event in events] == list(range(1, flow.revision + 1))
    assert lines[-2:] == ["end WATCH_END_REASON_FLOW_TERMINAL", f"done: {flow.revision} revisions, every one seen once and in order"]


async def test_a_node_client_reads_the_reason_of_an_error(drive: tuple[object, ...], server: Server, tenancy: Tenancy) -> None:
    ran = await run(*drive, "--address", server.address, *tenant_options(tenancy))
    refused = ran.out[ran.out.index("refused") :].splitlines()
    assert refused[0].startswith("refused FAILED_PRECONDITION INVALID_PHASE_TRANSITION: phase field_mapping is IN_PROGRESS")
    assert "    valid_transitions=WAITING_VALIDATION,WAITING_APPROVAL,FAILED,RETRY_NEEDED" in refused


async def test_a_node_client_that_is_not_known_says_so_and_fails(drive: tuple[object, ...], server: Server) -> None:
    ran = await run(*drive, "--address", server.address, "--account", "acme")
    assert (ran.code, ran.out) == (1, "")
    assert ran.err.startswith("refused: UNAUTHENTICATED NO_CALLER: metadata x-client-account-id must be a UUID")


async def test_a_node_client_whose_approval_is_denied_says_so_and_fails(
    drive: tuple[object, ...], server: Server, tenancy: Tenancy
) -> None:
    async with started(*drive, "--address", server.address, *tenant_options(tenancy), "--await-approval") as program:
        await program.line(lambda line: line == "waiting for the approval of field_mapping")
        denied = {
            "phase": "field_mapping",
            "to": "PHASE_STATE_FAILED",
            "reason": "owner column is wrong",
            "failure": {"code": "FAILURE_CODE_DATA_VALIDATION_FAILED"},
        }
        await tenancy.call("TransitionPhase", flow_id=flow_id(program.lines), transition=denied)
        await program.line(lambda line: "field_mapping is FAILED instead of COMPLETED: owner column is wrong" in line)
        assert await program.ended() == 1


@asynccontextmanager
async def serving(urls: Urls, port: str, **settings: str) -> AsyncIterator[tuple[Program, str]]:
    """`flowledger serve` as a process of its own, and its address."""
    environment = {"FLOWLEDGER_PORT": port, **{f"FLOWLEDGER_{name.upper()}": str(value) for name, value in urls.variables.items()}}
    command = (Path(sys.executable).with_name("flowledger"), "serve")
    async with started(*command, environment={**environment, "FLOWLEDGER_DRAIN_SECONDS": "1", **settings}) as program:
        yield program, json.loads(await program.line(lambda line: '"event":"listening"' in line))["address"]


async def renamed(tenancy: Tenancy, address: str, flow: str, watcher: Program) -> int:
    """How many lines the watcher had printed when it saw a new revision: then its stream is open."""
    before = len(watcher.lines)
    async with grpc.aio.insecure_channel(address) as channel:
        update = {"display_name": f"seen after {before} lines"}
        revision = (await tenancy.on(channel).call("UpdateFlow", flow_id=flow, update=update)).flow.revision
    await watcher.line(lambda line: line.startswith(f"revision {revision} "), before)
    return len(watcher.lines)


async def test_a_node_watch_goes_on_after_a_restart_old_age_and_a_kill(
    drive: tuple[object, ...], urls: Urls, channel: grpc.aio.Channel
) -> None:
    tenancy = Tenancy.fresh(channel)
    async with serving(urls, "0") as (first, address):
        port = address.rpartition(":")[2]
        async with started(*drive, "--address", address, *tenant_options(tenancy), "--await-approval") as program:
            await program.line(lambda line: line == "waiting for the approval of field_mapping")
            await program.line(lambda line: line.startswith("revision 7 "))
            flow = flow_id(program.lines)
            assert await first.stop() == 0
            await program.line(lambda line: line.startswith("resuming after revision 7: the server is stopping"))
            async with serving(urls, port, FLOWLEDGER_WATCH_MAX_AGE_SECONDS="1") as (second, _):
                await program.line(lambda line: line.startswith("resuming after revision 7: the stream is old"))
                at = await renamed(tenancy, address, flow, program)
                await second.stop(signal.SIGKILL)
                await program.line(lambda line: line.startswith("resuming after revision 8"), at)
            async with serving(urls, port), grpc.aio.insecure_channel(address) as last:
                await tenancy.on(last).move(flow, "field_mapping", "COMPLETED")
                assert await program.ended() == 0, program.lines
                head = (await tenancy.on(last).call("GetFlow", flow_id=flow)).flow.revision
            await program.line(lambda line: line.startswith("done"))
            assert revisions(program.lines) == list(range(1, head + 1))
            assert "end WATCH_END_REASON_FLOW_TERMINAL" in program.lines
