"""Every statement that reaches PostgreSQL while every RPC is called, as PostgreSQL's own log has it: each keeps to its tenant's key."""

from __future__ import annotations

import re
from uuid import uuid4

import asyncpg
import grpc
import pytest

from server import app
from server.repository import distribution
from server.repository.table_parts import metadata
from tests.cluster import Cluster
from tests.conftest import Urls, settings
from tests.repository.plan import TENANT_TABLE_NAMES, scans_and_insertions
from tests.services.calls import CALLS
from tests.tenancy import Tenancy

# A message of the log: its first line, and those that begin with a tab.
_LOGGED = re.compile(r"^\d[^\n]*\[\d+\] LOG:  (?:execute [^:\n]*|statement): ([^\n]*(?:\n\t[^\n]*)*)", re.MULTILINE)
_TABLES = re.compile(rf"\b(?:FROM|JOIN|INTO|UPDATE|ONLY)\s+({'|'.join(table.name for table in metadata.sorted_tables)})\b")


@pytest.fixture
def logged(postgres: Cluster, urls: Urls) -> Urls:
    """A database all of whose statements are logged, and no other's."""
    postgres.run(f"ALTER DATABASE {urls.name} SET log_statement = 'all'")
    return urls


async def test_every_statement_of_every_rpc_names_the_tenants_key(postgres: Cluster, logged: Urls, shared_urls: Urls) -> None:
    log = postgres.directory / "log"
    known = log.stat().st_size
    async with app.running(settings(logged, watch_poll_seconds=0.05)) as server, grpc.aio.insecure_channel(server.address) as channel:
        tenancy = Tenancy.fresh(channel)
        for call in CALLS.values():
            await call.send(tenancy, await call.prepare(tenancy))
            if call.mutates:
                await call.send(tenancy, await call.prepare(tenancy), request_id=str(uuid4()))
    with log.open("rb") as opened:
        opened.seek(known)
        text = opened.read().decode("utf-8")
    found = {" ".join(match.group(1).split()) for match in _LOGGED.finditer(text)}
    ours = {statement: tables for statement in found if (tables := set(_TABLES.findall(statement)))}
    service = await asyncpg.connect(shared_urls.service)
    try:
        for statement, tables in ours.items():
            scans, insertions = await scans_and_insertions(service, statement, _values(statement))
            assert {scan.table for scan in scans} | {insertion.table for insertion in insertions} >= tables & TENANT_TABLE_NAMES, statement
            assert [scan for scan in scans if not (scan.guarded and scan.of_one_tenant)] == [], statement
            assert [insertion for insertion in insertions if not insertion.guarded] == [], statement
    finally:
        await service.close()
    touching = [statement for statement, tables in ours.items() if tables & TENANT_TABLE_NAMES]
    assert len(touching) > len(CALLS) / 2  # the log was read rightly: RPCs share statements, but not so many
    assert any("INSERT INTO events" in statement for statement in touching)
    assert {table.name for table in distribution.distributed()} >= set().union(*ours.values()) - {"installation"}


def _values(statement: str) -> int:
    return max((int(number) for number in re.findall(r"\$(\d+)", statement)), default=0)
