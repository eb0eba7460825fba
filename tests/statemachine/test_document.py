"""What a document may be, and what a merge patch makes of it."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.statemachine.document import EMPTY, Limits, check, check_size, load, merge_patch, sha256
from server.statemachine.errors import FlowError, InvalidRequest, LimitExceeded

LIMITS = Limits()


def _nested(levels: int) -> bytes:
    """An object with this many levels, itself included."""
    return b'{"a":' * (levels - 1) + b"{}" + b"}" * (levels - 1)


def _refusal(text: bytes) -> str:
    with pytest.raises(InvalidRequest) as caught:
        check(text, "state", LIMITS)
    assert [violation.field for violation in caught.value.violations] == ["state"]
    assert len(str(caught.value)) < 1000
    return caught.value.violations[0].description


@pytest.mark.parametrize(
    "text",
    [
        b"{}",
        b' \t\r\n{ "a" : [ 1 , 2.50 , -0 , 1e5 , true , null ] }\n',
        b'{"id": 123456789012345678901234567890123456789}',
        b'{"a": 1.7976931348623157e308, "b": -1.7976931348623157e308, "c": 1e-400}',
        '{"größe": "→", "emoji": "\U0001f600"}'.encode(),
        b'{"emoji": "\\ud83d\\ude00"}',
        b'{"path": "C:\\\\u0000", "quoted": "{\\"a\\":1,\\"a\\":2}", "odd": ":x", "\\\\": 1, "\\"": 2}',
        b'{"a": {"a": 1}, "b": [{"a": 1}, {"a": 1}]}',
        b'{"": 1, " ": 2}',
        b'{"a": "}]{["}',
        b'{"a": "NaN", "b": "Infinity 1E400"}',
        _nested(32),
        b'{"a":' * 32 + b"1" + b"}" * 32,
        b'{"a":' + b"[" * 31 + b"]" * 31 + b"}",
    ],
)
def test_a_document_is_returned_as_it_came(text: bytes) -> None:
    assert check(text, "state", LIMITS) is text


@pytest.mark.parametrize(
    ("text", "where", "why"),
    [
        (b'{"a": [1, {"b": 1E400}]}', "$.a[1].b", "range of a double"),
        (b'{"a": -1e400}', "$.a", "range of a double"),
        (b'{"a": 1' + b"0" * 400 + b"}", "$.a", "range of a double"),
        (b'{"a": 1' + b"0" * 5000 + b"}", "$.a", "range of a double"),
        (b'{"a": NaN}', "$.a", "NaN"),
        (b'{"a": [0, -Infinity]}', "$.a[1]", "-Infinity"),
        (b'{"a": ["x", "y\\u0000z"]}', "$.a[1]", "U+0000"),
        (b'{"a": {"b\\u0000": 1}}', '$.a["b\\u0000"]', "U+0000"),
        (b'{"a": "\\\\\\u0000"}', "$.a", "U+0000"),
        (b'{"a": "\\ud800"}', "$.a", "surrogate"),
        (b'{"a": "\\udc00\\ud800"}', "$.a", "surrogate"),
        (b'{"\\ud800": 1}', '$["\\ud800"]', "surrogate"),
        (b'{"a": 1, "a": 1}', "$.a", "stands twice"),
        (b'{"a": 1, "\\u0061" : 2}', "$.a", "stands twice"),
        (b'{"x": [{"b c": {"y": 1, "z": ":", "y"\n: 2}}]}', '$.x[0]["b c"].y', "stands twice"),
        (b'{"a": 1, "a": 2, "b": "\\"c\\":"}', "$.a", "stands twice"),
        (b'{"\\\\": 1, "\\\\": 2}', '$["\\\\"]', "stands twice"),
        (_nested(33), "$" + ".a" * 32, "deeper than 32"),
        (b'{"a":' + b"[" * 32 + b"]" * 32 + b"}", "$.a" + "[0]" * 31, "deeper than 32"),
    ],
)
def test_a_refusal_names_the_place_and_the_fault(text: bytes, where: str, why: str) -> None:
    description = _refusal(text)
    assert description.startswith(f"{where} ")
    assert why in description


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b'{"a": 1,}', "not valid JSON"),
        (b"{'a': 1}", "not valid JSON"),
        (b'{"a": 01}', "not valid JSON"),
        (b'{"a": "\x00"}', "not valid JSON"),
        (b'{"a": "\t"}', "not valid JSON"),
        (b'{"a": "\xff"}', "not valid JSON"),
        (b'{"a": "\xed\xa0\x80"}', "not valid JSON"),
        (b"\xef\xbb\xbf{}", "not valid JSON"),
        ('{"a": 1}'.encode("utf-16"), "not valid JSON"),
        (b"{} {}", "not valid JSON"),
        (b"[]", "a list"),
        (b'"{}"', "a string"),
        (b"1", "a number"),
        (b"true", "a boolean"),
        (b"null", "null"),
        (b'{"a":' * 100_000, "deeper than 32"),
        (_nested(100_000), "deeper than 32"),
        (b'{"' + b'\\"' * 100_000, "not valid JSON"),
    ],
)
def test_what_is_no_json_object_is_refused(text: bytes, why: str) -> None:
    assert why in _refusal(text)


def test_a_document_has_at_most_the_bytes_of_its_limit() -> None:
    limits = Limits(max_bytes=10)
    assert check(b'{"a":"bc"}', "state", limits)
    with pytest.raises(LimitExceeded) as caught:
        check(b'{"a":"bcd"}', "metadata", limits)
    assert "metadata" in str(caught.value)
    assert (caught.value.metadata["limit"], caught.value.metadata["actual"]) == ("10", "11")
    with pytest.raises(LimitExceeded):
        check_size(b" " * 11, "state", limits)


def test_a_long_path_is_shortened_in_the_error() -> None:
    description = _refusal(b'{"' + b"k" * 5000 + b'": {"l": ' + b'{"mmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmm":' * 20 + b"1E999" + b"}" * 22)
    assert description.startswith('$["kkkk')
    assert len(description) < 500


def test_a_fault_is_found_among_half_a_million_values_without_much_memory() -> None:
    text = b'{"a": [' + b"[]," * 500_000 + b'"\\u0000"]}'
    assert _refusal(text).startswith("$.a[500000] ")


# Text of JSON values, spelled in ways that a parser and writer would not keep.
_numbers = st.one_of(
    st.integers(-(10**40), 10**40).map(str),
    st.from_regex(r"-?(0|[1-9][0-9]{0,30})\.[0-9]{1,30}([eE][+-]?[0-9]{1,2})?", fullmatch=True),
    st.sampled_from(["-0", "1.10", "1E5", "1e+05", "0.1e-999", "18446744073709551616", "-9223372036854775809"]),
)
_words = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8)
_names = st.sampled_from(["a", "b", "c", "\\", '"', ":", "", "ä"])
_strings = st.builds(json.dumps, _words | _names, ensure_ascii=st.booleans())
_spaces = st.sampled_from(["", " ", "\n", "\t "])


def _object_texts(values: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    def write(members: dict[str, str], space: str, ascii_names: bool) -> str:
        pairs = (f"{space}{json.dumps(name, ensure_ascii=ascii_names)}{space}:{space}{value}" for name, value in members.items())
        return "{" + ",".join(pairs) + space + "}"

    return st.builds(write, st.dictionaries(_names | _words, values, max_size=4), _spaces, st.booleans())


_values = st.recursive(
    st.one_of(_numbers, _strings, st.sampled_from(["true", "false", "null"])),
    lambda inner: st.one_of(st.lists(inner, max_size=3).map(lambda items: "[" + ",".join(items) + "]"), _object_texts(inner)),
    max_leaves=12,
)
documents = _object_texts(_values).map(str.encode)


def _spelled(text: bytes) -> object:
    """The document's values, with each number as it is written."""
    spell: Callable[[str], tuple[str, str]] = lambda digits: ("number", digits)  # noqa: E731
    return json.loads(text, parse_int=spell, parse_float=spell)


