"""How the tables lie on a Citus cluster: all that belongs to a client account on one node, found by the first column of every key."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Table

from server.repository.table_parts import TENANT_KEY, metadata
from server.repository.tables import flows

COLUMN = TENANT_KEY[0]


def distributed() -> Sequence[Table]:
    """Every table whose rows belong to a tenant, each after those that it refers to; the first is the one that the others lie beside."""
    return [flows, *(table for table in metadata.sorted_tables if COLUMN in table.c and table is not flows)]


def replicated() -> Sequence[Table]:
    """Every other table: each node has all of it."""
    return [table for table in metadata.sorted_tables if COLUMN not in table.c]


def statements() -> Sequence[str]:
    """What Citus is told, each a transaction of its own; to tell it again what it knows changes nothing."""
    return [
        *(_told(table, f"create_reference_table('{table.name}')") for table in replicated()),
        *(
            _told(table, f"create_distributed_table('{table.name}', '{COLUMN}', colocate_with => '{_beside(table)}')")
            for table in distributed()
        ),
    ]


def _beside(table: Table) -> str:
    return "none" if table is flows else flows.name


def _told(table: Table, call: str) -> str:
    return f"SELECT {call} WHERE NOT EXISTS (SELECT FROM pg_dist_partition WHERE logicalrelid = '{table.name}'::regclass)"
