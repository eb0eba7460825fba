# ruff: noqa: E501 - frozen DDL, as it was rendered
"""The first schema: flows and their children, documents, events, request ids, activity; row level security on all of them.

Frozen: the names and constraints of this day, whatever the modules say later.
"""

from __future__ import annotations

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

TENANT_TABLES = (
    "flows",
    "discovery_flows",
    "assessment_flows",
    "planning_flows",
    "execution_flows",
    "custom_flows",
    "documents",
    "events",
    "requests",
    "activity",
)

ROLE = """
DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'flowledger_service') THEN
        CREATE ROLE flowledger_service NOLOGIN;
    END IF;
EXCEPTION
    -- Roles belong to the whole cluster: another database may be migrated at the same moment.
    WHEN duplicate_object OR unique_violation THEN NULL;
END
$$
"""

DDL = """
CREATE TABLE activity (
    client_account_id UUID NOT NULL,
    engagement_id UUID NOT NULL,
    flow_id UUID NOT NULL,
    sequence BIGINT NOT NULL,
    time TIMESTAMP WITH TIME ZONE NOT NULL,
    kind SMALLINT NOT NULL,
    slot SMALLINT NOT NULL,
    actor TEXT NOT NULL,
    body TEXT NOT NULL,
    CONSTRAINT activity_pkey PRIMARY KEY (client_account_id, engagement_id, flow_id, kind, slot),
    CONSTRAINT activity_kind_check CHECK (kind >= 1 AND kind <= 7),
    CONSTRAINT activity_slot_check CHECK (sequence >= 1 AND slot = (sequence - 1) % 100)
)
 WITH (fillfactor = 80);

CREATE TABLE events (
    client_account_id UUID NOT NULL,
    engagement_id UUID NOT NULL,
    flow_id UUID NOT NULL,
    revision BIGINT NOT NULL,
    time TIMESTAMP WITH TIME ZONE NOT NULL,
    actor TEXT NOT NULL,
    body TEXT NOT NULL,
    hash BYTEA NOT NULL,
    CONSTRAINT events_pkey PRIMARY KEY (client_account_id, engagement_id, flow_id, revision),
    CONSTRAINT events_revision_check CHECK (revision >= 1),
    CONSTRAINT events_hash_check CHECK (octet_length(hash) = 32)
);

CREATE TABLE flows (
    client_account_id UUID NOT NULL,
    engagement_id UUID NOT NULL,
    flow_id UUID NOT NULL,
    revision BIGINT NOT NULL,
    progress DOUBLE PRECISION NOT NULL,
    create_time TIMESTAMP WITH TIME ZONE NOT NULL,
    update_time TIMESTAMP WITH TIME ZONE NOT NULL,
    end_time TIMESTAMP WITH TIME ZONE,
    delete_time TIMESTAMP WITH TIME ZONE,
    type TEXT NOT NULL,
    status TEXT NOT NULL,
    hold TEXT NOT NULL,
    hold_reason TEXT NOT NULL,
    display_name TEXT NOT NULL,
    created_by TEXT NOT NULL,
    updated_by TEXT NOT NULL,
    current_child TEXT NOT NULL,
    current_phases TEXT[] NOT NULL,
    labels JSONB NOT NULL,
    totals BIGINT[] NOT NULL,
    head_hash BYTEA NOT NULL,
    CONSTRAINT flows_pkey PRIMARY KEY (client_account_id, engagement_id, flow_id),
    CONSTRAINT flows_revision_check CHECK (revision >= 1),
    CONSTRAINT flows_progress_check CHECK (progress >= 0 AND progress <= 100),
    CONSTRAINT flows_status_check CHECK (status IN ('INITIALIZED', 'DATA_GATHERING', 'DISCOVERY', 'ASSESSMENT_READY', 'PLANNING', 'ACTIVE', 'WAITING_APPROVAL', 'RETRY_PENDING', 'ERROR_RECOVERY', 'FAILED', 'COMPLETED', 'PAUSED', 'CANCELLED')),
    CONSTRAINT flows_hold_check CHECK (hold IN ('NONE', 'RECOVERING', 'PAUSED', 'CANCELLED')),
    CONSTRAINT flows_cancelled_check CHECK (hold <> 'CANCELLED' OR status = 'CANCELLED'),
    CONSTRAINT flows_completed_check CHECK (status <> 'COMPLETED' OR progress = 100),
    CONSTRAINT flows_end_check CHECK ((end_time IS NOT NULL) = (status IN ('COMPLETED', 'FAILED', 'CANCELLED'))),
    CONSTRAINT flows_totals_check CHECK (cardinality(totals) = 7),
    CONSTRAINT flows_head_hash_check CHECK (octet_length(head_hash) = 32)
)
 WITH (fillfactor = 70);

CREATE INDEX flows_create_time_idx ON flows (client_account_id, engagement_id, create_time, flow_id);

CREATE TABLE installation (
    singleton INTEGER DEFAULT 1 NOT NULL,
    token_key BYTEA NOT NULL,
    CONSTRAINT installation_pkey PRIMARY KEY (singleton),
    CONSTRAINT installation_singleton_check CHECK (singleton = 1),
    CONSTRAINT installation_token_key_check CHECK (octet_length(token_key) = 32)
);

CREATE TABLE requests (
    client_account_id UUID NOT NULL,
    engagement_id UUID NOT NULL,
    request_id UUID NOT NULL,
    flow_id UUID NOT NULL,
    create_time TIMESTAMP WITH TIME ZONE NOT NULL,
    payload_hash BYTEA NOT NULL,
    answer BYTEA NOT NULL,
    CONSTRAINT requests_pkey PRIMARY KEY (client_account_id, engagement_id, request_id),
    CONSTRAINT requests_payload_hash_check CHECK (octet_length(payload_hash) = 32)
);

CREATE TABLE assessment_flows (
    client_account_id UUID NOT NULL,
    engagement_id UUID NOT NULL,
    flow_id UUID NOT NULL,
    child_flow_id UUID NOT NULL,
    progress DOUBLE PRECISION NOT NULL,
    create_time TIMESTAMP WITH TIME ZONE NOT NULL,
    update_time TIMESTAMP WITH TIME ZONE NOT NULL,
    definition_version INTEGER NOT NULL,
    type TEXT NOT NULL,
    status TEXT NOT NULL,
    phases JSONB NOT NULL,
    CONSTRAINT assessment_flows_pkey PRIMARY KEY (client_account_id, engagement_id, flow_id, type),
    CONSTRAINT assessment_flows_flow_fkey FOREIGN KEY(client_account_id, engagement_id, flow_id) REFERENCES flows (client_account_id, engagement_id, flow_id),
    CONSTRAINT assessment_flows_type_check CHECK (type = 'assessment'),
    CONSTRAINT assessment_flows_progress_check CHECK (progress >= 0 AND progress <= 100),
    CONSTRAINT assessment_flows_status_check CHECK (status IN ('INITIALIZED', 'DATA_GATHERING', 'DISCOVERY', 'ASSESSMENT_READY', 'PLANNING', 'ACTIVE', 'WAITING_APPROVAL', 'RETRY_PENDING', 'ERROR_RECOVERY', 'FAILED', 'COMPLETED', 'PAUSED', 'CANCELLED')),
    CONSTRAINT assessment_flows_phases_check CHECK (NOT jsonb_path_exists(phases, '$[*] ? (!exists(@.state) || (@.state != "NOT_STARTED" && @.state != "IN_PROGRESS" && @.state != "WAITING_VALIDATION" && @.state != "WAITING_APPROVAL" && @.state != "COMPLETED" && @.state != "FAILED" && @.state != "RETRY_NEEDED" && @.state != "ROLLED_BACK"))'))
)
 WITH (fillfactor = 70);

CREATE TABLE custom_flows (
    client_account_id UUID NOT NULL,
    engagement_id UUID NOT NULL,
    flow_id UUID NOT NULL,
    child_flow_id UUID NOT NULL,
    progress DOUBLE PRECISION NOT NULL,
    create_time TIMESTAMP WITH TIME ZONE NOT NULL,
    update_time TIMESTAMP WITH TIME ZONE NOT NULL,
    definition_version INTEGER NOT NULL,
    type TEXT NOT NULL,
    status TEXT NOT NULL,
    phases JSONB NOT NULL,
    CONSTRAINT custom_flows_pkey PRIMARY KEY (client_account_id, engagement_id, flow_id, type),
    CONSTRAINT custom_flows_flow_fkey FOREIGN KEY(client_account_id, engagement_id, flow_id) REFERENCES flows (client_account_id, engagement_id, flow_id),
    CONSTRAINT custom_flows_type_check CHECK (type NOT IN ('discovery', 'assessment', 'planning', 'execution')),
    CONSTRAINT custom_flows_progress_check CHECK (progress >= 0 AND progress <= 100),
    CONSTRAINT custom_flows_status_check CHECK (status IN ('INITIALIZED', 'DATA_GATHERING', 'DISCOVERY', 'ASSESSMENT_READY', 'PLANNING', 'ACTIVE', 'WAITING_APPROVAL', 'RETRY_PENDING', 'ERROR_RECOVERY', 'FAILED', 'COMPLETED', 'PAUSED', 'CANCELLED')),
    CONSTRAINT custom_flows_phases_check CHECK (NOT jsonb_path_exists(phases, '$[*] ? (!exists(@.state) || (@.state != "NOT_STARTED" && @.state != "IN_PROGRESS" && @.state != "WAITING_VALIDATION" && @.state != "WAITING_APPROVAL" && @.state != "COMPLETED" && @.state != "FAILED" && @.state != "RETRY_NEEDED" && @.state != "ROLLED_BACK"))'))
)
 WITH (fillfactor = 70);

CREATE TABLE discovery_flows (
    client_account_id UUID NOT NULL,
    engagement_id UUID NOT NULL,
    flow_id UUID NOT NULL,
    child_flow_id UUID NOT NULL,
    progress DOUBLE PRECISION NOT NULL,
    create_time TIMESTAMP WITH TIME ZONE NOT NULL,
    update_time TIMESTAMP WITH TIME ZONE NOT NULL,
    definition_version INTEGER NOT NULL,
    type TEXT NOT NULL,
    status TEXT NOT NULL,
    phases JSONB NOT NULL,
    CONSTRAINT discovery_flows_pkey PRIMARY KEY (client_account_id, engagement_id, flow_id, type),
    CONSTRAINT discovery_flows_flow_fkey FOREIGN KEY(client_account_id, engagement_id, flow_id) REFERENCES flows (client_account_id, engagement_id, flow_id),
    CONSTRAINT discovery_flows_type_check CHECK (type = 'discovery'),
    CONSTRAINT discovery_flows_progress_check CHECK (progress >= 0 AND progress <= 100),
    CONSTRAINT discovery_flows_status_check CHECK (status IN ('INITIALIZED', 'DATA_GATHERING', 'DISCOVERY', 'ASSESSMENT_READY', 'PLANNING', 'ACTIVE', 'WAITING_APPROVAL', 'RETRY_PENDING', 'ERROR_RECOVERY', 'FAILED', 'COMPLETED', 'PAUSED', 'CANCELLED')),
    CONSTRAINT discovery_flows_phases_check CHECK (NOT jsonb_path_exists(phases, '$[*] ? (!exists(@.state) || (@.state != "NOT_STARTED" && @.state != "IN_PROGRESS" && @.state != "WAITING_VALIDATION" && @.state != "WAITING_APPROVAL" && @.state != "COMPLETED" && @.state != "FAILED" && @.state != "RETRY_NEEDED" && @.state != "ROLLED_BACK"))'))
)
 WITH (fillfactor = 70);

CREATE TABLE documents (
    client_account_id UUID NOT NULL,
    engagement_id UUID NOT NULL,
    flow_id UUID NOT NULL,
    revision BIGINT NOT NULL,
    size INTEGER NOT NULL,
    name TEXT NOT NULL,
    child_type TEXT NOT NULL,
    sha256 BYTEA NOT NULL,
    body BYTEA NOT NULL,
    CONSTRAINT documents_pkey PRIMARY KEY (client_account_id, engagement_id, flow_id, name, child_type),
    CONSTRAINT documents_flow_fkey FOREIGN KEY(client_account_id, engagement_id, flow_id) REFERENCES flows (client_account_id, engagement_id, flow_id),
    CONSTRAINT documents_revision_check CHECK (revision >= 1),
    CONSTRAINT documents_size_check CHECK (size >= 2),
    CONSTRAINT documents_name_check CHECK (name IN ('state', 'metadata', 'cross_phase_context', 'data')),
    CONSTRAINT documents_child_type_check CHECK ((name = 'data') = (child_type <> '')),
    CONSTRAINT documents_sha256_check CHECK (octet_length(sha256) = 32)
);

CREATE TABLE execution_flows (
    client_account_id UUID NOT NULL,
    engagement_id UUID NOT NULL,
    flow_id UUID NOT NULL,
    child_flow_id UUID NOT NULL,
    progress DOUBLE PRECISION NOT NULL,
    create_time TIMESTAMP WITH TIME ZONE NOT NULL,
    update_time TIMESTAMP WITH TIME ZONE NOT NULL,
    definition_version INTEGER NOT NULL,
    type TEXT NOT NULL,
    status TEXT NOT NULL,
    phases JSONB NOT NULL,
    CONSTRAINT execution_flows_pkey PRIMARY KEY (client_account_id, engagement_id, flow_id, type),
    CONSTRAINT execution_flows_flow_fkey FOREIGN KEY(client_account_id, engagement_id, flow_id) REFERENCES flows (client_account_id, engagement_id, flow_id),
    CONSTRAINT execution_flows_type_check CHECK (type = 'execution'),
    CONSTRAINT execution_flows_progress_check CHECK (progress >= 0 AND progress <= 100),
    CONSTRAINT execution_flows_status_check CHECK (status IN ('INITIALIZED', 'DATA_GATHERING', 'DISCOVERY', 'ASSESSMENT_READY', 'PLANNING', 'ACTIVE', 'WAITING_APPROVAL', 'RETRY_PENDING', 'ERROR_RECOVERY', 'FAILED', 'COMPLETED', 'PAUSED', 'CANCELLED')),
    CONSTRAINT execution_flows_phases_check CHECK (NOT jsonb_path_exists(phases, '$[*] ? (!exists(@.state) || (@.state != "NOT_STARTED" && @.state != "IN_PROGRESS" && @.state != "WAITING_VALIDATION" && @.state != "WAITING_APPROVAL" && @.state != "COMPLETED" && @.state != "FAILED" && @.state != "RETRY_NEEDED" && @.state != "ROLLED_BACK"))'))
)
 WITH (fillfactor = 70);

CREATE TABLE planning_flows (
    client_account_id UUID NOT NULL,
    engagement_id UUID NOT NULL,
    flow_id UUID NOT NULL,
    child_flow_id UUID NOT NULL,
    progress DOUBLE PRECISION NOT NULL,
    create_time TIMESTAMP WITH TIME ZONE NOT NULL,
    update_time TIMESTAMP WITH TIME ZONE NOT NULL,
    definition_version INTEGER NOT NULL,
    type TEXT NOT NULL,
    status TEXT NOT NULL,
    phases JSONB NOT NULL,
    CONSTRAINT planning_flows_pkey PRIMARY KEY (client_account_id, engagement_id, flow_id, type),
    CONSTRAINT planning_flows_flow_fkey FOREIGN KEY(client_account_id, engagement_id, flow_id) REFERENCES flows (client_account_id, engagement_id, flow_id),
    CONSTRAINT planning_flows_type_check CHECK (type = 'planning'),
    CONSTRAINT planning_flows_progress_check CHECK (progress >= 0 AND progress <= 100),
    CONSTRAINT planning_flows_status_check CHECK (status IN ('INITIALIZED', 'DATA_GATHERING', 'DISCOVERY', 'ASSESSMENT_READY', 'PLANNING', 'ACTIVE', 'WAITING_APPROVAL', 'RETRY_PENDING', 'ERROR_RECOVERY', 'FAILED', 'COMPLETED', 'PAUSED', 'CANCELLED')),
    CONSTRAINT planning_flows_phases_check CHECK (NOT jsonb_path_exists(phases, '$[*] ? (!exists(@.state) || (@.state != "NOT_STARTED" && @.state != "IN_PROGRESS" && @.state != "WAITING_VALIDATION" && @.state != "WAITING_APPROVAL" && @.state != "COMPLETED" && @.state != "FAILED" && @.state != "RETRY_NEEDED" && @.state != "ROLLED_BACK"))'))
)
 WITH (fillfactor = 70)
"""

