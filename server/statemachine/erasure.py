"""What is left of a tenant that was erased."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from hashlib import sha256
from uuid import UUID

from server.statemachine.value import dataclass


@dataclass(frozen=True, slots=True)
class Erased:
    """How much was, or would be, erased; ``kek_ids`` are the key-encryption keys that the destroyed keys were wrapped with."""

    flows: int
    events: int
    documents: int
    checkpoints: int
    keys: int
    kek_ids: tuple[str, ...]
    digest: bytes


@dataclass(frozen=True, slots=True)
class Receipt:
    """That a tenant was erased: when, by whom, why, and what."""

    receipt_id: UUID
    time: datetime
    actor: str
    reason: str
    erased: Erased


def digest(heads: Iterable[tuple[UUID, int, bytes]]) -> bytes:
    """SHA-256 over id, revision and head hash of every flow, in the order of their ids."""
    found = sha256()
    for flow_id, revision, head_hash in heads:
        found.update(flow_id.bytes + revision.to_bytes(8, "big") + head_hash)
    return found.digest()
