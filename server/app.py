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
from datetime import UTC, datetime, timedelta
from enum import Enum, unique
from uuid import UUID

import grpc
import structlog
from flowledger.v1 import admin_service_pb2, checkpoint_service_pb2, flow_service_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from server.alarm import Alarm
from server.breaker import Breaker
from server.cache import Heads, RedisViews, Texts, Views
from server.checkpoints import kek
from server.checkpoints.archive import Archive
from server.checkpoints.precaution import Precaution
from server.checkpoints.sealed_views import SealedViews
from server.checkpoints.upkeep import CheckpointUpkeep
from server.checkpoints.ways_back import WaysBack
from server.embedded import embedded
from server.lookout import Lookout
from server.metrics import Metrics, exposed, registry_of
from server.redis_link import RedisLink, linked
from server.repository import schema
from server.repository.alerts import Alerts
from server.repository.commits import Commits
from server.repository.database import Database, PoolSettings, connected
from server.repository.erasure import Erasure
from server.repository.events import Events
from server.repository.flows import Flows
from server.repository.history import History
from server.repository.notifications import Notifications
from server.repository.standing import Standing
from server.repository.store import Store
from server.repository.tenants import all_tenants
from server.rescue import Rescue
from server.services.alert_admin import AlertAdmin, alerts_key
from server.services.boundary import Boundary, Tell
from server.services.caller import Caller
from server.services.checkpoint_alarm import CheckpointAlarm
from server.services.checkpoint_service import CheckpointService
from server.services.checkpoint_streams import CheckpointStreams
from server.services.deadlines import Deadlines
from server.services.flow_history import FlowHistory
from server.services.flow_rescue import FlowRescue
from server.services.flow_service import FlowService, Sources
from server.services.key_admin import KeyAdmin
from server.services.reads import Reads
from server.services.reflection import add_reflection
from server.services.watch import Watches, WatchSettings
from server.settings import Settings
from server.statemachine import document
from server.statemachine.errors import StoreUnavailable
from server.statemachine.policy import Policy
from server.statemachine.values import Tenant
from server.sweeper import Job, Sweeper
from server.wakeups import Channel, LocalWakeups, RedisChannel, relayed

_log = structlog.get_logger()

FLOW_SERVICE = flow_service_pb2.DESCRIPTOR.services_by_name["FlowService"]
ADMIN_SERVICE = admin_service_pb2.DESCRIPTOR.services_by_name["AdminService"]
CHECKPOINT_SERVICE = checkpoint_service_pb2.DESCRIPTOR.services_by_name["CheckpointService"]
SERVICES = (FLOW_SERVICE.full_name, CHECKPOINT_SERVICE.full_name, ADMIN_SERVICE.full_name)
# Of several workers each takes the first of so many ports, from FLOWLEDGER_METRICS_PORT on, that is free.
METRICS_SPARE = 63
_DEFAULT_POLICY = Policy()
HEALTH_SECONDS = 2.0
# Who is stuck has been so for hours: all flows need not be looked at every minute.
LOOKING_PAUSE = timedelta(minutes=5)
# gRPC ends calls that have arrived and were not taken yet with CANCELLED when it closes, which a client takes for final:
# for this long they are still taken, and held to be told to go elsewhere.
REFUSING_SECONDS = 0.25


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
    raise_alert: Alarm