# An unset setting is NULL, or '' once it was set in an earlier transaction: both match no tenant. The sub-select is evaluated once a
# statement, not once a row.
POLICY = """
CREATE POLICY tenant ON {table} USING (
    (client_account_id::text || '/' || engagement_id::text)
        = ANY ((SELECT string_to_array(current_setting('flowledger.tenants', true), ','))::text[])
)
"""


def upgrade() -> None:
    """Make the tables, lock them to their tenants, let the service in."""
    op.execute(ROLE)
    for statement in DDL.split(";\n\n"):
        op.execute(statement)
    # Documents arrive compressed: a second attempt by TOAST would only cost time.
    op.execute("ALTER TABLE documents ALTER COLUMN body SET STORAGE EXTERNAL")
    for table in TENANT_TABLES:
        op.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
        op.execute(f"ALTER TABLE {table} FORCE ROW LEVEL SECURITY")
        op.execute(POLICY.format(table=table))
        op.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON {table} TO flowledger_service")
    # Page tokens are signed with a key that every process on this database shares. 32 bytes from two random UUIDs: 244 random bits.
    op.execute("INSERT INTO installation (token_key) VALUES (uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid()))")
    op.execute("GRANT SELECT ON installation, alembic_version TO flowledger_service")


def downgrade() -> None:
    """Drop the tables; the role stays, other databases of the cluster may use it."""
    for table in (*reversed(TENANT_TABLES), "installation"):
        op.execute(f"DROP TABLE {table}")
