"""What can be wrong with a stored flow."""

from __future__ import annotations

from enum import unique
from uuid import UUID

from server.statemachine.states import Member
from server.statemachine.value import dataclass


@unique
class FindingKind(Member):
    """What is wrong; numbers as in the contract."""

    FIELD_MISSING = 1
    FIELD_INVALID = 2
    PHASE_STATE = 3
    PHASES_UNKNOWN = 4
    DERIVED_WRONG = 5
    CHILD_MISSING = 6
    CHILD_UNEXPECTED = 7
    DOCUMENT_DAMAGED = 8
    DOCUMENT_HASH = 9
    DOCUMENT_MISSING = 10
    REVISION = 11
    EVENT_MISSING = 12
    EVENT_DAMAGED = 13
    CHAIN_BROKEN = 14
    ROW_DIFFERS = 15
    CHECKPOINT_UNREADABLE = 16
    KEY_MISSING = 17
    CHECKPOINT_INCOMPLETE = 18
    HISTORY_DAMAGED = 19


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong, and where.

    ``recovery_only``: it concerns ways back (checkpoints, kept history) and not the flow as it is.
    """

    kind: FindingKind
    description: str
    field: str = ""
    child_type: str = ""
    phase: str = ""
    document: str = ""
    revision: int = 0
    checkpoint_id: UUID | None = None
    recovery_only: bool = False
