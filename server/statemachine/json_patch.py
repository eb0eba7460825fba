"""How one JSON document becomes another, as RFC 6902 edits.

Numbers are told apart by how they are spelled, so that 1, 1.0 and true differ and an integer keeps every digit. The work is bounded
whatever the documents are: what would take too long to find, or too much room to write, is told as one replacement.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import field
from enum import Enum, unique

import orjson

from server.statemachine.value import dataclass

# A patch has at most this many bytes.
MOST_BYTES = 1024 * 1024
# A patch up to this size tells each edit, even where replacing the whole document would be shorter.
_SMALL = 16 * 1024
# So many edits are told in words.
MOST_LINES = 100
_SHOWN = 60
_SHOWN_PATH = 200
# Of two lists, elements that stay are looked for as long as no more than so many come and go; the rest are compared place by place.
_MOST_MOVED = 500
# Steps that this search may take in all lists of two documents: so many, and so many for each of their bytes.
_MOST_STEPS, _STEPS_A_BYTE = 1_000_000, 16


@unique
class _Nothing(Enum):
    """Stands for the value of what is not there: JSON's null is a value."""

    NOTHING = 0


_NOTHING = _Nothing.NOTHING


class _TooLarge(Exception):
    """The edits have more bytes than they may."""


@dataclass(frozen=True, slots=True)
class Patch:
    """What makes the later document of the earlier: ``text`` is the patch, None where it would be too large; ``lines`` are for people."""

    text: bytes | None
    lines: tuple[str, ...]


def difference(before: bytes, after: bytes, most: int = MOST_BYTES) -> Patch:
    """The patch from one document to the other, of at most ``most`` bytes. Raises ValueError when one of them is no JSON."""
    edits = _Edits(min(most, max(_SMALL, len(after) + len(_WHOLE))), min(_MOST_STEPS, _STEPS_A_BYTE * (len(before) + len(after))))
    try:
        other = _read(after)
        try:
            _differ(edits, "", _read(before), other)
        except _TooLarge:
            whole = b"[%s]" % (_WHOLE % _written(other))
            return Patch(whole if len(whole) <= most else None, (*edits.lines, "and more"))
    except (RecursionError, orjson.JSONEncodeError) as error:
        raise ValueError("is no document") from error
    more = edits.count - len(edits.lines)
    return Patch(b"[%s]" % b",".join(edits.texts), (*edits.lines, f"and {more} more") if more else tuple(edits.lines))


_WHOLE = b'{"op":"replace","path":"","value":%s}'


@dataclass(frozen=False, slots=True)
class _Edits:
    """The edits so far, in the order in which they are applied."""

    room: int
    steps: int
    texts: list[bytes] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    count: int = 0

    def add(self, path: str, before: object, after: object) -> None:
        """``before`` is what is there and ``after`` what is wanted; either may be NOTHING."""
        edit: dict[str, object] = {"op": "remove" if after is _NOTHING else "add" if before is _NOTHING else "replace", "path": path}
        if after is not _NOTHING:
            edit["value"] = after
        self.count += 1
        if len(self.lines) < MOST_LINES:
            self.lines.append(_line(path, before, after))
        text = _written(edit)
        self.room -= len(text) + 1
        if self.room < 0:
            raise _TooLarge
        self.texts.append(text)


def _read(text: bytes) -> object:
    """The document's values; its numbers as the bytes that spell them, which are equal to no other value."""
    return json.loads(text.decode(), parse_int=str.encode, parse_float=str.encode, parse_constant=_refuse)


def _refuse(name: str) -> object:
    raise ValueError(f"{name} is not JSON")


def _written(value: object) -> bytes:
    """The value as JSON text, its numbers as they were spelled."""
    return orjson.dumps(value, default=orjson.Fragment)


def _line(path: str, before: object, after: object) -> str:
    where = path if len(path) <= _SHOWN_PATH else f"{path[: _SHOWN_PATH // 2]}...{path[-_SHOWN_PATH // 2 :]}"
    if after is _NOTHING:
        return f"{where}: {_shown(before)} removed"
    if before is _NOTHING:
        return f"{where}: {_shown(after)} added"
    return f"{where}: {_shown(before)} -> {_shown(after)}"


def _shown(value: object) -> str:
    if type(value) is str and len(value) > _SHOWN:
        value = value[:_SHOWN]
    text = _written(value).decode()
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


