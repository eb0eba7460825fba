"""`flowledger compact`: what the sweeper does flow by flow where it is worth it, for all flows of one tenant or of all, now."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import datetime

from server.repository.audit import Audit
from server.repository.compaction import Compaction, Removed
from server.repository.database import Database
from server.repository.history import History
from server.repository.policies import Policies
from server.repository.tenants import all_tenants
from server.signing import Signing
from server.statemachine.audit import AuditBreak
from server.statemachine.value import dataclass
from server.statemachine.values import Tenant

Broken = Callable[[Tenant, AuditBreak], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Compacted:
    """What went of many flows; ``damaged`` are those that were left alone because their history does not hold."""

    flows: int = 0
    events: int = 0
    versions: int = 0
    bytes: int = 0
    damaged: int = 0

    def with_flow(self, removed: Removed) -> Compacted:
        """One flow more."""
        return Compacted(
            self.flows + bool(removed.events or removed.versions),
            self.events + removed.events,
            self.versions + removed.versions,
            self.bytes + removed.bytes,
            self.damaged + (removed.broken is not None),
        )


async def compact_all(
    database: Database,
    secrets: Sequence[bytes],
    tenant: Tenant | None,
    now: Callable[[], datetime],
    broken: Broken,
    *,
    rehearse: bool = False,
) -> Compacted:
    """What went by the policies, or with ``rehearse`` what would go: of one tenant's flows, or of all. Raises StoreUnavailable.

    ``secrets`` sign what is left, as a server's do; ``broken`` is told of chains that do not hold.
    """
    signing = Signing(secrets)
    compaction = Compaction(database, History(database), Audit(database, signing.verifies), signing.sign)
    policies = Policies(database, time.monotonic)
    found = Compacted()
    async for one in all_tenants(database) if tenant is None else _only(tenant):
        async for removed in compaction.compacted(one, await policies.get(one), 1, now, rehearse=rehearse):
            found = found.with_flow(removed)
            if removed.broken is not None:
                await broken(one, removed.broken)
    return found


async def _only(tenant: Tenant) -> AsyncIterator[Tenant]:
    yield tenant
