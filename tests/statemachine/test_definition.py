"""Which phase graphs are accepted, and what is computed from them."""

from __future__ import annotations

from dataclasses import replace
from math import nan

import pytest

from server.statemachine.definition import Definition, PhaseDefinition
from server.statemachine.graphs import BUILT_IN
from server.statemachine.states import FlowStatus

from .story import plain


@pytest.mark.parametrize(
    ("phases", "complaint"),
    [
        ((), "own: a definition needs at least one phase"),
        ((plain("a"), plain("b"), plain("a")), "own: phase a is there twice"),
        ((plain("a", "x", "y"),), "own: a depends on x, y, which do not stand before it"),
        ((plain("a", "b"), plain("b")), "own: a depends on b, which do not stand before it"),
        ((plain("a", "a"),), "own: a depends on a, which do not stand before it"),
        ((replace(plain("a"), weight=0.0),), "own: the weight of a is 0.0, it must be above 0"),
        ((replace(plain("a"), weight=-1.0),), "own: the weight of a is -1.0, it must be above 0"),
        ((replace(plain("a"), weight=nan),), "own: the weight of a is nan, it must be above 0"),
    ],
)
def test_a_graph_that_cannot_be_walked_is_refused(phases: tuple[PhaseDefinition, ...], complaint: str) -> None:
    with pytest.raises(ValueError) as refused:
        Definition("own", 1, phases)
    assert str(refused.value) == complaint


def test_positions_shares_and_dependants_are_computed() -> None:
    large = PhaseDefinition("a", FlowStatus.ACTIVE, weight=2.0)
    definition = Definition("own", 1, (large, plain("b", "a"), plain("c"), plain("d", "b", "c")))
    assert dict(definition.position) == {"a": 0, "b": 1, "c": 2, "d": 3}
    assert definition.shares == (0.4, 0.2, 0.2, 0.2)
    assert definition.dependants == ((1, 3), (3,), (3,), ())


@pytest.mark.parametrize("definition", BUILT_IN.values(), ids=BUILT_IN)
def test_a_built_in_graph_has_shares_that_sum_to_one_and_statuses_of_work(definition: Definition) -> None:
    assert sum(definition.shares) == pytest.approx(1.0)
    assert {phase.status.name for phase in definition.phases} <= {"DATA_GATHERING", "DISCOVERY", "ASSESSMENT_READY", "PLANNING", "ACTIVE"}
    assert all(phase.max_retries > 0 for phase in definition.phases)


def test_no_phase_name_is_in_two_built_in_graphs() -> None:
    names = [phase.name for definition in BUILT_IN.values() for phase in definition.phases]
    assert len(names) == len(set(names))
