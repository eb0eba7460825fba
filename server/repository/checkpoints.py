"""Checkpoints as they are stored: what is told of them in the clear, their sealed headers, and which contents they hold."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

import asyncpg
import orjson

from server.repository import checkpoint_statements as statements
from server.repository.checkpoint_statements import CONTENT, PART, TOLD, Narrowed, labels_text
from server.repository.database import COLLISIONS, Database
from server.repository.keys import KeyRow, held_values
from server.repository.requests import Reply, reply_values
from server.repository.statement import given_values, of_tenant
from server.statemachine.checkpoint import Checkpoint, CheckpointKind, Part
from server.statemachine.errors import CheckpointNotFound
from server.statemachine.states import FlowStatus
from server.statemachine.value import dataclass
from server.statemachine.values import FlowKey, Tenant

_KINDS = {kind.name: kind for kind in CheckpointKind}
_STATUSES = {status.name: status for status in FlowStatus}


@dataclass(frozen=True, slots=True)
class SealedContent:
    """A content that is small enough to be stored together with the checkpoint that holds it: it has one chunk."""

    content_id: UUID
    size: int
    digest: bytes
    sealed: bytes


@dataclass(frozen=True, slots=True)
class NewCheckpoint:
    """A checkpoint that is about to be stored, everything sealed with ``key``; ``flow_create_time`` tells which flow it is of."""

    tenant: Tenant
    checkpoint: Checkpoint
    header: bytes
    key: KeyRow
    parts: tuple[Part, ...]
    contents: tuple[SealedContent, ...]
    flow_create_time: datetime
    reply: Reply | None = None


@dataclass(frozen=True, slots=True)
class SealedCheckpoint:
    """A checkpoint with its sealed header, and its key as it is stored now; None for one that was destroyed."""

    checkpoint: Checkpoint
    header: bytes
    key: KeyRow | None


def _told(row: Sequence[Any]) -> Checkpoint:
    checkpoint_id, flow_id, revision, kind, status, progress, create_time, created_by, expire_time, pinned, labels, *rest = row
    return Checkpoint(
        checkpoint_id,
        flow_id,
        revision,
        _KINDS[kind],
        _STATUSES[status],
        progress,
        create_time,
        created_by,
        expire_time,
        pinned,
        orjson.loads(labels),
        *rest,
    )


def sealed_of(row: Sequence[Any]) -> SealedCheckpoint:
    """What a row of WITH_KEY says."""
    told = _told(row[: len(TOLD)])
    header, kek_id, wrapped = row[len(TOLD) :]
    return SealedCheckpoint(told, header, None if wrapped is None else KeyRow(told.key_version, kek_id, wrapped))


def _written(checkpoint: Checkpoint) -> dict[str, object]:
    values: dict[str, object] = {name: getattr(checkpoint, name) for name in TOLD}
    return {**values, "kind": checkpoint.kind.name, "status": checkpoint.status.name, "labels": labels_text(checkpoint.labels)}


class Checkpoints:
    """What is stored of checkpoints."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def store(self, new: NewCheckpoint) -> bool:
        """Store the checkpoint with its contents and its reply, all or nothing.

        False when something came between that makes it worth trying again: the key was changed or destroyed, the flow is gone, a content
        that it refers to was removed, an equal content was stored by somebody else, the request was answered.
        """
        checkpoint = new.checkpoint
        contents = [(one.content_id, one.size, len(one.sealed), one.digest, one.sealed) for one in new.contents]
        values = {
            **of_tenant(new.tenant),
            **_written(checkpoint),
            **held_values(new.key),
            "header": new.header,
            "flow_create_time": new.flow_create_time,
            **given_values("content", CONTENT, contents),
            **given_values("part", PART, [(part.content_id, part.name, part.child_type) for part in new.parts]),
            **reply_values(new.reply, checkpoint.flow_id, checkpoint.create_time),
        }
        try:
            return bool(await self._database.write([new.tenant], statements.store(new.reply is not None), values))
        except (asyncpg.UniqueViolationError, asyncpg.ForeignKeyViolationError, *COLLISIONS):
            return False

    async def get(self, tenant: Tenant, checkpoint_id: UUID) -> Checkpoint:
        """What is told of the checkpoint. Raises CheckpointNotFound."""
        rows = await self._database.read([tenant], statements.GET, {**of_tenant(tenant), "checkpoint_id": checkpoint_id})
        if not rows:
            raise CheckpointNotFound(checkpoint_id)
        return _told(rows[0])

    async def sealed(self, tenant: Tenant, checkpoint_id: UUID) -> SealedCheckpoint:
        """The checkpoint with its header. Raises CheckpointNotFound."""
        rows = await self._database.read([tenant], statements.SEALED, {**of_tenant(tenant), "checkpoint_id": checkpoint_id})
        if not rows:
            raise CheckpointNotFound(checkpoint_id)
        return sealed_of(rows[0])

    async def of_flow(self, key: FlowKey, before: UUID, size: int) -> list[SealedCheckpoint]:
        """The flow's checkpoints with their headers, the newest first, from the one before ``before`` on."""
        values = {**of_tenant(key.tenant), "flow_id": key.flow_id, "before_id": before, "limit": size}
        return [sealed_of(row) for row in await self._database.read([key.tenant], statements.OF_FLOW, values)]

    async def page(self, tenant: Tenant, narrowed: Narrowed, before: UUID, size: int) -> list[Checkpoint]:
        """At most ``size`` checkpoints, the newest first, from the one before ``before`` on."""
        values = {**narrowed.values(tenant), "before_id": before, "limit": size}
        return [_told(row) for row in await self._database.read([tenant], statements.page(narrowed.given), values)]

    async def change(self, tenant: Tenant, known: Checkpoint, changed: Checkpoint, now: datetime, reply: Reply | None) -> bool:
        """Store what is changed of ``known``; False when that is not current any more, or the request was answered."""
        values = {
            **of_tenant(tenant),
            "checkpoint_id": known.checkpoint_id,
            "at_etag": known.etag,
            "new_pinned": changed.pinned,
            "new_expire_time": changed.expire_time,
            "new_labels": labels_text(changed.labels),
            **reply_values(reply, known.flow_id, now),
        }
        try:
            return bool(await self._database.write([tenant], statements.change(reply is not None), values))
        except asyncpg.UniqueViolationError:
            return False
