"""What a person should know of."""

from __future__ import annotations

from datetime import datetime
from enum import unique
from uuid import UUID

from server.statemachine.states import Member
from server.statemachine.value import dataclass


@unique
class AlertKind(Member):
    """What an alert is about; numbers as in the contract."""

    CHECKPOINT_UNREADABLE = 1
    RECOVERY_FAILED = 2
    FLOW_RECOVERED = 3
    FLOW_STUCK = 4
    RETRY_STORM = 5
    AUDIT_BROKEN = 6


@unique
class AlertSeverity(Member):
    """How bad it is; numbers as in the contract."""

    WARNING = 1
    CRITICAL = 2


@dataclass(frozen=True, slots=True)
class Alert:
    """One alert; ``subject`` says what it is about, so that the same thing is told once."""

    alert_id: UUID
    kind: AlertKind
    severity: AlertSeverity
    create_time: datetime
    message: str
    subject: str
    flow_id: UUID | None = None
    child_type: str = ""
    phase: str = ""
    checkpoint_id: UUID | None = None
