"""Documents: JSON objects that belong to the caller, kept as the exact text that came.

Nothing here re-serialises a document but ``merge_patch``, and that writes every number as it was spelled. All functions are pure and
thread safe; those on large texts take milliseconds and belong in a thread.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import isinf
from typing import TypeAlias, cast

import orjson

from server.statemachine.errors import InvalidRequest, LimitExceeded, invalid

JsonValue: TypeAlias = "JsonObject | list[JsonValue] | str | int | float | bool | None"
JsonObject: TypeAlias = "dict[str, JsonValue]"

EMPTY = b"{}"

_SPACED_COLON = re.compile(rb'"[ \t\r\n]+:')
_PLAIN_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SURROGATE = re.compile("[\ud800-\udfff]")
# Enough to find the value; the whole error has to stay below 2 KB, and one key alone may be 4 MiB.
_SHOWN_KEY = 60
_SHOWN_PATH = 300


@dataclass(frozen=True, slots=True)
class Limits:
    """How large a document may be: bytes of JSON text, and levels of objects and lists (the top object is the first level)."""

    max_bytes: int = 4 * 1024 * 1024
    max_depth: int = 32


@dataclass(frozen=True, slots=True)
class _Members:
    """A JSON object as it is written, repeated names included."""

    pairs: list[tuple[str, object]]


def check(text: bytes, field: str, limits: Limits) -> bytes:
    """The text itself, once it is known to be a document (RFC 8259, an object at the top).

    Raises LimitExceeded for its size, and InvalidRequest that names ``field`` and the JSONPath (RFC 9535) of the value for: broken JSON,
    another value than an object at the top, too many levels, NaN and Infinity, a number beyond a double, U+0000 or a lone surrogate
    in a string or name, and a name that stands twice in one object (RFC 8259 leaves its meaning open, and readers differ).
    """
    check_size(text, field, limits)
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise _fault(text, field, limits) or invalid(field, f"is not valid JSON: {error}") from None
    if type(value) is not dict:
        raise invalid(field, f"is JSON, but {_KINDS.get(type(value), 'a number')}: a document is an object, as in {{...}}")
    members = _count_members(value, limits.max_depth)
    # Without its escaped backslashes and quotes, every quote of the text opens or closes a string. A quote before a colon then closes
    # a name, or opens a string that begins with a colon: never fewer than there are names. So if there are as many as members,
    # no name is repeated; this costs a fifth of looking at each.
    escapes = b"\\" in text
    bare = text.replace(b"\\\\", b"").replace(b'\\"', b"") if escapes else text
    if members != bare.count(b'":') + len(_SPACED_COLON.findall(bare)) or (escapes and b"\\u0000" in bare):
        fault = _fault(text, field, limits)
        if fault is not None:
            raise fault
    return text


def check_size(text: bytes, field: str, limits: Limits) -> None:
    """Raise LimitExceeded if the text is larger than a document may be; needed again after a merge."""
    if len(text) > limits.max_bytes:
        raise LimitExceeded(f"{field} (bytes of JSON)", limits.max_bytes, len(text))


def load(text: bytes) -> JsonObject:
    """The values of a checked document; integers keep all their digits, other numbers are doubles."""
    return cast(JsonObject, json.loads(text.decode()))


def merge_patch(target: bytes, patch: bytes) -> bytes:
    """The target with an RFC 7396 merge patch applied: members are set, null removes, objects merge, lists are replaced.

    Both have passed ``check``. Numbers are written as they were spelled; white space and escapes are not kept, nor are
    members of the target reordered. The result is no deeper than the deeper of the two, but may be larger than either.
    """
    result = _load_verbatim(target)
    open_pairs = [(result, _load_verbatim(patch))]
    while open_pairs:
        into, changes = open_pairs.pop()
        for name, change in changes.items():
            if change is None:
                into.pop(name, None)
            elif type(change) is dict:
                inner = into.get(name)
                if type(inner) is not dict:
                    inner = into[name] = {}  # also takes the nulls out of a patch that makes a new object
                open_pairs.append((inner, change))
            else:
                into[name] = change
    return orjson.dumps(result)


def sha256(text: bytes) -> bytes:
    """The digest of the text, 32 bytes; of the bytes that are stored, since JSON has no one spelling."""
    return hashlib.sha256(text).digest()


def _load_verbatim(text: bytes) -> dict[str, object]:
    """The object with each number as a fragment that orjson writes out as it was read."""
    return cast("dict[str, object]", json.loads(text.decode(), parse_int=orjson.Fragment, parse_float=orjson.Fragment))


_KINDS = {list: "a list", str: "a string", bool: "a boolean", type(None): "null"}


def _count_members(document: dict[str, object], max_depth: int) -> int:
    """The members of all objects of the document; -1 if it has more than ``max_depth`` levels."""
    members = 0
    level: list[dict[str, object] | list[object]] = [document]
    for _ in range(max_depth):
        deeper: list[dict[str, object] | list[object]] = []
        for node in level:
            if type(node) is dict:
                members += len(node)
                values: Iterable[object] = node.values()
            else:
                values = node
            deeper += [value for value in values if type(value) is dict or type(value) is list]
        if not deeper:
            return members
        level = deeper
    return -1


def _fault(text: bytes, field: str, limits: Limits) -> InvalidRequest | None:
    """What is wrong with the text and where, if it is more than its syntax; slow, for texts under suspicion only."""
    try:
        # As float, no integer is too long to be read; JSON's grammar has none of the constants that this parser takes.
        tree = json.loads(text.decode(), parse_int=float, object_pairs_hook=_Members, parse_constant=_Constant)
    except RecursionError:
        return invalid(field, f"is nested deeper than {limits.max_depth} levels")
    except ValueError:
        return None
    found = next(_complaints(tree, limits.max_depth), None)
    return None if found is None else invalid(field, f"{_jsonpath(found[0])} {found[1]}")


@dataclass(frozen=True, slots=True)
class _Constant:
    """NaN, Infinity or -Infinity."""

    name: str


def _complaints(tree: object, max_depth: int) -> Iterator[tuple[list[str | int], str]]:
    """What is wrong, in the order of the text; holds one iterator per level, since a text can have a million values."""
    path: list[str | int] = []
    yield from _own_complaints(path, tree, max_depth)
    levels = [_children(tree)]
    while levels:
        child = next(levels[-1], None)
        if child is None:
            levels.pop()
            if path:
                path.pop()
            continue
        path.append(child[0])
        yield from _own_complaints(path, child[1], max_depth)
        levels.append(_children(child[1]))


def _children(value: object) -> Iterator[tuple[str | int, object]]:
    if isinstance(value, _Members):
        return iter(value.pairs)
    return enumerate(value) if isinstance(value, list) else iter(())


def _own_complaints(path: list[str | int], value: object, max_depth: int) -> Iterator[tuple[list[str | int], str]]:
    if isinstance(value, str) and (complaint := _text_complaint(value)):
        yield path, complaint
    elif isinstance(value, float) and isinf(value):
        yield path, "is a number beyond the range of a double (about 1.8E308)"
    elif isinstance(value, _Constant):
        yield path, f"is {value.name}, which JSON does not have"
    elif isinstance(value, _Members | list) and len(path) >= max_depth:
        yield path, f"is nested deeper than {max_depth} levels"
    elif isinstance(value, _Members):
        seen: set[str] = set()
        for name, _ in value.pairs:
            if complaint := _text_complaint(name):
                yield [*path, name], f"has a name that {complaint}"
            if name in seen:
                yield [*path, name], "stands twice in its object"
            seen.add(name)


def _text_complaint(text: str) -> str:
    if "\0" in text:
        return "contains U+0000, which cannot be stored"
    if _SURROGATE.search(text):
        return "contains half of a surrogate pair, which is no character"
    return ""


def _jsonpath(path: list[str | int]) -> str:
    """The path as RFC 9535 writes it, in printable ASCII, shortened in the middle if it is long."""
    steps = ["$"]
    for step in path:
        if isinstance(step, int):
            steps.append(f"[{step}]")
        elif _PLAIN_KEY.fullmatch(step) and len(step) <= _SHOWN_KEY:
            steps.append(f".{step}")
        else:
            shown = step if len(step) <= _SHOWN_KEY else step[:_SHOWN_KEY] + "..."
            steps.append(f"[{json.dumps(shown)}]")
    whole = "".join(steps)
    half = _SHOWN_PATH // 2
    return whole if len(whole) <= _SHOWN_PATH else f"{whole[:half]} ... {whole[-half:]}"