@asynccontextmanager
async def running(settings: Settings, tell: Tell = _unheard, shared: Port = Port.OWN) -> AsyncIterator[Server]:
    """A server that takes calls while the block lasts; at its end calls under way are given ``drain_seconds``. ``tell`` hears of each call.

    Raises EmbeddedError, SchemaError, KeyFault, StoreUnavailable, OSError: each says what to do.
    """
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(_database(settings))
        token_key = await database.token_key()
        flows, events = Flows(database), Events(database)
        wakeups = LocalWakeups()
        memory = settings.cache_mib * 1024 * 1024
        views = Views(memory // 2)
        wakeups.tell(views.heard)
        redis = await _redis(stack, settings, token_key)
        await _relay(stack, settings, database, wakeups, redis)
        commits = Commits(database, flows, Heads(memory // 4), Texts(memory // 4), wakeups.ring, settings.commit_lanes)
        watching = WatchSettings(
            settings.watch_poll_seconds, settings.watch_heartbeat_seconds, settings.watch_max_age_seconds, random.SystemRandom().random
        )
        watches = Watches(flows, events, wakeups, now, watching)
        alerts = Alerts(database)
        alert_admin = AlertAdmin(alerts, wakeups, now, watching, token_key)
        limits = document.Limits(settings.max_document_bytes)
        store = Store(database, flows, events, History(database), commits)
        sources = Sources(now, new_id)
        archive = await _archive(settings, store)
        shared_views = None if redis is None else _shared_views(stack, redis, SealedViews(archive.keyring))
        reads = Reads(flows, views, shared_views, time.time, settings.cache_seconds, limits)
        service = FlowService(store, reads, watches, sources, limits, token_key, Precaution(store, archive, _no_policy))
        flow_history = FlowHistory(store, sources, limits, token_key)
        metrics = _metrics(stack, settings, shared, database, commits, watches, alert_admin)
        if redis is not None and shared_views is not None:
            metrics.read("shared_views", shared_views.counts)
            metrics.read("redis_reachable", redis.reachable)
        raise_alert = Alarm(alerts, metrics.count, lambda tenant: wakeups.ring(alerts_key(tenant), 0))
        seals = CheckpointAlarm(raise_alert, archive.checkpoints, sources)
        flow_rescue = FlowRescue(Rescue(store, WaysBack(archive.opening), raise_alert), sources, limits)
        boundary = Boundary(Deadlines(settings.default_deadline_seconds), settings.max_message_bytes, _both(tell, metrics))
        handlers = (
            boundary.handlers(FLOW_SERVICE, service, flow_history, flow_rescue),
            boundary.handlers(
                CHECKPOINT_SERVICE,
                CheckpointService(store, archive, seals, sources, limits, token_key),
                CheckpointStreams(store, archive, seals, sources, limits),
            ),
            boundary.handlers(ADMIN_SERVICE, alert_admin, KeyAdmin(store, archive, Erasure(database), sources, limits)),
        )

        def drain() -> None:
            boundary.drain()
            watches.drain()
            alert_admin.drain()

        port = await _serve(stack, settings, shared, handlers, boundary, drain, commits)
        background = [
            asyncio.create_task(_watch_health(database, port.checks), name="health"),
            *_sweeping(settings, database, _jobs(CheckpointUpkeep(archive, now), Lookout(Standing(database), raise_alert, now, new_id))),
        ]
        stack.push_async_callback(_ended, background)
        yield Server(f"{settings.host}:{port.number}", port.number, drain, raise_alert)


@dataclass(frozen=True, slots=True)
class _Listening:
    """Where gRPC listens, and what it says of its health."""

    number: int
    checks: health.aio.HealthServicer


async def _serve(
    stack: AsyncExitStack,
    settings: Settings,
    shared: Port,
    handlers: Sequence[grpc.GenericRpcHandler],
    boundary: Boundary,
    drain: Callable[[], None],
    commits: Commits,
) -> _Listening:
    """Take calls from here on, until the stack is taken down. Raises OSError when the port is taken."""
    checks = health.aio.HealthServicer()
    server = grpc.aio.server(options=channel_options(settings, shared))
    server.add_generic_rpc_handlers(tuple(handlers))
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    add_reflection(server, [*SERVICES, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name])
    port = _bound(server, settings)
    await server.start()
    await _set_health(checks, health_pb2.HealthCheckResponse.SERVING)
    loop = asyncio.get_running_loop()

    async def stop() -> None:
        ending = loop.time() + settings.drain_seconds
        drain()
        await checks.enter_graceful_shutdown()
        await asyncio.sleep(min(REFUSING_SECONDS, settings.drain_seconds))
        closing = asyncio.create_task(server.stop(max(0.0, ending - loop.time())))
        await asyncio.sleep(0.0)  # gRPC has begun to close once the task has run
        boundary.close()
        await closing
        await commits.close(max(0.0, ending - loop.time()))

    stack.push_async_callback(stop)
    return _Listening(port, checks)


def _both(one: Tell, other: Tell) -> Tell:
    """Tells two of each call."""

    def tell(method: str, outcome: str, started: float, caller: Caller | None, flow: str, wrong: str) -> None:
        one(method, outcome, started, caller, flow, wrong)
        other(method, outcome, started, caller, flow, wrong)

    return tell


def _metrics(
    stack: AsyncExitStack, settings: Settings, shared: Port, database: Database, commits: Commits, watches: Watches, alerts: AlertAdmin
) -> Metrics:
    """What is counted, and where at each scrape the rest is read; served, if it is to be, until the stack is taken down."""
    metrics = Metrics()
    metrics.read("commits", lambda: {(): commits.stored})
    metrics.read("commit_batches", lambda: {(): commits.batches})
    metrics.read("pool_connections", lambda: {(state,): count for state, count in database.use().items()})
    metrics.read("watches_open", lambda: {("flow",): watches.open, ("alerts",): alerts.open})
    if settings.metrics_port:
        # Each worker has a port of its own: numbers of several processes in turn would be nobody's.
        spare = METRICS_SPARE if shared is Port.SHARED else 0
        stack.enter_context(exposed(registry_of(metrics), settings.metrics_host, settings.metrics_port, spare))
    return metrics


@dataclass(frozen=True, slots=True)
class _Redis:
    """The Redis that was set: ``topic`` keeps installations that share one apart. Hints and views have a breaker each."""

    link: RedisLink
    topic: str
    hints: Breaker
    views: Breaker

    def reachable(self) -> dict[tuple[str, ...], float]:
        """Whether it answers, by what it is used for."""
        return {("hints",): float(not self.hints.is_open), ("views",): float(not self.views.is_open)}


async def _redis(stack: AsyncExitStack, settings: Settings, token_key: bytes) -> _Redis | None:
    if settings.redis_url is None:
        return None
    link = await stack.enter_async_context(linked(settings.redis_url.get_secret_value()))
    topic = f"flowledger:{hashlib.sha256(b'topic' + token_key).hexdigest()[:16]}"
    return _Redis(link, topic, Breaker(time.monotonic, _redis_told), Breaker(time.monotonic, _redis_told))


def _shared_views(stack: AsyncExitStack, redis: _Redis, seals: SealedViews) -> RedisViews:
    """Views that are shared until the stack is taken down."""
    views = RedisViews(redis.link, redis.topic, seals.seal, seals.unseal, redis.views)
    stack.push_async_callback(_ended, [asyncio.create_task(views.sharing(), name="shared views")])
    return views


async def _relay(stack: AsyncExitStack, settings: Settings, database: Database, wakeups: LocalWakeups, redis: _Redis | None) -> None:
    """Connects this process's hints with those of others."""
    way = settings.wakeups
    if way == "auto":
        way = "postgres" if redis is None else "redis"
    channel: Channel
    if way == "redis" and redis is not None:
        channel = RedisChannel(redis.link, redis.topic, redis.hints)
    elif way == "postgres":
        url = settings.listen_url
        channel = Notifications(database, database.url if url is None else url.get_secret_value())
    else:
        return
    await stack.enter_async_context(relayed(wakeups, channel, os.urandom(8)))


def _redis_told(is_open: bool) -> None:
    _log.warning("redis_state", reachable=not is_open)


def _jobs(checkpoints: CheckpointUpkeep, lookout: Lookout) -> list[Job]:
    """What is done in the background for every tenant."""
    return [
        Job("checkpoint expiry", checkpoints.expire),
        Job("unreferenced contents", checkpoints.collect),
        Job("sealing anew", checkpoints.reseal),
        Job("stuck flows", lookout.look, pause=LOOKING_PAUSE),
    ]


def _sweeping(settings: Settings, database: Database, jobs: Sequence[Job]) -> list[asyncio.Task[None]]:
    """The one task that does the jobs; none where this server is to do none."""
    if not settings.sweep_seconds:
        return []

    def rest() -> float:  # so that the rounds of several servers do not meet
        return settings.sweep_seconds * (0.75 + 0.5 * random.SystemRandom().random())

    return [asyncio.create_task(Sweeper(jobs, lambda: all_tenants(database), database.alone, now, rest).run(), name="sweeper")]


async def _ended(tasks: Sequence[asyncio.Task[None]]) -> None:
    """Ends the tasks, and returns when they have ended."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


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


async def _no_policy(_: Tenant) -> Policy:
    """What every tenant has that set none."""
    return _DEFAULT_POLICY


async def _archive(settings: Settings, store: Store) -> Archive:
    """The checkpoints, once it is certain that the keys of this server are the database's."""
    provider = await kek.provided(store.database, _given_keys(settings), settings.key_path)
    return Archive.of(store, provider, now, new_id, time.monotonic)


async def adopt_key(settings: Settings) -> tuple[str | None, str]:
    """Let this server's key-encryption key be the database's: the one before, and the one now. Raises as ``running`` does."""
    async with _database(settings) as database:
        return await kek.adopted(database, _given_keys(settings), settings.key_path)


def _given_keys(settings: Settings) -> str | None:
    return None if settings.keys is None else settings.keys.get_secret_value()


def _bound(server: grpc.aio.Server, settings: Settings) -> int:
    try:
        port = server.add_insecure_port(f"{settings.host}:{settings.port}")
    except RuntimeError as error:
        raise OSError(f"cannot listen on {settings.host}:{settings.port}: is another server there? Set FLOWLEDGER_PORT") from error
    return int(port)


async def _set_health(checks: health.aio.HealthServicer, status: int) -> None:
    for name in ("", *SERVICES):
        await checks.set(name, status)


async def _watch_health(database: Database, checks: health.aio.HealthServicer) -> None:
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
            await _set_health(checks, status)
