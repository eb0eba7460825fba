"""Seals: what they keep, what they refuse; and one contract for every provider of key-encryption keys."""

from __future__ import annotations

import base64
import os
import random
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server import vault
from server.vault import EnvironmentKeys, KeyFault, KeyFile, KeyProvider, UnknownKey, Unopened, Wrapped

KEY, OTHER_KEY = bytes(range(32)), bytes(range(1, 33))
PLACE = b"tenant/flow/checkpoint"
TEXTS = (b"", b"x", b'{"a":1}', b"abc" * 1000, random.Random(1).randbytes(5000))


@given(st.binary(max_size=4096), st.binary(max_size=64), st.integers(0, 2**31 - 1))
def test_what_was_sealed_opens_in_its_place(text: bytes, place: bytes, version: int) -> None:
    assert vault.unseal(KEY, version, place, vault.seal(KEY, version, place, text)) == text


@pytest.mark.parametrize("text", TEXTS, ids=len)
def test_a_seal_is_little_longer_than_its_text_and_often_shorter(text: bytes) -> None:
    sealed = vault.seal(KEY, 1, PLACE, text)
    assert len(sealed) <= len(text) + vault.OVERHEAD_BYTES
    if text == b"abc" * 1000:
        assert len(sealed) < 100


def test_the_same_text_is_sealed_differently_each_time() -> None:
    assert len({vault.seal(KEY, 1, PLACE, b"text") for _ in range(100)}) == 100


@pytest.mark.parametrize("text", TEXTS[:4], ids=len)
def test_a_seal_with_any_one_bit_changed_does_not_open(text: bytes) -> None:
    sealed = vault.seal(KEY, 1, PLACE, text)
    for bit in range(len(sealed) * 8):
        changed = bytearray(sealed)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(Unopened):
            vault.unseal(KEY, 1, PLACE, bytes(changed))


@pytest.mark.parametrize("text", TEXTS[:4], ids=len)
def test_a_seal_that_was_cut_or_lengthened_does_not_open(text: bytes) -> None:
    sealed = vault.seal(KEY, 1, PLACE, text)
    for changed in (*(sealed[:at] for at in range(len(sealed))), sealed[1:], sealed + b"\0", b"\0" + sealed, sealed * 2):
        with pytest.raises(Unopened):
            vault.unseal(KEY, 1, PLACE, changed)


@pytest.mark.parametrize("text", [*TEXTS, b"\x01" + bytes(5) + b"text that looks like a head", bytes(200)], ids=len)
def test_a_text_in_the_place_of_a_seal_does_not_open(text: bytes) -> None:
    for version in (0, 1):
        with pytest.raises(Unopened):
            vault.unseal(KEY, version, PLACE, text)


def test_a_seal_opens_with_its_own_key_version_and_place_only() -> None:
    sealed = vault.seal(KEY, 7, PLACE, b"text")
    for key, version, place in ((OTHER_KEY, 7, PLACE), (KEY, 8, PLACE), (KEY, 7, PLACE + b"x"), (KEY, 7, PLACE[:-1]), (KEY, 7, b"")):
        with pytest.raises(Unopened):
            vault.unseal(key, version, place, sealed)
    assert vault.unseal(KEY, 7, PLACE, sealed) == b"text"


def test_equal_texts_have_equal_fingerprints_under_one_key_and_one_purpose_only() -> None:
    found = vault.fingerprint(KEY, b"content", b"text")
    assert found == vault.fingerprint(KEY, b"content", b"text")
    others = ((OTHER_KEY, b"content", b"text"), (KEY, b"conten", b"t\0text"), (KEY, b"content", b"text "), (KEY, b"other", b"text"))
    assert found not in {vault.fingerprint(*other) for other in others}
    assert len(found) == 32


# ---- providers: each is made of the same text --------------------------------------------------------------------------------------

Made = Callable[[str], KeyProvider]
ONE, TWO, THREE = (vault.written(name, bytes([at]) * 32) for at, name in enumerate(("one", "two", "three"), 1))


@pytest.fixture(params=["file", "environment"])
def made(request: pytest.FixtureRequest, tmp_path: Path) -> Made:
    """Makes a provider of `name:base64` lines."""
    if request.param == "environment":
        return lambda text: EnvironmentKeys(text.replace("\n", ","))

    def file(text: str) -> KeyProvider:
        path = tmp_path / "keys"
        path.write_text(text)
        path.chmod(0o600)
        return KeyFile(path)

    return file


