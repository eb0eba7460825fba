"""Status and progress: functions of phases and commands, stored nowhere that they could go stale."""

from __future__ import annotations

from collections.abc import Sequence

from server.statemachine.definition import Definition
from server.statemachine.graphs import JOURNEYS
from server.statemachine.states import IN_PROGRESS_FULL, NOT_BEGUN, STATE_WEIGHTS, FlowHold, FlowStatus, PhaseState
from server.statemachine.values import ChildFlow, Flow, FlowSummary, Phase

HOLD_STATUS = {
    FlowHold.CANCELLED: FlowStatus.CANCELLED,
    FlowHold.PAUSED: FlowStatus.PAUSED,
}
# How many combinations of states a definition remembers the status of; each commit asks, and flows of one type meet the same few.
STATUSES = 4096

# Of several children under way the master takes the status that stands first here: what wants somebody's attention, then the
# definitions' own statuses, and INITIALIZED last, because a domain that has not begun must not hide one that has.
MASTER_ORDER = (
    FlowStatus.FAILED,
    FlowStatus.ERROR_RECOVERY,
    FlowStatus.RETRY_PENDING,
    FlowStatus.WAITING_APPROVAL,
    FlowStatus.DATA_GATHERING,
    FlowStatus.DISCOVERY,
    FlowStatus.ASSESSMENT_READY,
    FlowStatus.PLANNING,
    FlowStatus.ACTIVE,
    FlowStatus.INITIALIZED,
)
_RANK = {status: rank for rank, status in enumerate(MASTER_ORDER)}


def phase_weight(phase: Phase) -> float:
    """How much of the phase counts as done, 0 to 1."""
    least = STATE_WEIGHTS[phase.state]
    if phase.state is PhaseState.IN_PROGRESS:
        return least + (IN_PROGRESS_FULL - least) * phase.fraction
    return least


def child_progress(child: ChildFlow) -> float:
    """The child's progress, 0 to 100, to four decimals."""
    progress = child.memo_progress
    if progress is None:
        done, least = 0.0, STATE_WEIGHTS
        for share, phase in zip(child.definition.shares, child.phases, strict=True):
            state = phase.state
            done += share * (phase_weight(phase) if state is PhaseState.IN_PROGRESS else least[state])
        progress = round(100.0 * done, 4)
        object.__setattr__(child, "memo_progress", progress)
    return progress


def child_completed(child: ChildFlow) -> bool:
    """Whether every phase is COMPLETED."""
    return all(phase.state is PhaseState.COMPLETED for phase in child.phases)


def child_status(child: ChildFlow, hold: FlowHold) -> FlowStatus:
    """The child's status under ``hold``; a command does not reach a child that had completed."""
    if hold is not FlowHold.NONE:
        return _child_status(child, hold)
    status = child.memo_status
    if status is None:
        status = _child_status(child, hold)
        object.__setattr__(child, "memo_status", status)
    return status


def _child_status(child: ChildFlow, hold: FlowHold) -> FlowStatus:
    states = [phase.state for phase in child.phases]
    known, asked = child.definition.statuses, (hold, *states)
    status = known.get(asked)
    if status is None:
        status = _status_of(child.definition, hold, states)
        if len(known) >= STATUSES:
            known.clear()
        known[asked] = status
    return status


def _status_of(definition: Definition, hold: FlowHold, states: Sequence[PhaseState]) -> FlowStatus:
    if states.count(PhaseState.COMPLETED) == len(states):
        return FlowStatus.COMPLETED
    if held := HOLD_STATUS.get(hold):
        return held
    if PhaseState.FAILED in states:
        return FlowStatus.FAILED
    if hold is FlowHold.RECOVERING:
        return FlowStatus.ERROR_RECOVERY
    if PhaseState.RETRY_NEEDED in states:
        return FlowStatus.RETRY_PENDING
    if PhaseState.WAITING_APPROVAL in states:
        return FlowStatus.WAITING_APPROVAL
    begun = [at for at, state in enumerate(states) if state not in NOT_BEGUN]
    if not begun:
        return FlowStatus.INITIALIZED
    under_way = [at for at in begun if states[at] is not PhaseState.COMPLETED]
    return definition.phases[(under_way or begun)[-1]].status  # between two phases: that of the one just completed


def current_child(flow: Flow) -> ChildFlow | None:
    """The child that gives the flow its status: the foremost of those not completed, else the last; None without children."""
    return _leading(flow)[0]


def _leading(flow: Flow) -> tuple[ChildFlow | None, FlowStatus | None]:
    """The current child and its status when nothing holds the flow; that is COMPLETED only when every child's is."""
    best: ChildFlow | None = None
    best_status: FlowStatus | None = None
    best_rank = len(MASTER_ORDER)
    for child in flow.children:
        status = child_status(child, FlowHold.NONE)
        if status is FlowStatus.COMPLETED:
            if best_rank == len(MASTER_ORDER):
                best, best_status = child, status
        # Only a smaller rank wins, so that the first of equals stays: children are in the journey's order.
        elif (rank := _RANK[status]) < best_rank:
            best, best_status, best_rank = child, status, rank
    return best, best_status


def flow_status(flow: Flow) -> FlowStatus:
    """The master's status: a command's, else that of the child under way; ACTIVE between two domains."""
    return _status(flow, *_leading(flow))


def _status(flow: Flow, child: ChildFlow | None, unheld: FlowStatus | None) -> FlowStatus:
    if unheld is FlowStatus.COMPLETED and len(flow.children) == len(JOURNEYS[flow.type]):
        return FlowStatus.COMPLETED
    if held := HOLD_STATUS.get(flow.hold):
        return held
    if child is not None and unheld is not None and unheld is not FlowStatus.COMPLETED:
        return unheld if flow.hold is FlowHold.NONE else child_status(child, flow.hold)
    if flow.hold is FlowHold.RECOVERING:
        return FlowStatus.ERROR_RECOVERY
    return FlowStatus.INITIALIZED if child is None else FlowStatus.ACTIVE


def flow_progress(flow: Flow) -> float:
    """The master's progress, 0 to 100: every domain of the journey has the same share."""
    progress = flow.memo_progress
    if progress is None:
        progress = round(sum([child_progress(child) for child in flow.children]) / len(JOURNEYS[flow.type]), 4)
        object.__setattr__(flow, "memo_progress", progress)
    return progress


def current_phases(flow: Flow) -> tuple[str, ...]:
    """The phases of the current child that have begun and are not complete."""
    return _under_way(current_child(flow))


def _under_way(child: ChildFlow | None) -> tuple[str, ...]:
    if child is None:
        return ()
    return tuple([p.name for p in child.phases if p.state is not PhaseState.COMPLETED and p.state not in NOT_BEGUN])


def summary(flow: Flow) -> FlowSummary:
    """What lists and answers show of the flow."""
    child, unheld = _leading(flow)
    return FlowSummary(
        flow.tenant,
        flow.flow_id,
        flow.type,
        flow.display_name,
        flow.revision,
        _status(flow, child, unheld),
        flow_progress(flow),
        "" if child is None else child.type,
        _under_way(child),
        flow.labels,
        flow.create_time,
        flow.created_by,
        flow.update_time,
        flow.updated_by,
        flow.end_time,
        flow.delete_time,
        flow.hold_reason,
        flow.origin,
    )
