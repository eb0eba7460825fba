"""Puts together what has to do with keeping history: what is called, what is done without being called, what an operator does by command.

A composition of its own beside ``app``: `flowledger compact` needs this part alone.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta

import structlog

from server.repository.audit import Audit
from server.repository.compaction import Compaction
from server.repository.database import Database
from server.repository.history import History
from server.repository.packing import Packing
from server.repository.policies import Policies
from server.repository.tenants import all_tenants
from server.services.audit_admin import AuditAdmin
from server.services.flow_service import Sources
from server.services.retention_admin import RetentionAdmin
from server.settings import Settings
from server.signing import Signing
from server.statemachine.audit import AuditBreak
from server.statemachine.value import dataclass
from server.statemachine.values import Tenant
from server.sweeper import Job, Sweeper
from server.upkeep import Forgetting, Upkeep

_log = structlog.get_logger()

# Request ids are kept for days: there is no hurry to forget them, and all of them have to be looked at.
FORGETTING_PAUSE = timedelta(hours=6)

Broken = Callable[[Tenant, AuditBreak], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Keeping:
    """The parts that others need."""

    servicers: tuple[object, ...]
    jobs: tuple[Job, ...]
    upkeep: Upkeep
    policies: Policies


def keeping(
    settings: Settings, database: Database, history: History, sources: Sources, secrets: Sequence[bytes], broken: Broken
) -> Keeping:
    """``secrets`` sign what compaction leaves and audits export: the first one does, the others did.

    ``broken`` is told what an audit finds.
    """
    signing = Signing(secrets)
    audit = Audit(database, signing.verifies)
    compaction, policies = Compaction(database, history, audit, signing.sign), Policies(database, time.monotonic)
    upkeep = Upkeep(compaction, Packing(database, history), policies, sources.now, broken)
    forgetting = Forgetting(database, settings.request_days, sources.now)
    return Keeping(
        (
            AuditAdmin(audit, signing.audit_key, broken),
            RetentionAdmin(database, policies, compaction, sources, broken),
        ),
        (
            Job("compaction", upkeep.compact),
            Job("packing", upkeep.pack),
            Job("request ids", forgetting.forget, pause=FORGETTING_PAUSE),
        ),
        upkeep,
        policies,
    )


def sweeping(settings: Settings, database: Database, sources: Sources, jobs: Sequence[Job]) -> list[asyncio.Task[None]]:
    """The one task that does the jobs; none where this server is to do none."""
    if not settings.sweep_seconds:
        return []

    def rest() -> float:  # so that the rounds of several servers do not meet
        return settings.sweep_seconds * (0.75 + 0.5 * random.SystemRandom().random())

    sweeper = Sweeper(jobs, lambda: all_tenants(database), database.alone, sources.now, rest)
    return [asyncio.create_task(sweeper.run(), name="sweeper")]


async def tell_broken(tenant: Tenant, found: AuditBreak) -> None:
    """Says in the log that a chain of events does not hold."""
    named = {"account": str(tenant.client_account_id), "engagement": str(tenant.engagement_id), "flow": str(found.flow_id)}
    _log.error("audit_broken", kind=found.kind.name, revision=found.revision, description=found.description, **named)
