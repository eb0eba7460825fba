"""`flowledger compact`: what the sweeper does flow by flow where it is worth it, for all flows of one tenant or of all, now."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import datetime

import structlog

from server.repository.audit import Audit
from server.repository.compaction import Compaction, Removed
from server.repository.database import Database
from server.repository.history import History
from server.repository.policies import Policies
from server.repository.tenants import all_tenants
from server.signing import Signing
from server.statemachine.value import dataclass
from server.statemachine.values import Tenant

_log = structlog.get_logger("compaction")


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
    database: Database, secrets: Sequence[bytes], tenant: Tenant | None, now: Callable[[], datetime], *, rehearse: bool = False
) -> Compacted:
    """What went by the policies, or with ``rehearse`` what would go: of one tenant's flows, or of all. Raises StoreUnavailable.

    ``secrets`` sign what is left, as a server's do.
    """
    signing = Signing(secrets)
    compaction = Compaction(database, History(database), Audit(database, signing.verifies), signing.sign)
    policies = Policies(database, time.monotonic)
    found = Compacted()
    async for one in all_tenants(database) if tenant is None else _only(tenant):
        async for removed in compaction.compacted(one, await policies.get(one), 1, now, rehearse=rehearse):
            found = found.with_flow(removed)
            if (broken := removed.broken) is not None:
                named = {"account": str(one.client_account_id), "engagement": str(one.engagement_id), "flow": str(broken.flow_id)}
                _log.error("audit_broken", kind=broken.kind.name, revision=broken.revision, description=broken.description, **named)
    return found


async def _only(tenant: Tenant) -> AsyncIterator[Tenant]:
    yield tenant