def _differ(edits: _Edits, path: str, before: object, after: object) -> None:
    if type(before) is dict and type(after) is dict:
        for name, value in before.items():
            if name not in after:
                edits.add(_under(path, name), value, _NOTHING)
            elif value != after[name]:
                _differ(edits, _under(path, name), value, after[name])
        for name, value in after.items():
            if name not in before:
                edits.add(_under(path, name), _NOTHING, value)
    elif type(before) is list and type(after) is list:
        for (at, wanted), (end, wanted_end) in _gaps(edits, before, after):
            _fill(edits, path, before[at:end], after[wanted:wanted_end], wanted)
    elif before != after:
        edits.add(path, before, after)


def _under(path: str, name: str) -> str:
    return f"{path}/{name.replace('~', '~0').replace('/', '~1')}"


def _fill(edits: _Edits, path: str, before: Sequence[object], after: Sequence[object], at: int) -> None:
    """What makes ``after`` of the elements ``before``; what stands left of ``at`` is as it shall be already."""
    common = min(len(before), len(after))
    for offset in range(common):
        if before[offset] != after[offset]:
            _differ(edits, f"{path}/{at + offset}", before[offset], after[offset])
    for value in before[common:]:
        edits.add(f"{path}/{at + common}", value, _NOTHING)  # the next one takes its place
    for offset in range(common, len(after)):
        edits.add(f"{path}/{at + offset}", _NOTHING, after[offset])


_Place = tuple[int, int]


def _gaps(edits: _Edits, before: list[object], after: list[object]) -> Iterator[tuple[_Place, _Place]]:
    """The stretches in which two lists differ, from left to right: where each begins in both, and where it ends."""
    first, shorter = 0, min(len(before), len(after))
    while first < shorter and before[first] == after[first]:
        first += 1
    last = 0
    while last < shorter - first and before[-1 - last] == after[-1 - last]:
        last += 1
    ends = len(before) - last, len(after) - last
    stays: list[_Place] = []
    if first < min(ends):
        known: dict[bytes, int] = {}
        one, other = ([_number(known, value) for value in found[first:end]] for found, end in zip((before, after), ends, strict=True))
        stays = [(first + at, first + wanted) for at, wanted in _staying(edits, one, other)]
    for (at, wanted), (end, wanted_end) in zip([(first - 1, first - 1), *stays], [*stays, ends], strict=True):
        if at + 1 < end or wanted + 1 < wanted_end:
            yield (at + 1, wanted + 1), (end, wanted_end)


def _number(known: dict[bytes, int], value: object) -> int:
    """The same number for equal values."""
    return known.setdefault(orjson.dumps(value, default=orjson.Fragment, option=orjson.OPT_SORT_KEYS), len(known))


def _staying(edits: _Edits, one: Sequence[int], other: Sequence[int]) -> list[_Place]:
    """Elements that both have in the same order, as many as can be (Myers 1986, the greedy algorithm); none when too many differ."""
    furthest = {1: 0}
    trace: list[dict[int, int]] = []
    for moved in range(min(len(one) + len(other), _MOST_MOVED) + 1):
        edits.steps -= moved + 1
        if edits.steps < 0:
            return []
        trace.append(dict(furthest))
        for diagonal in range(-moved, moved + 1, 2):
            at = _entry(furthest, diagonal, moved)
            begun = at
            while at < len(one) and at - diagonal < len(other) and one[at] == other[at - diagonal]:
                at += 1
            edits.steps -= at - begun
            furthest[diagonal] = at
            if at >= len(one) and at - diagonal >= len(other):
                return _retraced(trace, len(one), len(other))
    return []


def _entry(furthest: dict[int, int], diagonal: int, moved: int) -> int:
    """How far the first list has been passed when the diagonal is entered: by an element that comes, or by one that goes."""
    comes = diagonal == -moved or (diagonal != moved and furthest[diagonal - 1] < furthest[diagonal + 1])
    return furthest[diagonal + 1] if comes else furthest[diagonal - 1] + 1


def _retraced(trace: Sequence[dict[int, int]], at: int, wanted: int) -> list[_Place]:
    found: list[_Place] = []
    for moved in range(len(trace) - 1, -1, -1):
        furthest, diagonal = trace[moved], at - wanted
        begun = _entry(furthest, diagonal, moved)
        while at > begun:
            at, wanted = at - 1, wanted - 1
            found.append((at, wanted))
        if moved:
            comes = diagonal == -moved or (diagonal != moved and furthest[diagonal - 1] < furthest[diagonal + 1])
            at, wanted = (at, wanted - 1) if comes else (at - 1, wanted)
    found.reverse()
    return found
