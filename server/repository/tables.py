"""The tables, as the migrated schema has them; tests compare the two by `pg_dump`.

Every tenant table's key begins with the tenant. CHECK constraints repeat the invariants of ``statemachine``: what gets past the
rules by mistake does not get past the database.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import Enum
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
    MetaData,
    PrimaryKeyConstraint,
    SmallInteger,
    Table,
    Text,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB, TIMESTAMP, UUID

from server.statemachine.graphs import BUILT_IN
from server.statemachine.states import FlowHold, FlowStatus, PhaseState
from server.statemachine.values import ActivityKind, DocumentName

metadata = MetaData()

# The role that owns rights on the tenant tables; whoever the service connects as is a member.
SERVICE_ROLE = "flowledger_service"
# The transaction-local setting that row level security reads: the tenants whose rows the transaction may touch.
TENANTS_SETTING = "flowledger.tenants"

HASH_BYTES = 32
ACTIVITY_SLOTS = 100


def _one_of(column: str, members: Iterable[Enum]) -> str:
    return f"{column} IN ({', '.join(repr(member.name) for member in members)})"


def _tenant() -> list[Column[object]]:
    return [Column("client_account_id", UUID, nullable=False), Column("engagement_id", UUID, nullable=False)]


TENANT_KEY = ("client_account_id", "engagement_id")
FLOW_KEY = (*TENANT_KEY, "flow_id")

_TIME = TIMESTAMP(timezone=True)

flows = Table(
    "flows",
    metadata,
    *_tenant(),
    Column("flow_id", UUID, nullable=False),
    Column("revision", BigInteger, nullable=False),
    Column("progress", Double, nullable=False),
    Column("create_time", _TIME, nullable=False),
    Column("update_time", _TIME, nullable=False),
    Column("end_time", _TIME),
    Column("delete_time", _TIME),
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
    PrimaryKeyConstraint(*FLOW_KEY, name="flows_pkey"),
    CheckConstraint("revision >= 1", name="flows_revision_check"),
    CheckConstraint("progress >= 0 AND progress <= 100", name="flows_progress_check"),
    CheckConstraint(_one_of("status", FlowStatus), name="flows_status_check"),
    CheckConstraint(_one_of("hold", FlowHold), name="flows_hold_check"),
    CheckConstraint("hold <> 'CANCELLED' OR status = 'CANCELLED'", name="flows_cancelled_check"),
    CheckConstraint("status <> 'COMPLETED' OR progress = 100", name="flows_completed_check"),
    CheckConstraint("(end_time IS NOT NULL) = (status IN ('COMPLETED', 'FAILED', 'CANCELLED'))", name="flows_end_check"),
    # Not array_length: of an empty array that is NULL, and NULL passes.
    CheckConstraint(f"cardinality(totals) = {len(ActivityKind)}", name="flows_totals_check"),
    CheckConstraint(f"octet_length(head_hash) = {HASH_BYTES}", name="flows_head_hash_check"),
    # The order of ListFlows: a column that never changes, so that updates stay HOT.
    Index("flows_create_time_idx", *TENANT_KEY, "create_time", "flow_id"),
    postgresql_with={"fillfactor": "70"},
)

_STATES_KNOWN = " && ".join(f'@.state != "{state.name}"' for state in PhaseState)


def _child_table(name: str, type_check: str) -> Table:
    return Table(
        name,
        metadata,
        *_tenant(),
        Column("flow_id", UUID, nullable=False),
        Column("child_flow_id", UUID, nullable=False),
        Column("progress", Double, nullable=False),
        Column("create_time", _TIME, nullable=False),
        Column("update_time", _TIME, nullable=False),
        Column("definition_version", Integer, nullable=False),
        Column("type", Text, nullable=False),
        Column("status", Text, nullable=False),
        Column("phases", JSONB, nullable=False),
        PrimaryKeyConstraint(*FLOW_KEY, "type", name=f"{name}_pkey"),
        ForeignKeyConstraint(FLOW_KEY, [f"flows.{column}" for column in FLOW_KEY], name=f"{name}_flow_fkey"),
        CheckConstraint(type_check, name=f"{name}_type_check"),
        CheckConstraint("progress >= 0 AND progress <= 100", name=f"{name}_progress_check"),
        CheckConstraint(_one_of("status", FlowStatus), name=f"{name}_status_check"),
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
    *_tenant(),
    Column("flow_id", UUID, nullable=False),
    Column("revision", BigInteger, nullable=False),
    Column("size", Integer, nullable=False),
    Column("name", Text, nullable=False),
    Column("child_type", Text, nullable=False),
    Column("sha256", LargeBinary, nullable=False),
    Column("body", LargeBinary, nullable=False),
    PrimaryKeyConstraint(*FLOW_KEY, "name", "child_type", name="documents_pkey"),
    ForeignKeyConstraint(FLOW_KEY, [f"flows.{column}" for column in FLOW_KEY], name="documents_flow_fkey"),
    CheckConstraint("revision >= 1", name="documents_revision_check"),
    CheckConstraint("size >= 2", name="documents_size_check"),
    CheckConstraint(f"name IN ({', '.join(repr(name.value) for name in DocumentName)})", name="documents_name_check"),
    CheckConstraint("(name = 'data') = (child_type <> '')", name="documents_child_type_check"),
    CheckConstraint(f"octet_length(sha256) = {HASH_BYTES}", name="documents_sha256_check"),
)

# No foreign key: its check would lock the flow's row a second time in every commit.
events = Table(
    "events",
    metadata,
    *_tenant(),
    Column("flow_id", UUID, nullable=False),
    Column("revision", BigInteger, nullable=False),
    Column("time", _TIME, nullable=False),
    Column("actor", Text, nullable=False),
    Column("body", Text, nullable=False),
    Column("hash", LargeBinary, nullable=False),
    PrimaryKeyConstraint(*FLOW_KEY, "revision", name="events_pkey"),
    CheckConstraint("revision >= 1", name="events_revision_check"),
    CheckConstraint(f"octet_length(hash) = {HASH_BYTES}", name="events_hash_check"),
)

# What a request id was answered, kept longer than the flow: it has no foreign key, and it holds the whole answer.
requests = Table(
    "requests",
    metadata,
    *_tenant(),
    Column("request_id", UUID, nullable=False),
    Column("flow_id", UUID, nullable=False),
    Column("create_time", _TIME, nullable=False),
    Column("payload_hash", LargeBinary, nullable=False),
    Column("answer", LargeBinary, nullable=False),
    PrimaryKeyConstraint(*TENANT_KEY, "request_id", name="requests_pkey"),
    CheckConstraint(f"octet_length(payload_hash) = {HASH_BYTES}", name="requests_payload_hash_check"),
)

# A ring for each kind: entry number n lies in slot (n - 1) % 100, so the cap holds by the key and the total is the highest sequence.
activity = Table(
    "activity",
    metadata,
    *_tenant(),
    Column("flow_id", UUID, nullable=False),
    Column("sequence", BigInteger, nullable=False),
    Column("time", _TIME, nullable=False),
    Column("kind", SmallInteger, nullable=False),
    Column("slot", SmallInteger, nullable=False),
    Column("actor", Text, nullable=False),
    Column("body", Text, nullable=False),
    PrimaryKeyConstraint(*FLOW_KEY, "kind", "slot", name="activity_pkey"),
    CheckConstraint(f"kind >= 1 AND kind <= {len(ActivityKind)}", name="activity_kind_check"),
    CheckConstraint(f"sequence >= 1 AND slot = (sequence - 1) % {ACTIVITY_SLOTS}", name="activity_slot_check"),
    postgresql_with={"fillfactor": "80"},
)

TENANT_TABLES: tuple[Table, ...] = (flows, *children.values(), documents, events, requests, activity)

# What every process on one database shares; holds nothing of any tenant.
installation = Table(
    "installation",
    metadata,
    Column("singleton", Integer, nullable=False, server_default=text("1")),
    Column("token_key", LargeBinary, nullable=False),
    PrimaryKeyConstraint("singleton", name="installation_pkey"),
    CheckConstraint("singleton = 1", name="installation_singleton_check"),
    CheckConstraint("octet_length(token_key) = 32", name="installation_token_key_check"),
)
