"""Between the contract's messages about checkpoints and the domain's values."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from flowledger.v1 import checkpoint_pb2

from server.services import times
from server.services.fields import Fields
from server.statemachine.checkpoint import Checkpoint, Expiry
from server.statemachine.errors import invalid

LONGEST_TTL = timedelta(days=10_000)


def message(checkpoint: Checkpoint) -> checkpoint_pb2.Checkpoint:
    """The checkpoint."""
    return checkpoint_pb2.Checkpoint(
        checkpoint_id=str(checkpoint.checkpoint_id),
        flow_id=str(checkpoint.flow_id),
        revision=checkpoint.revision,
        kind=checkpoint.kind.value,  # type: ignore[arg-type]
        status=checkpoint.status.value,  # type: ignore[arg-type]
        progress_percent=checkpoint.progress,
        create_time=times.timestamp(checkpoint.create_time),
        created_by=checkpoint.created_by,
        expire_time=times.maybe_timestamp(checkpoint.expire_time),
        pinned=checkpoint.pinned,
        labels=checkpoint.labels,
        reason=checkpoint.reason,
        size_bytes=checkpoint.size,
        key_version=checkpoint.key_version,
        payload_bytes=checkpoint.payload_size,
        etag=checkpoint.etag,
    )


def expiry(fields: Fields, path: str, given: Any) -> Expiry:
    """When, or after how long, the checkpoint expires that ``given`` asks for with expire_time or ttl; None for neither."""
    if given.HasField("expire_time") and given.HasField("ttl"):
        fields.wrong(f"{path}ttl", "does not go with expire_time: give one of them")
    elif given.HasField("expire_time"):
        return fields.time(f"{path}expire_time", given.expire_time)
    elif given.HasField("ttl"):
        return fields.span(f"{path}ttl", given.ttl, timedelta(seconds=1), LONGEST_TTL)
    return None


def check_expiry(path: str, expires: Expiry, now: datetime) -> None:
    """Raises InvalidRequest for an expiry that is past. By itself, since a repeated request whose time has come is still answered."""
    if isinstance(expires, datetime) and expires <= now:
        raise invalid(f"{path}expire_time", f"is {expires.isoformat()}, which is past")
