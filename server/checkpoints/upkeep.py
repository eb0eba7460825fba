"""What is done to every tenant's checkpoints and keys without anybody asking: a paragraph for each job.

Each goes a batch at a time, every batch done as a whole or not at all: it can be ended at any moment, and begun again by anybody.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from server.checkpoints.archive import Archive
from server.statemachine.errors import KeyUnavailable
from server.statemachine.values import Tenant

REMOVED, RESEALED = 100, 64


class CheckpointUpkeep:
    """The jobs that concern checkpoints; the second argument is what every job of the sweeper is told."""

    def __init__(self, archive: Archive, now: Callable[[], datetime]) -> None:
        self._archive, self._now = archive, now

    async def expire(self, tenant: Tenant, _: datetime | None = None) -> int:
        """Remove checkpoints whose time has come, unless they are pinned; how many they were."""
        removed = 0
        while done := await self._archive.remove_expired(tenant, self._now(), REMOVED):
            removed += done
        return removed

    async def collect(self, tenant: Tenant, _: datetime | None = None) -> int:
        """Remove contents that became part of no checkpoint, as broken uploads leave them; how many they were."""
        removed = 0
        while done := await self._archive.remove_unreferenced(tenant, self._now(), REMOVED):
            removed += done
        return removed

    async def reseal(self, tenant: Tenant, _: datetime | None = None) -> int:
        """Wrap keys anew after the key-encryption key was changed, then seal anew what older data keys sealed; how many seals those were.

        What cannot be done, for a key that is not on this server, is left to one that has it: GetKeyRotation tells how much that is.
        """
        resealed = 0
        try:
            while done := await self._archive.rotating.reseal(tenant, RESEALED):
                resealed += done
            await self._archive.keyring.rewrap(tenant)
        except KeyUnavailable:
            pass
        return resealed
