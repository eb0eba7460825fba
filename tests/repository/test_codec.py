"""Values to rows and back: whatever the machine can make, the database gives back as it was."""

from __future__ import annotations

import hashlib
import typing
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from uuid import UUID

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.repository import codec, event_codec
from server.statemachine import event as told
from server.statemachine.document import sha256
from server.statemachine.event import ActivityRecorded, Event, Fact
from server.statemachine.event_filter import EventFilter, EventKind
from server.statemachine.graphs import BUILT_IN
from server.statemachine.states import FailureCode, FlowHold, FlowStatus, PhaseState
from server.statemachine.values import ActivityEntry, ActivityKind, DocumentPlace, Failure, FlowKey, Phase, Tenant

text = st.text(max_size=20)  # without lone surrogates: protobuf has none
times = st.integers(0, 250_000_000_000 * 10**6).map(lambda spent: datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=spent))
counts = st.integers(0, 2**53)
fractions = st.floats(0, 1)
labels = st.dictionaries(text, text, max_size=3)
failures = st.builds(Failure, st.sampled_from(FailureCode), text)
maybe_time = st.none() | times
maybe_id = st.none() | st.uuids()
phases = st.builds(
    Phase,
    name=text,
    state=st.sampled_from(PhaseState),
    fraction=fractions,
    message=text,
    retry_count=st.integers(0, 1000),
    failure=st.none() | failures,
    start_time=maybe_time,
    state_time=maybe_time,
    end_time=maybe_time,
)
entries = st.builds(
    ActivityEntry,
    kind=st.sampled_from(ActivityKind),
    phase=text,
    subject=text,
    participants=st.lists(text, max_size=3).map(tuple),
    message=text,
    value=st.none() | st.floats(allow_nan=False, allow_infinity=False),
    unit=text,
    duration=st.none() | st.timedeltas(timedelta(0), timedelta(days=10_000)),
    time=times,
    actor=text,
    sequence=st.integers(1, 2**53),
)
holds = st.sampled_from(FlowHold)

FACTS: dict[type, st.SearchStrategy[Fact]] = {
    told.FlowCreated: st.builds(told.FlowCreated, text, text, labels),
    told.ChildStarted: st.builds(told.ChildStarted, st.uuids(), text, st.integers(1, 1000)),
    told.PhaseChanged: st.builds(told.PhaseChanged, text, phases, phases, text, text, st.booleans()),
    told.HoldChanged: st.builds(told.HoldChanged, holds, holds, text, text),
    told.NameChanged: st.builds(told.NameChanged, text, text),
    told.LabelsChanged: st.builds(told.LabelsChanged, labels, labels),
    told.DocumentChanged: st.builds(
        told.DocumentChanged, st.builds(DocumentPlace, text, text), counts, st.binary(min_size=32, max_size=32)
    ),
    told.ActivityRecorded: st.builds(told.ActivityRecorded, st.lists(entries, max_size=3).map(tuple)),
    told.FlowDeleted: st.builds(told.FlowDeleted, text),
    told.FlowUndeleted: st.builds(told.FlowUndeleted, times),
    told.FlowReplaced: st.builds(
        told.FlowReplaced,
        st.sampled_from(told.Cause),
        text,
        counts,
        maybe_id,
        maybe_id,
        maybe_id,
        st.lists(text, max_size=2).map(tuple),
        st.lists(st.builds(DocumentPlace, text, text), max_size=2).map(tuple),
    ),
    told.EventLost: st.builds(told.EventLost),
}


def recorded(event: Event) -> Event:
    """The event as the machine makes it: what it tells of activity happened when, and was done by whom, the event says."""
    facts = tuple(
        ActivityRecorded(tuple(replace(entry, time=event.time, actor=event.actor) for entry in fact.entries))
        if isinstance(fact, ActivityRecorded)
        else fact
        for fact in event.facts
    )
    return replace(event, facts=facts)


def events(facts: st.SearchStrategy[Fact]) -> st.SearchStrategy[Event]:
    made = st.builds(
        Event,
        revision=st.integers(1, 2**53),
        time=times,
        actor=text,
        facts=st.lists(facts, max_size=4).map(tuple),
        status=st.sampled_from(FlowStatus),
        progress=st.floats(0, 100),
        progress_regressed=st.booleans(),
    )
    return made.map(recorded)


def test_every_kind_of_fact_has_a_strategy() -> None:
    assert set(FACTS) == set(typing.get_args(Fact))


@pytest.mark.parametrize("kind", FACTS, ids=lambda kind: kind.__name__)
def test_an_event_comes_back_as_it_was(kind: type) -> None:
    @given(events(FACTS[kind]))
    def comes_back(event: Event) -> None:
        body = event_codec.event_to_text(event)
        assert event_codec.event_from_row(event.revision, event.time, event.actor, body) == event

    comes_back()


@given(events(st.one_of(*FACTS.values())))
def test_an_events_body_is_the_same_however_often_it_is_written(event: Event) -> None:
    body = event_codec.event_to_text(event)
    again = event_codec.event_from_row(event.revision, event.time, event.actor, body)
    assert event_codec.event_to_text(again) == body


@given(phases)
def test_a_phase_comes_back_as_it_was(phase: Phase) -> None:
    written = orjson.loads(codec.phase_to_text(phase))
    assert codec.phase_from_json(written) == phase


