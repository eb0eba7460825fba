"""Between findings, options and plans and the contract's messages. Decides nothing."""

from __future__ import annotations

from collections.abc import Sequence

from flowledger.v1 import integrity_pb2, recovery_pb2

from server.rescue import Done
from server.services import flow_diff
from server.statemachine.finding import Finding
from server.statemachine.recovery import Effect, RecoveryOption

FINDINGS = 200


def finding(found: Finding) -> integrity_pb2.Finding:
    """The finding."""
    return integrity_pb2.Finding(
        kind=found.kind.value,  # type: ignore[arg-type]
        description=found.description,
        field=found.field,
        child_type=found.child_type,
        phase=found.phase,
        document=found.document,
        revision=found.revision,
        checkpoint_id="" if found.checkpoint_id is None else str(found.checkpoint_id),
        recovery_only=found.recovery_only,
    )


def findings(found: Sequence[Finding]) -> list[integrity_pb2.Finding]:
    """The first of the findings, as many as one message holds."""
    return [finding(one) for one in found[:FINDINGS]]


def option(found: RecoveryOption) -> recovery_pb2.RecoveryOption:
    """The option."""
    return recovery_pb2.RecoveryOption(
        remedy=found.remedy.value,  # type: ignore[arg-type]
        role=found.whom.value,  # type: ignore[arg-type]
        why=found.why,
        child_type=found.child_type,
        phase=found.phase,
        revision=found.revision,
        checkpoint_id="" if found.checkpoint_id is None else str(found.checkpoint_id),
        effect=None if found.effect is None else _effect(found.effect),
    )


def _effect(found: Effect) -> recovery_pb2.RecoveryEffect:
    status = found.status.value
    return recovery_pb2.RecoveryEffect(status=status, progress_percent=found.progress, phases=found.phases)  # type: ignore[arg-type]


def plan(done: Done) -> recovery_pb2.RecoveryPlan:
    """The plan."""
    made = done.plan
    return recovery_pb2.RecoveryPlan(
        rung=0 if made.rung is None else made.rung.value,  # type: ignore[arg-type]
        summary=made.summary,
        findings=findings(made.findings),
        failures=[recovery_pb2.RungFailure(rung=rung.value, why=why) for rung, why in made.failures],  # type: ignore[arg-type]
        source_revision=made.source_revision,
        source_checkpoint_id="" if made.source_checkpoint_id is None else str(made.source_checkpoint_id),
        diff=None if done.diff is None else flow_diff.message(done.diff),
        losses=made.losses,
        quarantine_id="" if done.quarantine_id is None else str(done.quarantine_id),
    )
