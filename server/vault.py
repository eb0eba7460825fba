"""Seals and opens bytes, each bound to the one place that it belongs to; and wraps the keys that this is done with.

A seal is a version byte, the data key's version, flags, a nonce, and AES-256-GCM over the text, which zstd made smaller before where
it could. Associated data are everything before the nonce and the place, so that nothing of it can be changed and nothing moved. There
is no way in for bytes that are not sealed.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hmac
import os
import re
import stat
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import zstandard
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

KEY_BYTES = 32
NONCE_BYTES, TAG_BYTES = 12, 16
_VERSION = 1
_COMPRESSED = 1
_HEAD_BYTES = 6  # version, key version, flags
# What a seal is longer than its text at most.
OVERHEAD_BYTES = _HEAD_BYTES + NONCE_BYTES + TAG_BYTES
_LEVEL = 1
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")

Entropy = Callable[[int], bytes]


class Unopened(Exception):
    """A seal does not open: it was changed, cut, moved or sealed with another key, or it never was a seal."""


class KeyFault(ValueError):
    """Keys cannot be used as they are given; the text says what to do and holds nothing of them."""


class UnknownKey(Exception):
    """A key was wrapped with a key-encryption key that is not here."""

    def __init__(self, key_id: str) -> None:
        super().__init__(f"key-encryption key {key_id} is not here")
        self.key_id = key_id


class _Packers(threading.local):
    """Each thread's own: they cannot be shared."""

    def __init__(self) -> None:
        self.compressor = zstandard.ZstdCompressor(level=_LEVEL)
        self.decompressor = zstandard.ZstdDecompressor()


_packers = _Packers()


def new_key(entropy: Entropy = os.urandom) -> bytes:
    """A fresh data key, or key-encryption key."""
    return entropy(KEY_BYTES)


def seal(key: bytes, key_version: int, place: bytes, text: bytes, entropy: Entropy = os.urandom) -> bytes:
    """The text, to be opened with the same key, key version and place only."""
    packed = _packers.compressor.compress(text)
    smaller = len(packed) < len(text)
    head = bytes((_VERSION,)) + key_version.to_bytes(4, "big") + bytes((_COMPRESSED if smaller else 0,))
    nonce = entropy(NONCE_BYTES)
    return head + nonce + AESGCM(key).encrypt(nonce, packed if smaller else text, head + place)


def unseal(key: bytes, key_version: int, place: bytes, sealed: bytes) -> bytes:
    """The text that was sealed. Raises Unopened."""
    head, nonce = sealed[:_HEAD_BYTES], sealed[_HEAD_BYTES : _HEAD_BYTES + NONCE_BYTES]
    if len(sealed) < OVERHEAD_BYTES or head[0] != _VERSION or int.from_bytes(head[1:5], "big") != key_version:
        raise Unopened
    try:
        text = AESGCM(key).decrypt(nonce, memoryview(sealed)[_HEAD_BYTES + NONCE_BYTES :], head + place)
    except InvalidTag:
        raise Unopened from None
    # Authentic, so it is what was packed here.
    return _packers.decompressor.decompress(text) if head[5] & _COMPRESSED else text


def fingerprint(key: bytes, purpose: bytes, text: bytes) -> bytes:
    """32 bytes by which equal texts are known to whoever has the key, and which say nothing to anybody else."""
    return hmac.digest(key, purpose + b"\0" + text, "sha256")


@dataclass(frozen=True, slots=True)
class Wrapped:
    """A key, sealed with a key-encryption key."""

    key_id: str
    sealed: bytes


class KeyProvider(Protocol):
    """Key-encryption keys: the first one wraps, all of them unwrap. Asynchronous, since a key service is asked over a network."""

    @property
    def key_id(self) -> str:
        """Which key wraps."""

    def knows(self, key_id: str) -> bool:
        """Whether what that key wrapped can be unwrapped."""

    async def wrap(self, key: bytes, place: bytes) -> Wrapped:
        """The key, to be unwrapped with the same place only."""

    async def unwrap(self, wrapped: Wrapped, place: bytes) -> bytes:
        """The key that was wrapped. Raises UnknownKey, Unopened."""

    def secrets(self, purpose: bytes) -> Sequence[bytes]:
        """A secret for that purpose of each key, of the one that wraps first; whoever has none of the keys cannot have it."""


