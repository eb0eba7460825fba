"""What a checkpoint is, apart from what it holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from datetime import datetime
from enum import unique
from uuid import UUID

from server.statemachine.states import FlowStatus, Member
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
    payload_sha256: bytes | None = None
