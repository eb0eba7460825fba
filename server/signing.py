"""Signs what compaction leaves of a history, and has the key that audit exports are signed with; all of it derived of secrets.

The secrets themselves sign nothing, so that what is signed here tells nothing of what else they are used for.
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

KEY_BYTES = 32
_BASES, _EXPORTS = b"flowledger signature of bases", b"flowledger signature of audit exports"


class Signing:
    """What is signed by one secret is verified by all: the first one signs, those that were first before are kept for what they signed."""

    def __init__(self, secrets: Sequence[bytes]) -> None:
        self._keys = [_derived(secret, _BASES) for secret in secrets]
        self._audit_key = _derived(secrets[0], _EXPORTS)

    @property
    def renews(self) -> bool:
        """Whether there may be signatures of keys that do not sign any more."""
        return len(self._keys) > 1

    def sign(self, text: bytes) -> bytes:
        """The signature of ``text``."""
        return hmac.digest(self._keys[0], text, "sha256")

    def verifies(self, text: bytes, signature: bytes) -> bool:
        """Whether the signature is one of ours, of this text."""
        return any(hmac.compare_digest(hmac.digest(key, text, "sha256"), signature) for key in self._keys)

    def audit_key(self) -> bytes:
        """The seed of the Ed25519 key that exports are signed with."""
        return self._audit_key


def _derived(secret: bytes, purpose: bytes) -> bytes:
    return HKDF(SHA256(), KEY_BYTES, salt=None, info=purpose).derive(secret)
