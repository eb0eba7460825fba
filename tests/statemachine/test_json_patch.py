"""A patch makes the later document of the earlier one, to the last digit, whatever the two are and however large."""

from __future__ import annotations

import json
import random
import time
from typing import Any

import jsonpatch
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.statemachine.json_patch import MOST_BYTES, MOST_LINES, difference


def read(text: bytes) -> Any:
    """The document with its numbers as the bytes that spell them: equal to nothing that is spelled otherwise."""
    return json.loads(text, parse_int=str.encode, parse_float=str.encode)


def applied(before: bytes, patch: bytes) -> Any:
    """What the patch makes of the document, as somebody else's implementation of RFC 6902 says."""
    return jsonpatch.apply_patch(read(before), read(patch))


def edits(before: str, after: str) -> list[tuple[str, str, str | None]]:
    """Each edit: its operation, its path and the JSON text of its value."""
    patch = difference(before.encode(), after.encode()).text
    assert patch is not None
    assert applied(before.encode(), patch) == read(after.encode())
    found = json.loads(patch, parse_int=str, parse_float=str)
    return [(one["op"], one["path"], one.get("value")) for one in found]


# As text, so that numbers are spelled in every way that JSON allows.
NUMBERS = st.sampled_from(
    ["0", "-0", "1", "1.0", "1.00", "1e0", "1E+2", "100", "9007199254740992", "9007199254740993", "12345678901234567890123"]
)
TEXTS = st.sampled_from(["", "a", "b", "1", "true", "null", "~", "/", "~1", "a/b~c", "0", "-", "\u00e9", "\U0001f600", '"', "\\"])
LEAVES = NUMBERS | TEXTS.map(json.dumps) | st.sampled_from(["true", "false", "null", "{}", "[]"])


def _objects(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    members = st.dictionaries(TEXTS, inner, max_size=4)
    return members.map(lambda found: "{" + ",".join(f"{json.dumps(name)}:{value}" for name, value in found.items()) + "}")


def _lists(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.lists(inner, max_size=8).map(lambda found: f"[{','.join(found)}]")


VALUES = st.recursive(LEAVES, lambda inner: _objects(inner) | _lists(inner), max_leaves=20)
DOCUMENTS = _objects(VALUES)


@given(DOCUMENTS, DOCUMENTS)
def test_the_patch_makes_the_later_document_of_the_earlier(before: str, after: str) -> None:
    patch = difference(before.encode(), after.encode())
    assert patch.text is not None
    assert applied(before.encode(), patch.text) == read(after.encode())
    assert (patch.text == b"[]") == (not patch.lines) == (read(before.encode()) == read(after.encode()))


@given(st.lists(st.integers(0, 5), max_size=40), st.lists(st.integers(0, 5), max_size=40))
def test_lists_that_share_some_elements_become_each_other(before: list[int], after: list[int]) -> None:
    one, other = (json.dumps({"rows": [{"n": number} for number in found]}).encode() for found in (before, after))
    patch = difference(one, other).text
    assert patch is not None
    assert applied(one, patch) == read(other)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("1", "1.0"),
        ("1", "true"),
        ("0", "false"),
        ("0", "-0"),
        ("0", '"0"'),
        ("9007199254740992", "9007199254740993"),
        ("0.1", "0.10000000000000000555"),
        ("null", "false"),
        ("[]", "{}"),
        ('"1"', "1"),
    ],
)
def test_what_python_or_a_double_takes_for_equal_is_told_apart(before: str, after: str) -> None:
    assert len(edits(f'{{"a":{before}}}', f'{{"a":{after}}}')) == 1
    assert len(edits(f'{{"a":[7,{before},7]}}', f'{{"a":[7,{after},7]}}')) == 1


def test_spaces_escapes_and_the_order_of_names_make_no_difference() -> None:
    assert edits('{"a": "\\u0041", "b": [1, 2]}', '{"b":[1,2],"a":"A"}') == []


def test_each_edit_touches_as_little_as_can_be() -> None:
    assert edits('{"a":{"b":1,"c":2},"d":3}', '{"a":{"b":1,"c":4},"e":5}') == [
        ("replace", "/a/c", "4"),
        ("remove", "/d", None),
        ("add", "/e", "5"),
    ]
    assert edits('{"a/b":{"~":1}}', '{"a/b":{"~":2}}') == [("replace", "/a~1b/~0", "2")]
    assert edits('{"":{"":1}}', '{"":{"":2}}') == [("replace", "//", "2")]


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ("[1,2,3]", "[1,2,3,4]", [("add", "/r/3", "4")]),
        ("[1,2,3]", "[0,1,2,3]", [("add", "/r/0", "0")]),
        ("[1,2,3,4]", "[1,4]", [("remove", "/r/1", None), ("remove", "/r/1", None)]),
        ("[1,2,3,4,5,6]", "[2,3,4,9,6,7]", [("remove", "/r/0", None), ("replace", "/r/3", "9"), ("add", "/r/5", "7")]),
        ('[{"id":1,"n":1},{"id":2}]', '[{"id":1,"n":2},{"id":2}]', [("replace", "/r/0/n", "2")]),
        ("[]", "[null]", [("add", "/r/0", None)]),
        ("[[1],[2]]", "[[1,3],[2]]", [("add", "/r/0/1", "3")]),
    ],
)
def test_of_a_list_only_what_comes_goes_or_changes_is_told(before: str, after: str, expected: list[tuple[str, str, str | None]]) -> None:
    assert edits(f'{{"r":{before}}}', f'{{"r":{after}}}') == expected


