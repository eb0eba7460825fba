"""The audit over the wire: what is broken is named, and an export can be verified by somebody who has nothing but the file and the key."""

from __future__ import annotations

import asyncio
import hashlib
import io
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import grpc
import pytest
from flowledger.v1 import admin_service_pb2 as pb
from flowledger.v1 import alert_pb2
from flowledger.v1.admin_service_pb2_grpc import AdminServiceStub
from flowledger_client.audit_export import Broken, read, save
from flowledger_client.audit_export import verified as verified_export

from server import app
from server.repository.audit import PAGE
from tests.conftest import Urls, settings
from tests.services.administration import call, refusal, verified
from tests.tenancy import PATIENCE, Tenancy
from tests.waiting import until

PHASE = "data_import"


async def lived(tenancy: Tenancy) -> str:
    """A flow at revision 4."""
    flow_id = (await tenancy.create(state={"json": '{"a":1}'})).flow_id
    await tenancy.move(flow_id, PHASE, "IN_PROGRESS")
    for at in range(2):
        await tenancy.call("ReportProgress", flow_id=flow_id, progress={"phase": PHASE, "fraction": at / 4, "message": f"at {at}"})
    return flow_id


async def digest(tenancy: Tenancy) -> bytes:
    """What the contract says that the digest is."""
    flows = (await tenancy.call("ListFlows", show_deleted=True)).flows
    found = hashlib.sha256()
    for flow_id in sorted(UUID(flow.flow_id) for flow in flows):
        last = (await tenancy.call("ListFlowEvents", flow_id=str(flow_id))).events[-1]
        found.update(flow_id.bytes + last.revision.to_bytes(8, "big") + last.hash)
    return found.digest()


# ---- VerifyAudit ----------------------------------------------------------------------------------------------------------------------


async def test_a_tenants_chains_that_hold_are_counted(tenancy: Tenancy) -> None:
    flow_ids = [await lived(tenancy) for _ in range(3)]
    summary, breaks = await verified(tenancy)
    assert (summary.flows, summary.events, summary.erased_events, summary.broken_flows, breaks) == (3, 12, 0, 0, [])
    assert summary.digest == await digest(tenancy)
    summary, breaks = await verified(tenancy, flow_ids[1])
    assert (summary.flows, summary.events, breaks) == (1, 4, [])


async def test_of_each_flow_the_first_broken_link_is_named(tenancy: Tenancy, superuser: asyncpg.Connection) -> None:
    flow_ids = sorted([await lived(tenancy) for _ in range(4)], key=UUID)
    for flow_id, damage in zip(
        flow_ids,
        (
            "DELETE FROM events WHERE revision IN (2, 3)",
            "UPDATE events SET actor = 'eve' WHERE revision > 2",
            "UPDATE flows SET head_hash = sha256('') WHERE true",
        ),
        strict=False,
    ):
        await superuser.execute(f"{damage} AND flow_id = $1", UUID(flow_id))
    summary, breaks = await verified(tenancy)
    assert breaks == [(flow_ids[0], 2, "MISSING"), (flow_ids[1], 3, "CHANGED"), (flow_ids[2], 4, "HEAD")]
    assert (summary.flows, summary.broken_flows) == (4, 3)
    assert (await verified(tenancy, flow_ids[3]))[1] == []
    assert (await verified(tenancy, flow_ids[1]))[1] == [breaks[1]]


async def test_a_broken_chain_raises_one_alert_however_often_it_is_found(
    urls: Urls, superuser_of: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    from server.log import logging

    with logging("warning", "json"):
        async with app.running(settings(urls)) as server, grpc.aio.insecure_channel(server.address) as channel:
            tenancy = Tenancy.fresh(channel)
            flow_id = await lived(tenancy)
            await (await superuser_of(urls)).execute("UPDATE events SET actor = 'eve' WHERE revision = 2")
            await verified(tenancy)
            await verified(tenancy)
            stub: Any = AdminServiceStub(channel)  # type: ignore[no-untyped-call, unused-ignore]
            (alert,) = (await stub.ListAlerts(pb.ListAlertsRequest(), metadata=tenancy.metadata)).alerts
    assert (alert.kind, alert.severity) == (alert_pb2.ALERT_KIND_AUDIT_BROKEN, alert_pb2.ALERT_SEVERITY_CRITICAL)
    assert alert.flow_id == flow_id
    assert "revision 2" in alert.message
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "AUDIT_BROKEN" in line]
    assert flow_id in line


