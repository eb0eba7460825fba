"""`flowledger compact` does what the policies say, for one tenant or for all, and says what it did."""

from __future__ import annotations

import asyncio
import json
import subprocess
from uuid import UUID

import grpc
from typer.testing import CliRunner

from server import app, cli
from tests.conftest import Urls, settings
from tests.faults.process import STOP_SECONDS, command, database, environment
from tests.repository.store import superuser
from tests.services.administration import call, verified
from tests.tenancy import Tenancy


async def run(urls: Urls, *arguments: str) -> tuple[int, str, str]:
    done = await asyncio.to_thread(
        subprocess.run,
        command("compact", *arguments),
        env=environment(**database(urls)),
        capture_output=True,
        text=True,
        check=False,
        timeout=STOP_SECONDS,
    )
    return done.returncode, done.stdout, done.stderr


async def grown(tenancy: Tenancy) -> str:
    """A flow at revision 20, of which its tenant wants to keep ten."""
    await call(tenancy, "UpdatePolicy", policy={"keep_revisions": 10})
    flow_id = (await tenancy.create()).flow_id
    await tenancy.move(flow_id, "data_import", "IN_PROGRESS")
    for at in range(18):
        await tenancy.call("ReportProgress", flow_id=flow_id, progress={"phase": "data_import", "fraction": at / 100})
    return flow_id


async def test_it_compacts_one_tenants_flows_or_all(urls: Urls) -> None:
    async with app.running(settings(urls)) as server, grpc.aio.insecure_channel(server.address) as channel:
        one, other, damaged = (Tenancy.fresh(channel) for _ in range(3))
        for tenancy in (one, other):
            await grown(tenancy)
        asked = ("--tenant", f"{one.account}/{one.engagement}")
        counts = {"flows": 1, "events": 10, "versions": 0, "damaged": 0}
        for more, dry in ((("--dry-run",), True), ((), False)):
            code, output, _ = await run(urls, *asked, "--json", *more)
            told = json.loads(output)
            assert (code, told["dry_run"], counts.items() <= told.items()) == (0, dry, True)
        assert (await verified(one))[0].events == 10
        assert (await verified(other))[0].events == 20
        flow_id = await grown(damaged)
        async with superuser(urls.service) as truth:
            await truth.execute("UPDATE events SET actor = 'eve' WHERE flow_id = $1 AND revision = 3", UUID(flow_id))
        code, output, errors = await run(urls)
        assert code == 3
        assert output.startswith("10 events and 0 versions of documents of 1 flows went, ")
        assert "1 flows were left alone, their history is damaged: VerifyAudit says how" in errors
        assert flow_id in errors  # in the log
        assert (await verified(other))[0].events == 10


def test_what_is_no_tenant_is_refused() -> None:
    done = CliRunner().invoke(cli.app, ["compact", "--tenant", "x/y"])
    assert done.exit_code == 2
    assert "two UUIDs with a slash between them" in " ".join(done.output.replace("│", " ").split())
