"""A phase is stuck when it is in one state for longer than its definition allows, and a storm when it is retried again and again."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import uuid4

import orjson
import pytest

from server.statemachine.alert import AlertKind
from server.statemachine.graphs import BUILT_IN
from server.statemachine.states import PhaseState
from server.statemachine.stuck import STORM, WATCHED, Storm, shortest, stays, storms

NOW = datetime(2026, 11, 25, 12, 0, tzinfo=UTC)
WORK, WAIT = timedelta(hours=24), timedelta(days=7)


def phases(state: str, spent: timedelta, /, **more: object) -> str:
    """A discovery's phases as they are stored, the first in that state for so long."""
    return orjson.dumps([{"name": "data_import", "state": state, "state_time": (NOW - spent).isoformat(), **more}]).decode()


@pytest.mark.parametrize("state", PhaseState)
def test_a_phase_is_stuck_once_it_is_in_its_state_for_longer_than_allowed(state: PhaseState) -> None:
    allowed = WORK if state is PhaseState.IN_PROGRESS else WAIT
    assert stays("discovery", phases(state.name, allowed), NOW) == []
    found = stays("discovery", phases(state.name, allowed + timedelta(seconds=1)), NOW)
    if state not in WATCHED:
        assert found == []
        return
    (stay,) = found
    assert (stay.child_type, stay.phase, stay.state, stay.allowed) == ("discovery", "data_import", state, allowed)
    assert shortest("discovery") <= allowed


def test_what_cannot_be_read_is_passed_over() -> None:
    long = timedelta(days=99)
    for text in ("{", "{}", "null", "[1, null]", phases("DONE", long), phases("IN_PROGRESS", long, name="laundry")):
        assert stays("discovery", text, NOW) == []
    for strange in ({"state_time": 12}, {"state_time": "yesterday"}, {"state": 7}, {"name": None}, {"name": ["a"]}):
        assert stays("discovery", phases("IN_PROGRESS", long, **strange), NOW) == []


def test_each_stay_is_told_of_once_and_in_words() -> None:
    flow_id, one, other = uuid4(), uuid4(), uuid4()
    (stay,) = stays("discovery", phases("WAITING_APPROVAL", timedelta(days=9)), NOW)
    alert = stay.alert(one, flow_id, NOW)
    assert (alert.kind, alert.flow_id, alert.child_type, alert.phase) == (AlertKind.FLOW_STUCK, flow_id, "discovery", "data_import")
    assert "data_import of discovery has been WAITING_APPROVAL for 9 days, its definition allows 7 days" in alert.message
    assert stay.alert(other, flow_id, NOW + timedelta(days=3)).subject == alert.subject
    (again,) = stays("discovery", phases("WAITING_APPROVAL", timedelta(days=8)), NOW)
    assert again.alert(other, flow_id, NOW).subject != alert.subject
    (at_work,) = stays("discovery", phases("IN_PROGRESS", timedelta(hours=30)), NOW)
    assert "for 30 hours, its definition allows 24 hours" in at_work.alert(one, flow_id, NOW).message


def test_retries_of_one_phase_make_a_storm_and_those_of_several_none() -> None:
    entry = '{"kind":"RETRY","phase":"data_import","subject":"discovery"}'
    other = '{"kind":"RETRY","phase":"field_mapping","subject":"discovery"}'
    assert storms([entry] * (STORM - 1) + [other] * (STORM - 1)) == []
    assert storms([entry] * STORM + [other]) == [Storm("discovery", "data_import", STORM)]
    assert storms(["{", "[]", "null", '{"phase":7}', '{"subject":[]}'] * STORM) == []
    assert storms(["{}"] * STORM) == [Storm("", "", STORM)]


def test_a_storm_is_told_of_once_a_day() -> None:
    storm, flow_id = Storm("discovery", "data_import", 9), uuid4()
    first, later, next_day = (storm.alert(uuid4(), flow_id, NOW + after) for after in (timedelta(), timedelta(hours=2), timedelta(days=1)))
    assert "data_import of discovery was retried 9 times within 60 minutes" in first.message
    assert first.subject == later.subject != next_day.subject
    assert first.kind is AlertKind.RETRY_STORM


def test_every_definition_says_how_long_its_phases_may_take() -> None:
    for definition in BUILT_IN.values():
        for phase in definition.phases:
            assert timedelta() < phase.longest_work
            assert timedelta() < phase.longest_wait