def rows(chance: random.Random, number: int) -> list[dict[str, Any]]:
    return [{"id": at, "name": f"{chance.getrandbits(64):x}", "tags": [chance.randrange(9) for _ in range(4)]} for at in range(number)]


def test_a_few_changes_in_a_long_list_are_a_few_edits() -> None:
    chance = random.Random(1)
    before = rows(chance, 10_000)
    after = [dict(row) for row in before]
    for _ in range(20):
        after.insert(chance.randrange(len(after)), {"new": chance.random()})
        del after[chance.randrange(len(after))]
        after[chance.randrange(len(after))]["name"] = "changed"
    one, other = (json.dumps({"rows": found}).encode() for found in (before, after))
    patch = difference(one, other).text
    assert patch is not None
    assert applied(one, patch) == read(other)
    assert len(patch) < 10_000


def test_one_field_of_every_row_is_one_edit_a_row() -> None:
    before = rows(random.Random(2), 3000)
    after = [{**row, "checked": True} for row in before]
    one, other = (json.dumps({"rows": found}).encode() for found in (before, after))
    patch = difference(one, other).text
    assert patch is not None
    assert applied(one, patch) == read(other)
    assert {edit["path"].rpartition("/")[2] for edit in json.loads(patch)} == {"checked"}


def test_a_document_is_replaced_as_a_whole_where_that_is_shorter() -> None:
    before = json.dumps({f"name{at}": at for at in range(2000)}).encode()
    after = json.dumps({f"name{at}": -at for at in range(2000)}).encode()
    patch = difference(before, after)
    assert patch.text is not None
    assert [(edit["op"], edit["path"]) for edit in json.loads(patch.text)] == [("replace", "")]
    assert applied(before, patch.text) == read(after)
    assert len(patch.lines) == MOST_LINES + 1


def test_a_patch_beyond_the_limit_is_left_out_and_still_told_of() -> None:
    one, other = (json.dumps({f"{name}{at}": "x" * 100 for at in range(15_000)}).encode() for name in "ab")
    patch = difference(one, other)
    assert patch.text is None
    assert (len(patch.lines), patch.lines[-1]) == (MOST_LINES + 1, "and more")
    assert difference(b"{}", b'{"a":"%s"}' % (b"x" * 500), most=400).text is None


def nested(leaf: int, levels: int) -> object:
    """Lists of two in lists of two."""
    found: object = leaf
    for _ in range(levels):
        found = [found, found]
    return found


# Documents that are allowed and made to take long.
HOSTILE: dict[str, tuple[object, ...]] = {
    "a long name over many values": tuple({"n" * 1_000_000: {str(at): sign * at for at in range(50_000)}} for sign in (1, -1)),
    "many long lists that share nothing": tuple(
        [[sign * (at * 1000 + n) for n in range(1, 400)] for at in range(1000)] for sign in (1, -1)
    ),
    "lists in lists": (nested(0, 17), nested(1, 17)),
    "lists in lists that differ deep down": ([nested(0, 17), 0], [nested(0, 17), 1]),
    "one long list upside down": (list(range(200_000)), list(range(200_000, 0, -1))),
    "one long list of few values": ([at % 3 for at in range(300_000)], [at % 5 for at in range(300_000)]),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_the_time_is_bounded(name: str) -> None:
    before, after = (json.dumps({"v": found}).encode() for found in HOSTILE[name])
    assert len(before) < 5_000_000
    began = time.perf_counter()
    patch = difference(before, after).text
    assert time.perf_counter() - began < 10.0
    assert patch is None or (len(patch) <= MOST_BYTES and applied(before, patch) == read(after))


@pytest.mark.parametrize("text", [b"", b"{", b"\xff", b'{"a":NaN}', b'{"a":"\\ud800"}', b'{"a":' + b"[" * 5000 + b"]" * 5000 + b"}"])
def test_what_is_no_document_is_a_value_error(text: bytes) -> None:
    for one, other in ((text, b'{"a":1}'), (b'{"a":1}', text)):
        with pytest.raises(ValueError):
            difference(one, other)


def test_lines_tell_what_was_and_what_is() -> None:
    patch = difference(b'{"a":1,"b":[true],"c":"%s"}' % (b"long" * 50), b'{"a":1.0,"b":[],"d":null}')
    assert patch.lines == ("/a: 1 -> 1.0", "/b/0: true removed", f'/c: "{"long" * 14}... removed', "/d: null added")
