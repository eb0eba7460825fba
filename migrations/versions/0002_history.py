# ruff: noqa: E501 - frozen DDL, as it was rendered
"""History and recovery: bases and document versions, sealed checkpoints and their keys, policies, quarantine, alerts, erasures.

Frozen: the names and constraints of this day, whatever the modules say later.
"""

from __future__ import annotations

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

TENANT_TABLES = (
    "bases",
    "document_versions",
    "tenant_keys",
    "sealed_contents",
    "sealed_chunks",
    "checkpoints",
    "checkpoint_parts",
    "policies",
    "quarantine",
    "alerts",
    "erasures",
)

DDL = """
CREATE TABLE bases (
    client_account_id UUID NOT NULL,
    engagement_id UUID NOT NULL,
    flow_id UUID NOT NULL,
    revision BIGINT NOT NULL,
    hash BYTEA NOT NULL,
    body BYTEA NOT NULL,
    signature BYTEA,
    CONSTRAINT bases_pkey PRIMARY KEY (client_account_id, engagement_id, flow_id, revision),
    CONSTRAINT bases_revision_check CHECK (revision >= 1),
    CONSTRAINT bases_hash_check CHECK (octet_length(hash) = 32)
);

CREATE TABLE document_versions (
    client_account_id UUID NOT NULL,
    engagement_id UUID NOT NULL,
    flow_id UUID NOT NULL,
    revision BIGINT NOT NULL,
    size INTEGER NOT NULL,
    kind SMALLINT NOT NULL,
    name TEXT NOT NULL,
    child_type TEXT NOT NULL,
    sha256 BYTEA NOT NULL,
    body BYTEA NOT NULL,
    CONSTRAINT document_versions_pkey PRIMARY KEY (client_account_id, engagement_id, flow_id, name, child_type, revision),
    CONSTRAINT document_versions_revision_check CHECK (revision >= 1),
    CONSTRAINT document_versions_kind_check CHECK (kind >= 1 AND kind <= 3),
    CONSTRAINT document_versions_sha256_check CHECK (octet_length(sha256) = 32)
);

CREATE TABLE tenant_keys (
    client_account_id UUID NOT NULL,
    engagement_id UUID NOT NULL,
    version INTEGER NOT NULL,
    create_time TIMESTAMP WITH TIME ZONE NOT NULL,
    kek_id TEXT NOT NULL,
    wrapped BYTEA NOT NULL,
    CONSTRAINT tenant_keys_pkey PRIMARY KEY (client_account_id, engagement_id, version),
    CONSTRAINT tenant_keys_version_check CHECK (version >= 0)
);

CREATE TABLE sealed_contents (
    client_account_id UUID NOT NULL,
    engagement_id UUID NOT NULL,
    content_id UUID NOT NULL,
    size BIGINT NOT NULL,
    stored BIGINT NOT NULL,
    create_time TIMESTAMP WITH TIME ZONE NOT NULL,
    digest BYTEA,
    CONSTRAINT sealed_contents_pkey PRIMARY KEY (client_account_id, engagement_id, content_id),
    CONSTRAINT sealed_contents_size_check CHECK (size >= 0 AND stored >= 0),
    CONSTRAINT sealed_contents_digest_check CHECK (octet_length(digest) = 32)
);

CREATE UNIQUE INDEX sealed_contents_digest_idx ON sealed_contents (client_account_id, engagement_id, digest) WHERE digest IS NOT NULL;

CREATE TABLE sealed_chunks (
    client_account_id UUID NOT NULL,
    engagement_id UUID NOT NULL,
    content_id UUID NOT NULL,
    number INTEGER NOT NULL,
    key_version INTEGER NOT NULL,
    sealed BYTEA NOT NULL,
    CONSTRAINT sealed_chunks_pkey PRIMARY KEY (client_account_id, engagement_id, content_id, number),
    CONSTRAINT sealed_chunks_content_fkey FOREIGN KEY(client_account_id, engagement_id, content_id) REFERENCES sealed_contents (client_account_id, engagement_id, content_id) ON DELETE CASCADE,
    CONSTRAINT sealed_chunks_key_fkey FOREIGN KEY(client_account_id, engagement_id, key_version) REFERENCES tenant_keys (client_account_id, engagement_id, version),
    CONSTRAINT sealed_chunks_number_check CHECK (number >= 0)
);

CREATE INDEX sealed_chunks_key_idx ON sealed_chunks (client_account_id, engagement_id, key_version, content_id, number);

CREATE TABLE checkpoints (
    client_account_id UUID NOT NULL,
    engagement_id UUID NOT NULL,
    checkpoint_id UUID NOT NULL,
    flow_id UUID NOT NULL,
    revision BIGINT NOT NULL,
    etag BIGINT NOT NULL,
    size BIGINT NOT NULL,
    payload_size BIGINT NOT NULL,
    progress DOUBLE PRECISION NOT NULL,
    create_time TIMESTAMP WITH TIME ZONE NOT NULL,
    expire_time TIMESTAMP WITH TIME ZONE,
    key_version INTEGER NOT NULL,
    pinned BOOLEAN NOT NULL,
    kind TEXT NOT NULL,
    status TEXT NOT NULL,
    created_by TEXT NOT NULL,
    reason TEXT NOT NULL,
    labels JSONB NOT NULL,
    header BYTEA NOT NULL,
    CONSTRAINT checkpoints_pkey PRIMARY KEY (client_account_id, engagement_id, checkpoint_id),
    CONSTRAINT checkpoints_key_fkey FOREIGN KEY(client_account_id, engagement_id, key_version) REFERENCES tenant_keys (client_account_id, engagement_id, version),
    CONSTRAINT checkpoints_revision_check CHECK (revision >= 1),
    CONSTRAINT checkpoints_kind_check CHECK (kind IN ('AUTO', 'MANUAL', 'PRE_ROLLBACK', 'PRE_RECOVERY')),
    CONSTRAINT checkpoints_status_check CHECK (status IN ('INITIALIZED', 'DATA_GATHERING', 'DISCOVERY', 'ASSESSMENT_READY', 'PLANNING', 'ACTIVE', 'WAITING_APPROVAL', 'RETRY_PENDING', 'ERROR_RECOVERY', 'FAILED', 'COMPLETED', 'PAUSED', 'CANCELLED'))
);

CREATE INDEX checkpoints_expire_idx ON checkpoints (client_account_id, engagement_id, expire_time) WHERE expire_time IS NOT NULL AND NOT pinned;

CREATE INDEX checkpoints_flow_idx ON checkpoints (client_account_id, engagement_id, flow_id, checkpoint_id);

CREATE INDEX checkpoints_key_idx ON checkpoints (client_account_id, engagement_id, key_version, checkpoint_id);

CREATE TABLE checkpoint_parts (
    client_account_id UUID NOT NULL,
    engagement_id UUID NOT NULL,
    checkpoint_id UUID NOT NULL,
    content_id UUID NOT NULL,
    name TEXT NOT NULL,
    child_type TEXT NOT NULL,
    CONSTRAINT checkpoint_parts_pkey PRIMARY KEY (client_account_id, engagement_id, checkpoint_id, name, child_type),
    CONSTRAINT checkpoint_parts_checkpoint_fkey FOREIGN KEY(client_account_id, engagement_id, checkpoint_id) REFERENCES checkpoints (client_account_id, engagement_id, checkpoint_id) ON DELETE CASCADE,
    CONSTRAINT checkpoint_parts_content_fkey FOREIGN KEY(client_account_id, engagement_id, content_id) REFERENCES sealed_contents (client_account_id, engagement_id, content_id)
);

CREATE INDEX checkpoint_parts_content_idx ON checkpoint_parts (client_account_id, engagement_id, content_id);

CREATE TABLE tenants (
    client_account_id UUID NOT NULL,
    engagement_id UUID NOT NULL,
    create_time TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT tenants_pkey PRIMARY KEY (client_account_id, engagement_id)
);

CREATE TABLE policies (
    client_account_id UUID NOT NULL,
    engagement_id UUID NOT NULL,
    etag BIGINT NOT NULL,
    keep_seconds DOUBLE PRECISION NOT NULL,
    auto_seconds DOUBLE PRECISION NOT NULL,
    update_time TIMESTAMP WITH TIME ZONE NOT NULL,
    keep_revisions INTEGER NOT NULL,
    keep_last_good BOOLEAN NOT NULL,
    keep_terminal BOOLEAN NOT NULL,
    checkpoint_before TEXT[] NOT NULL,
    updated_by TEXT NOT NULL,
    CONSTRAINT policies_pkey PRIMARY KEY (client_account_id, engagement_id),
    CONSTRAINT policies_limits_check CHECK (keep_revisions >= 0 AND keep_seconds >= 0 AND auto_seconds > 0)
);

CREATE TABLE quarantine (
    client_account_id UUID NOT NULL,
    engagement_id UUID NOT NULL,
    quarantine_id UUID NOT NULL,
    flow_id UUID NOT NULL,
    create_time TIMESTAMP WITH TIME ZONE NOT NULL,
    actor TEXT NOT NULL,
    reason TEXT NOT NULL,
    body BYTEA NOT NULL,
    CONSTRAINT quarantine_pkey PRIMARY KEY (client_account_id, engagement_id, quarantine_id)
);

CREATE INDEX quarantine_flow_idx ON quarantine (client_account_id, engagement_id, flow_id);

CREATE TABLE alerts (
    client_account_id UUID NOT NULL,
    engagement_id UUID NOT NULL,
    alert_id UUID NOT NULL,
    flow_id UUID,
    checkpoint_id UUID,
    number BIGINT NOT NULL,
    create_time TIMESTAMP WITH TIME ZONE NOT NULL,
    kind TEXT NOT NULL,
    severity TEXT NOT NULL,
    child_type TEXT NOT NULL,
    phase TEXT NOT NULL,
    message TEXT NOT NULL,
    fingerprint BYTEA NOT NULL,
    CONSTRAINT alerts_pkey PRIMARY KEY (client_account_id, engagement_id, alert_id),
    CONSTRAINT alerts_kind_check CHECK (kind IN ('CHECKPOINT_UNREADABLE', 'RECOVERY_FAILED', 'FLOW_RECOVERED', 'FLOW_STUCK', 'RETRY_STORM', 'AUDIT_BROKEN')),
    CONSTRAINT alerts_severity_check CHECK (severity IN ('WARNING', 'CRITICAL')),
    CONSTRAINT alerts_number_check CHECK (number >= 1),
    CONSTRAINT alerts_fingerprint_check CHECK (octet_length(fingerprint) = 32)
);

CREATE UNIQUE INDEX alerts_fingerprint_idx ON alerts (client_account_id, engagement_id, fingerprint);

CREATE UNIQUE INDEX alerts_number_idx ON alerts (client_account_id, engagement_id, number);

CREATE TABLE erasures (
    client_account_id UUID NOT NULL,
    engagement_id UUID NOT NULL,
    receipt_id UUID NOT NULL,
    create_time TIMESTAMP WITH TIME ZONE NOT NULL,
    flows BIGINT NOT NULL,
    events BIGINT NOT NULL,
    documents BIGINT NOT NULL,
    checkpoints BIGINT NOT NULL,
    keys INTEGER NOT NULL,
    actor TEXT NOT NULL,
    reason TEXT NOT NULL,
    digest BYTEA NOT NULL,
    kek_ids TEXT[] NOT NULL,
    CONSTRAINT erasures_pkey PRIMARY KEY (client_account_id, engagement_id, receipt_id),
    CONSTRAINT erasures_digest_check CHECK (octet_length(digest) = 32)
)
"""

