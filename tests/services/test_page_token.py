"""A page token opens for the list that it was made for, and for nothing else."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.services import page_token
from server.statemachine.errors import InvalidRequest

KEY = b"k" * 32
PURPOSE = "ListFlows"
TENANT = "0190a000-0000-7000-8000-000000000001/0190a000-0000-7000-8000-000000000002"
QUERY = b"status = PAUSED\0create_time desc\0"
POSITION = b"2026-11-22T00:00:00Z/0190a000"
TOKEN = page_token.seal(KEY, PURPOSE, TENANT, QUERY, POSITION)


def _refused(token: str, key: bytes = KEY, purpose: str = PURPOSE, tenant: str = TENANT, query: bytes = QUERY) -> None:
    with pytest.raises(InvalidRequest) as caught:
        page_token.open(key, purpose, tenant, query, token)
    assert [violation.field for violation in caught.value.violations] == ["page_token"]
    assert token[:20] == "" or token[:20] not in str(caught.value)


@given(
    st.binary(max_size=page_token.MAX_POSITION), st.binary(), st.text(st.characters(codec="utf-8")), st.text(st.characters(codec="utf-8"))
)
def test_a_token_opens_to_its_position(position: bytes, query: bytes, purpose: str, tenant: str) -> None:
    token = page_token.seal(KEY, purpose, tenant, query, position)
    assert len(token) <= page_token.MAX_TOKEN
    assert token.isascii()
    assert page_token.open(KEY, purpose, tenant, query, token) == position


def test_the_longest_position_fits_and_one_byte_more_is_our_own_mistake() -> None:
    longest = bytes(page_token.MAX_POSITION)
    token = page_token.seal(KEY, PURPOSE, TENANT, QUERY, longest)
    assert len(token) == page_token.MAX_TOKEN
    assert page_token.open(KEY, PURPOSE, TENANT, QUERY, token) == longest
    with pytest.raises(ValueError, match="at most"):
        page_token.seal(KEY, PURPOSE, TENANT, QUERY, longest + b"x")


def test_any_flipped_bit_is_refused() -> None:
    sealed = base64.urlsafe_b64decode(TOKEN + "=" * (-len(TOKEN) % 4))
    for bit in range(len(sealed) * 8):
        forged = bytearray(sealed)
        forged[bit // 8] ^= 1 << bit % 8
        _refused(base64.urlsafe_b64encode(forged).rstrip(b"=").decode())


def test_any_other_character_is_refused() -> None:
    for place, character in enumerate(TOKEN):
        for other in "Az09-_+/=. \n\0é":
            if other != character:
                _refused(TOKEN[:place] + other + TOKEN[place + 1 :])


def test_every_truncation_and_extension_is_refused() -> None:
    for length in range(len(TOKEN)):
        _refused(TOKEN[:length])
    for more in ("A", "AA", "AAA", "AAAA", "=", "==", "\n", " "):
        _refused(TOKEN + more)
        _refused(more + TOKEN)


def test_a_second_spelling_of_the_same_bytes_is_refused() -> None:
    for length in (1, 2):  # bytes left over in the last group of three, so that its last character has unused bits
        token = page_token.seal(KEY, PURPOSE, TENANT, QUERY, bytes(3 + length - (1 + 16) % 3))
        alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
        twin = token[:-1] + alphabet[alphabet.index(token[-1]) + 1]
        padding = "=" * (-len(token) % 4)
        assert base64.urlsafe_b64decode(twin + padding) == base64.urlsafe_b64decode(token + padding)
        _refused(twin)
        _refused(token + padding)


def test_a_token_is_refused_for_another_key_purpose_tenant_or_query() -> None:
    _refused(TOKEN, key=b"l" * 32)
    _refused(TOKEN, purpose="ListFlowEvents")
    _refused(TOKEN, tenant=TENANT.replace("2", "3"))
    _refused(TOKEN, query=QUERY + b"x")
    _refused(TOKEN, query=b"")


@pytest.mark.parametrize(("purpose", "tenant"), [("ListFlowsx", "yz"), ("ListFlow", "sxyz"), ("", "ListFlowsxyz"), ("ListFlowsxyz", "")])
def test_what_is_signed_cannot_be_cut_at_another_place(purpose: str, tenant: str) -> None:
    _refused(page_token.seal(KEY, "ListFlows", "xyz", QUERY, POSITION), purpose=purpose, tenant=tenant)


def test_a_huge_token_is_refused_by_its_length() -> None:
    with pytest.raises(InvalidRequest, match="5000000 characters"):
        page_token.open(KEY, PURPOSE, TENANT, QUERY, "A" * 5_000_000)


@given(
    st.text() | st.text(alphabet="ABCDabcd0189-_+/=", max_size=120) | st.binary().map(lambda raw: base64.urlsafe_b64encode(raw).decode())
)
def test_any_other_text_is_refused(garbage: str) -> None:
    with pytest.raises(InvalidRequest):
        page_token.open(KEY, PURPOSE, TENANT, QUERY, garbage)
