"""Where a seal belongs: the bytes that bind it to its tenant and to its one place there."""

from __future__ import annotations

from uuid import UUID

from server.statemachine.checkpoint import Checkpoint
from server.statemachine.values import Tenant


def _of(tenant: Tenant, kind: bytes, *parts: bytes) -> bytes:
    # All parts of a kind have the same length, so that no two places are spelled alike.
    return b"flowledger/" + kind + b"\0" + tenant.client_account_id.bytes + tenant.engagement_id.bytes + b"".join(parts)


def of_key(tenant: Tenant, version: int) -> bytes:
    """The place of a wrapped data key."""
    return _of(tenant, b"key", version.to_bytes(4, "big"))


def of_header(tenant: Tenant, checkpoint: Checkpoint) -> bytes:
    """The place of a checkpoint's header."""
    revision = checkpoint.revision.to_bytes(8, "big")
    return _of(tenant, b"checkpoint", checkpoint.flow_id.bytes, checkpoint.checkpoint_id.bytes, revision)


def of_chunk(tenant: Tenant, content_id: UUID, number: int, *, last: bool) -> bytes:
    """The place of a content's chunk."""
    return _of(tenant, b"content", content_id.bytes, number.to_bytes(4, "big"), bytes((last,)))


def of_answer(tenant: Tenant, request_id: UUID) -> bytes:
    """The place of the answer to a request."""
    return _of(tenant, b"answer", request_id.bytes)
