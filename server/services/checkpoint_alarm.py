"""A seal that does not open is told to somebody before the caller is."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from server.repository.checkpoints import Checkpoints
from server.services.flow_service import Sources
from server.statemachine.alert import Alert, AlertKind, AlertSeverity
from server.statemachine.errors import CheckpointUnreadable
from server.statemachine.values import Tenant

RaiseAlert = Callable[[Tenant, Alert], Awaitable[None]]


class CheckpointAlarm:
    """Raises alerts about checkpoints that cannot be read."""

    def __init__(self, raise_alert: RaiseAlert, checkpoints: Checkpoints, sources: Sources) -> None:
        self._raise_alert, self._checkpoints, self._sources = raise_alert, checkpoints, sources

    @asynccontextmanager
    async def watching(self, tenant: Tenant) -> AsyncIterator[None]:
        """Raises an alert for a checkpoint that proves to be unreadable within the block; CheckpointNotFound if it was only removed."""
        try:
            yield
        except CheckpointUnreadable as error:
            await self._checkpoints.get(tenant, error.checkpoint_id)
            alert = Alert(
                self._sources.new_id(),
                AlertKind.CHECKPOINT_UNREADABLE,
                AlertSeverity.CRITICAL,
                self._sources.now(),
                str(error),
                f"checkpoint/{error.checkpoint_id}",
                error.flow_id,
                checkpoint_id=error.checkpoint_id,
            )
            await self._raise_alert(tenant, alert)
            raise
