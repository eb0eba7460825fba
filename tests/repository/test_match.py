"""Filters of events decided in Python: as the same filters in SQL, and over phases too."""

from __future__ import annotations

import pytest

from server.repository.filter import parse_events
from server.repository.match import Sighting, matches
from server.statemachine.errors import InvalidRequest
from tests.repository.test_filter import CASES, ROWS

OTHER_FIELDS = ("display_name", "created_by", "progress_percent", "revision", "_time")
SHARED = [(text, selected) for text, selected in CASES if not any(name in text for name in OTHER_FIELDS)]


def _seen(name: str) -> Sighting:
    row = ROWS[name]
    return Sighting(row.type, row.status, frozenset(), row.labels)


def test_enough_is_compared_with_sql() -> None:
    assert len(SHARED) >= 30


@pytest.mark.parametrize(("text", "selected"), SHARED)
def test_a_filter_means_of_an_event_what_it_means_of_a_row(text: str, selected: str) -> None:
    wanted = parse_events(text)
    assert "".join(name for name in ROWS if matches(wanted, _seen(name))) == selected


EVENTS = {
    "none": frozenset[str](),
    "one": frozenset({"data_import"}),
    "two": frozenset({"data_import", "field_mapping"}),
    "other": frozenset({"cutover"}),
}


@pytest.mark.parametrize(
    ("text", "selected"),
    [
        ("phase = data_import", "one two"),
        ("phase:data_import", "one two"),
        ("phase = data_*", "one two"),
        ("phase:*", "one two other"),
        ("NOT phase:*", "none"),
        ("phase != data_import", "other"),
        ("NOT phase = data_import", "none other"),
        ("phase = field_mapping AND phase = data_import", "two"),
        ("phase = cutover OR phase = field_mapping", "two other"),
        ("phase > cutover", "one two"),
    ],
)
def test_a_phase_is_any_of_those_that_the_event_is_about(text: str, selected: str) -> None:
    wanted = parse_events(text)
    found = [name for name, phases in EVENTS.items() if matches(wanted, Sighting("discovery", "DISCOVERY", phases, {}))]
    assert " ".join(found) == selected


@pytest.mark.parametrize("text", ["display_name = x", "revision > 3", "end_time:*", "progress_percent = 1"])
def test_what_an_event_does_not_tell_is_refused_with_what_it_does(text: str) -> None:
    with pytest.raises(InvalidRequest, match=r"the fields are type, status, phase, labels\.KEY"):
        parse_events(text)


def test_a_pattern_stands_for_line_breaks_too() -> None:
    assert matches(parse_events("labels.note = 'a*b'"), Sighting("discovery", "DISCOVERY", frozenset(), {"note": "a\nb"}))