def _rfc_7396(target: object, patch: object) -> object:
    """MergePatch as section 2 of the RFC writes it."""
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            result.pop(name, None)
        else:
            result[name] = _rfc_7396(result.get(name), value)
    return result


@given(documents)
def test_every_well_formed_document_passes(text: bytes) -> None:
    assert check(text, "state", LIMITS) is text


@given(documents, _words, st.data())
def test_a_name_that_stands_twice_is_refused_wherever_it_is(inner: bytes, name: str, data: st.DataObject) -> None:
    first, second = (json.dumps(name, ensure_ascii=data.draw(st.booleans())).encode() for _ in range(2))
    space = data.draw(_spaces).encode()
    text = b'{"x": [' + inner + b", {" + first + b":" + inner + b"," + second + space + b":" + inner + b"}]}"
    assert "stands twice" in _refusal(text)


@given(st.binary(max_size=40) | st.text(max_size=20).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_any_bytes_pass_or_are_refused(noise: bytes) -> None:
    for text in (noise, b'{"a":' + noise + b"}", b'{"' + noise + b'":1}'):
        try:
            check(text, "state", LIMITS)
        except FlowError:
            continue
        assert isinstance(json.loads(text), dict)


@given(st.text(alphabet='{}[]",:\\u0aeE1.- ', max_size=30))
def test_what_passes_has_unique_names_and_no_nul(noise: str) -> None:
    def unique(pairs: list[tuple[str, object]]) -> object:
        assert len(dict(pairs)) == len(pairs)
        assert "\0" not in "".join(name for name, _ in pairs)
        return dict(pairs)

    text = ('{"a":' + noise + "}").encode()
    try:
        check(text, "state", LIMITS)
    except FlowError:
        return
    assert "\\u0000" not in json.dumps(json.loads(text, object_pairs_hook=unique)).replace("\\\\", "")


@pytest.mark.parametrize(
    ("target", "patch", "result"),
    # RFC 7396, appendix A; its other cases have something else than an object at the top.
    [
        ('{"a":"b"}', '{"a":"c"}', '{"a":"c"}'),
        ('{"a":"b"}', '{"b":"c"}', '{"a":"b","b":"c"}'),
        ('{"a":"b"}', '{"a":null}', "{}"),
        ('{"a":"b","b":"c"}', '{"a":null}', '{"b":"c"}'),
        ('{"a":["b"]}', '{"a":"c"}', '{"a":"c"}'),
        ('{"a":"c"}', '{"a":["b"]}', '{"a":["b"]}'),
        ('{"a":{"b":"c"}}', '{"a":{"b":"d","c":null}}', '{"a":{"b":"d"}}'),
        ('{"a":[{"b":"c"}]}', '{"a":[1]}', '{"a":[1]}'),
        ('{"e":null}', '{"a":1}', '{"e":null,"a":1}'),
        ("{}", '{"a":{"bb":{"ccc":null}}}', '{"a":{"bb":{}}}'),
        # Nulls in lists are values.
        ('{"a":1}', '{"a":[null,{"b":null}]}', '{"a":[null,{"b":null}]}'),
        ('{"n":12345678901234567890123}', '{"m":1.10,"o":-0}', '{"n":12345678901234567890123,"m":1.10,"o":-0}'),
    ],
)
def test_a_merge_patch_does_what_the_rfc_says(target: str, patch: str, result: str) -> None:
    assert merge_patch(target.encode(), patch.encode()) == result.encode()


@given(documents, documents)
def test_a_merge_equals_the_rfcs_own_pseudo_code_to_the_digit(target: bytes, patch: bytes) -> None:
    assert _spelled(merge_patch(target, patch)) == _rfc_7396(_spelled(target), _spelled(patch))


@given(documents, documents)
def test_the_same_patch_twice_is_the_patch_once(target: bytes, patch: bytes) -> None:
    once = merge_patch(target, patch)
    assert merge_patch(once, patch) == once


@given(documents)
def test_an_empty_patch_changes_nothing(target: bytes) -> None:
    assert _spelled(merge_patch(target, EMPTY)) == _spelled(target)


@given(documents, documents)
def test_what_a_merge_makes_is_a_document(target: bytes, patch: bytes) -> None:
    check(merge_patch(target, patch), "state", LIMITS)


def test_a_merge_of_the_deepest_documents_stays_within_the_depth() -> None:
    deepest = _nested(LIMITS.max_depth)
    assert check(merge_patch(b'{"a":1}', deepest), "state", LIMITS) == deepest
    assert check(merge_patch(deepest, deepest), "state", LIMITS) == deepest


def test_load_keeps_every_digit_of_an_integer() -> None:
    assert load(b'{"a": 123456789012345678901234567890, "b": 0.5}') == {"a": 123456789012345678901234567890, "b": 0.5}


def test_the_digest_is_that_of_the_bytes() -> None:
    assert sha256(EMPTY).hex() == "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
