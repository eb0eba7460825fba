"""The worker and the view against the real service: failures, rejections, dead workers, restarts."""

from __future__ import annotations

import asyncio
import io
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import date
from pathlib import Path
from uuid import uuid4

import pytest
from flowledger.v1 import change_pb2, event_pb2, flow_pb2, flow_service_pb2
from rich.console import Console

from examples.discovery.approval import Ask, Decision, NobodyToAsk, prompted
from examples.discovery.document import DiscoveryDocument, parse_document, patch_json
from examples.discovery.findings import key_findings
from examples.discovery.inventory import source_of
from examples.discovery.ledger import Caller, CallFailed, Ledger, open_ledger
from examples.discovery.mapping import FieldMapping
from examples.discovery.report import print_report
from examples.discovery.session import Session, discover
from examples.discovery.view import FlowPicture, ProgressView
from examples.discovery.worker import Assignment, DiscoveryStopped, Worker
from server import app
from tests.conftest import Urls, settings
from tests.examples.inventories import CLOUD, CMDB, DATA, FEDORA, HYPERVISOR

PATIENCE = 60.0
PLAIN = Assignment(csv=FEDORA, as_of=date(2026, 11, 22), corrections={}, fail_phase=None, pace=0.0)


def fresh_caller() -> Caller:
    return Caller(uuid4(), uuid4(), "ada")


@pytest.fixture
async def caller() -> Caller:
    """A tenant that nobody else uses."""
    return fresh_caller()


@pytest.fixture
async def ledger(server: app.Server, caller: Caller) -> AsyncIterator[Ledger]:
    """The service as that tenant calls it."""
    async with open_ledger(server.address, caller, uuid4) as ledger:
        yield ledger


async def approve(mapping: FieldMapping) -> Decision:
    return Decision(True, "looks right")


async def unasked(question: str) -> str:
    raise AssertionError(question)


async def created(ledger: Ledger, path: Path) -> str:
    return await ledger.create_flow(f"Discovery of {path.name}", {}, patch_json({"source": source_of(path)}))


async def full(ledger: Ledger, flow_id: str) -> flow_pb2.Flow:
    return await ledger.flow(flow_id, flow_pb2.FLOW_VIEW_FULL)


async def document(ledger: Ledger, flow_id: str) -> DiscoveryDocument:
    return parse_document((await full(ledger, flow_id)).children[0].data.json)


async def events(ledger: Ledger, flow_id: str) -> list[event_pb2.FlowEvent]:
    """Every event from the first to the end of a flow that has ended, each revision once."""
    request = flow_service_pb2.WatchFlowRequest(flow_id=flow_id, start=flow_service_pb2.WATCH_START_AFTER_REVISION)
    found = [response.event async for response in ledger.watch_call(request) if response.WhichOneof("message") == "event"]
    assert [event.revision for event in found] == list(range(1, len(found) + 1))
    return found


def moves(found: list[event_pb2.FlowEvent], phase: str) -> list[event_pb2.PhaseChanged]:
    """The changes of one phase's state."""
    changed = [change.phase for event in found for change in event.changes if change.WhichOneof("kind") == "phase"]
    return [move for move in changed if move.phase == phase and move.from_state != move.to_state]


async def reached(ledger: Ledger, flow_id: str, phase: str, fraction: float) -> None:
    """Returns once the stream tells that ``phase`` has come to ``fraction``."""
    call = ledger.watch_call(flow_service_pb2.WatchFlowRequest(flow_id=flow_id, start=flow_service_pb2.WATCH_START_AFTER_REVISION))
    async with asyncio.timeout(PATIENCE):
        async for response in call:
            if any(change.phase.phase == phase and change.phase.to_fraction >= fraction for change in response.event.changes):
                call.cancel()
                return
    raise AssertionError("the stream ended first")


def worker(ledger: Ledger, caller: Caller, flow_id: str, assignment: Assignment = PLAIN, ask: Ask = approve) -> Worker:
    return Worker(ledger, caller, flow_id, assignment, ask)


async def test_a_discovery_completes_and_its_results_can_be_read_by_another_client(ledger: Ledger, caller: Caller) -> None:
    flow_id = await created(ledger, FEDORA)
    await worker(ledger, caller, flow_id).run()
    flow = await full(ledger, flow_id)
    assert flow.status == flow_pb2.FLOW_STATUS_COMPLETED
    assert '"past_end_of_life":180' in flow.state.json.replace(" ", "")
    stored = parse_document(flow.children[0].data.json)
    assert len(stored.all_rows()) == len(stored.all_assets()) == 371
    assert stored.records == {}
    assert stored.dependencies is not None
    assert stored.dependencies.unlisted_hosts == ("virthost-os01.fedorainfracloud.org", "virthost-os03.fedorainfracloud.org")
    timed = {entry.phase for entry in flow.activity.entries if entry.HasField("duration")}
    assert timed == {phase.name for phase in flow.children[0].phases}


