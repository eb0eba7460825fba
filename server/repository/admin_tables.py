"""Tables of what operators need: policies, quarantine, alerts, receipts of erasures, and which tenants there are."""

from __future__ import annotations

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Double,
    Index,
    Integer,
    LargeBinary,
    PrimaryKeyConstraint,
    Table,
    Text,
)
from sqlalchemy.dialects.postgresql import UUID

from server.repository.table_parts import TENANT_KEY, TIME, hashed, metadata, one_of, tenant_columns
from server.statemachine.alert import AlertKind, AlertSeverity

# Which tenants there are, for the sweeper: row level security shows it no others' rows. It says nothing of them but that.
tenants = Table(
    "tenants",
    metadata,
    *tenant_columns(),
    Column("create_time", TIME, nullable=False),
    PrimaryKeyConstraint(*TENANT_KEY, name="tenants_pkey"),
)

policies = Table(
    "policies",
    metadata,
    *tenant_columns(),
    Column("etag", BigInteger, nullable=False),
    Column("keep_seconds", Double, nullable=False),
    Column("auto_seconds", Double, nullable=False),
    Column("update_time", TIME, nullable=False),
    Column("keep_revisions", Integer, nullable=False),
    Column("keep_last_good", Boolean, nullable=False),
    Column("keep_terminal", Boolean, nullable=False),
    Column("checkpoint_before", ARRAY(Text), nullable=False),
    Column("updated_by", Text, nullable=False),
    PrimaryKeyConstraint(*TENANT_KEY, name="policies_pkey"),
    CheckConstraint("keep_revisions >= 0 AND keep_seconds >= 0 AND auto_seconds > 0", name="policies_limits_check"),
)

# What a recovery replaced, as it was read, before it was replaced.
quarantine = Table(
    "quarantine",
    metadata,
    *tenant_columns(),
    Column("quarantine_id", UUID, nullable=False),
    Column("flow_id", UUID, nullable=False),
    Column("create_time", TIME, nullable=False),
    Column("actor", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("body", LargeBinary, nullable=False),
    PrimaryKeyConstraint(*TENANT_KEY, "quarantine_id", name="quarantine_pkey"),
    Index("quarantine_flow_idx", *TENANT_KEY, "flow_id"),
)

alerts = Table(
    "alerts",
    metadata,
    *tenant_columns(),
    Column("alert_id", UUID, nullable=False),
    Column("flow_id", UUID),
    Column("checkpoint_id", UUID),
    # The tenant's alerts are counted, one after the other as they are committed: what a watch goes by.
    Column("number", BigInteger, nullable=False),
    Column("create_time", TIME, nullable=False),
    Column("kind", Text, nullable=False),
    Column("severity", Text, nullable=False),
    Column("child_type", Text, nullable=False),
    Column("phase", Text, nullable=False),
    Column("message", Text, nullable=False),
    # What it is about, so that it is raised once.
    Column("fingerprint", LargeBinary, nullable=False),
    PrimaryKeyConstraint(*TENANT_KEY, "alert_id", name="alerts_pkey"),
    CheckConstraint(one_of("kind", AlertKind), name="alerts_kind_check"),
    CheckConstraint(one_of("severity", AlertSeverity), name="alerts_severity_check"),
    CheckConstraint("number >= 1", name="alerts_number_check"),
    hashed("alerts", "fingerprint"),
    Index("alerts_fingerprint_idx", *TENANT_KEY, "fingerprint", unique=True),
    Index("alerts_number_idx", *TENANT_KEY, "number", unique=True),
)

# What was erased of a tenant; the one thing that an erasure leaves besides the hashes of events.
erasures = Table(
    "erasures",
    metadata,
    *tenant_columns(),
    Column("receipt_id", UUID, nullable=False),
    Column("create_time", TIME, nullable=False),
    Column("flows", BigInteger, nullable=False),
    Column("events", BigInteger, nullable=False),
    Column("documents", BigInteger, nullable=False),
    Column("checkpoints", BigInteger, nullable=False),
    Column("keys", Integer, nullable=False),
    Column("actor", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("digest", LargeBinary, nullable=False),
    # With which key-encryption keys the destroyed keys were wrapped: once those are destroyed too, no backup can be opened any more.
    Column("kek_ids", ARRAY(Text), nullable=False),
    PrimaryKeyConstraint(*TENANT_KEY, "receipt_id", name="erasures_pkey"),
    hashed("erasures", "digest"),
)

ADMIN_TABLES: tuple[Table, ...] = (policies, quarantine, alerts, erasures)
