"""What an option is said to lead to is what it leads to."""

from __future__ import annotations

from dataclasses import replace
from uuid import UUID

from hypothesis import given

from server.statemachine.derivation import flow_progress, flow_status
from server.statemachine.effects import options
from server.statemachine.flow import apply
from server.statemachine.history import Base, Kept
from server.statemachine.recovery import Remedy, recovery_options
from server.statemachine.rungs import Copy
from server.statemachine.states import FlowHold
from server.statemachine.values import Flow

from .steady import steady
from .story import Story, begun, minute
from .test_recovery import flows, taken

# What these lead to is for the caller to say: how far the work is, and why it failed.
OPEN = frozenset({Remedy.REPORT, Remedy.GIVE_UP})


@steady(100)
@given(flows())
def test_the_effect_is_what_the_change_comes_to(flow: Flow) -> None:
    occasion = Story(flow).occasion("ann")
    found = options(flow, (), None, occasion)
    assert [replace(option, effect=None) for option in found] == list(recovery_options(flow))
    for option in found:
        if option.remedy in OPEN:
            assert option.effect is None or option.remedy is Remedy.GIVE_UP
            continue
        assert option.effect is not None, option
        after = [apply(flow, [change], occasion, {}).flow for change in taken(flow, option)]
        assert (option.effect.status, option.effect.progress) in [(flow_status(one), flow_progress(one)) for one in after]


def test_earlier_states_and_checkpoints_are_offered_while_the_flow_can_take_them() -> None:
    story = begun("discovery")
    first = story.flow
    story.complete("data_import")
    now, occasion = story.flow, story.occasion("ann")
    turns, copy = [Base(now, Kept(), b""), Base(first, Kept(), b"")], Copy(UUID(int=5), first, {})
    added = [option for option in options(now, turns, copy, occasion) if option.remedy in (Remedy.REVERT, Remedy.RESTORE)]
    assert [(option.remedy, option.revision, option.checkpoint_id) for option in added] == [
        (Remedy.REVERT, first.revision, None),  # what is as it is now is no way back
        (Remedy.RESTORE, 0, UUID(int=5)),
    ]
    assert all(option.effect is not None and option.effect.phases == ("data_import: COMPLETED -> NOT_STARTED",) for option in added)
    alone = replace(first, children=())
    (reverted,) = [option for option in options(now, [Base(alone, Kept(), b"")], None, occasion) if option.remedy is Remedy.REVERT]
    assert reverted.effect is not None
    assert "data_import: COMPLETED -> not there" in reverted.effect.phases
    for ended in (replace(now, delete_time=minute(9)), replace(now, hold=FlowHold.CANCELLED)):
        assert {option.remedy for option in options(ended, turns, copy, occasion)} <= {Remedy.UNDELETE}