async def test_a_wrapped_key_comes_back(made: Made) -> None:
    provider = made(ONE)
    wrapped = await provider.wrap(KEY, PLACE)
    assert wrapped.key_id == provider.key_id
    assert KEY not in wrapped.sealed
    assert await provider.unwrap(wrapped, PLACE) == KEY
    assert await made(ONE).unwrap(wrapped, PLACE) == KEY  # as another process has it


async def test_a_wrapped_key_belongs_to_its_place(made: Made) -> None:
    provider = made(ONE)
    wrapped = await provider.wrap(KEY, PLACE)
    with pytest.raises(Unopened):
        await provider.unwrap(wrapped, b"another tenant")


async def test_a_wrapped_key_that_was_changed_does_not_open(made: Made) -> None:
    provider = made(f"{ONE}\n{TWO}")
    wrapped = await provider.wrap(KEY, PLACE)
    broken = wrapped.sealed[:-1] + bytes([wrapped.sealed[-1] ^ 1])
    for changed in (Wrapped(wrapped.key_id, broken), Wrapped(made(TWO).key_id, wrapped.sealed), Wrapped(wrapped.key_id, KEY)):
        with pytest.raises(Unopened):
            await provider.unwrap(changed, PLACE)


async def test_the_first_key_wraps_and_all_of_them_unwrap(made: Made) -> None:
    old = await made(ONE).wrap(KEY, PLACE)
    changed = made(f"{TWO}\n{ONE}")
    assert changed.key_id == made(TWO).key_id != old.key_id
    assert changed.knows(old.key_id)
    assert await changed.unwrap(old, PLACE) == KEY
    new = await changed.wrap(KEY, PLACE)
    assert await made(f"{THREE}\n{TWO}").unwrap(new, PLACE) == KEY


async def test_a_key_that_is_not_there_is_named(made: Made) -> None:
    wrapped = await made(ONE).wrap(KEY, PLACE)
    provider = made(TWO)
    assert not provider.knows(wrapped.key_id)
    with pytest.raises(UnknownKey, match="one/"):
        await provider.unwrap(wrapped, PLACE)


def test_another_key_of_the_same_name_is_another_key(made: Made) -> None:
    assert made(ONE).key_id != made(vault.written("one", bytes(32))).key_id
    assert made(ONE).key_id == made(ONE).key_id


SECRET = base64.b64encode(b"never to be seen in any error!!!").decode()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "holds no key"),
        (" \n ", "holds no key"),
        (SECRET, "pair 1 has no such name"),
        (f":{SECRET}", "pair 1 has no such name"),
        (f"{ONE}\na/b:{SECRET}", "pair 2 has no such name"),
        (f"one:{SECRET}\none:{SECRET}", "two keys named one"),
        (f"one:{SECRET[:-4]}", "32 bytes in base64 for the key one"),
        (f"one:{SECRET}AAAA", "32 bytes in base64 for the key one"),
        (f"one:{SECRET[:-1]}!", "32 bytes in base64 for the key one"),
        ("one:", "32 bytes in base64 for the key one"),
    ],
)
def test_keys_that_are_not_well_formed_are_refused_without_being_shown(made: Made, text: str, told: str) -> None:
    with pytest.raises(KeyFault, match=told) as refused:
        made(text)
    assert SECRET[:10] not in str(refused.value)
    assert refused.value.__cause__ is None


# ---- the key file ------------------------------------------------------------------------------------------------------------------


def test_a_key_file_is_made_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "new" / "keys"
    before = os.umask(0)
    try:
        vault.create_key_file(path, "first")
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert [found.name for found in path.parent.iterdir()] == ["keys"]
    assert KeyFile(path).key_id.startswith("first/")


def test_a_key_file_that_is_there_is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    vault.create_key_file(path, "first")
    before = path.read_bytes()
    vault.create_key_file(path, "second")
    assert path.read_bytes() == before
    assert [found.name for found in tmp_path.iterdir()] == ["keys"]


def test_a_key_file_that_everybody_can_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    vault.create_key_file(path, "first")
    path.chmod(0o604)
    with pytest.raises(KeyFault, match="chmod 600"):
        KeyFile(path)


def test_a_key_file_that_cannot_be_written_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        vault.create_key_file(tmp_path / "keys", "first")
    assert list(tmp_path.iterdir()) == []


@settings(max_examples=300)
@given(st.binary(max_size=100))
def test_garbage_never_opens(garbage: bytes) -> None:
    with pytest.raises(Unopened):
        vault.unseal(KEY, 1, PLACE, b"\x01\x00\x00\x00\x01\x00" + garbage)
