"""Tables of checkpoints: the tenants' wrapped keys, sealed contents in chunks, and checkpoints that refer to them."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Double,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    PrimaryKeyConstraint,
    Table,
    Text,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB, UUID

from server.repository.table_parts import TENANT_KEY, TIME, hashed, metadata, one_of, tenant_columns
from server.statemachine.checkpoint import CheckpointKind
from server.statemachine.states import FlowStatus

_KEY = [f"tenant_keys.{name}" for name in (*TENANT_KEY, "version")]

# Version 0 is the tenant's identity key: it makes the digests by which equal contents are found, and is not rotated.
tenant_keys = Table(
    "tenant_keys",
    metadata,
    *tenant_columns(),
    Column("version", Integer, nullable=False),
    Column("create_time", TIME, nullable=False),
    Column("kek_id", Text, nullable=False),
    Column("wrapped", LargeBinary, nullable=False),
    PrimaryKeyConstraint(*TENANT_KEY, "version", name="tenant_keys_pkey"),
    CheckConstraint("version >= 0", name="tenant_keys_version_check"),
)

# What checkpoints hold, stored once for each tenant. Without a digest it is still being written.
sealed_contents = Table(
    "sealed_contents",
    metadata,
    *tenant_columns(),
    Column("content_id", UUID, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("stored", BigInteger, nullable=False),
    Column("create_time", TIME, nullable=False),
    Column("digest", LargeBinary),
    PrimaryKeyConstraint(*TENANT_KEY, "content_id", name="sealed_contents_pkey"),
    CheckConstraint("size >= 0 AND stored >= 0", name="sealed_contents_size_check"),
    hashed("sealed_contents", "digest"),
    Index("sealed_contents_digest_idx", *TENANT_KEY, "digest", unique=True, postgresql_where=text("digest IS NOT NULL")),
)

# Each chunk has the key version that it is sealed with, so that a large content can be sealed anew chunk by chunk.
sealed_chunks = Table(
    "sealed_chunks",
    metadata,
    *tenant_columns(),
    Column("content_id", UUID, nullable=False),
    Column("number", Integer, nullable=False),
    Column("key_version", Integer, nullable=False),
    Column("sealed", LargeBinary, nullable=False),
    PrimaryKeyConstraint(*TENANT_KEY, "content_id", "number", name="sealed_chunks_pkey"),
    ForeignKeyConstraint(
        (*TENANT_KEY, "content_id"),
        [f"sealed_contents.{name}" for name in (*TENANT_KEY, "content_id")],
        name="sealed_chunks_content_fkey",
        ondelete="CASCADE",
    ),
    # A key that sealed something cannot be destroyed alone, and nothing can be sealed with one that was.
    ForeignKeyConstraint((*TENANT_KEY, "key_version"), _KEY, name="sealed_chunks_key_fkey"),
    CheckConstraint("number >= 0", name="sealed_chunks_number_check"),
    Index("sealed_chunks_key_idx", *TENANT_KEY, "key_version", "content_id", "number"),
)

# No foreign key to the flow: a checkpoint may be all that is left of a flow whose row was lost.
checkpoints = Table(
    "checkpoints",
    metadata,
    *tenant_columns(),
    Column("checkpoint_id", UUID, nullable=False),
    Column("flow_id", UUID, nullable=False),
    Column("revision", BigInteger, nullable=False),
    Column("etag", BigInteger, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("payload_size", BigInteger, nullable=False),
    Column("progress", Double, nullable=False),
    Column("create_time", TIME, nullable=False),
    Column("expire_time", TIME),
    Column("key_version", Integer, nullable=False),
    Column("pinned", Boolean, nullable=False),
    Column("kind", Text, nullable=False),
    Column("status", Text, nullable=False),
    Column("created_by", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("labels", JSONB, nullable=False),
    Column("header", LargeBinary, nullable=False),
    PrimaryKeyConstraint(*TENANT_KEY, "checkpoint_id", name="checkpoints_pkey"),
    ForeignKeyConstraint((*TENANT_KEY, "key_version"), _KEY, name="checkpoints_key_fkey"),
    CheckConstraint("revision >= 1", name="checkpoints_revision_check"),
    CheckConstraint(one_of("kind", CheckpointKind), name="checkpoints_kind_check"),
    CheckConstraint(one_of("status", FlowStatus), name="checkpoints_status_check"),
    Index("checkpoints_flow_idx", *TENANT_KEY, "flow_id", "checkpoint_id"),
    Index("checkpoints_expire_idx", *TENANT_KEY, "expire_time", postgresql_where=text("expire_time IS NOT NULL AND NOT pinned")),
    Index("checkpoints_key_idx", *TENANT_KEY, "key_version", "checkpoint_id"),
)

# ``name`` is ``flow`` for the flow itself, a document's name, or ``payload``.
checkpoint_parts = Table(
    "checkpoint_parts",
    metadata,
    *tenant_columns(),
    Column("checkpoint_id", UUID, nullable=False),
    Column("content_id", UUID, nullable=False),
    Column("name", Text, nullable=False),
    Column("child_type", Text, nullable=False),
    PrimaryKeyConstraint(*TENANT_KEY, "checkpoint_id", "name", "child_type", name="checkpoint_parts_pkey"),
    ForeignKeyConstraint(
        (*TENANT_KEY, "checkpoint_id"),
        [f"checkpoints.{name}" for name in (*TENANT_KEY, "checkpoint_id")],
        name="checkpoint_parts_checkpoint_fkey",
        ondelete="CASCADE",
    ),
    ForeignKeyConstraint(
        (*TENANT_KEY, "content_id"),
        [f"sealed_contents.{name}" for name in (*TENANT_KEY, "content_id")],
        name="checkpoint_parts_content_fkey",
    ),
    Index("checkpoint_parts_content_idx", *TENANT_KEY, "content_id"),
)

CHECKPOINT_TABLES: tuple[Table, ...] = (tenant_keys, sealed_contents, sealed_chunks, checkpoints, checkpoint_parts)