async def test_no_more_than_a_hundred_broken_links_are_named(tenancy: Tenancy, superuser: asyncpg.Connection) -> None:
    await asyncio.gather(*(tenancy.create() for _ in range(110)))
    await superuser.execute("UPDATE events SET actor = 'eve' WHERE client_account_id = $1", tenancy.account)
    summary, breaks = await verified(tenancy)
    assert (summary.broken_flows, len(breaks)) == (110, 100)


STRANGERS: dict[str, Callable[[Tenancy], Tenancy]] = {
    "another tenant": lambda owner: Tenancy.fresh(owner.channel),
    "another engagement": lambda owner: owner.other_engagement(),
    "another account": lambda owner: replace(owner, account=uuid4()),
}


@pytest.mark.parametrize("stranger", STRANGERS.values(), ids=STRANGERS)
@pytest.mark.parametrize("name", ["VerifyAudit", "ExportAudit"])
async def test_another_tenants_flow_is_not_there(tenancy: Tenancy, name: str, stranger: Callable[[Tenancy], Tenancy]) -> None:
    flow_id = await lived(tenancy)
    found = await refusal(stranger(tenancy), name, flow_id=flow_id)
    assert (found.code, found.reason) == (grpc.StatusCode.NOT_FOUND, "FLOW_NOT_FOUND")
    messages = await call(stranger(tenancy), name)
    assert (messages[-1].summary.flows, messages[-1].summary.events, messages[-1].summary.digest) == (0, 0, hashlib.sha256().digest())


@pytest.mark.parametrize("name", ["VerifyAudit", "ExportAudit"])
async def test_a_malformed_flow_id_is_refused(tenancy: Tenancy, name: str) -> None:
    for text in ("x", "\0", "0" * 36, "9" * 100_000):
        assert (await refusal(tenancy, name, flow_id=text)).violations.keys() == {"flow_id"}
    assert (await refusal(tenancy, name, flow_id=str(uuid4()))).reason == "FLOW_NOT_FOUND"


async def many(truth: asyncpg.Connection, tenancy: Tenancy, flow_id: str, number: int) -> None:
    """Makes a history of that many revisions out of the flow's last event, with links that hold."""
    query = """
        WITH RECURSIVE last AS (
            SELECT * FROM events WHERE flow_id = $1 ORDER BY revision DESC LIMIT 1
        ), content AS (
            SELECT sha256(
                int8send(length(t)) || t::bytea || int8send(length(actor)) || actor::bytea || int8send(octet_length(body)) || body::bytea
            ) AS digest
            FROM (SELECT to_char(time AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US') || '+00:00' AS t, actor, body FROM last) x
        ), chain AS (
            SELECT revision, hash FROM last
            UNION ALL
            SELECT chain.revision + 1, sha256(chain.hash || uuid_send(client_account_id) || uuid_send(engagement_id) || uuid_send(flow_id)
                || int8send(chain.revision + 1) || digest)
            FROM chain, last, content WHERE chain.revision < $2
        ), put AS (
            INSERT INTO events SELECT client_account_id, engagement_id, flow_id, chain.revision, time, actor, body, chain.hash, 2, NULL
            FROM chain, last WHERE chain.revision > last.revision RETURNING revision
        )
        UPDATE flows SET revision = $2, head_hash = (SELECT hash FROM chain WHERE revision = $2)
        WHERE flow_id = $1 AND EXISTS (SELECT FROM put)
    """
    await truth.execute(query, UUID(flow_id), number)