# As in 0001.
POLICY = """
CREATE POLICY tenant ON {table} USING (
    (client_account_id::text || '/' || engagement_id::text)
        = ANY ((SELECT string_to_array(current_setting('flowledger.tenants', true), ','))::text[])
)
"""

# Sealed or compressed already: a second attempt by TOAST would only cost time.
PACKED = (("bases", "body"), ("document_versions", "body"), ("sealed_chunks", "sealed"), ("checkpoints", "header"), ("quarantine", "body"))

COLUMNS = """
ALTER TABLE flows ADD COLUMN origin_flow_id UUID, ADD COLUMN origin_revision BIGINT;

ALTER TABLE flows ADD CONSTRAINT flows_origin_check CHECK ((origin_flow_id IS NULL) = (origin_revision IS NULL));

ALTER TABLE documents ADD COLUMN number INTEGER DEFAULT 1 NOT NULL;

ALTER TABLE events ADD COLUMN format SMALLINT DEFAULT 1 NOT NULL, ADD COLUMN content_sha256 BYTEA;

ALTER TABLE events ADD CONSTRAINT events_content_sha256_check CHECK (octet_length(content_sha256) = 32);

ALTER TABLE events ADD CONSTRAINT events_erased_check CHECK (content_sha256 IS NULL OR (body = '' AND actor = ''));

ALTER TABLE installation ADD COLUMN kek_id TEXT;

DROP INDEX flows_create_time_idx;

CREATE INDEX flows_create_time_idx ON flows (client_account_id, engagement_id, create_time, flow_id) WHERE delete_time IS NULL
"""

