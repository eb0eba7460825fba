"""A server that is killed amid a restore, a rotation and an erasure leaves each wholly done or not at all, and each can be run again."""

from __future__ import annotations

import asyncio
import hashlib
import random
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

import asyncpg
import grpc
import pytest

from tests.cluster import Cluster
from tests.conftest import Urls
from tests.faults.load import AGAIN
from tests.faults.process import connection, database, serving
from tests.services.checkpoints import MIB, Sealing
from tests.tenancy import Tenancy
from tests.tenant_rows import held
from tests.waiting import eventually

# Of an erased tenant there are left: its events' hashes, the receipt, the request that asked for it, and that there was one.
LEFT = {"events", "erasures", "requests", "tenants"}


class Operation(Protocol):
    """Something that a kill comes amid of. Each method is given the way to the server that runs then."""

    async def prepare(self, channel: grpc.aio.Channel, number: int) -> None:
        """Make what the next one is about."""

    async def run(self, channel: grpc.aio.Channel) -> None:
        """Do it. Raises AioRpcError when the server dies."""

    async def check(self, channel: grpc.aio.Channel) -> None:
        """It wholly happened, or not at all; and it can be run again, which is done."""


def _documents(word: str) -> dict[str, Any]:
    document = {"json": f'{{"word":"{word}","pad":"{random.Random(word).randbytes(400_000).hex()}"}}'}
    return {"state": document, "metadata": document, "cross_phase_context": document}


def _word(flow: Any) -> str:
    """Which one of the contents the flow has, in all of its parts."""
    words = {
        text[:40].partition('"word":"')[2].partition('"')[0]
        for text in (flow.state.json, flow.metadata.json, flow.cross_phase_context.json)
    }
    words.add(flow.display_name)
    words.add(flow.labels["word"])
    assert len(words) == 1, words
    return str(words.pop())


@dataclass(slots=True)
class Restore(Operation):
    """A flow is brought back to its first content, from another one each time."""

    tenancy: Tenancy
    flow_id: str = ""
    checkpoint_id: str = ""
    revision: int = 0
    word: str = ""
    request_id: str = ""
    happened: list[bool] = field(default_factory=list)

    async def prepare(self, channel: grpc.aio.Channel, number: int) -> None:
        tenancy = self.tenancy.on(channel)
        if not self.flow_id:
            flow = await tenancy.create(**_documents("first"), display_name="first", labels={"word": "first"})
            self.flow_id = flow.flow_id
            self.checkpoint_id = (await Sealing(tenancy).create(self.flow_id)).checkpoint_id
        self.word, self.request_id = f"other-{number}", str(uuid4())
        update = {**_documents(self.word), "display_name": self.word, "labels": {"word": self.word}}
        self.revision = (await tenancy.call("UpdateFlow", flow_id=self.flow_id, update=update)).flow.revision

    async def run(self, channel: grpc.aio.Channel) -> Any:
        fields = {"checkpoint_id": self.checkpoint_id, "expected_revision": self.revision, "request_id": self.request_id}
        return await Sealing(self.tenancy.on(channel)).call("RestoreCheckpoint", **fields)

    async def check(self, channel: grpc.aio.Channel) -> None:
        tenancy = self.tenancy.on(channel)
        flow = await self._flow(tenancy)
        self.happened.append(flow.revision > self.revision)
        assert (flow.revision, _word(flow)) in ((self.revision, self.word), (self.revision + 1, "first"))
        done = await self.run(channel)
        assert (done.flow.revision, done.pre_recovery.revision) == (self.revision + 1, self.revision)
        again = await self._flow(tenancy)
        assert (again.revision, _word(again)) == (self.revision + 1, "first")
        sealing = Sealing(tenancy)
        for one in await sealing.listed(flow_id=self.flow_id, page_size=3):  # also a copy before what did not happen is whole
            text = await sealing.download(one.checkpoint_id, part="CHECKPOINT_PART_SNAPSHOT")
            assert (b'"word":"first"' in text) is (one.revision % 2 == 1)

    async def _flow(self, tenancy: Tenancy) -> Any:
        return (await tenancy.call("GetFlow", flow_id=self.flow_id, view="FLOW_VIEW_FULL")).flow


