"""`buf curl`: the service from a shell, with nothing but its address."""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from flowledger.v1 import flow_service_pb2
from google.rpc import error_details_pb2  # type: ignore[import-untyped]

from server.app import Server
from tests.clients.program import ROOT, Ran, run, started
from tests.tenancy import Tenancy

BUF = Path(sys.executable).with_name("buf")
FLOWS = "flowledger.v1.FlowService"
REST = ("data_cleansing", "asset_creation", "asset_inventory", "dependency_analysis", "tech_debt_analysis")


@dataclass(frozen=True, slots=True)
class Curl:
    """One tenant's `buf curl`."""

    address: str
    headers: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()

    def command(self, method: str, *flags: str) -> tuple[object, ...]:
        """What stands on the command line; the request comes from standard input or by ``-d``."""
        headers = (part for header in self.headers for part in ("-H", header))
        return (
            BUF,
            "curl",
            "--protocol",
            "grpc",
            "--http2-prior-knowledge",
            *headers,
            *self.flags,
            *flags,
            f"http://{self.address}/{method}",
        )

    async def run(self, method: str, *requests: object) -> Ran:
        """How the call ended."""
        return await run(*self.command(method, "-d", "@-"), stdin="\n".join(map(json.dumps, requests)))

    async def call(self, method: str, *requests: object) -> Any:
        """The response."""
        ran = await self.run(method, *requests)
        assert (ran.code, ran.err) == (0, "")
        return json.loads(ran.out)

    async def move(self, flow_id: str, phase: str, *states: str) -> Any:
        """The last response after moving the phase."""
        for state in states:
            transition = {"phase": phase, "to": f"PHASE_STATE_{state}"}
            response = await self.call(f"{FLOWS}/TransitionPhase", {"flow_id": flow_id, "transition": transition})
        return response


def messages(text: str) -> Iterator[Any]:
    """The JSON values of a stream's output."""
    decoder, text = json.JSONDecoder(), text.strip()
    while text:
        value, end = decoder.raw_decode(text)
        yield value
        text = text[end:].lstrip()


def details(error: Any) -> dict[str, Any]:
    """An error's details by type; `buf curl` gives them as base64 without padding."""
    found = {}
    for detail in error["details"]:
        message = getattr(error_details_pb2, detail["type"].removeprefix("google.rpc."))()
        message.ParseFromString(base64.b64decode(detail["value"] + "=="))
        found[type(message).__name__] = message
    return found


@pytest.fixture
def curl(server: Server, tenancy: Tenancy) -> Curl:
    """A fresh tenant's `buf curl`; everything it knows of the service it learns by reflection."""
    return Curl(server.address, tuple(f"{key}: {value}" for key, value in tenancy.metadata))


async def test_buf_curl_drives_and_watches_a_flow_with_nothing_but_reflection(curl: Curl, tenancy: Tenancy) -> None:
    made = (await curl.call(f"{FLOWS}/CreateFlow", {"type": "discovery", "display_name": "by hand", "state": {"struct": {"rows": 371}}}))[
        "flow"
    ]
    flow_id = made["flowId"]
    watch = curl.command(f"{FLOWS}/WatchFlow", "-d", json.dumps({"flow_id": flow_id, "start": "WATCH_START_AFTER_REVISION"}))
    async with started(*watch) as watching:
        await watching.line(lambda line: '"displayName": "by hand"' in line)
        await curl.move(flow_id, "data_import", "IN_PROGRESS", "COMPLETED")
        await curl.move(flow_id, "field_mapping", "IN_PROGRESS", "WAITING_APPROVAL", "COMPLETED")
        moves = [{"transition": {"phase": phase, "to": f"PHASE_STATE_{state}"}} for phase in REST for state in ("IN_PROGRESS", "COMPLETED")]
        flow = (await curl.call(f"{FLOWS}/CommitFlow", {"flow_id": flow_id, "changes": moves, "expected_revision": 6}))["flow"]
        assert (flow["status"], flow["progressPercent"], flow["revision"]) == ("FLOW_STATUS_COMPLETED", 100, "7")
        assert await watching.ended() == 0
        await watching.line(lambda line: "WATCH_END_REASON_FLOW_TERMINAL" in line)
    told = list(messages("\n".join(watching.lines)))
    assert [message["revision"] for message in told if "event" in message] == ["1", "2", "3", "4", "5", "6", "7"]
    assert told[-1]["end"]["reason"] == "WATCH_END_REASON_FLOW_TERMINAL"
    assert [message["event"]["status"] for message in told if "event" in message][4:] == [
        "FLOW_STATUS_WAITING_APPROVAL",
        "FLOW_STATUS_DISCOVERY",
        "FLOW_STATUS_COMPLETED",
    ]
    read = await curl.call(f"{FLOWS}/GetFlow", {"flow_id": flow_id, "view": "FLOW_VIEW_FULL", "form": "DOCUMENT_FORM_STRUCT"})
    assert read["flow"]["state"]["struct"] == {"rows": 371}
    assert (await tenancy.call("GetFlow", flow_id=flow_id)).flow.end_time.seconds > 0


