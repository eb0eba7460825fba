"""Puts together what keeps a database in order: jobs that are done for every tenant without a call, and what is called for the same."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from datetime import timedelta

from server.alarm import Alarm
from server.checkpoints.archive import Archive
from server.checkpoints.upkeep import CheckpointUpkeep
from server.compacting import Broken
from server.lookout import Lookout
from server.repository.audit import Audit
from server.repository.compaction import Compaction
from server.repository.database import Database
from server.repository.history import History
from server.repository.packing import Packing
from server.repository.policies import Policies
from server.repository.resigning import Resigning
from server.repository.standing import Standing
from server.repository.tenants import all_tenants
from server.services.audit_admin import AuditAdmin
from server.services.flow_service import Sources
from server.services.retention_admin import RetentionAdmin
from server.settings import Settings
from server.signing import Signing
from server.statemachine.alert import Alert, AlertKind, AlertSeverity
from server.statemachine.audit import AuditBreak
from server.statemachine.value import dataclass
from server.statemachine.values import Tenant
from server.sweeper import Job, Sweeper
from server.upkeep import Forgetting, Upkeep

# Request ids are kept for days: there is no hurry to forget them, and all of them have to be looked at.
FORGETTING_PAUSE = timedelta(hours=6)
# What a broken upload left may be in the way for an hour more.
RESIGNING_PAUSE = timedelta(hours=1)
COLLECTING_PAUSE = timedelta(hours=1)
# Who is stuck has been so for hours: all flows need not be looked at every minute.
LOOKING_PAUSE = timedelta(minutes=5)


@dataclass(frozen=True, slots=True)
class Keeping:
    """The parts that others need."""

    servicers: tuple[object, ...]
    jobs: tuple[Job, ...]
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
    resigning = Resigning(database, signing.sign, signing.verifies)
    forgetting = Forgetting(database, settings.request_days, sources.now)
    return Keeping(
        (
            AuditAdmin(audit, signing.audit_key, broken),
            RetentionAdmin(database, policies, compaction, sources, broken),
        ),
        (
            Job("compaction", upkeep.compact),
            Job("packing", upkeep.pack),
            *([Job("signatures", resigning.resign, pause=RESIGNING_PAUSE)] if signing.renews else []),
            Job("request ids", forgetting.forget, pause=FORGETTING_PAUSE),
        ),
        policies,
    )


def sweeping(
    settings: Settings, database: Database, sources: Sources, jobs: Sequence[Job], count: Callable[[str, str], None]
) -> list[asyncio.Task[None]]:
    """The one task that does the jobs; none where this server is to do none."""
    if not settings.sweep_seconds:
        return []

    def rest() -> float:  # so that the rounds of several servers do not meet
        return settings.sweep_seconds * (0.75 + 0.5 * random.SystemRandom().random())

    sweeper = Sweeper(jobs, lambda: all_tenants(database), database.alone, sources.now, rest, count)
    return [asyncio.create_task(sweeper.run(), name="sweeper")]


def checkpoint_jobs(archive: Archive, sources: Sources) -> list[Job]:
    """What is done for checkpoints and keys."""
    upkeep = CheckpointUpkeep(archive, sources.now)
    return [
        Job("checkpoint expiry", upkeep.expire),
        Job("sealing anew", upkeep.reseal),
        Job("unreferenced contents", upkeep.collect, pause=COLLECTING_PAUSE),
    ]


def looking_job(database: Database, raise_alert: Alarm, sources: Sources) -> Job:
    """Looks out for flows that are stuck."""
    return Job("stuck flows", Lookout(Standing(database), raise_alert, sources.now, sources.new_id).look, pause=LOOKING_PAUSE)


def telling_of_breaks(raise_alert: Alarm, sources: Sources) -> Broken:
    """Raises an alert for a chain of events that does not hold."""

    async def broken(tenant: Tenant, found: AuditBreak) -> None:
        subject = f"{found.flow_id} {found.revision} {found.kind.name}"
        text = f"the audit chain is broken at revision {found.revision}: {found.description}"
        kind, severity = AlertKind.AUDIT_BROKEN, AlertSeverity.CRITICAL
        await raise_alert(tenant, Alert(sources.new_id(), kind, severity, sources.now(), text, subject, found.flow_id))

    return broken
