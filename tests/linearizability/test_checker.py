"""The checker: good histories pass, and each way to be wrong is named."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from tests.linearizability.checker import faults
from tests.linearizability.history import Call, Heard, History, Kind, Watched

CREATED = Call(Kind.WRITE, 0, 1, 1, "a")
LATER = Call(Kind.WRITE, 2, 3, 2, "b")


def history(*calls: Call, ledger: str = "ab", watches: tuple[Watched, ...] = (), stale: float = 0.0) -> History:
    """A history in which first ``a`` and then ``b`` was written, and whatever else."""
    return History((CREATED, LATER, *calls), watches, tuple(ledger), stale)


def watched(*revisions: int, after: int = 0, marks: str = "abcdef", to_the_end: bool = True, time: float = 9.0) -> Watched:
    """A watch that heard of those revisions."""
    heard = tuple(Heard(revision, marks[revision - 1], time) for revision in revisions)
    return Watched(after, heard, to_the_end)


GOOD = {
    "nothing but the writes": history(),
    "a read during a write sees it": history(Call(Kind.READ, 2.1, 2.2, 2, "b")),
    "a read during a write does not see it": history(Call(Kind.READ, 2.1, 2.9, 1, "a")),
    "two reads during a write, first without it and then with it": history(
        Call(Kind.READ, 2.1, 2.2, 1, "a"), Call(Kind.READ, 2.3, 2.4, 2, "b")
    ),
    "a read during the create finds no flow": history(Call(Kind.READ, 0.1, 0.9, 0)),
    "an unknown write that did not happen": history(Call(Kind.WRITE, 4, mark="c")),
    "an unknown write that happened long after": history(
        Call(Kind.WRITE, 4, mark="c"), Call(Kind.READ, 50, 51, 2, "b"), Call(Kind.READ, 60, 61, 3, "c"), ledger="abc"
    ),
    "concurrent writes in the order opposite to their calls": history(
        Call(Kind.WRITE, 4, 9, 4, "d"), Call(Kind.WRITE, 5, 8, 3, "c"), ledger="abcd"
    ),
    "a refusal that says what is current": history(Call(Kind.REFUSED, 4, 5, 2, "c")),
    "a refused create that says nothing": history(Call(Kind.REFUSED, 4, 5, None, "c")),
    "a cached read that is old, and not older than it may be": history(Call(Kind.CACHED, 7.5, 8, 1, "a"), stale=5.0),
    "watches from anywhere": history(watches=(watched(1, 2), watched(2, after=1), watched(after=2))),
    "a watch that was given up": history(watches=(watched(1, to_the_end=False),)),
    "a watch that hears of a write before its writer does": history(watches=(watched(1, 2, time=2.5),)),
}
BAD = {
    "a write that was lost": (history(ledger="a"), "was lost"),
    "two writers of one revision": (history(Call(Kind.WRITE, 2, 3, 2, "c")), "revision 2 was acknowledged to 2 writers"),
    "an acknowledged write that is not what is there": (history(Call(Kind.WRITE, 4, 5, 3, "c"), ledger="abx"), "revision 3 is 'x'"),
    "a write that happened twice": (history(ledger="abb"), "'b' happened 2 times"),
    "a write that nobody made": (history(ledger="abx"), "which nobody wrote"),
    "a refused write that happened": (history(Call(Kind.REFUSED, 4, 5, 2, "c"), ledger="abc"), "which was refused"),
    "a refusal that does not know of the last write": (history(Call(Kind.REFUSED, 4, 5, 1, "c")), "began after this had returned"),
    "writes against the time": (
        history(Call(Kind.WRITE, 4, 5, 4, "d"), Call(Kind.WRITE, 6, 7, 3, "c"), ledger="abcd"),
        "write 'c' at revision 3 [6.0000, 7.0000] began after this had returned: write 'd'",
    ),
    "a read that is behind a write": (history(Call(Kind.READ, 4, 5, 1, "a")), "read 'a' at revision 1"),
    "a read that is behind another read": (
        history(Call(Kind.READ, 2.1, 2.2, 2, "b"), Call(Kind.READ, 2.3, 2.4, 1, "a")),
        "began after this had returned: read 'b'",
    ),
    "a read that finds no flow after the create": (history(Call(Kind.READ, 1.5, 1.6, 0)), "read '' at revision 0"),
    "a read from the future": (history(Call(Kind.READ, 1.5, 1.6, 2, "b")), "write 'b' at revision 2 [2.0000, 3.0000] began after"),
    "a read of what an unknown write had not written yet": (
        history(Call(Kind.READ, 4, 5, 3, "c"), Call(Kind.WRITE, 6, mark="c"), ledger="abc"),
        "write 'c' at revision None",
    ),
    "a read that is behind an unknown write that another read has seen": (
        history(Call(Kind.WRITE, 4, mark="c"), Call(Kind.READ, 5, 6, 3, "c"), Call(Kind.READ, 7, 8, 2, "b"), ledger="abc"),
        "read 'b' at revision 2",
    ),
    "a read of the wrong content": (history(Call(Kind.READ, 4, 5, 2, "a")), "revision 2 is 'b'"),
    "a read that is behind what it asked for": (history(Call(Kind.CACHED, 4, 5, 1, "a", least=2), stale=9.0), "asked for at least"),
    "a cached read that is older than it may be": (history(Call(Kind.CACHED, 8.5, 9, 1, "a"), stale=5.0), "cached 'a' at revision 1"),
    "a cached read from the future": (history(Call(Kind.CACHED, 1.1, 1.2, 2, "b"), stale=5.0), "write 'b' at revision 2"),
    "a watch with a gap": (history(Call(Kind.WRITE, 4, 5, 3, "c"), ledger="abc", watches=(watched(1, 3),)), "3 where 2 came next"),
    "a watch that repeats": (history(watches=(watched(1, 1, 2),)), "revision 1 where 2 came next"),
    "a watch out of order": (history(watches=(watched(2, 1),)), "revision 2 where 1 came next"),
    "a watch that stops early": (history(watches=(watched(1),)), "ended after revision 1 of 2"),
    "a watch that hears something else": (history(watches=(watched(1, 2, marks="ax"),)), "that revision 2 is 'x', and it is 'b'"),
    "a watch that hears of what was never stored": (history(watches=(watched(1, 2, 3),)), "of revision 3, and there are 2"),
    "a watch that hears of a write before it was made": (history(watches=(watched(1, 2, time=1.5),)), "a watch heard of revision 2"),
}


@pytest.mark.parametrize("good", GOOD.values(), ids=GOOD)
def test_a_history_that_one_register_could_have_told_has_no_fault(good: History) -> None:
    assert faults(good) == []


@pytest.mark.parametrize(("bad", "told"), BAD.values(), ids=BAD)
def test_each_way_to_be_wrong_is_named(bad: History, told: str) -> None:
    found = faults(bad)
    assert any(told in fault for fault in found), found


def told_by_a_register(chance: random.Random) -> History:
    """What a real register tells when calls take their time: each takes effect somewhere between its call and its return."""
    ledger: list[str] = []
    calls: list[Call] = []
    for at in range(40):
        effect = at + 1.0
        called, returned = effect - 4 * chance.random(), effect + 4 * chance.random()
        if not ledger or chance.random() < 0.5:
            ledger.append(f"w{at}")
            known = chance.random() < 0.8
            calls.append(
                Call(Kind.WRITE, called, returned, len(ledger), ledger[-1]) if known else Call(Kind.WRITE, called, mark=ledger[-1])
            )
        else:
            calls.append(Call(Kind.READ, called, returned, len(ledger), ledger[-1]))
    chance.shuffle(calls)
    heard = tuple(Heard(revision, mark, 100.0) for revision, mark in enumerate(ledger, 1))
    return History(tuple(calls), (Watched(0, heard),), tuple(ledger))


@pytest.mark.parametrize("seed", range(50))
def test_whatever_a_register_tells_has_no_fault_and_a_read_moved_behind_all_writes_has_one(seed: int) -> None:
    told = told_by_a_register(random.Random(seed))
    assert faults(told) == []
    newest = next(call for call in told.calls if call.kind is Kind.WRITE and call.revision)
    stale = Call(Kind.READ, 200, 201, newest.revision, newest.mark)
    assert bool(faults(replace(told, calls=(*told.calls, stale)))) == (newest.revision != len(told.ledger))
