"""The breaker: closed until enough failed in a row, then one try after each pause."""

from __future__ import annotations

from server.breaker import FAILURES, FIRST_SECONDS, MOST_SECONDS, Breaker


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def opened() -> tuple[Breaker, Clock, list[bool]]:
    clock, told = Clock(), list[bool]()
    breaker = Breaker(clock, told.append)
    for _ in range(FAILURES):
        assert breaker.allows()
        breaker.failed()
    return breaker, clock, told


def test_it_opens_after_some_failures_in_a_row_and_says_so() -> None:
    breaker, _, told = opened()
    assert (breaker.is_open, breaker.allows(), told) == (True, False, [True])


def test_failures_with_a_success_between_them_do_not_open_it() -> None:
    breaker = Breaker(Clock())
    for _ in range(FAILURES * 3):
        breaker.failed()
        breaker.succeeded()
    assert not breaker.is_open


def test_after_its_pause_one_may_try_and_the_others_wait() -> None:
    breaker, clock, _ = opened()
    clock.now += FIRST_SECONDS
    assert [breaker.allows() for _ in range(3)] == [True, False, False]


def test_a_try_that_goes_well_closes_it() -> None:
    breaker, clock, told = opened()
    clock.now += FIRST_SECONDS
    assert breaker.allows()
    breaker.succeeded()
    assert ([breaker.allows() for _ in range(3)], told) == ([True] * 3, [True, False])


def test_each_try_that_fails_doubles_the_pause_up_to_the_most() -> None:
    breaker, clock, told = opened()
    pauses = []
    for _ in range(8):
        began = clock.now
        while not breaker.allows():
            clock.now += 0.25
        breaker.failed()
        pauses.append(clock.now - began)
    assert pauses[:3] == [FIRST_SECONDS, 2 * FIRST_SECONDS, 4 * FIRST_SECONDS]
    assert max(pauses) == MOST_SECONDS
    assert told == [True]
