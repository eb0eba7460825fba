"""The composition root: everything the server is made of, built on one stack, taken down in reverse."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum, unique
from uuid import UUID

import grpc
import structlog
from flowledger.v1 import flow_service_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from server.breaker import Breaker
from server.cache import Heads, Texts, Views
from server.embedded import embedded
from server.redis_link import linked
from server.repository import schema
from server.repository.commits import Commits
from server.repository.database import Database, PoolSettings, connected
from server.repository.events import Events
from server.repository.feed import Feed
from server.repository.flows import Flows
from server.repository.history import History
from server.repository.notifications import Notifications
from server.repository.store import Store
from server.services.boundary import Boundary, Tell
from server.services.deadlines import Deadlines
from server.services.flow_history import FlowHistory
from server.services.flow_service import FlowService, Sources
from server.services.reads import Reads
from server.services.reflection import add_reflection
from server.services.watch import Watches, WatchSettings
from server.settings import Settings
from server.statemachine import document
from server.statemachine.errors import StoreUnavailable
from server.wakeups import Channel, LocalWakeups, RedisChannel, relayed

_log = structlog.get_logger()

FLOW_SERVICE = flow_service_pb2.DESCRIPTOR.services_by_name["FlowService"]
HEALTH_SECONDS = 2.0
# gRPC ends calls that have arrived and were not taken yet with CANCELLED when it closes, which a client takes for final:
# for this long they are still taken, and held to be told to go elsewhere.
REFUSING_SECONDS = 0.25
# So many calls may wait to be taken.
PENDING_CALLS = 20_000


def now() -> datetime:
    """The time, aware, in UTC."""
    return datetime.now(UTC)


def new_id(clock: Callable[[], int] = time.time_ns, entropy: Callable[[int], bytes] = os.urandom) -> UUID:
    """A UUIDv7 (RFC 9562 section 5.7): 48 bits of milliseconds, then random bits, so that ids sort by their age."""
    milliseconds = clock() // 1_000_000
    value = (milliseconds & (1 << 48) - 1) << 80 | int.from_bytes(entropy(10), "big")
    value = value & ~(0xF << 76) | 0x7 << 76  # version 7
    return UUID(int=value & ~(0x3 << 62) | 0x2 << 62)  # variant of RFC 9562


@unique
class Port(Enum):
    """Whether a server has its port for itself."""

    OWN = "own"
    # Other processes of the same service listen there too.
    SHARED = "shared"


def channel_options(settings: Settings, port: Port = Port.OWN) -> list[tuple[str, int]]:
    """How gRPC behaves on the server's side of a connection."""
    return [
        ("grpc.max_receive_message_length", settings.max_message_bytes),
        ("grpc.max_send_message_length", settings.max_message_bytes),
        # Two servers on one port share its connections without a word: only workers may.
        ("grpc.so_reuseport", 1 if port is Port.SHARED else 0),
        # Of calls that come all at once, as when every stream comes back after a restart, gRPC ends those beyond a thousand with CANCELLED.
        ("grpc.server.max_pending_requests", PENDING_CALLS),
        ("grpc.server.max_pending_requests_hard_limit", PENDING_CALLS),
        # A peer that vanished from an idle stream is noticed after about ten seconds.
        ("grpc.keepalive_time_ms", 10_000),
        ("grpc.keepalive_timeout_ms", 5_000),
        ("grpc.http2.ping_timeout_ms", 5_000),
        # Clients may ping an idle watch as often as every five seconds.
        ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
        ("grpc.keepalive_permit_without_calls", 1),
    ]


def _unheard(*_: object) -> None:
    """Hears of calls and tells nobody."""


@dataclass(frozen=True, slots=True)
class Server:
    """A running server."""

    address: str
    port: int
    drain: Callable[[], None]


