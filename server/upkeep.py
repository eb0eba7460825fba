"""What is done to every tenant's data without anybody asking: a paragraph for each job."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta

from server.repository.compaction import Compaction
from server.repository.database import Database
from server.repository.packing import Packing
from server.repository.policies import Policies
from server.repository.request_expiry import forget
from server.statemachine.audit import AuditBreak
from server.statemachine.errors import FlowNotFound
from server.statemachine.retention import surplus
from server.statemachine.values import FlowKey, Tenant

# A flow may be changed by another process while a round begins, and clocks differ.
_OVERLAP = timedelta(hours=1)
_EVER = datetime.min.replace(tzinfo=UTC)


class Upkeep:
    """The jobs that concern history."""

    def __init__(
        self,
        compaction: Compaction,
        packing: Packing,
        policies: Policies,
        now: Callable[[], datetime],
        broken: Callable[[Tenant, AuditBreak], Awaitable[None]],
    ) -> None:
        """``broken`` is told of chains that do not hold."""
        self._compaction, self._packing, self._policies, self._now, self._broken = compaction, packing, policies, now, broken

    async def compact(self, tenant: Tenant, _: datetime | None) -> None:
        """Take away what the tenant's policy does not keep."""
        policy = await self._policies.get(tenant)
        async for flow_id in self._compaction.candidates(tenant, policy, surplus(policy)):
            try:
                removed = await self._compaction.compact(FlowKey(tenant, flow_id), policy, self._now())
            except FlowNotFound:
                continue  # erased meanwhile
            if removed.broken is not None:
                await self._broken(tenant, removed.broken)

    async def pack(self, tenant: Tenant, before: datetime | None) -> None:
        """Store earlier versions of documents smaller, of flows that were changed since the last round."""
        since = _EVER if before is None else before - _OVERLAP
        async for flow_id in self._packing.candidates(tenant, since):
            await self._packing.pack(FlowKey(tenant, flow_id))


class Forgetting:
    """The job that forgets old request ids."""

    def __init__(self, database: Database, days: int, now: Callable[[], datetime]) -> None:
        self._database, self._kept, self._now = database, timedelta(days=days), now

    async def forget(self, tenant: Tenant, _: datetime | None) -> None:
        """Forget ids that are older than ``days`` and of flows that have rested for as long."""
        await forget(self._database, tenant, self._now() - self._kept)