@dataclass(slots=True)
class Rotation(Operation):
    """A tenant gets one key after another, and everything that older ones sealed is sealed anew meanwhile."""

    tenancy: Tenancy
    payloads: dict[str, bytes] = field(default_factory=dict)
    version: int = 1
    request_id: str = ""
    happened: list[bool] = field(default_factory=list)

    async def prepare(self, channel: grpc.aio.Channel, number: int) -> None:
        sealing = Sealing(self.tenancy.on(channel))
        if not self.payloads:
            flow_id = (await sealing.tenancy.create()).flow_id
            for at in range(4):
                payload = random.Random(at).randbytes(2 * MIB + at)
                taken = (await sealing.upload(payload, flow_id=flow_id)).checkpoint
                self.payloads[taken.checkpoint_id] = hashlib.sha256(payload).digest()
        self.request_id = str(uuid4())

    async def run(self, channel: grpc.aio.Channel) -> None:
        sealing = Sealing(self.tenancy.on(channel))
        await sealing.admin("RotateTenantKey", request_id=self.request_id)

        async def resealed() -> bool:
            return not (await sealing.admin("GetKeyRotation")).remaining

        await eventually(resealed)

    async def check(self, channel: grpc.aio.Channel) -> None:
        sealing = Sealing(self.tenancy.on(channel))
        version = (await sealing.admin("GetKeyRotation")).key_version
        self.happened.append(version > self.version)
        assert version in (self.version, self.version + 1)
        for checkpoint_id, sha256 in self.payloads.items():
            text = await sealing.download(checkpoint_id, part="CHECKPOINT_PART_PAYLOAD")
            assert hashlib.sha256(text).digest() == sha256
        self.version = (await sealing.admin("RotateTenantKey", request_id=self.request_id)).key_version
        assert version in (self.version, self.version - 1)

    async def ended(self, channel: grpc.aio.Channel, sql: asyncpg.Connection) -> None:
        """Left to itself, all of it comes to its end."""
        sealing = Sealing(self.tenancy.on(channel))

        async def destroyed() -> bool:
            keys = "SELECT count(*) FROM tenant_keys WHERE client_account_id = $1"
            return not (await sealing.admin("GetKeyRotation")).old_versions and await sql.fetchval(keys, self.tenancy.account) == 2

        await eventually(destroyed)
        assert {one.key_version for one in await sealing.listed()} == {self.version}


@dataclass(slots=True)
class Erasing(Operation):
    """A tenant is erased, another one each time."""

    sql: asyncpg.Connection
    tenancy: Tenancy | None = None
    before: dict[str, tuple[int, int]] = field(default_factory=dict)
    flow_ids: list[str] = field(default_factory=list)
    request_id: str = ""
    happened: list[bool] = field(default_factory=list)

    async def prepare(self, channel: grpc.aio.Channel, number: int) -> None:
        self.tenancy = Tenancy.fresh(channel)
        sealing = Sealing(self.tenancy)
        flows = [await self.tenancy.create(state={"json": '{"a":"' + "x" * 50_000 + '"}'}) for _ in range(10)]
        self.flow_ids = [flow.flow_id for flow in flows]
        for flow_id in self.flow_ids:
            await self.tenancy.move(flow_id, "data_import", "IN_PROGRESS", "COMPLETED")
        await sealing.upload(bytes(3 * MIB), flow_id=self.flow_ids[0])
        await sealing.admin("RotateTenantKey")
        tenancy = self.tenancy

        async def rested() -> bool:  # what is sealed anew meanwhile would look like a half erasure
            return not (await sealing.admin("GetKeyRotation")).old_versions and (await held(self.sql, tenancy))["tenant_keys"][0] == 2

        await eventually(rested)
        self.before, self.request_id = await held(self.sql, self.tenancy), str(uuid4())

    async def run(self, channel: grpc.aio.Channel) -> Any:
        assert self.tenancy is not None
        sealing = Sealing(self.tenancy.on(channel))
        confirm = f"{self.tenancy.account}/{self.tenancy.engagement}"
        return await sealing.admin("EraseTenant", confirm=confirm, request_id=self.request_id)

    async def check(self, channel: grpc.aio.Channel) -> None:
        assert self.tenancy is not None
        tenancy = self.tenancy.on(channel)
        after = await held(self.sql, tenancy)
        erased = after["erasures"][0] == 1
        self.happened.append(erased)
        if not erased:
            assert after == self.before
            assert (await tenancy.call("GetFlow", flow_id=self.flow_ids[0], view="FLOW_VIEW_FULL")).flow.revision == 3
        receipt = (await self.run(channel)).receipt
        assert (receipt.flows, receipt.events, receipt.keys_destroyed, receipt.checkpoints) == (10, 30, 2, 1)
        left = {name: count for name, (count, _) in (await held(self.sql, tenancy)).items() if count}
        assert left.keys() <= LEFT
        assert (left["events"], left["erasures"], left["requests"]) == (30, 1, 1)
        if erased:
            assert await held(self.sql, tenancy) == after
        for flow_id in self.flow_ids:
            assert (await tenancy.refusal("GetFlow", flow_id=flow_id)).reason == "FLOW_NOT_FOUND"
        assert await Sealing(tenancy).listed() == []


