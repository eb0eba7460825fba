"""Answers that tell of what was sealed, sealed while they are remembered: they outlive the flow that they are about."""

from __future__ import annotations

from collections.abc import Callable
from uuid import UUID

from server import vault
from server.checkpoints import places
from server.checkpoints.keyring import Keyring
from server.repository.document_store import offloaded
from server.repository.keys import IDENTITY
from server.statemachine.errors import KeyUnavailable
from server.statemachine.values import Tenant
from server.vault import Unopened


class SealedAnswers:
    """Seals and opens answers to requests with the tenant's identity key, which no rotation changes."""

    def __init__(self, keyring: Keyring) -> None:
        self._keyring = keyring

    async def sealing(self, tenant: Tenant, request_id: UUID) -> Callable[[bytes], bytes]:
        """What seals the answer to that request. Raises KeyUnavailable."""
        key = await self._key(tenant, request_id)
        return lambda answer: vault.seal(key, IDENTITY, places.of_answer(tenant, request_id), answer)

    async def opened(self, tenant: Tenant, request_id: UUID, sealed: bytes) -> bytes:
        """The answer. Raises KeyUnavailable when its key was lost."""
        key, place = await self._key(tenant, request_id), places.of_answer(tenant, request_id)
        try:
            return await offloaded(len(sealed), lambda: vault.unseal(key, IDENTITY, place, sealed))
        except Unopened:
            raise KeyUnavailable(IDENTITY, "that was lost") from None

    async def _key(self, tenant: Tenant, request_id: UUID) -> bytes:
        return vault.fingerprint((await self._keyring.sealing(tenant)).identity, b"answer", request_id.bytes)
