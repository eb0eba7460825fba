"""What working on a phase takes: how it begins, how it ends, and what a failure is called."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from flowledger.v1 import change_pb2, flow_pb2
from flowledger.v1 import flow_service_pb2 as pb
from google.protobuf import timestamp_pb2

_AGAIN = frozenset({flow_pb2.PHASE_STATE_RETRY_NEEDED, flow_pb2.PHASE_STATE_FAILED, flow_pb2.PHASE_STATE_ROLLED_BACK})
REASON_LENGTH = 2000
# How often the commit that ends a phase is decided again, when other phases of the flow move all the time.
END_TRIES = 100


class PhaseFailed(Exception):
    """Raised by a worker: the phase could not be done; ``code`` says whether it may be tried again."""

    def __init__(self, code: flow_pb2.FailureCode.ValueType, text: str) -> None:
        super().__init__(text)
        self.code = code


class PhaseUnknown(Exception):
    """The flow has no such phase, or several children have one of that name."""


class PhaseLost(Exception):
    """The phase is not this worker's any more: it was taken back, and perhaps somebody else is at it. Nothing was written."""


@dataclass(frozen=True)
class PhasePlace:
    """Which phase of which flow."""

    flow_id: str
    phase: str
    child_type: str

    def found(self, flow: flow_pb2.Flow) -> flow_pb2.Phase:
        """The phase in the flow. Raises PhaseUnknown."""
        children = [child for child in flow.children if self.child_type in ("", child.type)]
        phases = [phase for child in children for phase in child.phases if phase.name == self.phase]
        if len(phases) != 1:
            raise PhaseUnknown(f"the flow {self.flow_id} has {len(phases)} phases that are {self.child_type or 'any child'}'s {self.phase}")
        return phases[0]

    def begun(self, phase: flow_pb2.Phase, reason: str) -> pb.CommitFlowRequest:
        """What begins the phase, for the first time or again; refused by the service when somebody else is at it."""
        if phase.state in _AGAIN:
            return self._commit(change_pb2.Change(retry=change_pb2.PhaseRetry(phase=self.phase, child_type=self.child_type, reason=reason)))
        return self._commit(self._moved(flow_pb2.PHASE_STATE_IN_PROGRESS, reason))

    def reported(self, fraction: float, message: str) -> pb.ReportProgressRequest:
        """What says how far the phase has come."""
        report = change_pb2.ProgressReport(phase=self.phase, child_type=self.child_type, fraction=fraction, message=message)
        return pb.ReportProgressRequest(flow_id=self.flow_id, progress=report)

    def done(
        self, flow: flow_pb2.Flow, since: timestamp_pb2.Timestamp, reason: str, results: Sequence[change_pb2.Change]
    ) -> list[change_pb2.Change]:
        """What says that the work begun at ``since`` is done, and its results: COMPLETED, or the wait it requires. Raises PhaseLost."""
        phase = self._held(flow, since)
        to = flow_pb2.PHASE_STATE_COMPLETED
        if phase.requires_validation:
            to = flow_pb2.PHASE_STATE_WAITING_VALIDATION
        elif phase.requires_approval:
            to = flow_pb2.PHASE_STATE_WAITING_APPROVAL
        return [*results, self._moved(to, reason)]

    def failed(self, flow: flow_pb2.Flow, since: timestamp_pb2.Timestamp, error: Exception) -> list[change_pb2.Change]:
        """What says that the work begun at ``since`` failed. Raises PhaseLost.

        Of an exception that is not PhaseFailed only its class is told: its text may hold secrets.
        """
        self._held(flow, since)
        code, text = flow_pb2.FAILURE_CODE_PHASE_EXECUTION_FAILED, type(error).__name__
        if isinstance(error, PhaseFailed):
            code, text = error.code, str(error)[:REASON_LENGTH]
        return [self._moved(flow_pb2.PHASE_STATE_FAILED, text, flow_pb2.PhaseFailure(code=code, message=text))]

    def _held(self, flow: flow_pb2.Flow, since: timestamp_pb2.Timestamp) -> flow_pb2.Phase:
        """The phase, in progress since then: whoever began it later is somebody else."""
        phase = self.found(flow)
        if phase.state != flow_pb2.PHASE_STATE_IN_PROGRESS or phase.state_time != since:
            raise PhaseLost(f"the phase {self.phase} of the flow {self.flow_id} was taken from this worker")
        return phase

    def _moved(self, to: flow_pb2.PhaseState.ValueType, reason: str, failure: flow_pb2.PhaseFailure | None = None) -> change_pb2.Change:
        transition = change_pb2.PhaseTransition(phase=self.phase, child_type=self.child_type, to=to, reason=reason, failure=failure)
        return change_pb2.Change(transition=transition)

    def _commit(self, *changes: change_pb2.Change) -> pb.CommitFlowRequest:
        return pb.CommitFlowRequest(flow_id=self.flow_id, changes=changes)


def read_of(flow_id: str, view: flow_pb2.FlowView.ValueType) -> pb.GetFlowRequest:
    """What asks for the flow as it is."""
    return pb.GetFlowRequest(flow_id=flow_id, view=view)
