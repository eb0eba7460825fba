"""What a checkpoint is, apart from what it holds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import field
from datetime import datetime, timedelta
from enum import Enum, unique
from types import MappingProxyType
from uuid import UUID

from server.statemachine.change import Change, RetryPhase, RollbackPhase, TransitionPhase
from server.statemachine.event import Event, PhaseChanged
from server.statemachine.policy import Policy
from server.statemachine.states import FlowStatus, Member, PhaseState
from server.statemachine.value import dataclass


@unique
class CheckpointKind(Member):
    """Why a checkpoint was taken; numbers as in the contract."""

    AUTO = 1
    MANUAL = 2
    PRE_ROLLBACK = 3
    PRE_RECOVERY = 4


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """An encrypted, durable copy of a flow at one revision; sizes in bytes before compression and sealing."""

    checkpoint_id: UUID
    flow_id: UUID
    revision: int
    kind: CheckpointKind
    status: FlowStatus
    progress: float
    create_time: datetime
    created_by: str
    expire_time: datetime | None
    pinned: bool
    labels: Mapping[str, str] = field(hash=False)
    reason: str
    size: int
    key_version: int
    etag: int = 1
    payload_size: int = 0


@dataclass(frozen=True, slots=True)
class Part:
    """One part of what a checkpoint holds: ``name`` is FLOW, PAYLOAD or a document's; size and SHA-256 are of its text."""

    name: str
    child_type: str
    content_id: UUID
    size: int
    sha256: bytes


FLOW, PAYLOAD = "flow", "payload"


@dataclass(frozen=True, slots=True)
class Header:
    """What a checkpoint consists of, and size and SHA-256 of its snapshot: the flow and its documents as one text."""

    parts: tuple[Part, ...]
    snapshot_size: int
    snapshot_sha256: bytes

    def part(self, name: str) -> Part | None:
        """The part of that name that belongs to no child."""
        return next((part for part in self.parts if part.name == name and not part.child_type), None)


@unique
class Unreadable(Enum):
    """Why a checkpoint does not open."""

    # Its header, or a chunk of a part, was changed, moved or sealed with another key.
    SEAL = "its seal does not open"
    # The data key that it was sealed with was destroyed, or what is stored of that key is damaged.
    KEY_MISSING = "its data key is gone"
    # The data key is there, and the key-encryption key that it is wrapped with is not on this server.
    KEY_UNAVAILABLE = "its data key cannot be unwrapped here"
    # A part is not there.
    PART_MISSING = "a part of it is not there"
    # A part opens and is not what the header says, or not what this version of the service can read.
    CONTENT = "a part of it is not what was sealed"


# How long checkpoints of a kind stay when nobody says; what is not here stays until it is removed. Those that were taken before something
# drastic outlive a holiday; AUTO is the policy's to say.
EXPIRY: Mapping[CheckpointKind, timedelta] = MappingProxyType(
    {CheckpointKind.PRE_ROLLBACK: timedelta(days=30), CheckpointKind.PRE_RECOVERY: timedelta(days=30)}
)

# When a checkpoint expires, or how long after it was taken; None for never.
Expiry = datetime | timedelta | None


def expiry_time(expires: Expiry, now: datetime) -> datetime | None:
    """The time at which what is taken now expires."""
    return now + expires if isinstance(expires, timedelta) else expires


# A failure's code decides between these two, whichever of them was asked for.
_FAILING = frozenset({PhaseState.FAILED, PhaseState.RETRY_NEEDED})
_MOVES = frozenset({TransitionPhase, RollbackPhase, RetryPhase})
# Sending a completed phase back takes its dependants along to ROLLED_BACK.
_TAKING_BACK = frozenset({PhaseState.ROLLED_BACK, PhaseState.RETRY_NEEDED})


def moves_phase(changes: Iterable[Change]) -> bool:
    """Whether there is a change that some policy may want a checkpoint before."""
    return any(type(change) in _MOVES for change in changes)


def may_want_copy(policy: Policy, changes: Iterable[Change]) -> bool:
    """Whether the changes may be ones that a checkpoint is taken before; ``wanted_copy`` knows once they are applied."""
    listed = policy.checkpoint_before
    for change in changes:
        kind = type(change)
        if kind is TransitionPhase:
            to = change.to  # type: ignore[union-attr]
            if to in _TAKING_BACK or (listed and (to in listed or (to in _FAILING and not listed.isdisjoint(_FAILING)))):
                return True
        elif kind is RollbackPhase or (kind is RetryPhase and PhaseState.IN_PROGRESS in listed):
            return True
    return False


def wanted_copy(policy: Policy, event: Event) -> tuple[CheckpointKind, PhaseChanged] | None:
    """Which checkpoint is taken before what the event tells of, and for which phase; None for none."""
    moved = [fact for fact in event.facts if isinstance(fact, PhaseChanged) and fact.before.state is not fact.after.state]
    for fact in moved:
        if fact.after.state is PhaseState.ROLLED_BACK:
            return CheckpointKind.PRE_ROLLBACK, fact
    for fact in moved:
        if fact.after.state in policy.checkpoint_before:
            return CheckpointKind.AUTO, fact
    return None
