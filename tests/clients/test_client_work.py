"""The commit loop and the phase worker of clients/python."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
from flowledger.v1 import change_pb2, document_pb2, flow_pb2
from flowledger.v1 import flow_service_pb2 as pb
from flowledger_client import Caller, Client, ConcurrentModification, PhaseFailed, PhaseLost, PhaseUnknown, PreconditionFailed

from server import app
from tests.clients.both import Both, Connect, native, threaded
from tests.clients.line import line
from tests.conftest import Urls
from tests.faults.process import database, serving

FULL = flow_pb2.FLOW_VIEW_FULL


@pytest.fixture
async def client(connect: Connect, server: app.Server, caller: Caller) -> AsyncIterator[Both]:
    """A client of the shared server."""
    async with connect(server.address, caller) as client:
        yield client


async def created(client: Both, kind: str = "discovery", state: str = "{}") -> str:
    """The id of a new flow."""
    request = pb.CreateFlowRequest(type=kind, state=document_pb2.Document(json=state))
    found: str = (await client.call("CreateFlow", request)).flow.flow_id
    return found


async def read(client: Both, flow_id: str) -> flow_pb2.Flow:
    """All of the flow."""
    found: flow_pb2.Flow = (await client.call("GetFlow", pb.GetFlowRequest(flow_id=flow_id, view=FULL))).flow
    return found


async def phase(client: Both, flow_id: str, name: str) -> flow_pb2.Phase:
    """That phase as it is."""
    return next(phase for child in (await read(client, flow_id)).children for phase in child.phases if phase.name == name)


def stated(state: object) -> change_pb2.Change:
    """The change that gives the flow that state."""
    return change_pb2.Change(update=change_pb2.FlowUpdate(state=document_pb2.Document(json=json.dumps(state))))


def counted(flow: flow_pb2.Flow) -> Sequence[change_pb2.Change]:
    """One more: right only if nobody else counts meanwhile."""
    return [stated({"count": json.loads(flow.state.json)["count"] + 1})]


async def test_counting_from_many_sides_at_once_loses_no_count(client: Both) -> None:
    flow_id = await created(client, state='{"count": 0}')
    answers = await asyncio.gather(*(client.commit(flow_id, counted, view=FULL, tries=100) for _ in range(12)))
    assert json.loads((await read(client, flow_id)).state.json) == {"count": 12}
    assert sorted(answer.flow.revision for answer in answers) == list(range(2, 14))


async def test_who_decides_that_there_is_nothing_to_do_changes_nothing(client: Both) -> None:
    flow_id = await created(client)
    assert await client.commit(flow_id, lambda flow: []) is None
    assert (await read(client, flow_id)).revision == 1


async def test_a_loop_ends_when_somebody_else_is_always_first(urls: Urls, tmp_path: Path, caller: Caller) -> None:
    async with serving(tmp_path, **database(urls)) as elsewhere:
        with Client(elsewhere.address, caller) as other:
            for made in (threaded, native):
                async with made(elsewhere.address, caller) as client:
                    flow_id, seen = await created(client, state='{"count": 0}'), list[int]()

                    def overtaken(flow: flow_pb2.Flow, seen: list[int] = seen) -> Sequence[change_pb2.Change]:
                        seen.append(flow.revision)
                        other.flows.CommitFlow(pb.CommitFlowRequest(flow_id=flow.flow_id, changes=[stated({"count": 0})]))
                        return counted(flow)

                    with pytest.raises(ConcurrentModification) as aborted:
                        await client.commit(flow_id, overtaken, view=FULL, tries=3)
                    assert seen == [1, 2, 3]
                    assert (aborted.value.expected_revision, aborted.value.current_revision) == (3, 4)


async def test_an_error_of_the_decision_is_the_callers_own(client: Both) -> None:
    flow_id = await created(client)

    def failing(flow: flow_pb2.Flow) -> Sequence[change_pb2.Change]:
        raise LookupError("no such thing")

    with pytest.raises(LookupError, match="no such thing"):
        await client.commit(flow_id, failing)


async def test_a_commit_of_the_loop_whose_answer_was_lost_is_not_taken_for_somebody_elses(
    connect: Connect, server: app.Server, client: Both, caller: Caller
) -> None:
    flow_id = await created(client, state='{"count": 0}')
    async with line(server.address) as wire, connect(wire.address, caller) as cut_off:
        await read(cut_off, flow_id)
        decided = list[int]()

        def counting(flow: flow_pb2.Flow) -> Sequence[change_pb2.Change]:
            decided.append(flow.revision)
            wire.mute_soon()
            return counted(flow)

        counting_once = asyncio.ensure_future(cut_off.commit(flow_id, counting, view=FULL))
        while (await read(client, flow_id)).revision == 1:
            pass
        wire.cut()
        wire.unmute()
        answer = await counting_once
        assert (answer.flow.revision, decided) == (2, [1])
        assert json.loads((await read(client, flow_id)).state.json) == {"count": 1}


async def test_a_phase_begins_with_the_block_and_is_complete_with_its_results_at_the_end(client: Both) -> None:
    flow_id = await created(client)
    async with client.phase(flow_id, "data_import", reason="for a start") as work:
        assert (await phase(client, flow_id, "data_import")).state == flow_pb2.PHASE_STATE_IN_PROGRESS
        await work.report(0.5, "half way")
        assert (await phase(client, flow_id, "data_import")).fraction == 0.5
        work.results.append(stated({"rows": 371}))
        work.reason = "all rows"
    flow = await read(client, flow_id)
    assert (flow.revision, json.loads(flow.state.json)) == (4, {"rows": 371})
    assert (await phase(client, flow_id, "data_import")).state == flow_pb2.PHASE_STATE_COMPLETED


@pytest.mark.parametrize(("name", "state"), [("field_mapping", "WAITING_APPROVAL"), ("rehearsal", "WAITING_VALIDATION")])
async def test_a_phase_that_must_be_looked_at_waits_for_that(client: Both, name: str, state: str) -> None:
    kind, before = ("discovery", "data_import") if name == "field_mapping" else ("execution", "preparation")
    flow_id = await created(client, kind)
    for one in (before, name):
        async with client.phase(flow_id, one):
            pass
    assert (await phase(client, flow_id, name)).state == flow_pb2.PhaseState.Value(f"PHASE_STATE_{state}")


async def test_a_failure_says_whether_the_phase_may_be_tried_again_and_the_next_worker_does(client: Both) -> None:
    flow_id = await created(client)
    with pytest.raises(PhaseFailed):
        async with client.phase(flow_id, "data_import"):
            raise PhaseFailed(flow_pb2.FAILURE_CODE_EXTERNAL_SERVICE_ERROR, "the catalogue did not answer")
    failed = await phase(client, flow_id, "data_import")
    assert (failed.state, failed.failure.message) == (flow_pb2.PHASE_STATE_RETRY_NEEDED, "the catalogue did not answer")
    with pytest.raises(ZeroDivisionError):
        async with client.phase(flow_id, "data_import"):
            raise ZeroDivisionError("password is hunter2")
    failed = await phase(client, flow_id, "data_import")
    assert (failed.failure.code, failed.failure.message) == (flow_pb2.FAILURE_CODE_PHASE_EXECUTION_FAILED, "ZeroDivisionError")
    async with client.phase(flow_id, "data_import"):
        assert (await phase(client, flow_id, "data_import")).retry_count == 2
    with pytest.raises(PhaseFailed):
        async with client.phase(flow_id, "field_mapping"):
            raise PhaseFailed(flow_pb2.FAILURE_CODE_DATA_VALIDATION_FAILED, "no host names")
    assert (await phase(client, flow_id, "field_mapping")).state == flow_pb2.PHASE_STATE_FAILED


async def test_of_two_workers_of_one_phase_one_works(client: Both) -> None:
    flow_id = await created(client)
    async with client.phase(flow_id, "data_import"):
        with pytest.raises(PreconditionFailed):
            async with client.phase(flow_id, "data_import"):
                raise AssertionError("two work on one phase")
    assert (await phase(client, flow_id, "data_import")).state == flow_pb2.PHASE_STATE_COMPLETED


async def moved(client: Both, flow_id: str, to: flow_pb2.PhaseState.ValueType) -> None:
    """Somebody else moves the phase data_import."""
    transition = change_pb2.PhaseTransition(phase="data_import", to=to)
    await client.call("TransitionPhase", pb.TransitionPhaseRequest(flow_id=flow_id, transition=transition))


async def test_a_worker_whose_phase_was_taken_back_is_told_at_its_next_report(client: Both) -> None:
    flow_id = await created(client)

    async def working() -> None:
        async with client.phase(flow_id, "data_import") as work:
            await moved(client, flow_id, flow_pb2.PHASE_STATE_RETRY_NEEDED)
            await work.report(0.9)

    with pytest.raises(PreconditionFailed) as refused:
        await working()
    assert refused.value.reason == "INVALID_PHASE_TRANSITION"
    assert (await phase(client, flow_id, "data_import")).state == flow_pb2.PHASE_STATE_RETRY_NEEDED


@pytest.mark.parametrize(("error", "told"), [(None, PhaseLost), (ZeroDivisionError(), ZeroDivisionError)], ids=["done", "failed"])
async def test_a_late_worker_neither_completes_nor_fails_what_another_has_begun_since(
    client: Both, error: Exception | None, told: type[Exception]
) -> None:
    flow_id = await created(client)

    async def working() -> None:
        async with client.phase(flow_id, "data_import") as work:
            work.results.append(stated({"rows": 1}))
            await moved(client, flow_id, flow_pb2.PHASE_STATE_RETRY_NEEDED)
            await moved(client, flow_id, flow_pb2.PHASE_STATE_IN_PROGRESS)
            if error is not None:
                raise error

    with pytest.raises(told):
        await working()
    flow = await read(client, flow_id)
    assert (flow.revision, json.loads(flow.state.json)) == (4, {})
    assert (await phase(client, flow_id, "data_import")).state == flow_pb2.PHASE_STATE_IN_PROGRESS


async def test_a_phase_that_cannot_begin_or_is_not_there_is_not_worked_on(client: Both) -> None:
    flow_id = await created(client)
    with pytest.raises(PreconditionFailed) as refused:
        async with client.phase(flow_id, "asset_creation"):
            raise AssertionError("it depends on others")
    assert refused.value.missing_dependencies == ("data_cleansing",)
    with pytest.raises(PhaseUnknown, match="has 0 phases"):
        async with client.phase(flow_id, "no_such_phase"):
            raise AssertionError("it does not exist")
