"""Whatever is sent, the answer is a documented status, the server's memory stays flat, and nothing is written."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from typing import Any

import asyncpg
import grpc
import psutil
import pytest
from flowledger.v1 import flow_service_pb2 as pb

from server.repository.table_parts import metadata as tables
from server.services.boundary import CODES
from tests.cluster import Cluster
from tests.conftest import Urls
from tests.services.calls import CALLS, METHODS, send
from tests.services.malformed import Faulty, faulty_requests, makings
from tests.services.serving import served
from tests.tenancy import PATIENCE, Refusal, Tenancy

SEED = 20261122
REQUESTS = 2000
AT_ONCE = 8
# Memory goes up and down with the 5 MiB documents under way, and comes all the way down only when the garbage collector has had its
# turn: twelve thousand requests end where the first hundred did. What counts is how low it comes again: a leak of 32 KiB a request, or
# of one large document in four, raises that by more than this.
GROWTH_BYTES = 48 * 1024 * 1024
PEAK_BYTES = 256 * 1024 * 1024
SAMPLES = 100
# Not one of these is an answer to a malformed request.
_OURS = frozenset({"INTERNAL", "STORE_UNAVAILABLE", "DEADLINE_EXCEEDED", "DRAINING"})


async def _refusal(channel: grpc.aio.Channel, faulty: Faulty) -> Refusal | None:
    """What the raw bytes are answered; None when they are taken."""
    method = METHODS[faulty.name]
    path = f"/flowledger.v1.FlowService/{faulty.name}"
    raw: Any = channel  # the stubs want a serializer; these are bytes already
    try:
        if method.client_streaming:
            await raw.stream_unary(path)(iter([faulty.body]), metadata=faulty.metadata, timeout=PATIENCE)
        elif method.server_streaming:
            stream = raw.unary_stream(path)(faulty.body, metadata=faulty.metadata, timeout=PATIENCE)
            async for _ in stream:
                stream.cancel()
                return None
        else:
            await raw.unary_unary(path)(faulty.body, metadata=faulty.metadata, timeout=PATIENCE)
    except grpc.aio.AioRpcError as error:
        return Refusal.of(error)
    return None


def _documented(refusal: Refusal | None) -> bool:
    return refusal is not None and refusal.reason in CODES.keys() - _OURS and refusal.code is CODES[refusal.reason]


async def _contents(connection: asyncpg.Connection) -> dict[str, tuple[int, int]]:
    """Of every table, how many rows there are and a digest of all that they hold."""
    found = {}
    for name in tables.tables:
        row = await connection.fetchrow(f'SELECT count(*), coalesce(sum(hashtextextended(t::text, 0)), 0) FROM "{name}" t')
        assert row is not None
        found[name] = (int(row[0]), int(row[1]))
    return found


@pytest.fixture
async def watched(urls: Urls, postgres: Cluster) -> AsyncIterator[asyncpg.Connection]:
    """A connection to the test's own database that nothing is hidden from."""
    connection = await asyncpg.connect(postgres.url(urls.name, "postgres"))
    yield connection
    await connection.close()


async def test_2000_malformed_requests_are_refused_and_leave_nothing_behind(urls: Urls, watched: asyncpg.Connection) -> None:
    async with served(urls) as server, grpc.aio.insecure_channel(server.address) as channel:
        made = await makings(Tenancy.fresh(channel))
        requests = faulty_requests(made, random.Random(SEED), REQUESTS)
        assert len(requests) == REQUESTS
        process, sizes = psutil.Process(server.process.pid), []
        before = await _contents(watched)
        answers: list[tuple[Faulty, Refusal | None]] = []

        async def work(left: Iterator[Faulty]) -> None:
            for faulty in left:
                answers.append((faulty, await _refusal(channel, faulty)))
                if len(answers) % (REQUESTS // SAMPLES) == 0:
                    sizes.append(process.memory_info().rss)

        left = iter(requests)
        await asyncio.gather(*(work(left) for _ in range(AT_ONCE)))

        wrong = [f"{faulty.name} {faulty.fault}: {refusal}" for faulty, refusal in answers if not _documented(refusal)]
        assert not wrong, "\n".join(wrong)
        assert len(answers) == REQUESTS
        after = await _contents(watched)
        if "redis_url" in urls.variables:  # a view that is shared is sealed, also that of a flow which a sound read was tried on
            del before["tenant_keys"], after["tenant_keys"]
        assert after == before
        quarter = SAMPLES // 4
        assert min(sizes[-quarter:]) - min(sizes[:quarter]) < GROWTH_BYTES
        assert max(sizes) - min(sizes) < PEAK_BYTES
        reasons = Counter(refusal.reason for _, refusal in answers if refusal is not None)
        assert reasons.keys() >= {"INVALID_REQUEST", "LIMIT_EXCEEDED", "NO_CALLER", "FLOW_NOT_FOUND", "REVISION_IN_FUTURE"}
        assert [line for line in server.lines if line.get("level") not in ("info", "warning")] == []
        for name, call in sorted(CALLS.items()):  # each call would have succeeded without its fault, and still does
            if name not in ("CreateFlow", "ListFlows", "WatchFlows"):
                await call.send(made.tenancy, made.flow_ids[name])


async def test_a_message_beyond_the_limit_is_refused_by_grpc_itself(tenancy: Tenancy) -> None:
    for name, field in (("UpdateFlow", "flow_id"), ("StreamProgress", "flow_id"), ("WatchFlow", "flow_id")):
        request = getattr(pb, f"{name}Request")(**{field: "x" * (17 * 1024 * 1024)})
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await send(tenancy, name, request)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize("name", sorted(METHODS))
async def test_bytes_that_are_no_message_are_an_invalid_request(tenancy: Tenancy, name: str) -> None:
    refusal: Any = await _refusal(tenancy.channel, Faulty(name, "", b"\xff\xff", tenancy.metadata))
    assert (refusal.code, refusal.reason, list(refusal.violations)) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST", ["request"])
    assert f"flowledger.v1.{name}Request" in refusal.text