@given(st.lists(phases, max_size=8).map(tuple), st.uuids(), times, times)
def test_a_child_comes_back_as_it_was(found: tuple[Phase, ...], child_flow_id: UUID, created: datetime, updated: datetime) -> None:
    definition = BUILT_IN["discovery"]
    child = codec.child_from_row(definition, (child_flow_id, codec.phases_to_text(found), created, updated))
    assert (child.child_flow_id, child.definition, child.phases) == (child_flow_id, definition, found)
    assert (child.create_time, child.update_time) == (created, updated)


@given(entries)
def test_an_entry_comes_back_as_it_was(entry: ActivityEntry) -> None:
    written = orjson.loads(codec.entry_to_text(entry))
    assert codec.entry_from_json(written, entry.time, entry.actor, entry.sequence) == entry


def test_what_has_its_default_takes_no_room() -> None:
    assert orjson.loads(codec.phase_to_text(Phase("work"))) == {"name": "work", "state": "NOT_STARTED"}
    assert codec.entry_to_text(ActivityEntry(ActivityKind.ERROR)) == '{"kind":"ERROR"}'


def test_a_time_of_another_zone_comes_back_as_the_same_moment() -> None:
    moment = datetime(2026, 11, 22, 12, 45, 0, 1, timezone(timedelta(hours=12, minutes=45)))
    phase = Phase("work", start_time=moment)
    again = codec.phase_from_json(orjson.loads(codec.phases_to_text((phase,)))[0])
    assert again == phase
    assert again.start_time is not None
    assert again.start_time.utcoffset() is not None


def test_a_fact_of_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="'seeded'"):
        event_codec.event_from_row(1, datetime(2026, 1, 1, tzinfo=UTC), "ann", '{"facts":[{"fact":"seeded"}]}')


TENANT, FLOW = Tenant(UUID(int=1), UUID(int=2)), UUID(int=3)
EVENT = Event(1, datetime(2026, 1, 1, tzinfo=UTC), "ann", (), FlowStatus.ACTIVE, 0.0, False)
BODY = event_codec.event_to_text(EVENT)
KEY = FlowKey(TENANT, FLOW)
NEPAL = timezone(timedelta(hours=5, minutes=45))


def link(before: bytes, key: FlowKey, event: Event, body: str) -> bytes:
    content = sha256(event_codec.content_of(event.time, event.actor, body))
    return event_codec.chained(before, key, event.revision, content)


def link_1(before: bytes, key: FlowKey, event: Event, body: str) -> bytes:
    return event_codec.chained_1(before, key, event.revision, event.time, event.actor, body)


@pytest.mark.parametrize("made", [link, link_1])
def test_a_link_is_the_same_wherever_it_is_made(made: Callable[..., bytes]) -> None:
    nepal = replace(EVENT, time=EVENT.time.astimezone(NEPAL))
    assert made(event_codec.NO_HASH, KEY, nepal, BODY) == made(event_codec.NO_HASH, KEY, EVENT, BODY)


def test_links_of_format_1_are_made_as_they_were() -> None:
    hasher = hashlib.sha256(bytes(32) + UUID(int=1).bytes + UUID(int=2).bytes + UUID(int=3).bytes)
    for part in ("1", "2026-01-01T00:00:00+00:00", "ann", BODY):
        hasher.update(len(part).to_bytes(8, "big") + part.encode())
    assert link_1(event_codec.NO_HASH, KEY, EVENT, BODY) == hasher.digest()


OTHERS: dict[str, tuple[bytes, FlowKey, Event, str]] = {
    "before": (b"\x01" * 32, KEY, EVENT, BODY),
    "tenant": (event_codec.NO_HASH, FlowKey(Tenant(UUID(int=2), UUID(int=1)), FLOW), EVENT, BODY),
    "flow": (event_codec.NO_HASH, FlowKey(TENANT, UUID(int=4)), EVENT, BODY),
    "revision": (event_codec.NO_HASH, KEY, replace(EVENT, revision=2), BODY),
    "time": (event_codec.NO_HASH, KEY, replace(EVENT, time=EVENT.time + timedelta(microseconds=1)), BODY),
    "actor": (event_codec.NO_HASH, KEY, replace(EVENT, actor="bob"), BODY),
    "body": (event_codec.NO_HASH, KEY, EVENT, BODY + " "),
    "border": (event_codec.NO_HASH, KEY, replace(EVENT, actor="ann" + BODY[:1]), BODY[1:]),
}


@pytest.mark.parametrize("made", [link, link_1])
@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_everything_that_an_event_says_is_in_its_link(other: tuple[bytes, FlowKey, Event, str], made: Callable[..., bytes]) -> None:
    assert made(*other) != made(event_codec.NO_HASH, KEY, EVENT, BODY)


kinds = st.frozensets(st.sampled_from(EventKind), max_size=3)


@given(events(st.one_of(*FACTS.values())), kinds, st.frozensets(st.sampled_from(["", "a", '"', "\\", "\u00e9"]), max_size=2))
def test_an_event_that_passes_a_filter_has_its_marks(event: Event, wanted: frozenset[EventKind], names: frozenset[str]) -> None:
    """So that a list can leave it to PostgreSQL which bodies are read at all."""
    narrowing = EventFilter(wanted, names)
    body = event_codec.event_to_text(event)
    if narrowing.passes(event):
        assert all(not marks or any(mark in body for mark in marks) for marks in event_codec.marks_of(narrowing))


def test_another_fact_has_none_of_a_kinds_marks() -> None:
    marks, _ = event_codec.marks_of(EventFilter(frozenset({EventKind.HOLD_CHANGED})))
    named = replace(EVENT, facts=(told.NameChanged('"fact":"hold"', '\\"fact":"hold"'),))
    assert not any(mark in event_codec.event_to_text(named) for mark in marks)