async def test_many_events_are_verified_in_pages_while_others_are_served(tenancy: Tenancy, superuser: asyncpg.Connection) -> None:
    flow_id, other = await lived(tenancy), await lived(tenancy)
    await many(superuser, tenancy, flow_id, 20 * PAGE)
    stub: Any = AdminServiceStub(tenancy.channel)  # type: ignore[no-untyped-call, unused-ignore]
    looked = 0

    async def look() -> None:
        nonlocal looked
        while True:
            await tenancy.call("GetFlow", flow_id=other)
            looked += 1

    looking = asyncio.create_task(look())
    await until(lambda: looked)
    before = looked
    stream = stub.VerifyAudit(pb.VerifyAuditRequest(), metadata=tenancy.metadata, timeout=PATIENCE)
    messages = [message async for message in stream]
    looking.cancel()
    summary = messages[-1].summary
    assert (summary.flows, summary.events, summary.broken_flows) == (2, 20 * PAGE + 4, 0)
    assert looked > before
    counts = [message.summary.events for message in messages]
    assert counts == sorted(counts)


async def test_a_verification_that_nobody_waits_for_any_more_ends(tenancy: Tenancy, superuser: asyncpg.Connection) -> None:
    flow_id = await lived(tenancy)
    await many(superuser, tenancy, flow_id, 30_000)
    stub: Any = AdminServiceStub(tenancy.channel)  # type: ignore[no-untyped-call, unused-ignore]
    stream = stub.VerifyAudit(pb.VerifyAuditRequest(), metadata=tenancy.metadata)
    await until(lambda: any(task.get_name() == "audit" for task in asyncio.all_tasks()))
    stream.cancel()
    await until(lambda: not any(task.get_name() == "audit" for task in asyncio.all_tasks()))


# ---- ExportAudit ----------------------------------------------------------------------------------------------------------------------


async def export(tenancy: Tenancy, **fields: Any) -> list[pb.ExportAuditResponse]:
    found: list[pb.ExportAuditResponse] = await call(tenancy, "ExportAudit", **fields)
    return found


async def test_an_export_is_verified_without_the_service(tenancy: Tenancy) -> None:
    flow_ids = sorted([await lived(tenancy) for _ in range(3)], key=UUID)
    messages = await export(tenancy)
    found = verified_export(messages)
    assert (found.flows, found.events, found.without_content, found.compacted) == (3, 12, 0, [])
    assert found.digest == messages[-1].summary.digest == (await verified(tenancy))[0].digest
    events = [event for message in messages for event in message.page.events]
    assert [(event.flow_id, event.revision) for event in events] == [(flow_id, at) for flow_id in flow_ids for at in range(1, 5)]
    assert b"ada" in events[0].content
    told = (await tenancy.call("ListFlowEvents", flow_id=flow_ids[2])).events
    assert [event.hash for event in events[8:]] == [event.hash for event in told]


async def test_one_flow_can_be_exported_and_content_left_out(tenancy: Tenancy) -> None:
    flow_id, _ = await lived(tenancy), await lived(tenancy)
    messages = await export(tenancy, flow_id=flow_id, without_content=True)
    found = verified_export(messages)
    assert (found.flows, found.events, found.without_content) == (1, 4, 4)
    assert not any(event.content for message in messages for event in message.page.events)
    nothing = verified_export(await export(Tenancy.fresh(tenancy.channel)))
    assert (nothing.flows, nothing.events) == (0, 0)


async def test_all_exports_are_signed_with_one_key(tenancy: Tenancy) -> None:
    await lived(tenancy)
    one, other = await export(tenancy), await export(tenancy.other_engagement())
    key = one[0].public_key
    assert key == other[0].public_key
    assert verified_export(one, key).events == 4
    with pytest.raises(Broken, match="another key"):
        verified_export(one, bytes(32))


