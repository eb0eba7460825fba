"""Whether a history can be told by one register whose revisions rise by one with each write.

A revision is a version number that the service itself gives, so no order has to be searched for: each call has its place in the order of
revisions (a write before the reads of what it wrote), and the history is linearizable if and only if no call began after another one had
returned that comes later in that order. Proof: let each call take effect at the latest beginning among the calls up to its place; that is
before its own return exactly when no such pair exists.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby

from tests.linearizability.history import Call, History, Kind, Watched


def faults(history: History) -> list[str]:
    """What no such register could have told, as sentences; empty for a history that is linearizable."""
    return [
        *_ledger(history),
        *_answers(history),
        *_order(history),
        *(fault for watch in history.watches for fault in _watch(watch, history)),
    ]


def _ledger(history: History) -> Iterator[str]:
    """Each revision is one write's, and no write has two."""
    times = Counter(history.ledger)
    yield from (f"{mark!r} happened {count} times" for mark, count in times.items() if count > 1)
    written = {call.mark for call in history.calls if call.kind is Kind.WRITE}
    refused = {call.mark for call in history.calls if call.kind is Kind.REFUSED}
    for revision, mark in enumerate(history.ledger, 1):
        if mark in refused:
            yield f"revision {revision} is {mark!r}, which was refused"
        elif mark not in written:
            yield f"revision {revision} is {mark!r}, which nobody wrote"
    told = Counter(call.revision for call in history.calls if call.kind is Kind.WRITE and call.revision is not None)
    yield from (f"revision {revision} was acknowledged to {count} writers" for revision, count in told.items() if count > 1)


def _answers(history: History) -> Iterator[str]:
    """What was told of a revision is what it was."""
    for call in history.calls:
        if call.revision is None:
            continue
        if call.kind in (Kind.READ, Kind.CACHED) and call.revision < call.least:
            yield f"{call}: revision {call.least} was asked for at least"
        if call.revision > len(history.ledger):
            yield f"{call}: the flow came to {len(history.ledger)} revisions only, so this one was lost"
        elif call.mark and call.kind is not Kind.REFUSED and call.revision and history.ledger[call.revision - 1] != call.mark:
            yield f"{call}: revision {call.revision} is {history.ledger[call.revision - 1]!r}"


@dataclass(frozen=True, slots=True)
class _Placed:
    """A call in the order of revisions."""

    place: tuple[int, int]
    called: float
    returned: float
    text: str


def _placed(history: History) -> Iterator[_Placed]:
    at = {mark: revision for revision, mark in enumerate(history.ledger, 1)}
    for call in history.calls:
        match call:
            case Call(Kind.WRITE, revision=None) if call.mark in at:
                yield _Placed((at[call.mark], 0), call.called, math.inf, str(call))
            case Call(revision=None):
                continue
            case Call(Kind.WRITE, revision=int() as revision):
                yield _Placed((revision, 0), call.called, call.returned, str(call))
            case Call(Kind.CACHED, revision=int() as revision):
                yield _Placed((revision, 1), call.called - history.stale, call.returned, str(call))
            case Call(revision=int() as revision):
                yield _Placed((revision, 1), call.called, call.returned, str(call))
    for watch in history.watches:  # what a watch tells may be old, and may not be of the future
        for heard in watch.heard:
            yield _Placed((heard.revision, 1), -math.inf, heard.time, f"a watch heard of revision {heard.revision} at {heard.time:.4f}")


def _order(history: History) -> Iterator[str]:
    """No call began after another had returned that comes later."""
    soonest: _Placed | None = None  # of all that come later in the order
    for _, group in groupby(sorted(_placed(history), key=_place, reverse=True), key=_place):
        here = list(group)
        for placed in here:
            if soonest is not None and soonest.returned < placed.called:
                yield f"{placed.text} began after this had returned: {soonest.text}"
        soonest = min(here if soonest is None else [*here, soonest], key=_returned)


def _place(placed: _Placed) -> tuple[int, int]:
    return placed.place


def _returned(placed: _Placed) -> float:
    return placed.returned


def _watch(watch: Watched, history: History) -> Iterable[str]:
    """Every revision once, in order, as it was, to the last one."""
    expected = watch.after
    for heard in watch.heard:
        expected += 1
        if heard.revision != expected:
            yield f"a watch heard of revision {heard.revision} where {expected} came next"
            expected = heard.revision
        if not 0 < heard.revision <= len(history.ledger):
            yield f"a watch heard of revision {heard.revision}, and there are {len(history.ledger)}"
        elif heard.mark != history.ledger[heard.revision - 1]:
            yield f"a watch heard that revision {heard.revision} is {heard.mark!r}, and it is {history.ledger[heard.revision - 1]!r}"
    if watch.to_the_end and expected != len(history.ledger):
        yield f"a watch ended after revision {expected} of {len(history.ledger)}"
