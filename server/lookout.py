"""Looks for flows that are stuck, without anybody asking: a job of the sweeper."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from uuid import UUID

from server.repository.standing import Standing
from server.statemachine.alert import Alert
from server.statemachine.graphs import BUILT_IN
from server.statemachine.stuck import STORM, STORM_SPAN, shortest, stays, storms
from server.statemachine.values import Tenant

# Texts of times are compared to the second.
_SECOND = timedelta(seconds=1)


class Lookout:
    """Raises an alert for each phase that is stuck; which of them were raised before, ``raise_alert`` knows."""

    def __init__(
        self,
        standing: Standing,
        raise_alert: Callable[[Tenant, Alert], Awaitable[None]],
        now: Callable[[], datetime],
        new_id: Callable[[], UUID],
    ) -> None:
        self._standing, self._raise, self._now, self._new_id = standing, raise_alert, now, new_id

    async def look(self, tenant: Tenant, _: datetime | None = None) -> None:
        """Tell of the tenant's phases that are in one state for too long, or retried again and again."""
        now = self._now()
        for domain in BUILT_IN:
            async for flow_id, phases in self._standing.still(tenant, domain, now - shortest(domain) + _SECOND):
                for stay in stays(domain, phases, now):
                    await self._raise(tenant, stay.alert(self._new_id(), flow_id, now))
        async for flow_id, bodies in self._standing.retried(tenant, now - STORM_SPAN, STORM):
            for storm in storms(bodies):
                await self._raise(tenant, storm.alert(self._new_id(), flow_id, now))