async def test_the_last_two_analyses_run_side_by_side(ledger: Ledger, caller: Caller) -> None:
    flow_id = await created(ledger, FEDORA)
    await worker(ledger, caller, flow_id).run()
    found = await events(ledger, flow_id)
    begun = {phase: _revision(found, phase, flow_pb2.PHASE_STATE_IN_PROGRESS) for phase in ("dependency_analysis", "tech_debt_analysis")}
    done = {phase: _revision(found, phase, flow_pb2.PHASE_STATE_COMPLETED) for phase in begun}
    assert max(begun.values()) < min(done.values())


def _revision(found: list[event_pb2.FlowEvent], phase: str, state: flow_pb2.PhaseState.ValueType) -> int:
    for event in found:
        if any(change.phase.phase == phase and change.phase.to_state == state for change in event.changes):
            return event.revision
    raise AssertionError(f"{phase} never became {state}")


@pytest.mark.parametrize("phase", ["data_import", "field_mapping", "asset_creation", "tech_debt_analysis"])
async def test_a_phase_that_fails_once_in_the_middle_is_retried(ledger: Ledger, caller: Caller, phase: str) -> None:
    flow_id = await created(ledger, FEDORA)
    await worker(ledger, caller, flow_id, replace(PLAIN, fail_phase=phase)).run()
    found = moves(await events(ledger, flow_id), phase)
    failed = next(move for move in found if move.failure.code)
    assert (failed.failure.code, failed.to_state) == (flow_pb2.FAILURE_CODE_EXTERNAL_SERVICE_ERROR, flow_pb2.PHASE_STATE_RETRY_NEEDED)
    assert failed.from_fraction >= 0.4
    assert [move.retry_count for move in found if move.to_state == flow_pb2.PHASE_STATE_IN_PROGRESS] == [0, 1]
    assert len((await document(ledger, flow_id)).all_assets()) == 371


async def test_a_rejection_is_recorded_in_the_reviewers_words_and_its_correction_followed(ledger: Ledger, caller: Caller) -> None:
    flow_id = await created(ledger, FEDORA)
    decisions = iter([Decision(False, "a volume is not a disk", {"lvm_size_mb": "-"}), Decision(True, "better")])

    async def ask(mapping: FieldMapping) -> Decision:
        return next(decisions)

    await worker(ledger, caller, flow_id, ask=ask).run()
    found = moves(await events(ledger, flow_id), "field_mapping")
    decided = [move.reason for move in found if move.from_state == flow_pb2.PHASE_STATE_WAITING_APPROVAL]
    assert decided == ["a volume is not a disk", "better"]
    assets = (await document(ledger, flow_id)).all_assets()
    assert {asset.server.disk_mib for asset in assets} == {None}
    assert assets[0].server.extra == {"lvm_size_mb": "20000"}


async def test_a_rejection_without_a_correction_waits_for_one(ledger: Ledger, caller: Caller) -> None:
    flow_id = await created(ledger, FEDORA)

    async def ask(mapping: FieldMapping) -> Decision:
        return Decision(False, "no")

    with pytest.raises(DiscoveryStopped, match="--map COLUMN=FIELD"):
        await worker(ledger, caller, flow_id, ask=ask).run()
    assert (await full(ledger, flow_id)).status == flow_pb2.FLOW_STATUS_RETRY_PENDING
    await worker(ledger, caller, flow_id, replace(PLAIN, corrections={"freezes": "-"})).run()
    assert (await full(ledger, flow_id)).status == flow_pb2.FLOW_STATUS_COMPLETED


async def test_with_nobody_to_ask_the_mapping_waits_and_another_worker_goes_on_from_there(ledger: Ledger, caller: Caller) -> None:
    flow_id = await created(ledger, CLOUD)
    assignment = replace(PLAIN, csv=CLOUD)

    async def nobody(question: str) -> str:
        raise EOFError

    console = Console(file=io.StringIO())
    with pytest.raises(NobodyToAsk, match="--yes"):
        await worker(ledger, caller, flow_id, assignment, prompted(console, ProgressView(console, ledger, flow_id).aside, nobody)).run()
    assert (await full(ledger, flow_id)).status == flow_pb2.FLOW_STATUS_WAITING_APPROVAL
    await worker(ledger, caller, flow_id, replace(assignment, csv=DATA / "missing.csv")).run()  # the rows are in the flow by now
    assert len((await document(ledger, flow_id)).all_assets()) == 5


