"""What is done to every tenant's data without anybody asking: a paragraph for each job."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta

from server.checkpoints.archive import Archive
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
# How many checkpoints, contents or seals a job takes at a time.
BATCH = 100
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


class Storage:
    """The jobs that concern what is sealed. Each goes on in batches for as long as there is more, so that none holds much at a time."""

    def __init__(self, archive: Archive, now: Callable[[], datetime]) -> None:
        self._archive, self._now = archive, now

    async def expire(self, tenant: Tenant, _: datetime | None) -> None:
        """Remove checkpoints whose time has come."""
        while await self._archive.remove_expired(tenant, self._now(), BATCH) == BATCH:
            pass

    async def release(self, tenant: Tenant, _: datetime | None) -> None:
        """Remove contents that no checkpoint holds any more, and what broken uploads left."""
        while await self._archive.remove_unreferenced(tenant, self._now(), BATCH) == BATCH:
            pass

    async def reseal(self, tenant: Tenant, _: datetime | None) -> None:
        """Seal with the tenant's newest key what older ones sealed, and destroy those that seal nothing any more."""
        while await self._archive.rotating.reseal(tenant, BATCH) == BATCH:
            pass


class Forgetting:
    """The job that forgets old request ids."""

    def __init__(self, database: Database, days: int, now: Callable[[], datetime]) -> None:
        self._database, self._kept, self._now = database, timedelta(days=days), now

    async def forget(self, tenant: Tenant, _: datetime | None) -> None:
        """Forget ids that are older than ``days`` and of flows that have rested for as long."""
        await forget(self._database, tenant, self._now() - self._kept)
