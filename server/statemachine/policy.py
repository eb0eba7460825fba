"""What a tenant wants kept of its flows, and when it wants copies taken."""

from __future__ import annotations

from datetime import datetime, timedelta

from server.statemachine.states import PhaseState
from server.statemachine.value import dataclass


@dataclass(frozen=True, slots=True)
class Policy:
    """A tenant's policy; without one of its own a tenant has this: everything stays, and no checkpoint is taken by itself."""

    keep_revisions: int = 0
    keep_duration: timedelta = timedelta()
    keep_last_good: bool = True
    keep_terminal: bool = True
    checkpoint_before: frozenset[PhaseState] = frozenset()
    auto_checkpoint_ttl: timedelta = timedelta(hours=24)
    etag: int = 0
    update_time: datetime | None = None
    updated_by: str = ""
