"""StreamProgress: reports merge while a commit is out, the last one counts, and one that is refused ends the stream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Any

import grpc
import pytest
from flowledger.v1 import change_pb2, flow_pb2
from flowledger.v1 import flow_service_pb2 as pb

from tests.tenancy import PATIENCE, Refusal, Tenancy


def _report(fraction: float, flow_id: str = "", phase: str = "data_import", message: str = "") -> pb.StreamProgressRequest:
    report = change_pb2.ProgressReport(phase=phase, fraction=fraction, message=message)
    return pb.StreamProgressRequest(flow_id=flow_id, progress=report)


async def _stream(tenancy: Tenancy, reports: Iterable[Any]) -> pb.StreamProgressResponse:
    found: pb.StreamProgressResponse = await tenancy.stub.StreamProgress(iter(reports), metadata=tenancy.metadata, timeout=PATIENCE)
    return found


async def _refusal(tenancy: Tenancy, reports: Iterable[Any]) -> Refusal:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await _stream(tenancy, reports)
    return Refusal.of(caught.value)


async def _begun(tenancy: Tenancy) -> str:
    flow_id = (await tenancy.create()).flow_id
    await tenancy.move(flow_id, "data_import", "IN_PROGRESS")
    return flow_id


async def _phase(tenancy: Tenancy, flow_id: str, name: str = "data_import") -> tuple[flow_pb2.Phase, int]:
    flow = (await tenancy.call("GetFlow", flow_id=flow_id)).flow
    return next(phase for phase in flow.children[0].phases if phase.name == name), flow.revision


async def test_a_streams_counts_and_flow_are_those_of_the_database(tenancy: Tenancy) -> None:
    flow_id = await _begun(tenancy)
    found = await _stream(tenancy, [_report(0.1, flow_id, message="one"), _report(0.5), _report(0.9, message="last"), _report(0.95)])
    phase, revision = await _phase(tenancy, flow_id)
    assert found.received_count == 4
    assert 1 <= found.committed_count <= 4
    assert (found.flow.flow_id, found.flow.revision, revision) == (flow_id, 2 + found.committed_count, 2 + found.committed_count)
    assert (phase.fraction, phase.message) == (0.95, "last")


async def test_many_reports_merge_and_the_last_one_is_kept(tenancy: Tenancy) -> None:
    flow_id = await _begun(tenancy)
    count = 2000
    found = await _stream(tenancy, [_report((at + 1) / count, flow_id, message=f"row {at}" if at % 2 else "") for at in range(count)])
    phase, revision = await _phase(tenancy, flow_id)
    assert found.received_count == count
    assert found.committed_count < count
    assert (phase.fraction, phase.message, revision) == (1.0, f"row {count - 1}", 2 + found.committed_count)
    events = (await tenancy.call("ListFlowEvents", flow_id=flow_id, after_revision=2, page_size=1000)).events
    fractions = [change.phase.to_fraction for event in events for change in event.changes]
    assert fractions == sorted(fractions)


async def test_one_stream_may_report_several_flows(tenancy: Tenancy) -> None:
    flows = [await _begun(tenancy) for _ in range(3)]
    reports = [_report(0.1 * (at + 1) + 0.01 * round_, flow_id) for round_ in range(5) for at, flow_id in enumerate(flows)]
    found = await _stream(tenancy, [*reports, _report(0.99)])  # the last one has no id: it is of the flow before
    assert found.received_count == 16
    revisions = 0
    for flow_id, fraction in zip(flows, (0.14, 0.24, 0.99), strict=True):
        phase, revision = await _phase(tenancy, flow_id)
        assert phase.fraction == pytest.approx(fraction)
        revisions += revision - 2
    assert found.committed_count == revisions
    assert found.flow.flow_id == flows[2]


async def test_one_stream_may_report_several_phases(tenancy: Tenancy) -> None:
    flow_id = (await tenancy.create()).flow_id
    for name in ("data_import", "field_mapping", "data_cleansing", "asset_creation", "asset_inventory"):
        await tenancy.move(flow_id, name, "IN_PROGRESS", *(["WAITING_APPROVAL"] if name == "field_mapping" else []), "COMPLETED")
    for name in ("dependency_analysis", "tech_debt_analysis"):
        await tenancy.move(flow_id, name, "IN_PROGRESS")
    reports = [_report(at / 100, flow_id, ("dependency_analysis", "tech_debt_analysis")[at % 2]) for at in range(100)]
    await _stream(tenancy, reports)
    assert (await _phase(tenancy, flow_id, "dependency_analysis"))[0].fraction == 0.98
    assert (await _phase(tenancy, flow_id, "tech_debt_analysis"))[0].fraction == 0.99


async def test_an_empty_stream_is_refused(tenancy: Tenancy) -> None:
    refusal = await _refusal(tenancy, [])
    assert (refusal.reason, list(refusal.violations)) == ("INVALID_REQUEST", ["progress"])


@pytest.mark.parametrize(
    ("report", "reason"),
    [
        (_report(1.5), "INVALID_REQUEST"),
        (_report(float("nan")), "INVALID_REQUEST"),
        (pb.StreamProgressRequest(), "INVALID_REQUEST"),
        (_report(0.5, "nobody"), "INVALID_REQUEST"),
        (_report(0.5, "0190a000-0000-7000-8000-000000000001"), "FLOW_NOT_FOUND"),
        (_report(0.5, phase="nothing"), "PHASE_NOT_FOUND"),
        (_report(0.5, phase="field_mapping"), "INVALID_PHASE_TRANSITION"),
    ],
)
async def test_a_refused_report_ends_the_stream_and_is_named(tenancy: Tenancy, report: Any, reason: str) -> None:
    flow_id = await _begun(tenancy)
    refusal = await _refusal(tenancy, [_report(0.1, flow_id), _report(0.2), report, _report(0.9)])
    assert (refusal.reason, refusal.metadata["report_index"]) == (reason, "2")
    phase, _ = await _phase(tenancy, flow_id)
    assert phase.fraction in (0.2, 0.9)  # what was accepted before it is kept, and may have been merged with what came after


async def test_the_first_message_must_name_a_flow(tenancy: Tenancy) -> None:
    refusal = await _refusal(tenancy, [_report(0.1)])
    assert (list(refusal.violations), refusal.metadata["report_index"]) == (["flow_id"], "0")


async def test_what_was_accepted_before_a_faulty_report_is_committed(tenancy: Tenancy) -> None:
    flow_id = await _begun(tenancy)
    refusal = await _refusal(tenancy, [*(_report(at / 1000, flow_id) for at in range(500)), _report(2.0)])
    assert refusal.metadata["report_index"] == "500"
    assert (await _phase(tenancy, flow_id))[0].fraction == 0.499


async def test_a_worker_that_says_no_more_still_hears_of_its_refused_report(tenancy: Tenancy) -> None:
    flow_id = (await tenancy.create()).flow_id
    ended = asyncio.Event()

    async def reports() -> AsyncIterator[pb.StreamProgressRequest]:
        yield _report(0.5, flow_id)  # of a phase that nobody has begun
        await ended.wait()

    call = tenancy.stub.StreamProgress(reports(), metadata=tenancy.metadata)
    try:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await asyncio.wait_for(call, PATIENCE)
    finally:
        ended.set()
    assert (Refusal.of(caught.value).reason, Refusal.of(caught.value).metadata["report_index"]) == ("INVALID_PHASE_TRANSITION", "0")


async def test_a_worker_that_breaks_off_leaves_whole_commits_and_a_server_that_goes_on(tenancy: Tenancy) -> None:
    flow_id = await _begun(tenancy)
    watch = tenancy.watch(flow_id)

    async def reports() -> AsyncIterator[pb.StreamProgressRequest]:
        for at in range(100_000):
            yield _report(at / 100_000, flow_id)

    call = tenancy.stub.StreamProgress(reports(), metadata=tenancy.metadata)
    async with asyncio.timeout(PATIENCE):
        sending = asyncio.ensure_future(call)
        async for message in watch:
            if message.revision >= 4:  # some reports are on disk
                break
        watch.cancel()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending
    assert (await tenancy.call("PauseFlow", flow_id=flow_id)).flow.status == flow_pb2.FLOW_STATUS_PAUSED
    flow = (await tenancy.call("GetFlow", flow_id=flow_id)).flow
    events = (await tenancy.call("ListFlowEvents", flow_id=flow_id, page_size=1000)).events
    assert [event.revision for event in events] == list(range(1, flow.revision + 1))
    assert events[-1].changes[0].WhichOneof("kind") == "hold"
    assert flow.children[0].phases[0].fraction == events[-2].changes[0].phase.to_fraction