UNDONE = """
DROP INDEX flows_create_time_idx;

CREATE INDEX flows_create_time_idx ON flows (client_account_id, engagement_id, create_time, flow_id);

ALTER TABLE installation DROP COLUMN kek_id;

ALTER TABLE events DROP CONSTRAINT events_erased_check, DROP COLUMN format, DROP COLUMN content_sha256;

ALTER TABLE documents DROP COLUMN number;

ALTER TABLE flows DROP COLUMN origin_flow_id, DROP COLUMN origin_revision
"""


def upgrade() -> None:
    """Make the tables, lock them to their tenants, let the service in, and list the tenants that there are."""
    for statement in (*DDL.split(";\n\n"), *COLUMNS.split(";\n\n")):
        op.execute(statement)
    for table, column in PACKED:
        op.execute(f"ALTER TABLE {table} ALTER COLUMN {column} SET STORAGE EXTERNAL")
    for table in TENANT_TABLES:
        op.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
        op.execute(f"ALTER TABLE {table} FORCE ROW LEVEL SECURITY")
        op.execute(POLICY.format(table=table))
        op.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON {table} TO flowledger_service")
    op.execute("GRANT SELECT, INSERT, DELETE ON tenants TO flowledger_service")
    op.execute("GRANT UPDATE (kek_id) ON installation TO flowledger_service")
    # Row level security binds the owner too, and would show it no flow at all.
    op.execute("ALTER TABLE flows NO FORCE ROW LEVEL SECURITY")
    op.execute(
        "INSERT INTO tenants SELECT client_account_id, engagement_id, min(create_time) FROM flows GROUP BY client_account_id, engagement_id"
    )
    op.execute("ALTER TABLE flows FORCE ROW LEVEL SECURITY")


def downgrade() -> None:
    """Drop what upgrade made. Links of the audit chain that were made since are then no longer known to be of format 2."""
    for table in (*reversed(TENANT_TABLES), "tenants"):
        op.execute(f"DROP TABLE {table}")
    for statement in UNDONE.split(";\n\n"):
        op.execute(statement)