@pytest.fixture
async def sql(urls: Urls, postgres: Cluster) -> AsyncIterator[asyncpg.Connection]:
    """A connection to the test's database that nothing is hidden from."""
    found = await asyncpg.connect(postgres.url(urls.name, "postgres"))
    yield found
    await found.close()


async def _settled(sql: asyncpg.Connection) -> None:
    """Returns once PostgreSQL does nothing any more for who has gone: until then it may end what it was told."""
    others = (
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND backend_type = 'client backend'"
        " AND state IS DISTINCT FROM 'idle'"  # a pooler keeps connections on which nothing is done
    )

    async def alone() -> bool:
        return bool(await sql.fetchval(others) == 1)

    await eventually(alone)


async def _attempted(operation: Operation, channel: grpc.aio.Channel, late: float) -> None:
    """Run it, after a moment; that the server died amid it, or before, is what this is about."""
    await asyncio.sleep(late)
    try:
        await operation.run(channel)
    except grpc.aio.AioRpcError as error:
        if error.code() not in (*AGAIN, grpc.StatusCode.CANCELLED):
            raise


async def test_kill_9_amid_restore_rotation_and_erasure_leaves_each_done_or_not_done(
    request: pytest.FixtureRequest, urls: Urls, sql: asyncpg.Connection, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    kills: int = request.config.getoption("--kills")
    chance, nobody = random.Random(kills), grpc.aio.insecure_channel("127.0.0.1:1")
    restore, rotation, erasing = Restore(Tenancy.fresh(nobody)), Rotation(Tenancy.fresh(nobody)), Erasing(sql)
    operations: list[Operation] = [restore, rotation, erasing]
    spans: list[float] = []
    variables = {**database(urls), "sweep_seconds": 0.05}
    for number in range(kills + 1):
        async with serving(tmp_path, **variables) as server, connection(server.address) as channel:
            if number:
                for operation in operations:
                    await operation.check(channel)
            if number == kills:
                await rotation.ended(channel, sql)
                break
            for operation in operations:
                await operation.prepare(channel, number)
                if len(spans) < len(operations):  # how long each takes here; then what the first kill comes amid of
                    began = time.monotonic()
                    await operation.run(channel)
                    spans.append(time.monotonic() - began)
                    if isinstance(operation, Rotation):
                        operation.version += 1
                    await operation.prepare(channel, -1)
            # Each begins so long before the kill that it is at any point of its way then, or just done.
            ahead = [chance.uniform(0.0, 1.2) * span for span in spans]
            most = max(ahead)
            running = [asyncio.create_task(_attempted(one, channel, most - early)) for one, early in zip(operations, ahead, strict=True)]
            await asyncio.sleep(most)
            await server.kill()
            await asyncio.gather(*running)
        await _settled(sql)
    await nobody.close()
    for one in (restore, rotation, erasing):
        record_property(type(one).__name__, f"{sum(one.happened)} of {kills} had happened")
