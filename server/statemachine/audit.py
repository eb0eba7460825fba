"""What an audit of the event chain can find."""

from __future__ import annotations

from enum import unique
from uuid import UUID

from server.statemachine.states import Member
from server.statemachine.value import dataclass


@unique
class BreakKind(Member):
    """How a link of the chain is broken; numbers as in the contract."""

    MISSING = 1
    CHANGED = 2
    HEAD = 3
    BASE = 4
    REORDERED = 5


@dataclass(frozen=True, slots=True)
class AuditBreak:
    """The first broken link of a flow."""

    flow_id: UUID
    revision: int
    kind: BreakKind
    description: str
