"""The rules of phases within one child flow: what may follow what, what must come first, what is taken along."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from server.statemachine.definition import PhaseDefinition
from server.statemachine.errors import DependencyIncomplete, InvalidPhaseTransition, RetryLimitReached, invalid
from server.statemachine.event import PhaseChanged
from server.statemachine.states import NOT_BEGUN, RETRYABLE, TRANSITIONS, PhaseState
from server.statemachine.values import ChildFlow, Failure, Phase

_S = PhaseState


def missing_dependencies(child: ChildFlow, phase: PhaseDefinition) -> tuple[str, ...]:
    """The phases that must still complete before ``phase`` may begin."""
    position = child.definition.position
    return tuple(name for name in phase.depends_on if child.phases[position[name]].state is not _S.COMPLETED)


def permitted(state: PhaseState, definition: PhaseDefinition) -> tuple[PhaseState, ...]:
    """The states that the table and the definition let follow ``state``: a required wait cannot be skipped."""
    skipped: set[PhaseState] = set()
    if state is _S.IN_PROGRESS and definition.requires_validation:
        skipped = {_S.COMPLETED, _S.WAITING_APPROVAL}
    elif state in (_S.IN_PROGRESS, _S.WAITING_VALIDATION) and definition.requires_approval:
        skipped = {_S.COMPLETED}
    return tuple(to for to in TRANSITIONS[state] if to not in skipped)


def next_states(child: ChildFlow, phase: Phase) -> tuple[PhaseState, ...]:
    """What may be asked of ``phase`` now, dependencies considered."""
    definition = child.definition.phases[child.definition.position[phase.name]]
    allowed = permitted(phase.state, definition)
    if _S.IN_PROGRESS in allowed and missing_dependencies(child, definition):
        return tuple(to for to in allowed if to is not _S.IN_PROGRESS)
    return allowed


def transition(
    child: ChildFlow, at: int, to: PhaseState, failure: Failure | None, reason: str, now: datetime
) -> tuple[ChildFlow, tuple[PhaseChanged, ...]]:
    """The child once its phase number ``at`` has become ``to``, and what changed, dependants included.

    A failure's code decides between FAILED and RETRY_NEEDED, see _granted. Raises InvalidPhaseTransition, DependencyIncomplete, and
    InvalidRequest when ``failure`` is missing or out of place.
    """
    before, definition = child.phases[at], child.definition.phases[at]
    _check_failure(before, to, failure)
    if to not in permitted(before.state, definition):
        raise _refused(child, before, f"phase {before.name} is {before.state.name} and cannot become {to.name}")
    if to is _S.IN_PROGRESS and (missing := missing_dependencies(child, definition)):
        raise DependencyIncomplete("phase", before.name, missing)
    after = _become(before, _granted(before, to, failure, definition), failure, now)
    changed = [PhaseChanged(child.type, before, after, reason, "", failure is not None)]
    if before.state is _S.COMPLETED or to is _S.ROLLED_BACK:
        changed += _taken_along(child, at, reason, now)
    return _with(child, changed, now), tuple(changed)


def retry(child: ChildFlow, at: int, reason: str, now: datetime) -> tuple[ChildFlow, tuple[PhaseChanged, ...]]:
    """The child once its phase number ``at`` has begun again.

    Raises RetryLimitReached for a failed phase at its limit, InvalidPhaseTransition for a failure that may not be retried and for a phase
    that has nothing to retry, DependencyIncomplete.
    """
    before, definition = child.phases[at], child.definition.phases[at]
    if before.state is _S.FAILED:
        if before.failure is not None and before.failure.code not in RETRYABLE:
            raise _refused(
                child,
                before,
                f"phase {before.name} failed with {before.failure.code.name}, which is not retried without somebody's grant",
                retry_allowed="false",
            )
        if before.retry_count >= definition.max_retries:
            raise RetryLimitReached(before.name, before.retry_count, definition.max_retries)
        granted, _ = transition(child, at, _S.RETRY_NEEDED, None, reason, now)
    elif before.state in (_S.RETRY_NEEDED, _S.ROLLED_BACK):
        granted = child
    else:
        raise _refused(child, before, f"phase {before.name} is {before.state.name} and has nothing to retry", retry_allowed="false")
    begun, _ = transition(granted, at, _S.IN_PROGRESS, None, reason, now)
    return begun, (PhaseChanged(child.type, before, begun.phases[at], reason),)


def report(child: ChildFlow, at: int, fraction: float, message: str, now: datetime) -> tuple[ChildFlow, PhaseChanged]:
    """The child once its phase number ``at`` has come to ``fraction``; an empty message keeps the last one.

    Raises InvalidPhaseTransition unless the phase is IN_PROGRESS, so that a late report of a phase that was taken back is refused, and
    InvalidRequest for a fraction outside 0 to 1.
    """
    if not 0.0 <= fraction <= 1.0:  # NaN is outside too
        raise invalid("progress.fraction", f"is {fraction}, it must be 0 to 1")
    before = child.phases[at]
    if before.state is not _S.IN_PROGRESS:
        raise _refused(child, before, f"phase {before.name} is {before.state.name}: progress is reported while IN_PROGRESS")
    after = Phase(
        before.name,
        _S.IN_PROGRESS,
        fraction,
        message or before.message,
        before.retry_count,
        before.failure,
        before.start_time,
        before.state_time,
    )
    changed = PhaseChanged(child.type, before, after, message)
    phases = (*child.phases[:at], after, *child.phases[at + 1 :])
    return ChildFlow(child.child_flow_id, child.definition, phases, child.create_time, now), changed


def _check_failure(before: Phase, to: PhaseState, failure: Failure | None) -> None:
    if failure is not None and to not in (_S.FAILED, _S.RETRY_NEEDED):
        raise invalid("transition.failure", f"goes with FAILED or RETRY_NEEDED, not with {to.name}")
    if failure is None and to is _S.FAILED and before.state is not _S.RETRY_NEEDED:
        raise invalid("transition.failure", "is required when a phase becomes FAILED: its code says whether it may be retried")


def _granted(before: Phase, to: PhaseState, failure: Failure | None, definition: PhaseDefinition) -> PhaseState:
    """RETRY_NEEDED for a failure that may be retried while the limit allows, else FAILED.

    A person's decision stays what it is: sending work that waits back, redoing, granting, giving up. So does a worker's RETRY_NEEDED
    without a failure.
    """
    decided_by_code = before.state is _S.IN_PROGRESS or (to is _S.FAILED and before.state is not _S.RETRY_NEEDED)
    if failure is None or not decided_by_code:
        return to
    return _S.RETRY_NEEDED if failure.code in RETRYABLE and before.retry_count < definition.max_retries else _S.FAILED


def _become(before: Phase, to: PhaseState, failure: Failure | None, now: datetime) -> Phase:
    begins = to is _S.IN_PROGRESS
    return Phase(
        before.name,
        to,
        0.0,
        "" if begins else before.message,
        before.retry_count + (begins and before.state is _S.RETRY_NEEDED),
        None if to is _S.COMPLETED else failure or before.failure,
        now if begins else before.start_time,
        now,
        now if to is _S.COMPLETED or to is _S.FAILED else None,
    )


def _taken_along(child: ChildFlow, at: int, reason: str, now: datetime) -> list[PhaseChanged]:
    """Everything that depends on phase number ``at`` and has begun: what is IN_PROGRESS must be done again, the rest is taken back."""
    cause = child.phases[at].name
    changed = []
    for position in child.definition.dependants[at]:
        before = child.phases[position]
        if before.state not in NOT_BEGUN:
            to = _S.RETRY_NEEDED if before.state is _S.IN_PROGRESS else _S.ROLLED_BACK
            changed.append(PhaseChanged(child.type, before, _become(before, to, None, now), reason, taken_along_by=cause))
    return changed


def _with(child: ChildFlow, changed: Sequence[PhaseChanged], now: datetime) -> ChildFlow:
    phases = list(child.phases)
    for change in changed:
        phases[child.definition.position[change.after.name]] = change.after
    return ChildFlow(child.child_flow_id, child.definition, tuple(phases), child.create_time, now)


def _refused(child: ChildFlow, phase: Phase, message: str, **metadata: object) -> InvalidPhaseTransition:
    return InvalidPhaseTransition(phase.name, message, [to.name for to in next_states(child, phase)], **metadata)
