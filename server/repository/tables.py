"""The tables, as the migrated schema has them; tests compare the two by `pg_dump`.

Every tenant table's key begins with the tenant. CHECK constraints repeat the invariants of ``statemachine``: what gets past the
rules by mistake does not get past the database.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from sqlalchemy import (
    ARRAY,
    BigInteger,
    CheckConstraint,
    Column,
    Double,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    PrimaryKeyConstraint,
    SmallInteger,
    Table,
    Text,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB, UUID

from server.repository.admin_tables import ADMIN_TABLES
from server.repository.checkpoint_tables import CHECKPOINT_TABLES
from server.repository.history_tables import HISTORY_TABLES
from server.repository.table_parts import FLOW_KEY, TENANT_KEY, TIME, flow_columns, hashed, metadata, one_of, tenant_columns
from server.statemachine.graphs import BUILT_IN
from server.statemachine.states import FlowHold, FlowStatus, PhaseState
from server.statemachine.values import ActivityKind, DocumentName

# The role that owns rights on the tenant tables; whoever the service connects as is a member.
SERVICE_ROLE = "flowledger_service"
# The transaction-local setting that row level security reads: the tenants whose rows the transaction may touch.
TENANTS_SETTING = "flowledger.tenants"

ACTIVITY_SLOTS = 100

flows = Table(
    "flows",
    metadata,
    *flow_columns(),
    Column("revision", BigInteger, nullable=False),
    Column("progress", Double, nullable=False),
    Column("create_time", TIME, nullable=False),
    Column("update_time", TIME, nullable=False),
    Column("end_time", TIME),
    Column("delete_time", TIME),
    Column("type", Text, nullable=False),
    Column("status", Text, nullable=False),
    Column("hold", Text, nullable=False),
    Column("hold_reason", Text, nullable=False),
    Column("display_name", Text, nullable=False),
    Column("created_by", Text, nullable=False),
    Column("updated_by", Text, nullable=False),
    Column("current_child", Text, nullable=False),
    Column("current_phases", ARRAY(Text), nullable=False),
    Column("labels", JSONB, nullable=False),
    Column("totals", ARRAY(BigInteger), nullable=False),
    Column("head_hash", LargeBinary, nullable=False),
    Column("origin_flow_id", UUID),
    Column("origin_revision", BigInteger),
    PrimaryKeyConstraint(*FLOW_KEY, name="flows_pkey"),
    CheckConstraint("revision >= 1", name="flows_revision_check"),
    CheckConstraint("progress >= 0 AND progress <= 100", name="flows_progress_check"),
    CheckConstraint(one_of("status", FlowStatus), name="flows_status_check"),
    CheckConstraint(one_of("hold", FlowHold), name="flows_hold_check"),
    CheckConstraint("hold <> 'CANCELLED' OR status = 'CANCELLED'", name="flows_cancelled_check"),
    CheckConstraint("status <> 'COMPLETED' OR progress = 100", name="flows_completed_check"),
    CheckConstraint("(end_time IS NOT NULL) = (status IN ('COMPLETED', 'FAILED', 'CANCELLED'))", name="flows_end_check"),
    # Not array_length: of an empty array that is NULL, and NULL passes.
    CheckConstraint(f"cardinality(totals) = {len(ActivityKind)}", name="flows_totals_check"),
    hashed("flows", "head_hash"),
    CheckConstraint("(origin_flow_id IS NULL) = (origin_revision IS NULL)", name="flows_origin_check"),
    # The order of ListFlows: a column that never changes, so that updates stay HOT. Partial, so that only lists can use it: while the table
    # is new, and so empty, PostgreSQL takes it for as good as the primary key, and goes on with that plan.
    Index("flows_create_time_idx", *TENANT_KEY, "create_time", "flow_id", postgresql_where=text("delete_time IS NULL")),
    postgresql_with={"fillfactor": "70"},
)

_STATES_KNOWN = " && ".join(f'@.state != "{state.name}"' for state in PhaseState)


def _child_table(name: str, type_check: str) -> Table:
    return Table(
        name,
        metadata,
        *flow_columns(),
        Column("child_flow_id", UUID, nullable=False),
        Column("progress", Double, nullable=False),
        Column("create_time", TIME, nullable=False),
        Column("update_time", TIME, nullable=False),
        Column("definition_version", Integer, nullable=False),
        Column("type", Text, nullable=False),
        Column("status", Text, nullable=False),
        Column("phases", JSONB, nullable=False),
        PrimaryKeyConstraint(*FLOW_KEY, "type", name=f"{name}_pkey"),
        ForeignKeyConstraint(FLOW_KEY, [f"flows.{column}" for column in FLOW_KEY], name=f"{name}_flow_fkey"),
        CheckConstraint(type_check, name=f"{name}_type_check"),
        CheckConstraint("progress >= 0 AND progress <= 100", name=f"{name}_progress_check"),
        CheckConstraint(one_of("status", FlowStatus), name=f"{name}_status_check"),
        CheckConstraint(
            f"NOT jsonb_path_exists(phases, '$[*] ? (!exists(@.state) || ({_STATES_KNOWN}))')",
            name=f"{name}_phases_check",
        ),
        postgresql_with={"fillfactor": "70"},
    )


# One table for each built-in domain and one for tenants' own types; the statement is chosen by type.
# benchmarks/results has what LIST partitions of one parent would cost instead.
CUSTOM = "custom"
children: Mapping[str, Table] = MappingProxyType(
    {
        **{name: _child_table(f"{name}_flows", f"type = '{name}'") for name in BUILT_IN},
        CUSTOM: _child_table("custom_flows", f"type NOT IN ({', '.join(repr(name) for name in BUILT_IN)})"),
    }
)

documents = Table(
    "documents",
    metadata,
    *flow_columns(),
    Column("revision", BigInteger, nullable=False),
    Column("size", Integer, nullable=False),
    Column("name", Text, nullable=False),
    Column("child_type", Text, nullable=False),
    Column("sha256", LargeBinary, nullable=False),
    Column("body", LargeBinary, nullable=False),
    # How many versions there were, this one included: every so many one is kept whole.
    Column("number", Integer, nullable=False, server_default=text("1")),
    PrimaryKeyConstraint(*FLOW_KEY, "name", "child_type", name="documents_pkey"),
    ForeignKeyConstraint(FLOW_KEY, [f"flows.{column}" for column in FLOW_KEY], name="documents_flow_fkey"),
    CheckConstraint("revision >= 1", name="documents_revision_check"),
    CheckConstraint("size >= 2", name="documents_size_check"),
    CheckConstraint(f"name IN ({', '.join(repr(name.value) for name in DocumentName)})", name="documents_name_check"),
    CheckConstraint("(name = 'data') = (child_type <> '')", name="documents_child_type_check"),
    hashed("documents", "sha256"),
)

# No foreign key: its check would lock the flow's row a second time in every commit.
events = Table(
    "events",
    metadata,
    *flow_columns(),
    Column("revision", BigInteger, nullable=False),
    Column("time", TIME, nullable=False),
    Column("actor", Text, nullable=False),
    Column("body", Text, nullable=False),
    Column("hash", LargeBinary, nullable=False),
    # How the hash is made; what was written before there was a second way has the first.
    Column("format", SmallInteger, nullable=False, server_default=text("1")),
    # The SHA-256 of what the event said, once that was erased.
    Column("content_sha256", LargeBinary),
    # Its place among all of the tenant's events: the transaction that wrote it, see feed.py.
    Column("position", BigInteger, nullable=False, server_default=text("((pg_current_xact_id())::text)::bigint")),
    PrimaryKeyConstraint(*FLOW_KEY, "revision", name="events_pkey"),
    CheckConstraint("revision >= 1", name="events_revision_check"),
    hashed("events", "hash"),
    hashed("events", "content_sha256"),
    CheckConstraint("content_sha256 IS NULL OR (body = '' AND actor = '')", name="events_erased_check"),
    Index("events_position_idx", *TENANT_KEY, "position", "flow_id", "revision"),
)

# The highest position of any event of the tenant that was removed. A trigger on ``events`` keeps it.
removals = Table(
    "removals",
    metadata,
    *tenant_columns(),
    Column("position", BigInteger, nullable=False),
    PrimaryKeyConstraint(*TENANT_KEY, name="removals_pkey"),
)

# What a request id was answered, kept longer than the flow: it has no foreign key, and it holds the whole answer.
requests = Table(
    "requests",
    metadata,
    *tenant_columns(),
    Column("request_id", UUID, nullable=False),
    Column("flow_id", UUID, nullable=False),
    Column("create_time", TIME, nullable=False),
    Column("payload_hash", LargeBinary, nullable=False),
    Column("answer", LargeBinary, nullable=False),
    PrimaryKeyConstraint(*TENANT_KEY, "request_id", name="requests_pkey"),
    hashed("requests", "payload_hash"),
)

# A ring for each kind: entry number n lies in slot (n - 1) % 100, so the cap holds by the key and the total is the highest sequence.
activity = Table(
    "activity",
    metadata,
    *flow_columns(),
    Column("sequence", BigInteger, nullable=False),
    Column("time", TIME, nullable=False),
    Column("kind", SmallInteger, nullable=False),
    Column("slot", SmallInteger, nullable=False),
    Column("actor", Text, nullable=False),
    Column("body", Text, nullable=False),
    PrimaryKeyConstraint(*FLOW_KEY, "kind", "slot", name="activity_pkey"),
    CheckConstraint(f"kind >= 1 AND kind <= {len(ActivityKind)}", name="activity_kind_check"),
    CheckConstraint(f"sequence >= 1 AND slot = (sequence - 1) % {ACTIVITY_SLOTS}", name="activity_slot_check"),
    postgresql_with={"fillfactor": "80"},
)

TENANT_TABLES: tuple[Table, ...] = (
    flows,
    *children.values(),
    documents,
    events,
    removals,
    requests,
    activity,
    *HISTORY_TABLES,
    *CHECKPOINT_TABLES,
    *ADMIN_TABLES,
)

# What every process on one database shares; holds nothing of any tenant.
installation = Table(
    "installation",
    metadata,
    Column("singleton", Integer, nullable=False, server_default=text("1")),
    Column("token_key", LargeBinary, nullable=False),
    # Which key-encryption key the tenants' keys are wrapped with: a server that has another one must not serve.
    Column("kek_id", Text),
    # Added to a transaction's number to make a position of it, and the cluster whose transactions are numbered: those of another one, which
    # the database was restored into, begin again.
    Column("position_base", BigInteger, nullable=False, server_default=text("0")),
    Column("cluster_id", BigInteger),
    PrimaryKeyConstraint("singleton", name="installation_pkey"),
    CheckConstraint("singleton = 1", name="installation_singleton_check"),
    CheckConstraint("octet_length(token_key) = 32", name="installation_token_key_check"),
)
