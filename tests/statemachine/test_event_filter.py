"""Which events a filter lets through."""

from __future__ import annotations

from typing import get_args

import pytest

from server.statemachine import event as told
from server.statemachine.change import PauseFlow, RecordActivity, ReportProgress, UpdateFlow
from server.statemachine.event_filter import EventFilter, EventKind, kind_of, phases_of, types_of
from server.statemachine.values import ActivityEntry, ActivityKind

from .story import S, begun

NOTED = RecordActivity((ActivityEntry(ActivityKind.TIMING, phase="data_import", value=1.0),))


def test_every_kind_of_fact_is_one_of_the_kinds() -> None:
    facts = get_args(told.Fact)
    assert len(facts) == 12
    story = begun("discovery")
    story.move("data_import", S.IN_PROGRESS)
    story.do(ReportProgress("data_import", 0.5))
    story.do(UpdateFlow(display_name="other", labels={"a": "b"}), PauseFlow(), NOTED)
    found = {kind_of(fact) for outcome in story.outcomes for fact in outcome.event.facts}
    assert found == {
        EventKind.FLOW_CREATED,
        EventKind.CHILD_STARTED,
        EventKind.PHASE_CHANGED,
        EventKind.PROGRESS_REPORTED,
        EventKind.FIELDS_CHANGED,
        EventKind.HOLD_CHANGED,
        EventKind.ACTIVITY_RECORDED,
    }
    assert kind_of(told.FlowDeleted("")) is EventKind.FLOW_DELETED
    assert kind_of(told.EventLost()) is EventKind.EVENT_LOST


def test_a_report_is_told_from_a_transition_by_the_state() -> None:
    story = begun("discovery")
    assert kind_of(story.move("data_import", S.IN_PROGRESS).event.facts[0]) is EventKind.PHASE_CHANGED
    assert kind_of(story.do(ReportProgress("data_import", 0.5)).event.facts[0]) is EventKind.PROGRESS_REPORTED


def test_phases_and_their_activity_are_about_a_phase_and_nothing_else_is() -> None:
    story = begun("discovery")
    (moved, *_) = story.move("data_import", S.IN_PROGRESS).event.facts
    (paused, noted) = story.do(PauseFlow(), NOTED).event.facts
    assert [sorted(phases_of(fact)) for fact in (moved, paused, noted)] == [["data_import"], [], ["data_import"]]


def test_a_kind_is_found_among_the_types_that_may_be_of_it() -> None:
    assert types_of(frozenset({EventKind.PROGRESS_REPORTED})) == types_of(frozenset({EventKind.PHASE_CHANGED})) == {told.PhaseChanged}
    assert types_of(frozenset({EventKind.FIELDS_CHANGED})) == {told.NameChanged, told.LabelsChanged}
    assert types_of(frozenset(EventKind)) == {*get_args(told.Fact)}
    assert types_of(frozenset()) == frozenset()


PHASE, REPORT, HOLD = EventKind.PHASE_CHANGED, EventKind.PROGRESS_REPORTED, EventKind.HOLD_CHANGED


@pytest.mark.parametrize(
    ("kinds", "phases", "passed"),
    [
        ((), (), [1, 2, 3, 4]),
        ((PHASE,), (), [2]),
        ((PHASE, REPORT), (), [2, 3]),
        ((HOLD,), (), [4]),
        ((), ("data_import",), [2, 3, 4]),
        ((), ("field_mapping",), []),
        ((REPORT,), ("data_import", "field_mapping"), [3]),
        # One and the same fact must be of the kind and about the phase: the pause is about none.
        ((HOLD,), ("data_import",), []),
    ],
)
def test_an_event_passes_if_one_fact_is_of_the_kind_and_about_the_phase(
    kinds: tuple[EventKind, ...], phases: tuple[str, ...], passed: list[int]
) -> None:
    story = begun("discovery")
    story.move("data_import", S.IN_PROGRESS)
    story.do(ReportProgress("data_import", 0.5))
    story.do(PauseFlow(), NOTED)
    wanted = EventFilter(frozenset(kinds), frozenset(phases))
    assert [outcome.event.revision for outcome in story.outcomes if wanted.passes(outcome.event)] == passed