@asynccontextmanager
async def running(settings: Settings, tell: Tell = _unheard, shared: Port = Port.OWN) -> AsyncIterator[Server]:
    """A server that takes calls while the block lasts; at its end calls under way are given ``drain_seconds``. ``tell`` hears of each call.

    Raises EmbeddedError, SchemaError, StoreUnavailable, OSError: each says what to do.
    """
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(_database(settings))
        token_key = await database.token_key()
        flows, events = Flows(database), Events(database)
        wakeups = LocalWakeups()
        memory = settings.cache_mib * 1024 * 1024
        views = Views(memory // 2)
        wakeups.tell(views.heard)
        await _relay(stack, settings, database, wakeups, token_key)
        commits = Commits(database, flows, Heads(memory // 4), Texts(memory // 4), wakeups.ring, settings.commit_lanes)
        watching = WatchSettings(
            settings.watch_poll_seconds,
            settings.watch_heartbeat_seconds,
            settings.watch_max_age_seconds,
            random.SystemRandom().random,
            settings.streams_per_tenant,
        )
        watches = Watches(flows, events, Feed(database), now, watching, token_key)
        wakeups.tell(watches.heard)
        limits = document.Limits(settings.max_document_bytes)
        store = Store(database, flows, events, History(database), commits)
        reads = Reads(flows, views, None, time.time, settings.cache_seconds, limits)
        sources = Sources(now, new_id)
        service = FlowService(store, reads, watches, sources, limits, token_key)
        flow_history = FlowHistory(store, sources, limits, token_key)
        boundary = Boundary(Deadlines(settings.default_deadline_seconds), settings.max_message_bytes, tell)
        checks = health.aio.HealthServicer()

        server = grpc.aio.server(options=channel_options(settings, shared))
        server.add_generic_rpc_handlers((boundary.handlers(FLOW_SERVICE, service, flow_history),))
        health_pb2_grpc.add_HealthServicer_to_server(checks, server)
        add_reflection(server, [FLOW_SERVICE.full_name, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name])
        port = _bound(server, settings)
        await server.start()
        names = ("", FLOW_SERVICE.full_name)
        await _set_health(checks, names, health_pb2.HealthCheckResponse.SERVING)
        watch_health = asyncio.create_task(_watch_health(database, checks, names), name="health")

        loop = asyncio.get_running_loop()

        def drain() -> None:
            boundary.drain()
            watches.drain()

        async def stop() -> None:
            ending = loop.time() + settings.drain_seconds
            drain()
            watch_health.cancel()
            await checks.enter_graceful_shutdown()
            await asyncio.sleep(min(REFUSING_SECONDS, settings.drain_seconds))
            closing = asyncio.create_task(server.stop(max(0.0, ending - loop.time())))
            await asyncio.sleep(0.0)  # gRPC has begun to close once the task has run
            boundary.close()
            await closing
            await commits.close(max(0.0, ending - loop.time()))

        stack.push_async_callback(stop)
        yield Server(f"{settings.host}:{port}", port, drain)


async def _relay(stack: AsyncExitStack, settings: Settings, database: Database, wakeups: LocalWakeups, token_key: bytes) -> None:
    """Connects this process's hints with those of others."""
    way = settings.wakeups
    if way == "auto":
        way = "postgres" if settings.redis_url is None else "redis"
    channel: Channel
    if way == "redis" and settings.redis_url is not None:
        link = await stack.enter_async_context(linked(settings.redis_url.get_secret_value()))
        # Installations that share one Redis do not hear each other.
        topic = f"flowledger:{hashlib.sha256(b'topic' + token_key).hexdigest()[:16]}"
        channel = RedisChannel(link, topic, Breaker(time.monotonic, _redis_told))
    elif way == "postgres":
        url = settings.listen_url
        channel = Notifications(database, database.url if url is None else url.get_secret_value())
    else:
        return
    await stack.enter_async_context(relayed(wakeups, channel, os.urandom(8)))


def _redis_told(is_open: bool) -> None:
    _log.warning("redis_state", reachable=not is_open)


@asynccontextmanager
async def _database(settings: Settings) -> AsyncIterator[Database]:
    """The database to serve from: the embedded one, brought to the newest schema, or the one that was set, checked."""
    async with AsyncExitStack() as stack:
        if settings.database_url is None:
            addresses = await stack.enter_async_context(embedded(settings.data_dir))
            before, after = await schema.migrate(addresses.owner_url)
            if before != after:
                _log.info("schema_migrated", before=before, after=after)
            url = addresses.service_url
        else:
            url = settings.database_url.get_secret_value()
        pool = PoolSettings(
            settings.pool_min,
            settings.pool_max,
            settings.statement_timeout_seconds,
            settings.statement_timeout_seconds,
            settings.database_role,
        )
        database = await stack.enter_async_context(connected(url, pool))
        await schema.check(database)
        yield database


def _bound(server: grpc.aio.Server, settings: Settings) -> int:
    try:
        port = server.add_insecure_port(f"{settings.host}:{settings.port}")
    except RuntimeError as error:
        raise OSError(f"cannot listen on {settings.host}:{settings.port}: is another server there? Set FLOWLEDGER_PORT") from error
    return int(port)


async def _set_health(checks: health.aio.HealthServicer, names: Sequence[str], status: int) -> None:
    for name in names:
        await checks.set(name, status)


async def _watch_health(database: Database, checks: health.aio.HealthServicer, names: Sequence[str]) -> None:
    """Says NOT_SERVING while PostgreSQL is away, so that balancers send calls elsewhere."""
    well = True
    while True:
        await asyncio.sleep(HEALTH_SECONDS)
        try:
            await database.check()
            found = True
        except StoreUnavailable:
            found = False
        if found != well:
            well = found
            _log.warning("store_state", reachable=well)
            status = health_pb2.HealthCheckResponse.SERVING if well else health_pb2.HealthCheckResponse.NOT_SERVING
            await _set_health(checks, names, status)
