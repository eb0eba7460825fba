"""Signatures are ours alone, and stay so when the secret changes."""

from __future__ import annotations

from server.signing import KEY_BYTES, Signing

ONE, TWO = bytes(32), b"\x01" * 32


def test_a_signature_is_of_one_text_by_one_secret() -> None:
    signing = Signing([ONE])
    signature = signing.sign(b"text")
    assert signing.verifies(b"text", signature)
    assert Signing([ONE]).sign(b"text") == signature
    assert not signing.verifies(b"texts", signature)
    assert not signing.verifies(b"text", signature[:-1])
    assert not signing.verifies(b"text", b"")
    assert not Signing([TWO]).verifies(b"text", signature)


def test_a_new_secret_signs_and_the_old_ones_still_verify() -> None:
    old = Signing([ONE]).sign(b"text")
    both = Signing([TWO, ONE])
    assert both.verifies(b"text", old)
    assert both.sign(b"text") == Signing([TWO]).sign(b"text") != old
    assert both.audit_key() == Signing([TWO]).audit_key()


def test_keys_tell_nothing_of_the_secret_and_of_each_other() -> None:
    signing = Signing([ONE])
    assert len({ONE, signing.audit_key(), signing.sign(b"")}) == 3
    assert len(signing.audit_key()) == KEY_BYTES
