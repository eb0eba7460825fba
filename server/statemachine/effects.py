"""What each option would lead to: the change that it stands for, applied."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from server.statemachine import change as ask
from server.statemachine.derivation import flow_progress, flow_status
from server.statemachine.errors import FlowError
from server.statemachine.flow import Occasion, apply
from server.statemachine.history import Base
from server.statemachine.recovery import Effect, RecoveryOption, Remedy, Whom, recovery_options
from server.statemachine.rungs import Copy
from server.statemachine.states import FlowHold, PhaseState
from server.statemachine.values import Flow

_S = PhaseState


def options(flow: Flow, turns: Iterable[Base], copy: Copy | None, occasion: Occasion) -> tuple[RecoveryOption, ...]:
    """What may be done to ``flow``, with the effect of each: its own options, then earlier states, then its newest checkpoint."""
    found = [replace(option, effect=_effect(flow, option, occasion)) for option in recovery_options(flow)]
    if flow.delete_time is None and flow.hold is not FlowHold.CANCELLED:
        for turn in turns:
            revision, after = turn.flow.revision, effect(flow, turn.flow)
            if after.phases:
                why = f"it was {after.status.name} at {after.progress:g} % then, and nothing had failed"
                found.append(RecoveryOption(Remedy.REVERT, Whom.OWNER, why, revision=revision, effect=after))
        if copy is not None:
            why = f"it is the newest checkpoint that opens, of revision {copy.flow.revision}"
            after = effect(flow, copy.flow)
            found.append(RecoveryOption(Remedy.RESTORE, Whom.OWNER, why, checkpoint_id=copy.checkpoint_id, effect=after))
    return tuple(found)


def effect(before: Flow, after: Flow) -> Effect:
    """What becomes of ``before`` if ``after`` takes its place."""
    known = {(child.type, phase.name): phase.state for child in before.children for phase in child.phases}
    wanted = {(child.type, phase.name): phase.state for child in after.children for phase in child.phases}
    phases = tuple(
        f"{place[1]}: {_told(known.get(place))} -> {_told(wanted.get(place))}"
        for place in {**known, **wanted}
        if known.get(place) is not wanted.get(place)
    )
    return Effect(flow_status(after), flow_progress(after), phases)


def _told(state: PhaseState | None) -> str:
    return "not there" if state is None else state.name


def _effect(flow: Flow, option: RecoveryOption, occasion: Occasion) -> Effect | None:
    """The option's effect; None where that depends on what the caller says, or the flow is one that no rule led to."""
    made = _CHANGES.get(option.remedy)
    if made is None:
        return None
    try:
        return effect(flow, apply(flow, (made(flow, option),), occasion, {}).flow)
    except FlowError:
        return None


def _to(state: PhaseState) -> Callable[[Flow, RecoveryOption], ask.Change]:
    return lambda _, option: ask.TransitionPhase(option.phase, state, option.child_type)


def _validated(flow: Flow, option: RecoveryOption) -> ask.Change:
    child = next(child for child in flow.children if child.type == option.child_type)
    definition = child.definition.phases[child.definition.position[option.phase]]
    return _to(_S.WAITING_APPROVAL if definition.requires_approval else _S.COMPLETED)(flow, option)


_CHANGES: Mapping[Remedy, Callable[[Flow, RecoveryOption], ask.Change]] = {
    Remedy.UNDELETE: lambda *_: ask.UndeleteFlow(),
    Remedy.RESUME: lambda *_: ask.ResumeFlow(),
    Remedy.CANCEL: lambda *_: ask.CancelFlow(),
    Remedy.START_CHILD: lambda _, option: ask.StartChild(option.child_type),
    Remedy.BEGIN: _to(_S.IN_PROGRESS),
    Remedy.VALIDATE: _validated,
    Remedy.APPROVE: _to(_S.COMPLETED),
    Remedy.REJECT: _to(_S.RETRY_NEEDED),
    Remedy.RETRY: lambda _, option: ask.RetryPhase(option.phase, option.child_type),
    Remedy.GRANT_RETRY: _to(_S.RETRY_NEEDED),
    Remedy.GIVE_UP: _to(_S.FAILED),
    Remedy.REDO: _to(_S.RETRY_NEEDED),
    Remedy.ROLL_BACK: lambda _, option: ask.RollbackPhase(option.phase, option.child_type),
    Remedy.RESET: _to(_S.NOT_STARTED),
}
