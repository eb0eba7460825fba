"""Documents packed and unpacked: exact at every size, and damage is noticed."""

from __future__ import annotations

import random

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from server.repository.document_store import INLINE_BYTES, content_size, packed, unpacked

SIZES = [0, 1, 2, 1000, INLINE_BYTES - 1, INLINE_BYTES, INLINE_BYTES + 1, 4 * 1024 * 1024]


@pytest.mark.parametrize("size", SIZES)
async def test_a_document_of_any_size_comes_back(size: int) -> None:
    for text in (b"x" * size, random.Random(size).randbytes(size)):
        body = await packed(text)
        assert content_size(body) == size
        assert await unpacked([body]) == [text]


async def test_documents_come_back_in_their_order() -> None:
    texts = [b"a" * INLINE_BYTES, b"", b"b" * (INLINE_BYTES + 1), b"c"]
    assert await unpacked([await packed(text) for text in texts]) == texts
    assert await unpacked([]) == []


@given(st.binary(max_size=2000))
async def test_any_bytes_come_back(text: bytes) -> None:
    assert await unpacked([await packed(text)]) == [text]


@pytest.mark.parametrize("size", [100, 2 * INLINE_BYTES])
async def test_damage_is_noticed(size: int) -> None:
    body = await packed(random.Random(1).randbytes(size))
    for place in (size // 2, len(body) - 1):
        damaged = bytearray(body)
        damaged[place] ^= 1
        with pytest.raises(zstandard.ZstdError):
            await unpacked([bytes(damaged)])
    with pytest.raises(zstandard.ZstdError):
        await unpacked([body[:-5]])