async def test_many_events_make_many_pages(tenancy: Tenancy, superuser: asyncpg.Connection) -> None:
    flow_id = await lived(tenancy)
    await many(superuser, tenancy, flow_id, 3 * PAGE + 10)
    messages = await export(tenancy)
    assert [message.page.number for message in messages[1:-1]] == [1, 2, 3, 4]
    assert verified_export(messages).events == 3 * PAGE + 10


async def test_an_export_of_a_compacted_flow_says_where_it_begins(tenancy: Tenancy) -> None:
    flow_id = await lived(tenancy)
    for at in range(30):
        await tenancy.call("ReportProgress", flow_id=flow_id, progress={"phase": PHASE, "fraction": at / 100})
    await call(tenancy, "UpdatePolicy", policy={"keep_revisions": 10})
    await call(tenancy, "CompactFlows")
    found = verified_export(await export(tenancy))
    assert (found.events, found.compacted) == (10, [flow_id])
    assert (await verified(tenancy))[1] == []


async def test_a_chain_that_does_not_hold_is_found_in_the_export_too(tenancy: Tenancy, superuser: asyncpg.Connection) -> None:
    flow_id = await lived(tenancy)
    await superuser.execute("UPDATE events SET actor = 'eve' WHERE flow_id = $1 AND revision = 3", UUID(flow_id))
    with pytest.raises(Broken, match=f"flow {flow_id}: revision 3 does not follow"):
        verified_export(await export(tenancy))
    await superuser.execute("DELETE FROM events WHERE flow_id = $1 AND revision = 3", UUID(flow_id))
    with pytest.raises(Broken, match="revision 3 is missing"):
        verified_export(await export(tenancy))


def saved(messages: list[pb.ExportAuditResponse]) -> bytes:
    file = io.BytesIO()
    save(messages, file)
    return file.getvalue()


async def test_whatever_is_done_to_an_export_is_found(tenancy: Tenancy, superuser: asyncpg.Connection) -> None:
    flow_id = await lived(tenancy)
    await lived(tenancy)
    await many(superuser, tenancy, flow_id, PAGE + 30)
    messages = await export(tenancy)
    key, file = messages[0].public_key, saved(messages)
    assert verified_export(read(io.BytesIO(file)), key).events == PAGE + 34
    chance = random.Random(1)
    for _ in range(400):
        at = chance.randrange(len(file))
        changed = file[:at] + bytes([file[at] ^ 1 << chance.randrange(8)]) + file[at + 1 :]
        with pytest.raises((Broken, MemoryError)):
            verified_export(read(io.BytesIO(changed)), key)
    for cut in [*chance.sample(range(1, len(file)), 60), 0]:
        with pytest.raises(Broken):
            verified_export(read(io.BytesIO(file[:cut])), key)
    opening, one, two, closing = messages
    for others in (
        [opening, two, one, closing],
        [opening, one, closing],
        [opening, one, two, two, closing],
        [opening, one, two],
        [one, two, closing],
    ):
        with pytest.raises(Broken):
            verified_export(others, key)
    later = await export(tenancy, flow_id=flow_id)
    with pytest.raises(Broken):
        verified_export([opening, *later[1:]], key)  # pages of another export


async def test_the_script_saves_and_verifies(tenancy: Tenancy, server: app.Server, tmp_path: Path) -> None:
    await lived(tenancy)
    file = str(tmp_path / "export.bin")

    async def run(*arguments: str) -> tuple[int, str]:
        done = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-m", "flowledger_client.audit_export", *arguments],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        return done.returncode, done.stdout + done.stderr

    assert await run("save", server.address, str(tenancy.account), str(tenancy.engagement), file) == (0, "")
    code, text = await run("verify", file)
    assert code == 0
    assert "1 flows, 4 events: every signature and every link holds" in text
    key = next(line.split()[1] for line in text.splitlines() if line.startswith("key"))
    assert (await run("verify", file, key))[0] == 0
    code, text = await run("verify", file, "00" * 32)
    assert (code, text) == (1, "BROKEN: the export was signed with another key\n")
    assert (await run())[0] == 2
