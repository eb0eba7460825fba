"""An event that was changed in the database is taken for what it says only if every value is of its type and in its range."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from math import nan
from typing import Any
from uuid import UUID

import pytest

from server.statemachine.event import (
    ActivityRecorded,
    Cause,
    ChildStarted,
    DocumentChanged,
    Event,
    EventLost,
    Fact,
    FlowCreated,
    FlowDeleted,
    FlowReplaced,
    FlowUndeleted,
    HoldChanged,
    LabelsChanged,
    NameChanged,
    PhaseChanged,
)
from server.statemachine.sound import sound
from server.statemachine.states import FlowHold, FlowStatus
from server.statemachine.values import ActivityEntry, ActivityKind, DocumentPlace, Phase

from .story import BEGINNING, TIMEOUT

PHASE = Phase("a", failure=TIMEOUT, start_time=BEGINNING, state_time=BEGINNING)
ENTRY = ActivityEntry(ActivityKind.TIMING, value=1.5, sequence=1)
NAIVE = datetime(2026, 1, 1)  # noqa: DTZ001 - that is what is wrong with it

# A fact of each kind, and what each of its values cannot be.
FACTS: list[tuple[Any, dict[str, list[Any]]]] = [
    (FlowCreated("discovery", "Wave 3", {"a": "b"}), {"type": [1], "display_name": [None], "labels": [[], {"a": 1}]}),
    (ChildStarted(UUID(int=1), "discovery", 1), {"type": [7], "definition_version": ["1", True]}),
    (
        PhaseChanged("discovery", PHASE, PHASE),
        {
            "child_type": [1],
            "reason": [None],
            "taken_along_by": [[]],
            "failed": [1],
            "before": [replace(PHASE, fraction=1.5), replace(PHASE, retry_count=-1), replace(PHASE, message=None)],  # type: ignore[arg-type]
            "after": [
                replace(PHASE, state_time=NAIVE),
                replace(PHASE, failure=replace(TIMEOUT, message=3)),  # type: ignore[arg-type]
                replace(PHASE, fraction=nan),
                replace(PHASE, failure=None, retry_count=2**63),
            ],
        },
    ),
    (HoldChanged(FlowHold.NONE, FlowHold.PAUSED, "", ""), {"reason_before": [1], "reason": [2]}),
    (NameChanged("a", "b"), {"before": [1], "after": [None]}),
    (LabelsChanged({}, {"a": "b"}), {"before": [{"a": None}], "after": ["a"]}),
    (
        DocumentChanged(DocumentPlace("state"), 3, bytes(32)),
        {"place": [DocumentPlace("state", 1)], "size": [-1, 1.0], "sha256": [b"short"]},  # type: ignore[arg-type]
    ),
    (
        ActivityRecorded((ENTRY,)),
        {"entries": [(replace(ENTRY, value="x"),), (replace(ENTRY, participants=(1,)),), (replace(ENTRY, sequence=-1),)]},  # type: ignore[arg-type]
    ),
    (FlowDeleted("a mistake"), {"reason": [1]}),
    (FlowUndeleted(BEGINNING), {"deleted": [NAIVE]}),
    (
        FlowReplaced(Cause.REVERT, documents_removed=(DocumentPlace("state"),)),
        {"reason": [1], "source_revision": [-1], "children_removed": [(1,)], "documents_removed": [(DocumentPlace("state", 1),)]},  # type: ignore[arg-type]
    ),
    (EventLost(), {}),
]


def event(*facts: Fact, **more: Any) -> Event:
    return Event(**{"revision": 2, "time": BEGINNING, "actor": "ann", "facts": facts, "status": FlowStatus.ACTIVE, "progress": 1.0,
                    "progress_regressed": False, **more})  # fmt: skip


@pytest.mark.parametrize(("fact", "wrong"), FACTS, ids=[type(fact).__name__ for fact, _ in FACTS])
def test_a_fact_is_sound_until_one_of_its_values_is_not(fact: Any, wrong: dict[str, list[Any]]) -> None:
    assert sound(event(fact))
    for name, values in wrong.items():
        for value in values:
            assert not sound(event(EventLost(), replace(fact, **{name: value}))), (name, value)


BEYOND: tuple[Any, ...] = (-1, 101, nan, True, "1", [])


@pytest.mark.parametrize("more", [*({"progress": value} for value in BEYOND), {"progress_regressed": 1}])
def test_an_event_is_sound_by_itself(more: dict[str, Any]) -> None:
    assert sound(event())
    assert not sound(event(**more))
