"""The worker: reads from the service what may be done next, does it, and says what came of it, until the discovery is complete."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from flowledger.v1 import activity_pb2, change_pb2, flow_pb2
from google.protobuf import duration_pb2

from examples.discovery.approval import Decision
from examples.discovery.document import Patch, parse_document, patch_json
from examples.discovery.ledger import CHILD, Caller, CallFailed, Ledger, child_patch, state_patch
from examples.discovery.mapping import FieldMapping
from examples.discovery.progress import Interruption, PhaseFailed, PhaseHalted, Progress, StreamedProgress
from examples.discovery.steps import STEPS, STREAMED, Outcome, Work, mapping_of

NAME = "discovery worker"
# Failures of something else: trying again may help, and does no harm.
_TRIED_AGAIN = frozenset(
    {
        flow_pb2.FAILURE_CODE_AGENT_TIMEOUT,
        flow_pb2.FAILURE_CODE_EXTERNAL_SERVICE_ERROR,
        flow_pb2.FAILURE_CODE_TEMPORARY_RESOURCE_UNAVAILABLE,
    }
)
_BEGUN_AGAIN = frozenset({flow_pb2.PHASE_STATE_RETRY_NEEDED, flow_pb2.PHASE_STATE_ROLLED_BACK})


class DiscoveryStopped(Exception):
    """The discovery cannot go on by itself; the text says why and what helps."""


@dataclass(frozen=True, slots=True)
class Assignment:
    """What the worker is to do with a flow. ``pace`` is a pause in seconds after each progress report, for people who watch."""

    csv: Path
    as_of: date
    corrections: Mapping[str, str]
    fail_phase: str | None
    pace: float


Ask = Callable[[FieldMapping], Awaitable[Decision]]


class Worker:
    """Drives one discovery flow. It keeps nothing that is not in the flow, so another one can go on where it stopped."""

    def __init__(self, ledger: Ledger, caller: Caller, flow_id: str, assignment: Assignment, ask: Ask) -> None:
        self._ledger, self._caller, self._flow_id, self._assignment, self._ask = ledger, caller, flow_id, assignment, ask
        self._corrections = dict(assignment.corrections)
        self._interruption = Interruption(assignment.fail_phase)

    async def run(self) -> None:
        """Returns once the discovery is complete; raises DiscoveryStopped when a person must act first, CallFailed."""
        while True:
            child = await self._child()
            if child.status == flow_pb2.FLOW_STATUS_COMPLETED:
                return
            if child.status in (flow_pb2.FLOW_STATUS_PAUSED, flow_pb2.FLOW_STATUS_CANCELLED):
                raise DiscoveryStopped(f"the flow is {flow_pb2.FlowStatus.Name(child.status).removeprefix('FLOW_STATUS_').lower()}")
            ready = _ready(child)
            if not ready:
                raise DiscoveryStopped("no phase can go on: see ListFlowEvents for why")
            # What does not depend on each other runs side by side; each is heard to its end before the trouble of one ends us.
            ended = await asyncio.gather(*(self._advance(phase) for phase in ready), return_exceptions=True)
            for error in ended:
                if error is not None:
                    raise error

    async def _child(self) -> flow_pb2.ChildFlow:
        flow = await self._ledger.flow(self._flow_id, flow_pb2.FLOW_VIEW_BASIC)
        for child in flow.children:
            if child.type == CHILD:
                return child
        raise DiscoveryStopped(f"the flow {self._flow_id} has no discovery child")

    async def _advance(self, phase: flow_pb2.Phase) -> None:
        if phase.name not in STEPS:
            raise DiscoveryStopped(f"this worker does not know the phase {phase.name}")
        if phase.state == flow_pb2.PHASE_STATE_FAILED:
            raise DiscoveryStopped(
                f"{phase.name} failed for good: {phase.failure.message}. Roll it back or grant a retry, then go on with --flow-id"
            )
        if phase.state == flow_pb2.PHASE_STATE_WAITING_APPROVAL:
            await self._settle(phase.name)
            return
        await self._begin(phase)
        progress = (StreamedProgress if phase.name in STREAMED else Progress)(
            self._ledger, self._flow_id, phase.name, self._interruption, self._assignment.pace
        )
        clock = asyncio.get_running_loop().time
        begun = clock()
        try:
            outcome = await STEPS[phase.name](await self._work(progress))
            await progress.close()
            await self._record(phase.name, outcome, clock() - begun)
            await self._finish(phase, outcome)
        except PhaseFailed as failed:
            await progress.close()
            await self._failed(phase.name, failed)
            return
        except PhaseHalted as halted:
            await progress.close()
            await self._move(phase.name, flow_pb2.PHASE_STATE_RETRY_NEEDED, str(halted))
            raise DiscoveryStopped(str(halted)) from None
        except CallFailed as refused:
            if refused.reason != "LIMIT_EXCEEDED":
                raise
            await progress.close()
            message = f"what was found does not fit into one flow, {refused}: split the inventory, or leave columns out"
            await self._failed(phase.name, PhaseFailed(flow_pb2.FAILURE_CODE_DATA_VALIDATION_FAILED, message))

    async def _begin(self, phase: flow_pb2.Phase) -> None:
        if phase.state == flow_pb2.PHASE_STATE_NOT_STARTED:
            await self._move(phase.name, flow_pb2.PHASE_STATE_IN_PROGRESS, "")
            return
        if phase.state not in _BEGUN_AGAIN:
            await self._move(phase.name, flow_pb2.PHASE_STATE_RETRY_NEEDED, "the worker that began it is gone")
        await self._ledger.retry(self._flow_id, phase.name, "begun again by a worker")

    async def _work(self, progress: Progress) -> Work:
        flow = await self._ledger.flow(self._flow_id, flow_pb2.FLOW_VIEW_FULL)
        data = next(child.data.json for child in flow.children if child.type == CHILD)

        async def store(patch: Patch) -> None:
            await self._ledger.update_child(self._flow_id, patch_json(patch))

        return Work(
            parse_document(data),
            progress,
            store,
            self._assignment.csv,
            self._assignment.as_of,
            self._caller.engagement_id,
            self._corrections,
        )

    async def _finish(self, phase: flow_pb2.Phase, outcome: Outcome) -> None:
        """What the phase found and its new state, as one commit: nobody ever sees one without the other."""
        to = flow_pb2.PHASE_STATE_WAITING_APPROVAL if phase.requires_approval else flow_pb2.PHASE_STATE_COMPLETED
        transition = change_pb2.PhaseTransition(phase=phase.name, child_type=CHILD, to=to, reason=outcome.sentence)
        changes = [
            change_pb2.Change(update=state_patch(patch_json({CHILD: outcome.summary}))),
            change_pb2.Change(transition=transition),
        ]
        if outcome.data:
            changes.insert(0, change_pb2.Change(update=child_patch(patch_json(outcome.data))))
        await self._ledger.commit(self._flow_id, changes)

    async def _record(self, phase: str, outcome: Outcome, seconds: float) -> None:
        took = duration_pb2.Duration()
        took.FromNanoseconds(round(seconds * 1e9))
        entry = activity_pb2.ActivityEntry(
            kind=activity_pb2.ACTIVITY_KIND_TIMING,
            phase=phase,
            subject=NAME,
            message=outcome.sentence,
            value=outcome.item_count / max(seconds, 1e-6),
            unit=f"{outcome.items}/s",
            duration=took,
        )
        await self._ledger.record(self._flow_id, [entry])

    async def _failed(self, phase: str, failed: PhaseFailed) -> None:
        failure = flow_pb2.PhaseFailure(code=failed.code, message=str(failed))
        await self._ledger.transition(
            self._flow_id, change_pb2.PhaseTransition(phase=phase, to=flow_pb2.PHASE_STATE_FAILED, reason=str(failed), failure=failure)
        )
        if failed.code not in _TRIED_AGAIN:
            raise DiscoveryStopped(f"{phase} failed: {failed}")

    async def _settle(self, phase: str) -> None:
        """A person's decision about the mapping, in the flow with the person's words."""
        flow = await self._ledger.flow(self._flow_id, flow_pb2.FLOW_VIEW_FULL)
        data = next(child.data.json for child in flow.children if child.type == CHILD)
        decision = await self._ask(mapping_of(parse_document(data)))
        if decision.approved:
            await self._move(phase, flow_pb2.PHASE_STATE_COMPLETED, decision.words)
            return
        await self._move(phase, flow_pb2.PHASE_STATE_RETRY_NEEDED, decision.words)
        self._corrections |= decision.corrections
        if not decision.corrections:
            raise DiscoveryStopped("the mapping was rejected: go on with --flow-id and a correction, --map COLUMN=FIELD")

    async def _move(self, phase: str, to: flow_pb2.PhaseState.ValueType, reason: str) -> None:
        await self._ledger.transition(self._flow_id, change_pb2.PhaseTransition(phase=phase, to=to, reason=reason))


def _ready(child: flow_pb2.ChildFlow) -> list[flow_pb2.Phase]:
    """The phases that are not complete and wait for no other."""
    complete = {phase.name for phase in child.phases if phase.state == flow_pb2.PHASE_STATE_COMPLETED}
    return [phase for phase in child.phases if phase.name not in complete and complete.issuperset(phase.depends_on)]