class _Ring:
    """Named key-encryption keys, in order."""

    def __init__(self, keys: Mapping[str, bytes]) -> None:
        # The name alone would let another key of the same name pass for this one.
        self._keys = {f"{name}/{fingerprint(key, b'key id', b'')[:8].hex()}": key for name, key in keys.items()}
        self.key_id = next(iter(self._keys))

    def knows(self, key_id: str) -> bool:
        """Whether what that key wrapped can be unwrapped."""
        return key_id in self._keys

    async def wrap(self, key: bytes, place: bytes) -> Wrapped:
        """The key, to be unwrapped with the same place only."""
        return Wrapped(self.key_id, seal(self._keys[self.key_id], 0, self._place(self.key_id, place), key))

    async def unwrap(self, wrapped: Wrapped, place: bytes) -> bytes:
        """The key that was wrapped. Raises UnknownKey, Unopened."""
        if wrapped.key_id not in self._keys:
            raise UnknownKey(wrapped.key_id)
        return unseal(self._keys[wrapped.key_id], 0, self._place(wrapped.key_id, place), wrapped.sealed)

    def secrets(self, purpose: bytes) -> Sequence[bytes]:
        """A secret for that purpose of each key, of the one that wraps first."""
        return [fingerprint(key, b"secret", purpose) for key in self._keys.values()]

    @staticmethod
    def _place(key_id: str, place: bytes) -> bytes:
        return key_id.encode() + b"\0" + place


class EnvironmentKeys(_Ring):
    """Keys that the environment gives: `name:base64` pairs, separated by commas or blanks."""

    def __init__(self, text: str) -> None:
        """Raises KeyFault."""
        super().__init__(parsed(text))


class KeyFile(_Ring):
    """Keys that lie in a file: `name:base64`, one a line."""

    def __init__(self, path: Path) -> None:
        """Raises KeyFault, and OSError when the file cannot be read."""
        with path.open(encoding="ascii", errors="replace") as file:
            if stat.S_IMODE(os.fstat(file.fileno()).st_mode) & 0o007:
                raise KeyFault(f"the key file {path} can be read by everybody: `chmod 600` it")
            text = file.read()
        try:
            super().__init__(parsed(text))
        except KeyFault as fault:
            raise KeyFault(f"the key file {path} {fault}") from None


def written(name: str, key: bytes) -> str:
    """A key as key files and FLOWLEDGER_KEYS have it."""
    return f"{name}:{base64.b64encode(key).decode()}"


def create_key_file(path: Path, name: str, entropy: Entropy = os.urandom) -> None:
    """Put a fresh key into a file that only its owner can read, whole and on disk or not at all; one that is there is left as it is.

    Raises OSError.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    half = path.with_name(f".{path.name}.{entropy(8).hex()}")
    descriptor = os.open(half, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "w") as file:
            if os.geteuid() == 0:  # so that a later start as the directory's owner finds its own file
                owner = path.parent.stat()
                os.fchown(descriptor, owner.st_uid, owner.st_gid)
            file.write(written(name, new_key(entropy)) + "\n")
            file.flush()
            os.fsync(descriptor)
        with contextlib.suppress(FileExistsError):  # of two that start at once the first one's counts
            os.link(half, path)
    finally:
        half.unlink()
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def parsed(text: str) -> dict[str, bytes]:
    """The keys by their names, in order. Raises KeyFault."""
    keys: dict[str, bytes] = {}
    for at, pair in enumerate(text.replace(",", " ").split(), 1):
        name, _, value = pair.partition(":")
        if not _NAME.fullmatch(name):
            raise KeyFault(f"must hold pairs name:base64, the name of 1 to 64 letters, digits, - or _; pair {at} has no such name")
        if name in keys:
            raise KeyFault(f"has two keys named {name}")
        try:
            key = base64.b64decode(value, validate=True)
        except (binascii.Error, ValueError):
            key = b""
        if len(key) != KEY_BYTES:
            raise KeyFault(f"must have {KEY_BYTES} bytes in base64 for the key {name}; `flowledger keys new` makes one")
        keys[name] = key
    if not keys:
        raise KeyFault("holds no key; `flowledger keys new` makes one")
    return keys
