"""Heads in memory: fenced by revision, bounded, and forgotten on demand."""

from __future__ import annotations

from uuid import uuid4

import pytest

from server.cache import HEAD_BYTES, Heads
from server.repository.flows import Head
from server.statemachine.values import Flow, FlowKey
from tests.repository import rows


def head(revision: int, name: str = "") -> Head:
    return Head(Flow(rows.tenant(), uuid4(), "discovery", revision, "ann", rows.TIME, "ann", rows.TIME, name), bytes(32))


def test_a_newer_head_takes_the_place_of_an_older_one() -> None:
    heads, key = Heads(HEAD_BYTES), FlowKey(rows.tenant(), uuid4())
    heads.put(key, head(1))
    heads.put(key, newer := head(2))
    assert heads.get(key) is newer


@pytest.mark.parametrize("revision", [1, 2])
def test_an_older_or_equal_head_never_takes_the_place_of_the_one_known(revision: int) -> None:
    heads, key = Heads(HEAD_BYTES), FlowKey(rows.tenant(), uuid4())
    heads.put(key, known := head(2, "known"))
    heads.put(key, head(revision, "late"))
    assert heads.get(key) is known


def test_a_head_that_is_dropped_is_forgotten_with_its_fence() -> None:
    heads, key = Heads(HEAD_BYTES), FlowKey(rows.tenant(), uuid4())
    heads.put(key, head(9))
    heads.drop(key)
    heads.drop(key)
    assert heads.get(key) is None
    heads.put(key, older := head(1))
    assert heads.get(key) is older


def test_the_same_flow_id_of_two_tenants_is_two_heads() -> None:
    heads, flow_id = Heads(10 * HEAD_BYTES), uuid4()
    mine, theirs = FlowKey(rows.tenant(), flow_id), FlowKey(rows.tenant(), flow_id)
    heads.put(mine, head(5))
    assert heads.get(theirs) is None
    heads.put(theirs, other := head(1))
    assert heads.get(theirs) is other


def test_the_head_that_was_used_longest_ago_goes_first() -> None:
    heads = Heads(3 * HEAD_BYTES)
    keys = [FlowKey(rows.tenant(), uuid4()) for _ in range(4)]
    for key in keys[:3]:
        heads.put(key, head(1))
    heads.get(keys[0])
    heads.put(keys[1], head(2))
    heads.put(keys[3], head(1))
    assert [heads.get(key) is not None for key in keys] == [True, True, False, True]


def test_a_cache_of_no_size_answers_nothing_old() -> None:
    heads = Heads(0)
    keys = [FlowKey(rows.tenant(), uuid4()) for _ in range(3)]
    for key in keys:
        heads.put(key, head(1))
    assert [heads.get(key) for key in keys[:2]] == [None, None]
