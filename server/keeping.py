"""What keeps a database in order: the jobs that the sweeper does for every tenant, and the RPCs that do the same when called."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from server.alarm import Alarm
from server.checkpoints.archive import Archive
from server.repository.audit import Audit
from server.repository.compaction import Compaction
from server.repository.packing import Packing
from server.repository.policies import Policies
from server.repository.store import Store
from server.services.audit_admin import AuditAdmin
from server.services.flow_service import Sources
from server.services.retention_admin import RetentionAdmin
from server.signing import Signing
from server.statemachine.alert import Alert, AlertKind, AlertSeverity
from server.statemachine.audit import AuditBreak
from server.statemachine.values import Tenant
from server.sweeper import Job
from server.upkeep import Forgetting, Storage, Upkeep

# Request ids are kept for days, and contents of broken uploads for hours: there is no hurry, and all of them have to be looked at.
FORGETTING_PAUSE = timedelta(hours=6)
UNREFERENCED_PAUSE = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class Keeping:
    """Servicers of AdminService, and jobs."""

    servicers: tuple[object, ...]
    jobs: tuple[Job, ...]


def kept(
    store: Store, archive: Archive, policies: Policies, signing: Signing, sources: Sources, raise_alert: Alarm, request_days: int
) -> Keeping:
    """All of it for one database; request ids are kept for ``request_days`` at least."""

    async def broken(tenant: Tenant, found: AuditBreak) -> None:
        subject = f"{found.flow_id} {found.revision} {found.kind.name}"
        text = f"the audit chain is broken at revision {found.revision}: {found.description}"
        kind, severity = AlertKind.AUDIT_BROKEN, AlertSeverity.CRITICAL
        await raise_alert(tenant, Alert(sources.new_id(), kind, severity, sources.now(), text, subject, found.flow_id))

    database, history = store.database, store.history
    audit = Audit(database, signing.verifies)
    compaction = Compaction(database, history, audit, signing.sign)
    upkeep = Upkeep(compaction, Packing(database, history), policies, sources.now, broken)
    storage = Storage(archive, sources.now)
    return Keeping(
        (AuditAdmin(audit, signing.audit_key, broken), RetentionAdmin(database, policies, compaction, sources, broken)),
        (
            Job("expired checkpoints", storage.expire),
            Job("compaction", upkeep.compact),
            Job("packing", upkeep.pack),
            Job("sealing anew", storage.reseal),
            Job("unreferenced contents", storage.release, pause=UNREFERENCED_PAUSE),
            Job("request ids", Forgetting(database, request_days, sources.now).forget, pause=FORGETTING_PAUSE),
        ),
    )
