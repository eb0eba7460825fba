"""Status and progress once more, written from the design alone."""

from __future__ import annotations

from server.statemachine.graphs import JOURNEYS
from server.statemachine.states import FlowHold, FlowStatus, PhaseState
from server.statemachine.values import ChildFlow, Flow

from .test_matrix import WEIGHTS

S, T = PhaseState, FlowStatus


def progress_of(child: ChildFlow) -> float:
    """The design's formula: the sum of phase weight times state weight, to 100."""
    done = whole = 0.0
    for phase, definition in zip(child.phases, child.definition.phases, strict=True):
        reported = 0.4 * phase.fraction if phase.state is S.IN_PROGRESS else 0.0
        done += definition.weight * (WEIGHTS[phase.state.name] + reported)
        whole += definition.weight
    return 100.0 * done / whole


def status_of(child: ChildFlow, hold: FlowHold) -> FlowStatus:
    """The design's list, the first that is true."""
    states = {phase.state for phase in child.phases}
    pairs = list(zip(child.phases, child.definition.phases, strict=True))
    under_way = [definition.status for phase, definition in pairs if phase.state in (S.IN_PROGRESS, S.WAITING_VALIDATION)]
    complete = [definition.status for phase, definition in pairs if phase.state is S.COMPLETED]
    said = [
        (states == {S.COMPLETED}, T.COMPLETED),
        (hold is FlowHold.CANCELLED, T.CANCELLED),
        (hold is FlowHold.PAUSED, T.PAUSED),
        (S.FAILED in states, T.FAILED),
        (S.RETRY_NEEDED in states, T.RETRY_PENDING),
        (S.WAITING_APPROVAL in states, T.WAITING_APPROVAL),
        (bool(under_way), under_way[-1] if under_way else T.ACTIVE),
        (bool(complete), complete[-1] if complete else T.ACTIVE),
    ]
    return next((status for true, status in said if true), T.INITIALIZED)


ORDER = [
    T.FAILED,
    T.RETRY_PENDING,
    T.WAITING_APPROVAL,
    T.DATA_GATHERING,
    T.DISCOVERY,
    T.ASSESSMENT_READY,
    T.PLANNING,
    T.ACTIVE,
    T.INITIALIZED,
]


def master_status_of(flow: Flow) -> FlowStatus:
    """The design's rule of the master: complete when the journey is, else a command's, else the child's under way."""
    unheld = [status_of(child, FlowHold.NONE) for child in flow.children]
    if unheld == [T.COMPLETED] * len(JOURNEYS[flow.type]):
        return T.COMPLETED
    if flow.hold is not FlowHold.NONE:
        return FlowStatus[flow.hold.name]
    open_ones = [status for status in unheld if status is not T.COMPLETED]
    return min(open_ones, key=ORDER.index) if open_ones else T.ACTIVE
