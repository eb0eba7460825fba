"""Query plans, read for two questions: is the gate opened before a tenant's row is touched, and is the tenant part of every key."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import asyncpg

from server.repository.table_parts import TENANT_KEY
from server.repository.tables import TENANT_TABLES

TENANT_TABLE_NAMES = frozenset(table.name for table in TENANT_TABLES)


@dataclass(frozen=True, slots=True)
class Scan:
    """One place of a plan that reads rows of a tenant table."""

    table: str
    node: str
    guarded: bool
    """Whether a One-Time Filter stands above it, in the same part of the plan."""
    key: str
    """By which condition the rows are found."""

    @property
    def of_one_tenant(self) -> bool:
        """Whether the rows are found by the tenant's two ids."""
        return all(f"({column} = " in self.key for column in TENANT_KEY)


@dataclass(frozen=True, slots=True)
class Insertion:
    """One place of a plan that puts rows into a tenant table."""

    table: str
    guarded: bool
    """Whether its rows come from behind a One-Time Filter, or from the flows that moved."""


async def scans_and_insertions(connection: asyncpg.Connection, text: str, values: int) -> tuple[list[Scan], list[Insertion]]:
    """What the statement does in tenant tables, by its generic plan: the one that every call runs."""
    await connection.execute("SET plan_cache_mode = force_generic_plan")
    # The tables of a test are small: without this PostgreSQL would read them whole, which says nothing of a large one.
    await connection.execute("SET enable_seqscan = off; SET enable_hashjoin = off; SET enable_mergejoin = off; SET enable_bitmapscan = off")
    await connection.execute(f"PREPARE explained AS {text}")
    try:
        nothing = f"({', '.join(['NULL'] * values)})" if values else ""
        found = await connection.fetchval(f"EXPLAIN (FORMAT JSON) EXECUTE explained{nothing}")
    finally:
        await connection.execute("DEALLOCATE explained")
    nodes = list(_walk(json.loads(found)[0]["Plan"], False))
    scans = [
        Scan(node["Relation Name"], node["Node Type"], guarded, str(node.get("Index Cond", "")))
        for node, guarded in nodes
        if node.get("Relation Name") in TENANT_TABLE_NAMES and "Scan" in node["Node Type"]
    ]
    insertions = [
        Insertion(node["Relation Name"], guarded or _fed(node))
        for node, guarded in nodes
        if node.get("Operation") == "Insert" and node.get("Relation Name") in TENANT_TABLE_NAMES
    ]
    return scans, insertions


def _walk(node: dict[str, Any], guarded: bool, dependent: bool = False) -> Iterator[tuple[dict[str, Any], bool]]:
    """Every node, and whether a One-Time Filter stands above it. ``dependent``: it runs for a row of a node above it."""
    guarded = guarded or "One-Time Filter" in node
    yield node, guarded
    for child in node.get("Plans", []):
        relation = child.get("Parent Relationship")
        # A CTE or an InitPlan is a part of its own: it runs when it is first needed, whoever stands above it. Only one inside a sub-plan
        # waits for the row that the sub-plan is for.
        within = dependent or relation == "SubPlan"
        yield from _walk(child, guarded and (within or relation != "InitPlan"), within)


def _fed(node: dict[str, Any]) -> bool:
    """Whether what is inserted comes from behind the gate."""
    outer = [child for child in node.get("Plans", []) if child.get("Parent Relationship") == "Outer"]
    below = [found for child in outer for found, _ in _walk(child, False)]
    return any("One-Time Filter" in found or found.get("CTE Name") == "moved" for found in below)
