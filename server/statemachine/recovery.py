"""What can be done now to bring a flow on: the same rules that ``apply`` obeys, read the other way round."""

from __future__ import annotations

from enum import unique
from uuid import UUID

from server.statemachine import phases
from server.statemachine.derivation import flow_status
from server.statemachine.graphs import JOURNEYS
from server.statemachine.states import RETRYABLE, FlowHold, FlowStatus, Member, PhaseState
from server.statemachine.value import dataclass
from server.statemachine.values import ChildFlow, Flow, Phase

_S = PhaseState


@unique
class Remedy(Member):
    """What may be done; numbers as in the contract."""

    UNDELETE = 1
    RESUME = 2
    CANCEL = 3
    START_CHILD = 4
    BEGIN = 5
    REPORT = 6
    VALIDATE = 7
    APPROVE = 8
    REJECT = 9
    RETRY = 10
    GRANT_RETRY = 11
    GIVE_UP = 12
    REDO = 13
    ROLL_BACK = 14
    RESET = 15
    REVERT = 16
    RESTORE = 17
    RECOVER = 18


@unique
class Whom(Member):
    """For whom an option is meant; numbers as in the contract."""

    WORKER = 1
    VALIDATOR = 2
    APPROVER = 3
    OWNER = 4


@dataclass(frozen=True, slots=True)
class Effect:
    """What an option would lead to; ``phases`` are those that would change, each as `phase: FROM -> TO`."""

    status: FlowStatus
    progress: float
    phases: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RecoveryOption:
    """One thing that may be done now; ``phase`` and ``child_type`` are empty for what concerns the whole flow."""

    remedy: Remedy
    whom: Whom
    why: str
    child_type: str = ""
    phase: str = ""
    revision: int = 0
    checkpoint_id: UUID | None = None
    effect: Effect | None = None


def recovery_options(flow: Flow) -> tuple[RecoveryOption, ...]:
    """What may be done to ``flow`` now, for whom and why; empty when it has ended for good."""
    if flow.delete_time is not None:
        return (RecoveryOption(Remedy.UNDELETE, Whom.OWNER, "the flow is deleted"),)
    if flow.hold is FlowHold.CANCELLED:
        return ()
    cancel = RecoveryOption(Remedy.CANCEL, Whom.OWNER, "the flow has not completed")
    if flow.hold is FlowHold.PAUSED:
        return (RecoveryOption(Remedy.RESUME, Whom.OWNER, flow.hold_reason or "the flow is paused"), cancel)
    if flow.hold is FlowHold.RECOVERING:
        return (cancel,)
    options = [option for child in flow.children for phase in child.phases for option in _of_phase(child, phase)]
    status = flow_status(flow)
    if status is not FlowStatus.COMPLETED:
        options.append(cancel)
    if domain := _next_domain(flow):
        options.insert(0, RecoveryOption(Remedy.START_CHILD, Whom.OWNER, f"{domain} is the journey's next domain", domain))
    return tuple(options)


def _next_domain(flow: Flow) -> str:
    journey = JOURNEYS[flow.type]
    complete = all(phase.state is _S.COMPLETED for child in flow.children for phase in child.phases)
    return journey[len(flow.children)] if complete and len(flow.children) < len(journey) else ""


def _of_phase(child: ChildFlow, phase: Phase) -> list[RecoveryOption]:
    definition = child.definition.phases[child.definition.position[phase.name]]
    allowed = phases.next_states(child, phase)

    def option(remedy: Remedy, whom: Whom, why: str) -> RecoveryOption:
        return RecoveryOption(remedy, whom, why, child.type, phase.name)

    found: list[RecoveryOption] = []
    match phase.state:
        case _S.NOT_STARTED if allowed:
            found.append(option(Remedy.BEGIN, Whom.WORKER, "all it depends on is complete"))
        case _S.IN_PROGRESS:
            found.append(option(Remedy.REPORT, Whom.WORKER, f"it is in progress, {phase.fraction:.0%} reported"))
        case _S.WAITING_VALIDATION:
            found.append(option(Remedy.VALIDATE, Whom.VALIDATOR, "its work waits to be validated"))
            found.append(option(Remedy.REJECT, Whom.VALIDATOR, "its work may be found wrong"))
        case _S.WAITING_APPROVAL:
            found.append(option(Remedy.APPROVE, Whom.APPROVER, "its work waits for approval"))
            found.append(option(Remedy.REJECT, Whom.APPROVER, "its work may be sent back"))
        case _S.RETRY_NEEDED | _S.ROLLED_BACK if _S.IN_PROGRESS in allowed:
            found.append(option(Remedy.RETRY, Whom.WORKER, _failure(phase) or "its result was taken back"))
        case _S.FAILED if _retryable(phase, definition.max_retries) and not phases.missing_dependencies(child, definition):
            found.append(option(Remedy.RETRY, Whom.WORKER, _failure(phase) or "it failed"))
        case _S.FAILED:
            spent = f"{phase.retry_count} of {definition.max_retries} retries are spent"
            found.append(option(Remedy.GRANT_RETRY, Whom.OWNER, f"{_failure(phase) or 'it failed'}; {spent}"))
        case _S.COMPLETED:
            found.append(option(Remedy.REDO, Whom.OWNER, "its work can be done again, and with it what was built on it"))
        case _:
            pass
    if phase.state is _S.RETRY_NEEDED:
        found.append(option(Remedy.GIVE_UP, Whom.OWNER, "it need not be tried again"))
    if _S.ROLLED_BACK in allowed:
        found.append(option(Remedy.ROLL_BACK, Whom.OWNER, "its result, and what was built on it, can be taken back"))
    if _S.NOT_STARTED in allowed:
        found.append(option(Remedy.RESET, Whom.OWNER, "it can be set back to the start"))
    return found


def _retryable(phase: Phase, max_retries: int) -> bool:
    return (phase.failure is None or phase.failure.code in RETRYABLE) and phase.retry_count < max_retries


def _failure(phase: Phase) -> str:
    if phase.failure is None:
        return ""
    return f"{phase.failure.code.name}: {phase.failure.message}" if phase.failure.message else phase.failure.code.name
