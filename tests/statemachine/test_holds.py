"""Pause, resume, cancel, delete, undelete: what each allows, refuses and leaves."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from server.statemachine.change import (
    CancelFlow,
    Change,
    DeleteFlow,
    PauseFlow,
    RecordActivity,
    ReportProgress,
    ResumeFlow,
    RetryPhase,
    RollbackPhase,
    StartChild,
    TransitionPhase,
    UndeleteFlow,
    UpdateFlow,
)
from server.statemachine.errors import FlowNotActive, FlowNotDeleted, FlowNotPaused
from server.statemachine.event import FlowDeleted, FlowUndeleted, HoldChanged
from server.statemachine.states import FlowHold, FlowStatus
from server.statemachine.values import ActivityEntry, ActivityKind

from .story import BAD_DATA, S, Story, begun, hold, minute, put

H = FlowHold
MOVES: list[Change] = [
    TransitionPhase("data_import", S.COMPLETED),
    RetryPhase("data_import"),
    RollbackPhase("data_import"),
    ReportProgress("data_import", 0.5),
    StartChild("assessment"),
]
UPDATE = UpdateFlow(display_name="Wave 4")
ACTIVITY = RecordActivity((ActivityEntry(ActivityKind.TIMING, phase="data_import", value=1.5, unit="s"),))


def named(change: Change) -> str:
    return type(change).__name__


def running() -> Story:
    story = begun("migration")
    story.move("data_import", S.IN_PROGRESS)
    return story


def paused() -> Story:
    story = running()
    story.do(PauseFlow("change freeze"))
    return story


def cancelled() -> Story:
    story = running()
    story.do(CancelFlow("the customer left"))
    return story


def deleted() -> Story:
    story = running()
    story.do(DeleteFlow("made by mistake"))
    return story


def recovering() -> Story:
    story = running()
    hold(story, H.RECOVERING)
    return story


def completed() -> Story:
    story = begun("planning")
    story.complete_child("planning")
    return story


def failed() -> Story:
    story = running()
    story.fail("data_import", BAD_DATA)
    return story


@pytest.mark.parametrize("change", MOVES, ids=named)
@pytest.mark.parametrize(
    ("make", "status", "remedy"),
    [
        (paused, "PAUSED", "resume it first"),
        (cancelled, "CANCELLED", "it has ended for good"),
        (deleted, "DELETED", "undelete it first"),
        (recovering, "ERROR_RECOVERY", "wait until its recovery has ended"),
    ],
)
def test_no_phase_moves_and_no_child_starts_while_a_flow_is_held(
    make: Callable[[], Story], status: str, remedy: str, change: Change
) -> None:
    story = make()
    before = story.flow
    with pytest.raises(FlowNotActive, match=remedy) as refused:
        story.do(change)
    assert refused.value.metadata == {"status": status}
    assert story.flow == before


@pytest.mark.parametrize("make", [paused, recovering, completed, failed])
def test_what_the_caller_owns_can_be_updated_unless_the_flow_is_cancelled_or_deleted(make: Callable[[], Story]) -> None:
    story = make()
    status = story.status
    story.do(UPDATE)
    assert (story.flow.display_name, story.status) == ("Wave 4", status)


@pytest.mark.parametrize(("make", "status"), [(cancelled, "CANCELLED"), (deleted, "DELETED")])
def test_a_cancelled_or_deleted_flow_takes_no_update(make: Callable[[], Story], status: str) -> None:
    with pytest.raises(FlowNotActive) as refused:
        make().do(UPDATE)
    assert refused.value.metadata == {"status": status}


@pytest.mark.parametrize("make", [running, paused, cancelled, completed, failed])
def test_activity_can_be_told_of_any_flow_that_is_not_deleted(make: Callable[[], Story]) -> None:
    outcome = make().do(ACTIVITY)
    assert [entry.kind for entry in outcome.activity] == [ActivityKind.TIMING]


def test_a_deleted_flow_takes_no_activity() -> None:
    with pytest.raises(FlowNotActive, match="undelete it first"):
        deleted().do(ACTIVITY)


def test_a_pause_is_on_record_with_its_reason() -> None:
    story = paused()
    assert story.event.facts == (HoldChanged(H.NONE, H.PAUSED, "", "change freeze"),)
    assert (story.status, story.flow.hold, story.flow.hold_reason) == (FlowStatus.PAUSED, H.PAUSED, "change freeze")
    assert story.event.status is FlowStatus.PAUSED


def test_a_resumed_flow_is_as_it_was() -> None:
    story = running()
    before = story.flow
    story.do(PauseFlow("change freeze"))
    story.do(ResumeFlow("freeze is over"))
    assert story.event.facts == (HoldChanged(H.PAUSED, H.NONE, "change freeze", "freeze is over"),)
    assert (story.flow.children, story.flow.hold, story.flow.hold_reason) == (before.children, H.NONE, "")
    story.move("data_import", S.COMPLETED)
    assert story.state("data_import") is S.COMPLETED


@pytest.mark.parametrize(
    ("make", "status"),
    [(paused, "PAUSED"), (cancelled, "CANCELLED"), (deleted, "DELETED"), (completed, "COMPLETED"), (failed, "FAILED")],
)
def test_what_is_paused_or_has_ended_cannot_be_paused(make: Callable[[], Story], status: str) -> None:
    with pytest.raises(FlowNotActive) as refused:
        make().do(PauseFlow())
    assert refused.value.metadata == {"status": status}


@pytest.mark.parametrize(
    ("make", "status"), [(running, "DATA_GATHERING"), (completed, "COMPLETED"), (failed, "FAILED"), (recovering, "ERROR_RECOVERY")]
)
def test_only_a_paused_flow_can_be_resumed(make: Callable[[], Story], status: str) -> None:
    with pytest.raises(FlowNotPaused) as refused:
        make().do(ResumeFlow())
    assert refused.value.metadata == {"status": status}


@pytest.mark.parametrize("make", [cancelled, deleted])
def test_what_is_cancelled_or_deleted_cannot_be_resumed(make: Callable[[], Story]) -> None:
    with pytest.raises(FlowNotActive):
        make().do(ResumeFlow())


@pytest.mark.parametrize("make", [running, paused, failed, recovering])
def test_a_flow_that_has_not_completed_can_be_cancelled(make: Callable[[], Story]) -> None:
    story = make()
    children = story.flow.children
    story.do(CancelFlow("the customer left"))
    assert (story.status, story.flow.hold_reason, story.flow.children) == (FlowStatus.CANCELLED, "the customer left", children)


@pytest.mark.parametrize(("make", "status"), [(cancelled, "CANCELLED"), (deleted, "DELETED"), (completed, "COMPLETED")])
def test_what_has_completed_or_is_gone_cannot_be_cancelled(make: Callable[[], Story], status: str) -> None:
    with pytest.raises(FlowNotActive) as refused:
        make().do(CancelFlow())
    assert refused.value.metadata == {"status": status}


@pytest.mark.parametrize("make", [running, paused, cancelled, completed, failed, recovering])
def test_a_flow_in_any_state_can_be_deleted_and_comes_back_as_it_was(make: Callable[[], Story]) -> None:
    story = make()
    before, status = story.flow, story.status
    deletion = story.do(DeleteFlow("made by mistake"))
    gone = minute(story.flow.revision)
    assert deletion.event.facts == (FlowDeleted("made by mistake"),)
    assert deletion.flow.delete_time == gone
    undeletion = story.do(UndeleteFlow())
    assert undeletion.event.facts == (FlowUndeleted(gone),)
    assert undeletion.flow.delete_time is None
    assert (story.status, story.flow.children) == (status, before.children)
    assert (story.flow.hold, story.flow.hold_reason, story.flow.end_time) == (before.hold, before.hold_reason, before.end_time)


def test_a_deleted_flow_cannot_be_deleted_again() -> None:
    with pytest.raises(FlowNotActive, match="deleted already"):
        deleted().do(DeleteFlow())


def test_only_a_deleted_flow_can_be_undeleted() -> None:
    with pytest.raises(FlowNotDeleted, match="flow is not deleted"):
        running().do(UndeleteFlow())


def test_a_pause_hides_what_the_phases_would_say() -> None:
    story = running()
    story.fail("data_import")
    story.do(PauseFlow())
    assert story.status is FlowStatus.PAUSED
    put(story, data_import=S.WAITING_APPROVAL)
    assert story.status is FlowStatus.PAUSED
