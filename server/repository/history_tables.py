"""Tables of what flows were: bases to rebuild from, and earlier versions of documents."""

from __future__ import annotations

from enum import Enum, unique

from sqlalchemy import BigInteger, CheckConstraint, Column, Integer, LargeBinary, PrimaryKeyConstraint, SmallInteger, Table, Text

from server.repository.table_parts import FLOW_KEY, flow_columns, hashed, metadata


@unique
class VersionKind(Enum):
    """How an earlier version of a document is kept."""

    # As zstd bytes by themselves.
    WHOLE = 1
    # As zstd bytes that need the next version's text as their dictionary.
    DELTA = 2
    # The document was not there from this revision on.
    ABSENT = 3


# The flow and its kept activity at a revision. A signature is there where what came before was compacted.
bases = Table(
    "bases",
    metadata,
    *flow_columns(),
    Column("revision", BigInteger, nullable=False),
    Column("hash", LargeBinary, nullable=False),
    Column("body", LargeBinary, nullable=False),
    Column("signature", LargeBinary),
    PrimaryKeyConstraint(*FLOW_KEY, "revision", name="bases_pkey"),
    CheckConstraint("revision >= 1", name="bases_revision_check"),
    hashed("bases", "hash"),
)

# Every version of a document but the present one, which is in ``documents``.
document_versions = Table(
    "document_versions",
    metadata,
    *flow_columns(),
    Column("revision", BigInteger, nullable=False),
    Column("size", Integer, nullable=False),
    Column("kind", SmallInteger, nullable=False),
    Column("name", Text, nullable=False),
    Column("child_type", Text, nullable=False),
    Column("sha256", LargeBinary, nullable=False),
    Column("body", LargeBinary, nullable=False),
    PrimaryKeyConstraint(*FLOW_KEY, "name", "child_type", "revision", name="document_versions_pkey"),
    CheckConstraint("revision >= 1", name="document_versions_revision_check"),
    CheckConstraint(f"kind >= 1 AND kind <= {len(VersionKind)}", name="document_versions_kind_check"),
    hashed("document_versions", "sha256"),
)

HISTORY_TABLES: tuple[Table, ...] = (bases, document_versions)
