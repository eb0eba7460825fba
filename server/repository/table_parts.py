"""What all tables are made of: the metadata, the tenant's columns and keys, checks on names."""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum

from sqlalchemy import CheckConstraint, Column, MetaData
from sqlalchemy.dialects.postgresql import TIMESTAMP, UUID

metadata = MetaData()

HASH_BYTES = 32
TENANT_KEY = ("client_account_id", "engagement_id")
FLOW_KEY = (*TENANT_KEY, "flow_id")
TIME = TIMESTAMP(timezone=True)


def tenant_columns() -> list[Column[object]]:
    """Whose row it is; the first columns of every tenant table and of its key."""
    return [Column("client_account_id", UUID, nullable=False), Column("engagement_id", UUID, nullable=False)]


def flow_columns() -> list[Column[object]]:
    """Whose flow's row it is."""
    return [*tenant_columns(), Column("flow_id", UUID, nullable=False)]


def one_of(column: str, members: Iterable[Enum]) -> str:
    """The condition that a column holds a member's name."""
    return f"{column} IN ({', '.join(repr(member.name) for member in members)})"


def hashed(table: str, column: str) -> CheckConstraint:
    """The constraint that a column holds a SHA-256."""
    return CheckConstraint(f"octet_length({column}) = {HASH_BYTES}", name=f"{table}_{column}_check")
