"""Which revisions stay: what the policy keeps, and nothing that went comes back."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.statemachine.policy import Policy
from server.statemachine.retention import Lived, Retention, retention, surplus

DAY = timedelta(days=1)
NOW = datetime(2026, 11, 22, tzinfo=UTC)


@pytest.mark.parametrize(
    ("policy", "lived", "expected"),
    [
        (Policy(), Lived(1000, 1), None),
        (Policy(keep_duration=DAY), Lived(1000, 1, young=900), None),
        (Policy(keep_revisions=10), Lived(1000, 1), Retention(990)),
        (Policy(keep_revisions=10), Lived(1000, 1, good=400), Retention(990, frozenset({400}))),
        (Policy(keep_revisions=10), Lived(1000, 1, good=995), Retention(990)),
        (Policy(keep_revisions=10), Lived(1000, 1, good=990), Retention(990)),
        (Policy(keep_revisions=10, keep_last_good=False), Lived(1000, 1, good=400), Retention(990)),
        (Policy(keep_revisions=10), Lived(1000, 1, ended=300), Retention(990, frozenset({300}))),
        (Policy(keep_revisions=10, keep_terminal=False), Lived(1000, 1, ended=300), Retention(990)),
        (Policy(keep_revisions=10), Lived(1000, 1, pinned=frozenset({5, 7, 995, 2000})), Retention(990, frozenset({5, 7}))),
        (Policy(keep_revisions=10, keep_duration=DAY), Lived(1000, 1, young=900), Retention(899)),
        (Policy(keep_revisions=10, keep_duration=DAY), Lived(1000, 1, young=998), Retention(990)),
        (Policy(keep_revisions=10, keep_duration=DAY), Lived(1000, 1, young=1), Retention(0)),
        (Policy(keep_revisions=10, keep_duration=DAY), Lived(1000, 1), Retention(990)),
        (Policy(keep_revisions=2000), Lived(1000, 1, pinned=frozenset({5})), Retention(0)),
        (Policy(keep_revisions=500), Lived(1000, 901, pinned=frozenset({5})), Retention(900, frozenset({5}))),
        (Policy(keep_revisions=1), Lived(1, 1), Retention(0)),
    ],
)
def test_what_stays(policy: Policy, lived: Lived, expected: Retention | None) -> None:
    assert retention(policy, lived) == expected


@st.composite
def histories(draw: st.DrawFn) -> tuple[Lived, list[datetime]]:
    """A history and when each of its revisions was."""
    head = draw(st.integers(1, 60))
    times, now = [], NOW - 60 * DAY
    for _ in range(head):
        now += draw(st.sampled_from([timedelta(), timedelta(hours=1), DAY, 3 * DAY]))
        times.append(now)
    oldest = draw(st.integers(1, head))
    anywhere = st.none() | st.integers(1, head)
    limit = NOW - 20 * DAY
    young = next((at for at in range(oldest, head + 1) if times[at - 1] >= limit), None)
    return Lived(head, oldest, young, draw(anywhere), draw(anywhere), frozenset(draw(st.sets(st.integers(1, head), max_size=5)))), times


@given(histories(), st.integers(1, 80), st.booleans(), st.booleans(), st.booleans())
def test_a_revision_stays_exactly_if_the_policy_says_so(
    history: tuple[Lived, list[datetime]], number: int, aged: bool, good: bool, terminal: bool
) -> None:
    lived, times = history
    policy = Policy(number, 20 * DAY if aged else timedelta(), good, terminal)
    found = retention(policy, lived)
    assert found is not None
    assert lived.oldest - 1 <= found.horizon < lived.head
    for revision in range(lived.oldest, lived.head + 1):
        must = (
            revision > lived.head - number
            or (aged and times[revision - 1] >= NOW - 20 * DAY)
            or revision in lived.pinned
            or (good and revision == lived.good)
            or (terminal and revision == lived.ended)
        )
        # The horizon stays in any case, as what the others are rebuilt from.
        assert revision == found.horizon or must == (revision > found.horizon or revision in found.kept), revision


def test_a_few_revisions_too_many_are_not_worth_the_trouble() -> None:
    assert [surplus(Policy(keep_revisions=number)) for number in (1, 100, 200, 10_000)] == [10, 10, 20, 1000]
