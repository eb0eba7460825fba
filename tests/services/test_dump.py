"""Whoever has a copy of every table and of every Redis key has nothing of what checkpoints hold."""

from __future__ import annotations

import base64
import random
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import grpc
import pytest
import zstandard

from server import app
from tests.cluster import Cluster
from tests.conftest import Urls, settings
from tests.redis_server import RedisServer, redis_server
from tests.services.checkpoints import MIB, Sealing
from tests.tenancy import Tenancy
from tests.waiting import until

_RNG = random.Random(4711)
# What only payloads hold: bytes without any order, which no compression could hide.
PAYLOAD_SECRET = _RNG.randbytes(48)
# What documents hold, and so what checkpoints of them hold.
TEXT_SECRET = "sesame-" + "".join(_RNG.choices("abcdefghijkmnopqrstuvwxyz23456789", k=40))
# Where flows as they are, and as they were, stand in the clear; that is what the database is for.
IN_THE_CLEAR = {"documents", "document_versions", "events"}
_ZSTD = b"\x28\xb5\x2f\xfd"


def forms(secret: bytes) -> Iterator[bytes]:
    """The secret as it is, cut in pieces, and as others would write it down."""
    for at in range(0, len(secret) - 12, 4):
        yield secret[at : at + 12]
    yield secret.hex().encode()
    yield secret.hex().upper().encode()
    yield secret[::-1]
    yield b"".join(bytes((byte, 0)) for byte in secret)
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        for skipped in range(3):  # wherever it begins in what is encoded; the ends mix with what stands beside it
            whole = secret[skipped : skipped + (len(secret) - skipped) // 3 * 3]
            yield encode(whole)[4:-4]


def holds(dump: bytes, secret: bytes) -> bool:
    """Whether any form of the secret is in the dump, or in anything in it that zstd can unpack."""
    texts = [dump]
    for found in re.finditer(re.escape(_ZSTD), dump):
        with suppress(zstandard.ZstdError):
            texts.append(zstandard.ZstdDecompressor().decompressobj().decompress(dump[found.start() :]))
    return any(form in text for form in set(forms(secret)) for text in texts)


async def tables(connection: asyncpg.Connection) -> dict[str, bytes]:
    """Every table as PostgreSQL copies it out, large values whole and bytes as they are."""
    names = [
        row[0]
        for row in await connection.fetch(
            "SELECT oid::regclass::text FROM pg_class WHERE relkind IN ('r', 'p', 'm') "
            "AND relnamespace NOT IN ('pg_catalog'::regnamespace, 'information_schema'::regnamespace, 'pg_toast'::regnamespace)"
        )
    ]
    found = {}
    for name in names:
        out = bytearray()

        async def take(data: bytes, out: bytearray = out) -> None:
            out += data

        await connection.copy_from_query(f"SELECT * FROM {name}", output=take, format="binary")
        found[name] = bytes(out)
    return found


def redis_dump(redis: RedisServer) -> bytes:
    """Every key of every database, and what it holds, as Redis itself writes it down and as it is."""
    parts: list[bytes] = []
    with redis.client() as client:
        for number in client.info("keyspace") or {}:
            client.select(int(str(number).removeprefix("db")))
            for name in client.keys("*"):
                held: Any = client.get(name) if client.type(name) == b"string" else b""
                written: Any = client.dump(name)
                parts += [name, held or b"", written or b""]
    return b"\0".join(parts)


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis of the test's own."""
    with redis_server(tmp_path) as server:
        yield server


@pytest.mark.parametrize("secret", [PAYLOAD_SECRET, TEXT_SECRET.encode()])
@pytest.mark.parametrize(
    "written",
    [
        lambda secret: secret,
        lambda secret: secret.hex().encode(),
        lambda secret: base64.b64encode(b"?" + secret + b"?"),
        lambda secret: base64.b64encode(b"??" + secret),
        lambda secret: secret[7:30],
        lambda secret: zstandard.ZstdCompressor().compress(b"x" * 5000 + secret),
    ],
)
def test_the_search_finds_what_is_there(secret: bytes, written: Any) -> None:
    assert holds(b"before" + written(secret) + b"after", secret)
    assert not holds(b"before" + _RNG.randbytes(5000) + b"after", secret)


async def test_no_table_and_no_redis_key_holds_anything_that_was_sealed(urls: Urls, postgres: Cluster, redis: RedisServer) -> None:
    connection = await asyncpg.connect(postgres.url(urls.name, "postgres"))
    given = settings(urls, redis_url=redis.url, sweep_seconds=0.05, cache_seconds=60)
    async with app.running(given) as server, grpc.aio.insecure_channel(server.address) as channel:
        tenancy = Tenancy.fresh(channel)
        sealing = Sealing(tenancy)
        state = {"json": f'{{"word":"{TEXT_SECRET}"}}'}
        flow_id = (await tenancy.create(state=state, child_data=state, metadata=state)).flow_id

        # Everything that seals, opens, answers, remembers or tells of it.
        payload = PAYLOAD_SECRET * 100 + _RNG.randbytes(MIB) + PAYLOAD_SECRET
        one = (await sealing.upload(payload, flow_id=flow_id, request_id=str(uuid4()))).checkpoint
        await tenancy.call("UpdateFlow", flow_id=flow_id, update={"state": {"json": "{}"}})
        two = await sealing.create(flow_id, request_id=str(uuid4()))
        assert await sealing.download(one.checkpoint_id, part="CHECKPOINT_PART_PAYLOAD") == payload
        assert TEXT_SECRET.encode() in await sealing.download(one.checkpoint_id, part="CHECKPOINT_PART_SNAPSHOT")
        await sealing.call("DiffCheckpoints", from_checkpoint_id=one.checkpoint_id, to_checkpoint_id=two.checkpoint_id)
        restored = await sealing.call("RestoreCheckpoint", checkpoint_id=one.checkpoint_id, request_id=str(uuid4()))
        assert restored.diff.documents
        for _ in range(2):
            await tenancy.call("GetFlow", flow_id=flow_id, view="FLOW_VIEW_FULL", consistency="READ_CONSISTENCY_CACHED")
        await connection.execute(
            "UPDATE checkpoints SET header = set_byte(header, 30, get_byte(header, 30) # 1) WHERE checkpoint_id = $1",
            UUID(two.checkpoint_id),
        )
        assert (await sealing.refusal("RestoreCheckpoint", checkpoint_id=two.checkpoint_id)).reason == "CHECKPOINT_UNREADABLE"
        assert (await sealing.admin("ListAlerts")).alerts
        await sealing.admin("RotateTenantKey", request_id=str(uuid4()))
        await until(lambda: redis_dump(redis))

        dumped = await tables(connection)
        assert {"checkpoints", "sealed_chunks", "tenant_keys", "requests", "alerts"} <= {
            name for name, dump in dumped.items() if len(dump) > 100
        }
        assert [name for name, dump in dumped.items() if holds(dump, PAYLOAD_SECRET)] == []
        in_the_clear = {name for name, dump in dumped.items() if holds(dump, TEXT_SECRET.encode())}
        assert "documents" in in_the_clear  # so the search would find it elsewhere too
        assert in_the_clear <= IN_THE_CLEAR
        assert not holds(redis_dump(redis), PAYLOAD_SECRET)
        assert not holds(redis_dump(redis), TEXT_SECRET.encode())

        # Once the flow itself is overwritten or lost, only whoever has the keys can still read what was sealed.
        await connection.execute("DELETE FROM documents; DELETE FROM document_versions; DELETE FROM events")
        assert [name for name, dump in (await tables(connection)).items() if holds(dump, TEXT_SECRET.encode())] == []
        assert TEXT_SECRET.encode() in await sealing.download(one.checkpoint_id, part="CHECKPOINT_PART_SNAPSHOT")
    await connection.close()