async def test_buf_curl_shows_why_a_change_is_refused(curl: Curl) -> None:
    flow_id = (await curl.call(f"{FLOWS}/CreateFlow", {"type": "discovery"}))["flow"]["flowId"]
    transition = {"phase": "asset_creation", "to": "PHASE_STATE_IN_PROGRESS"}
    ran = await curl.run(f"{FLOWS}/TransitionPhase", {"flow_id": flow_id, "transition": transition})
    assert (ran.code, ran.out) == (9 << 3, "")  # buf's exit code: the gRPC code, three bits to the left
    error = json.loads(ran.err)
    assert error["code"] == "failed_precondition"
    assert error["message"] == "phase asset_creation cannot begin before these are COMPLETED: data_cleansing"
    found = details(error)
    assert (found["ErrorInfo"].reason, found["ErrorInfo"].metadata["missing_dependencies"]) == ("DEPENDENCY_INCOMPLETE", "data_cleansing")
    assert found["PreconditionFailure"].violations[0].type == "DEPENDENCY_INCOMPLETE"


async def test_buf_curl_shows_every_wrong_field_at_once(curl: Curl) -> None:
    ran = await curl.run(f"{FLOWS}/TransitionPhase", {"flow_id": "nope", "transition": {"to": "PHASE_STATE_FAILED"}})
    assert ran.code == 3 << 3
    error = json.loads(ran.err)
    assert error["message"].startswith("flow_id: must be a UUID in its 36 character form, not 'nope'")
    violations = {violation.field for violation in details(error)["BadRequest"].field_violations}
    assert violations >= {"flow_id", "transition.phase"}


async def test_buf_curl_is_told_which_metadata_name_the_caller(server: Server) -> None:
    ran = await Curl(server.address).run(f"{FLOWS}/ListFlows", {})
    assert ran.code == 16 << 3
    error = json.loads(ran.err)
    assert "x-client-account-id, x-engagement-id, x-user-id is missing" in error["message"]
    assert details(error)["ErrorInfo"].reason == "NO_CALLER"


async def test_buf_curl_streams_progress_reports(curl: Curl) -> None:
    flow_id = (await curl.call(f"{FLOWS}/CreateFlow", {"type": "discovery"}))["flow"]["flowId"]
    await curl.move(flow_id, "data_import", "IN_PROGRESS")
    reports = [{"progress": {"phase": "data_import", "fraction": fraction}} for fraction in (0.25, 0.5, 0.75)]
    response = await curl.call(f"{FLOWS}/StreamProgress", {"flow_id": flow_id, **reports[0]}, *reports[1:])
    assert response["receivedCount"] == "3"
    read = (await curl.call(f"{FLOWS}/GetFlow", {"flow_id": flow_id}))["flow"]
    assert read["children"][0]["phases"][0]["fraction"] == 0.75


async def test_buf_curl_works_from_the_protos_without_reflection(curl: Curl) -> None:
    offline = Curl(curl.address, curl.headers, ("--schema", str(ROOT / "protos"), "--reflect=false"))
    exact = '{"serial":9007199254740993}'
    flow_id = (await offline.call(f"{FLOWS}/CreateFlow", {"type": "planning", "state": {"json": exact}}))["flow"]["flowId"]
    read = await offline.call(f"{FLOWS}/GetFlow", {"flow_id": flow_id, "view": "FLOW_VIEW_FULL"})
    assert read["flow"]["state"]["json"] == exact


@pytest.mark.parametrize("version", ["grpc-v1", "grpc-v1alpha"])
async def test_reflection_tells_every_method_under_both_its_names(server: Server, version: str) -> None:
    flags = ("curl", "--protocol", "grpc", "--http2-prior-knowledge", "--reflect-protocol", version, "--list-methods")
    ran = await run(BUF, *flags, f"http://{server.address}")
    assert (ran.code, ran.err) == (0, "")
    promised = {f"{FLOWS}/{method.name}" for method in flow_service_pb2.DESCRIPTOR.services_by_name["FlowService"].methods}
    assert promised | {"grpc.health.v1.Health/Check"} <= set(ran.out.split())


@pytest.mark.parametrize("service", ["", FLOWS])
async def test_health_is_told_without_naming_a_caller(server: Server, service: str) -> None:
    assert await Curl(server.address).call("grpc.health.v1.Health/Check", {"service": service}) == {"status": "SERVING"}


async def test_health_of_an_unknown_service_is_not_found(server: Server) -> None:
    ran = await Curl(server.address).run("grpc.health.v1.Health/Check", {"service": "flowledger.v1.Nothing"})
    assert ran.code == 5 << 3