@pytest.mark.parametrize("phase", ["data_import", "asset_creation"])
async def test_another_worker_goes_on_where_one_was_cut_off(ledger: Ledger, caller: Caller, phase: str) -> None:
    flow_id = await created(ledger, FEDORA)
    first = asyncio.create_task(worker(ledger, caller, flow_id, replace(PLAIN, pace=0.05)).run())
    await reached(ledger, flow_id, phase, 0.2)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    await worker(ledger, caller, flow_id).run()
    found = moves(await events(ledger, flow_id), phase)
    assert "the worker that began it is gone" in [move.reason for move in found]
    assert [move.reason for move in found if move.to_state == flow_pb2.PHASE_STATE_COMPLETED]
    stored = await document(ledger, flow_id)
    assert [asset.server.row for asset in stored.all_assets()] == list(range(2, 373))


async def test_a_restart_of_the_service_in_the_middle_loses_and_doubles_nothing(
    urls: Urls, caller: Caller, capsys: pytest.CaptureFixture[str]
) -> None:
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(AsyncExitStack())
        server = await first.enter_async_context(app.running(settings(urls)))
        ledger = await stack.enter_async_context(open_ledger(server.address, caller, uuid4))
        watching = await stack.enter_async_context(open_ledger(server.address, caller, uuid4))
        flow_id = await created(ledger, FEDORA)
        view = asyncio.create_task(ProgressView(Console(file=io.StringIO(), width=80), watching, flow_id).run())
        work = asyncio.create_task(worker(ledger, caller, flow_id, replace(PLAIN, pace=0.02)).run())
        await reached(ledger, flow_id, "data_cleansing", 0.2)
        await first.aclose()
        await stack.enter_async_context(app.running(settings(urls, port=server.port)))
        async with asyncio.timeout(PATIENCE):
            await work
            await view
        assert (await full(ledger, flow_id)).status == flow_pb2.FLOW_STATUS_COMPLETED
        found = await events(ledger, flow_id)
    printed = [int(line[1]) for line in re.finditer(r"^ *(\d+) +[\d.]+ %", capsys.readouterr().out, re.MULTILINE)]
    assert printed[1:] == list(range(printed[0] + 1, found[-1].revision + 1))
    for phase in ("data_import", "asset_creation"):
        assert [move.to_state for move in moves(found, phase)].count(flow_pb2.PHASE_STATE_COMPLETED) == 1


async def test_a_mapping_without_host_names_halts_and_a_correction_helps(ledger: Ledger, caller: Caller, tmp_path: Path) -> None:
    path = tmp_path / "odd.csv"
    path.write_text("colour,tag\nred 1,101\nblue 2,102\n")
    flow_id = await created(ledger, path)
    with pytest.raises(DiscoveryStopped, match="--map COLUMN=hostname, with one of colour, tag"):
        await worker(ledger, caller, flow_id, replace(PLAIN, csv=path)).run()
    assert (await full(ledger, flow_id)).status == flow_pb2.FLOW_STATUS_RETRY_PENDING
    await worker(ledger, caller, flow_id, replace(PLAIN, csv=path, corrections={"tag": "hostname"})).run()
    assert [asset.server.hostname for asset in (await document(ledger, flow_id)).all_assets()] == ["101", "102"]


async def test_a_file_that_is_no_inventory_fails_for_good(ledger: Ledger, caller: Caller) -> None:
    flow_id = await created(ledger, DATA / "binary.csv")
    with pytest.raises(DiscoveryStopped, match="not a text file"):
        await worker(ledger, caller, flow_id, replace(PLAIN, csv=DATA / "binary.csv")).run()
    flow = await full(ledger, flow_id)
    assert flow.status == flow_pb2.FLOW_STATUS_FAILED
    assert flow.children[0].phases[0].failure.code == flow_pb2.FAILURE_CODE_DATA_VALIDATION_FAILED


async def test_a_flow_is_not_gone_on_with_from_another_file(ledger: Ledger, caller: Caller) -> None:
    flow_id = await created(ledger, CLOUD)
    with pytest.raises(DiscoveryStopped, match=r"begun with another cloud_servers\.tsv"):
        await worker(ledger, caller, flow_id, replace(PLAIN, csv=CMDB)).run()


async def test_an_inventory_too_large_for_a_flow_is_refused_before_it_is_stored(ledger: Ledger, caller: Caller, tmp_path: Path) -> None:
    path = tmp_path / "large.csv"
    path.write_text("hostname,description\n" + "".join(f"h{n},{'x' * 100}\n" for n in range(10_000)))
    flow_id = await created(ledger, path)
    with pytest.raises(DiscoveryStopped, match="split the inventory"):
        await worker(ledger, caller, flow_id, replace(PLAIN, csv=path)).run()
    assert (await document(ledger, flow_id)).rows == {}


