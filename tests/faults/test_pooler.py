"""Behind a PgBouncer in transaction mode: what it may carry, what it must not, and what happens when it dies."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator, Sized
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import pytest
from typer.testing import CliRunner

from server import app, cli
from server.repository.database import PoolSettings, SchemaError, connected
from server.repository.session import Pooler, Session
from server.statemachine.errors import StoreUnavailable
from server.statemachine.values import Tenant
from tests import pgbouncer as pgbouncers
from tests.cluster import Cluster, account
from tests.conftest import Urls, settings
from tests.faults.audit import audit
from tests.faults.load import assert_each_is_there_once
from tests.faults.outage import Writers, assert_told_to_come_back
from tests.faults.process import connection, serving
from tests.pgbouncer import PgBouncer, pgbouncer
from tests.repository import rows
from tests.tenancy import Tenancy
from tests.waiting import until

pytestmark = pytest.mark.skipif(pgbouncers.EXECUTABLE is None, reason="PgBouncer is not installed (Debian's package pgbouncer)")


@pytest.fixture
def before(postgres: Cluster) -> Iterator[PgBouncer]:
    """A PgBouncer that a test may kill; it has two connections for everybody."""
    with pgbouncer(postgres.directory, account(), "default_pool_size = 2") as running:
        yield running


def through(before: PgBouncer, urls: Urls, **more: object) -> dict[str, object]:
    """The settings of a server behind it."""
    service = {"database_url": before.url(urls.name, "flowledger"), "owner_database_url": urls.owner, "listen_url": urls.service}
    return {**service, "pooler": "transaction", **more}


def session(**more: Any) -> Session:
    return Session(pooler=Pooler.TRANSACTION, **more)


async def test_a_server_with_more_connections_than_the_pooler_serves_everybody(before: PgBouncer, urls: Urls) -> None:
    async with app.running(settings(urls, **through(before, urls, pool_max=20))) as server, connection(server.address) as channel:
        tenancies = [Tenancy.fresh(channel) for _ in range(20)]
        ids = [flow.flow_id for flow in await asyncio.gather(*(tenancy.create() for tenancy in tenancies))]
        moved = [one.move(flow_id, "data_import", "IN_PROGRESS") for one, flow_id in zip(tenancies, ids, strict=True)]
        assert {done.flow.revision for done in await asyncio.gather(*moved)} == {2}
        listed = await asyncio.gather(*(tenancy.call("ListFlows") for tenancy in tenancies))
        assert [[flow.flow_id for flow in page.flows] for page in listed] == [[flow_id] for flow_id in ids]


async def test_hints_reach_other_servers_past_the_pooler(before: PgBouncer, urls: Urls) -> None:
    told = settings(urls, **through(before, urls, watch_poll_seconds=60))
    async with (
        app.running(told) as one,
        app.running(told) as two,
        connection(one.address) as here,
        connection(two.address) as there,
    ):
        tenancy = Tenancy.fresh(here)
        flow_id = (await tenancy.create()).flow_id
        watch = tenancy.on(there).watch(flow_id)
        assert (await watch.read()).HasField("opened")
        assert (await watch.read()).revision == 1
        heard = asyncio.create_task(_next_event(watch))
        async with asyncio.timeout(30):  # the poll comes a minute from now
            while not heard.done():  # until both have heard the other's greeting, hints may be lost
                await tenancy.call("UpdateFlow", flow_id=flow_id, update={"display_name": str(uuid4())})
                await asyncio.wait([heard], timeout=0.2)
        assert await heard == 2
        watch.cancel()


async def _next_event(watch: Any) -> int:
    """The revision of the next message that has an event."""
    while not (message := await watch.read()).HasField("event"):
        pass
    revision: int = message.revision
    return revision


async def test_pgbouncer_killed_and_started_again_under_load_loses_no_acknowledged_commit(
    before: PgBouncer, postgres: Cluster, urls: Urls, tmp_path: Path
) -> None:
    async with serving(tmp_path, **through(before, urls)) as server, connection(server.address) as channel:
        async with Writers.at_work(Tenancy.fresh(channel)) as writers:
            for _ in range(3):
                await writers.more(100)
                before.kill()
                await until(partial(_longer_than, writers.refusals, len(writers.refusals)))
                before.start()
            await writers.more(100)
        assert_told_to_come_back(writers.refusals)
    assert_each_is_there_once(await audit(postgres.url(urls.name, "postgres")), writers.acknowledged)


async def test_limits_and_role_hold_within_each_transaction_and_nothing_stays_on_the_connection(before: PgBouncer, urls: Urls) -> None:
    asked = "SELECT current_setting('statement_timeout'), current_setting('plan_cache_mode'), current_user, current_setting($1, true)"
    pool = PoolSettings(1, 4, session=session(statement_timeout=1.5, role="flowledger_service"))
    tenant = rows.tenant()
    async with connected(before.url(urls.name, "flowledger"), pool) as database:
        for _ in range(6):  # so that each connection of the pooler has had its turn
            async with database.begin([tenant]) as transaction:
                found = await transaction.connection.fetchrow(asked, "flowledger.tenants")
            assert found is not None
            assert tuple(found) == ("1500ms", "force_generic_plan", "flowledger_service", _named(tenant))
    bare = await asyncpg.connect(before.url(urls.name, "flowledger"), statement_cache_size=0)
    try:
        for _ in range(6):
            async with bare.transaction():
                _, plans, role, tenants = (await bare.fetch(asked, "flowledger.tenants"))[0]
            assert (plans, role, tenants or "") == ("auto", "flowledger", "")
    finally:
        await bare.close()


def _longer_than(found: Sized, length: int) -> bool:
    return len(found) > length


def _named(tenant: Tenant) -> str:
    return f"{tenant.client_account_id}/{tenant.engagement_id}"


async def test_a_role_is_quoted() -> None:
    opening = session(role="o'clock; DROP TABLE flows").opening
    assert opening is not None
    assert opening.endswith("SET LOCAL role = 'o''clock; DROP TABLE flows'")


async def test_a_transaction_that_postgresql_rolled_back_is_not_said_to_be_committed(before: PgBouncer, urls: Urls) -> None:
    async with connected(before.url(urls.name, "flowledger"), PoolSettings(1, 2, session=session())) as database:

        async def careless() -> None:
            async with database.begin([rows.tenant()]) as transaction:
                with suppress(asyncpg.DivisionByZeroError):
                    await transaction.connection.execute("SELECT 1/0")

        with pytest.raises(StoreUnavailable, match="rolled the transaction back"):
            await careless()
        await database.check(5.0)


async def test_a_pooler_that_the_settings_do_not_mention_is_refused_with_their_name(before: PgBouncer, urls: Urls, tmp_path: Path) -> None:
    with pytest.raises(SchemaError, match=r"leads to a pooler .*FLOWLEDGER_POOLER=transaction"):
        async with connected(before.url(urls.name, "flowledger"), PoolSettings(1, 2)):
            pass


def test_migrations_are_not_sent_through_the_pooler(before: PgBouncer, urls: Urls) -> None:
    told = {name: value for name, value in through(before, urls).items() if name != "owner_database_url"}
    ended = CliRunner().invoke(cli.app, ["migrate"], env={f"FLOWLEDGER_{name.upper()}": str(value) for name, value in told.items()})
    assert ended.exit_code == 1
    assert re.fullmatch(r"flowledger: FLOWLEDGER_OWNER_DATABASE_URL must name PostgreSQL itself: .*\n", ended.stderr)
