"""Documents as they lie in the database: zstd bytes. Small ones are packed where they stand, large ones beside the event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import zstandard

_Made = TypeVar("_Made")

# Beyond this a document would hold up every other call for longer than a call takes.
INLINE_BYTES = 64 * 1024
# The fastest level already halves JSON several times over; measured: 10 KiB in 37 us.
_LEVEL = 1
# Powers of two: the window spans both texts, so that all of the dictionary is in reach.
_LEAST_WINDOW, _MOST_WINDOW = 10, 27
_LEAST_TABLES, _MOST_TABLES = 14, 24


class _Packers(threading.local):
    """Each thread's own: they cannot be shared, and making one costs as much as packing 10 KiB."""

    def __init__(self) -> None:
        # The frame holds the content's size (so that unpacking allocates once) and a checksum (so that damage is noticed).
        self.compressor = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True)
        self.decompressor = zstandard.ZstdDecompressor()


_packers = _Packers()


def _pack(text: bytes) -> bytes:
    return _packers.compressor.compress(text)


def unpack(body: bytes) -> bytes:
    """What was packed; raises ZstdError for what is damaged."""
    return _packers.decompressor.decompress(body)


def content_size(body: bytes) -> int:
    """How many bytes the packed document has when unpacked."""
    return int(zstandard.frame_content_size(body))


def pack_delta(text: bytes, later: bytes) -> bytes:
    """The text as zstd bytes that need ``later`` as their dictionary: of two versions that differ little, next to nothing."""
    window = max(_LEAST_WINDOW, min(_MOST_WINDOW, (len(text) + len(later)).bit_length()))
    tables = max(_LEAST_TABLES, min(_MOST_TABLES, window - 2))  # the compressor looks at no more of a dictionary than its tables hold
    parameters = zstandard.ZstdCompressionParameters.from_level(
        _LEVEL,
        source_size=len(text),
        dict_size=len(later),
        window_log=window,
        hash_log=tables,
        chain_log=tables,
        write_checksum=True,
    )
    return zstandard.ZstdCompressor(dict_data=_dictionary(later), compression_params=parameters).compress(text)


def unpack_delta(body: bytes, later: bytes) -> bytes:
    """What ``pack_delta`` was given."""
    return zstandard.ZstdDecompressor(dict_data=_dictionary(later), max_window_size=1 << _MOST_WINDOW).decompress(body)


def _dictionary(text: bytes) -> zstandard.ZstdCompressionDict:
    return zstandard.ZstdCompressionDict(text, dict_type=zstandard.DICT_TYPE_RAWCONTENT)


async def offloaded(size: int, work: Callable[..., _Made], *arguments: Any) -> _Made:
    """What ``work`` returns; done beside the event loop when what it works on has that many bytes and they are many."""
    return work(*arguments) if size <= INLINE_BYTES else await asyncio.to_thread(work, *arguments)


async def packed_delta(text: bytes, later: bytes) -> bytes:
    """The text as ``pack_delta`` packs it, large ones beside the event loop."""
    return await offloaded(len(text) + len(later), pack_delta, text, later)


async def packed(text: bytes) -> bytes:
    """The document as it is stored."""
    return await offloaded(len(text), _pack, text)


async def unpacked(bodies: Sequence[bytes]) -> list[bytes]:
    """The documents that were stored."""
    return await offloaded(sum(map(content_size, bodies)), lambda: [unpack(body) for body in bodies])