async def test_findings_too_large_for_a_flow_fail_their_phase_with_advice(ledger: Ledger, caller: Caller, tmp_path: Path) -> None:
    path = tmp_path / "wide.csv"
    columns = [f"{'unknown ' * 15}{n}" for n in range(60)]
    path.write_text("\n".join(",".join(row) for row in (["hostname", *columns], *([f"h{n}", *"z" * 60] for n in range(600)))))
    flow_id = await created(ledger, path)
    with pytest.raises(DiscoveryStopped, match="does not fit into one flow"):
        await worker(ledger, caller, flow_id, replace(PLAIN, csv=path)).run()
    assert (await full(ledger, flow_id)).status == flow_pb2.FLOW_STATUS_FAILED


async def test_a_thousand_servers_fit_into_a_flow(ledger: Ledger, caller: Caller, tmp_path: Path) -> None:
    path = tmp_path / "many.csv"
    header, *rows = FEDORA.read_text().splitlines()
    many = [row.replace(",", f"-{copy}.example,", 1) for copy in range(9) for row in rows]
    path.write_text("\n".join([header, *many]))
    flow_id = await created(ledger, path)
    await worker(ledger, caller, flow_id, replace(PLAIN, csv=path)).run()
    assert len((await document(ledger, flow_id)).all_assets()) == 9 * 371


async def test_a_paused_flow_is_left_alone_with_a_sentence(ledger: Ledger, caller: Caller) -> None:
    flow_id = await created(ledger, FEDORA)
    await ledger.commit(flow_id, [change_pb2.Change(pause=change_pb2.FlowPause(reason="lunch"))])
    with pytest.raises(DiscoveryStopped, match="the flow is paused"):
        await worker(ledger, caller, flow_id).run()


async def test_a_refusal_of_the_service_reads_as_a_sentence(ledger: Ledger, caller: Caller) -> None:
    with pytest.raises(CallFailed, match=r"\(FLOW_NOT_FOUND\)") as failed:
        await worker(ledger, caller, str(uuid4())).run()
    assert failed.value.reason == "FLOW_NOT_FOUND"
    with pytest.raises(CallFailed, match=r"flow_id.*\(INVALID_REQUEST\)"):
        await worker(ledger, caller, "no id").run()


async def test_a_session_prints_events_then_the_report_and_no_control_codes(
    server: app.Server, caller: Caller, capsys: pytest.CaptureFixture[str]
) -> None:
    console = Console(force_terminal=False, width=80, highlight=False)
    session = Session(server.address, caller, replace(PLAIN, csv=HYPERVISOR, fail_phase="asset_creation"), "", Decision(True, "yes"))
    await discover(session, console, uuid4, unasked)
    out = capsys.readouterr().out
    assert re.search(r"data_import is at 100%: 6 of 6 rows stored", out)
    assert re.search(r"asset_creation failed and may be retried, EXTERNAL_SERVICE_ERROR", out)
    assert "asset_creation began again, retry 1" in out
    assert out.index("the flow has ended, COMPLETED") < out.index("Key findings") < out.index("How it went")
    assert not re.search(r"[\x00-\x09\x0b-\x1f]", out)
    revisions = [int(line[1]) for line in re.finditer(r"^ *(\d+) +[\d.]+ %", out, re.MULTILINE)]
    assert revisions == sorted(set(revisions))


async def test_the_view_rebuilds_the_flow_from_the_stream_alone(ledger: Ledger, caller: Caller) -> None:
    flow_id = await created(ledger, FEDORA)
    picture = FlowPicture()
    picture.show_snapshot(await ledger.flow(flow_id, flow_pb2.FLOW_VIEW_BASIC))
    await worker(ledger, caller, flow_id, replace(PLAIN, fail_phase="data_cleansing")).run()
    for event in (await events(ledger, flow_id))[1:]:
        picture.show_event(event)
    flow = await full(ledger, flow_id)
    assert (picture.status, picture.percent, picture.revision) == (flow.status, flow.progress_percent, flow.revision)
    assert [(line.name, line.state, line.retry_count) for line in picture.phases.values()] == [
        (phase.name, phase.state, phase.retry_count) for phase in flow.children[0].phases
    ]
    assert len(picture.events) == 8


async def test_the_report_is_made_of_what_the_service_gives_back(ledger: Ledger, caller: Caller) -> None:
    flow_id = await created(ledger, FEDORA)
    await worker(ledger, caller, flow_id).run()
    flow = await full(ledger, flow_id)
    out = io.StringIO()
    print_report(flow, Console(file=out, width=80))
    text = out.getvalue()
    findings = key_findings(parse_document(flow.children[0].data.json))
    assert any("180 of 371 servers (49%)" in finding for finding in findings)
    assert text.count("https://") == 2
    assert all(len(line) <= 80 for line in text.splitlines() if "https://" not in line)
