"""The first level of the cache: an older view never takes the place of a newer one, and memory is bounded."""

from __future__ import annotations

from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from server.cache import CachedView, Views
from server.statemachine.values import FlowKey, Tenant

KEYS = [FlowKey(Tenant(UUID(int=1), UUID(int=2)), UUID(int=at)) for at in range(3)]
NAME = (1, 0)


def view(revision: int, time: float = 0.0, size: int = 10) -> CachedView:
    return CachedView(revision, b"x" * size, time)


def test_what_was_put_is_found_and_nothing_else_is() -> None:
    views = Views(10_000)
    views.put(KEYS[0], NAME, found := view(3))
    assert views.get(KEYS[0], NAME) is found
    assert views.get(KEYS[1], NAME) is None
    assert views.get(KEYS[0], (2, 0)) is None


def test_another_tenants_flow_of_the_same_id_is_another_flow() -> None:
    views = Views(10_000)
    views.put(KEYS[0], NAME, view(3))
    assert views.get(FlowKey(Tenant(UUID(int=2), UUID(int=1)), UUID(int=0)), NAME) is None


def test_a_view_that_is_known_to_be_behind_is_not_found_and_not_taken() -> None:
    views = Views(10_000)
    views.put(KEYS[0], NAME, view(3))
    views.put(KEYS[0], (2, 0), view(5))
    views.heard(KEYS[0], 5)
    assert views.get(KEYS[0], NAME) is None
    assert views.get(KEYS[0], (2, 0)) == view(5)
    views.put(KEYS[0], NAME, view(4))
    assert views.get(KEYS[0], NAME) is None


def test_the_same_revision_confirmed_later_is_younger() -> None:
    views = Views(10_000)
    views.put(KEYS[0], NAME, view(3, 1.0))
    views.put(KEYS[0], NAME, view(3, 9.0))
    views.put(KEYS[0], NAME, view(3, 5.0))
    found = views.get(KEYS[0], NAME)
    assert found is not None
    assert found.time == 9.0


def test_the_flow_that_was_used_longest_ago_goes_first() -> None:
    views = Views(4_400)  # room for four
    keys = [FlowKey(KEYS[0].tenant, UUID(int=at)) for at in range(5)]
    for key in keys[:4]:
        views.put(key, NAME, view(1, size=700))
    assert views.get(keys[0], NAME) is not None
    views.put(keys[4], NAME, view(1, size=700))
    assert [views.get(key, NAME) is not None for key in keys] == [True, False, True, True, True]


def test_a_cache_of_no_size_keeps_nothing() -> None:
    views = Views(0)
    views.put(KEYS[0], NAME, view(1))
    assert views.get(KEYS[0], NAME) is None


steps = st.lists(
    st.tuples(
        st.sampled_from(["put", "heard", "get"]),
        st.sampled_from(KEYS),
        st.sampled_from([(1, 0), (3, 1)]),
        st.integers(1, 9),
        st.integers(0, 700),
    ),
    max_size=60,
)


@given(steps)
def test_however_it_is_used_no_revision_goes_back_while_it_is_kept_and_the_size_is_right(
    done: list[tuple[str, FlowKey, tuple[int, int], int, int]],
) -> None:
    views = Views(3_000)
    for step, key, name, revision, size in done:
        before = views.get(key, name)
        if step == "put":
            views.put(key, name, view(revision, float(revision), size))
        elif step == "heard":
            views.heard(key, revision)
        after = views.get(key, name)
        if before is not None and after is not None:
            assert after.revision >= before.revision
        if step == "heard" and after is not None:
            assert after.revision >= revision
        kept = sum(len(found.answer) + 400 for flow in views._flows.values() for found in flow.values())
        assert views._size == kept <= 3_000
        assert views._heard.keys() <= views._flows.keys()
