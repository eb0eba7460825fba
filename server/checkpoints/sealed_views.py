"""Views of flows, sealed for a cache that others can look into: with the tenant's data key, so that they are erased with it."""

from __future__ import annotations

from server import vault
from server.checkpoints.keyring import Keyring, SealingKeys
from server.repository.document_store import offloaded
from server.statemachine.errors import KeyUnavailable, StoreUnavailable
from server.statemachine.values import Tenant
from server.vault import Unopened


class SealedViews:
    """Seals and opens views; what cannot be done now, or does not open, is None."""

    def __init__(self, keyring: Keyring) -> None:
        self._keyring = keyring

    async def seal(self, tenant: Tenant, place: bytes, text: bytes) -> bytes | None:
        """The view, to be opened at the same place only."""
        try:
            keys = await self._keyring.sealing(tenant)
        except (KeyUnavailable, StoreUnavailable):
            return None
        return await offloaded(len(text), lambda: vault.seal(_key_of(keys, place), keys.row.version, place, text))

    async def unseal(self, tenant: Tenant, place: bytes, sealed: bytes) -> bytes | None:
        """The view that was sealed. Of a tenant that has no keys, since it was erased, none are made for it."""
        try:
            keys = await self._keyring.present(tenant)
        except (KeyUnavailable, StoreUnavailable):
            return None
        if keys is None:
            return None
        try:
            return await offloaded(len(sealed), lambda: vault.unseal(_key_of(keys, place), keys.row.version, place, sealed))
        except Unopened:
            return None


def _key_of(keys: SealingKeys, place: bytes) -> bytes:
    # Views are sealed far more often than checkpoints, and a key of AES-GCM must not be used with random nonces without end.
    return vault.fingerprint(keys.key, b"view", place)
