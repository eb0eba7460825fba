"""The composition root: everything the server is made of, built on one stack, taken down in reverse."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID

import structlog
from flowledger.v1 import admin_service_pb2, checkpoint_service_pb2, flow_service_pb2

from server.alarm import Alarm
from server.breaker import Breaker
from server.cache import Heads, RedisViews, Texts, Views
from server.checkpoints import kek
from server.checkpoints.archive import Archive
from server.checkpoints.precaution import Precaution
from server.checkpoints.sealed_views import SealedViews
from server.checkpoints.ways_back import WaysBack
from server.compacting import Compacted, compact_all
from server.embedded import embedded
from server.keeping import checkpoint_jobs, keeping, looking_job, sweeping, telling_of_breaks
from server.listening import Port, listen
from server.metrics import Metrics, exposed, registry_of
from server.redis_link import RedisLink, ended, linked
from server.repository import schema
from server.repository.alerts import Alerts
from server.repository.commits import Commits
from server.repository.database import Database, PoolSettings, connected
from server.repository.erasure import Erasure
from server.repository.events import Events
from server.repository.feed import Feed
from server.repository.flows import Flows
from server.repository.history import History
from server.repository.notifications import Notifications
from server.repository.session import Pooler, Session
from server.repository.store import Store
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
from server.services.health import Health
from server.services.key_admin import KeyAdmin
from server.services.reads import Reads
from server.services.watch import Watches, WatchSettings
from server.settings import Settings
from server.statemachine import document
from server.statemachine.values import Tenant
from server.vault import KeyProvider
from server.wakeups import Channel, LocalWakeups, RedisChannel, relayed

_log = structlog.get_logger()

FLOW_SERVICE = flow_service_pb2.DESCRIPTOR.services_by_name["FlowService"]
ADMIN_SERVICE = admin_service_pb2.DESCRIPTOR.services_by_name["AdminService"]
CHECKPOINT_SERVICE = checkpoint_service_pb2.DESCRIPTOR.services_by_name["CheckpointService"]
SERVICES = (FLOW_SERVICE.full_name, CHECKPOINT_SERVICE.full_name, ADMIN_SERVICE.full_name)
# Of several workers each takes the first of so many ports, from FLOWLEDGER_METRICS_PORT on, that is free.
METRICS_SPARE = 63
# What keys are derived for besides sealing.
SIGNING = b"flowledger signing"


def now() -> datetime:
    """The time, aware, in UTC."""
    return datetime.now(UTC)


def new_id(clock: Callable[[], int] = time.time_ns, entropy: Callable[[int], bytes] = os.urandom) -> UUID:
    """A UUIDv7 (RFC 9562 section 5.7): 48 bits of milliseconds, then random bits, so that ids sort by their age."""
    milliseconds = clock() // 1_000_000
    value = (milliseconds & (1 << 48) - 1) << 80 | int.from_bytes(entropy(10), "big")
    value = value & ~(0xF << 76) | 0x7 << 76  # version 7
    return UUID(int=value & ~(0x3 << 62) | 0x2 << 62)  # variant of RFC 9562


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
            settings.watch_poll_seconds,
            settings.watch_heartbeat_seconds,
            settings.watch_max_age_seconds,
            random.SystemRandom().random,
            settings.streams_per_tenant,
        )
        watches = Watches(flows, events, Feed(database), now, watching, token_key)
        wakeups.tell(watches.heard)
        alerts = Alerts(database)
        alert_admin = AlertAdmin(alerts, wakeups, now, watching, token_key)
        limits = document.Limits(settings.max_document_bytes)
        history = History(database)
        store = Store(database, flows, events, history, commits)
        sources = Sources(now, new_id)
        provider = await _keys(settings, database)
        archive = Archive.of(store, provider, now, new_id, time.monotonic)
        shared_views = None if redis is None else _shared_views(stack, redis, SealedViews(archive.keyring))
        reads = Reads(flows, views, shared_views, time.time, settings.cache_seconds, limits)
        metrics = _metrics(stack, settings, shared, database, commits, watches, alert_admin)
        if redis is not None and shared_views is not None:
            wakeups.tell(shared_views.heard)
            metrics.read("shared_views", shared_views.counts)
            metrics.read("redis_reachable", redis.reachable)
        raise_alert = Alarm(alerts, metrics.count, lambda tenant: wakeups.ring(alerts_key(tenant), 0))
        kept = keeping(settings, database, history, sources, provider.secrets(SIGNING), telling_of_breaks(raise_alert, sources))
        service = FlowService(store, reads, watches, sources, limits, token_key, Precaution(store, archive, kept.policies.policy_of))
        flow_history = FlowHistory(store, sources, limits, token_key)
        seals = CheckpointAlarm(raise_alert, archive.checkpoints, sources)
        flow_rescue = FlowRescue(Rescue(store, WaysBack(archive.opening), raise_alert), sources, limits)
        boundary = Boundary(Deadlines(settings.default_deadline_seconds), settings.max_message_bytes, _both(tell, metrics))
        health = Health(SERVICES)
        handlers = (
            boundary.handlers(FLOW_SERVICE, service, flow_history, flow_rescue),
            boundary.handlers(
                CHECKPOINT_SERVICE,
                CheckpointService(store, archive, seals, sources, limits, token_key),
                CheckpointStreams(store, archive, seals, sources, limits),
            ),
            boundary.handlers(ADMIN_SERVICE, alert_admin, KeyAdmin(store, archive, Erasure(database), sources, limits), *kept.servicers),
        )

        def drain() -> None:
            boundary.drain()
            watches.drain()
            alert_admin.drain()

        port = await listen(stack, settings, shared, handlers, boundary, health, drain, commits, SERVICES)
        jobs = [*checkpoint_jobs(archive, sources), *kept.jobs, looking_job(database, raise_alert, sources)]
        background = [
            asyncio.create_task(health.follow(database.check), name="health"),
            *sweeping(settings, database, sources, jobs, lambda job, outcome: metrics.count("sweeper_runs", job, outcome)),
        ]
        stack.push_async_callback(ended, background)
        yield Server(f"{settings.host}:{port}", port, drain, raise_alert)


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
    metrics.read("pool_connections", lambda: {(state,): count for state, count in database.connections.use().items()})
    metrics.read("watches_open", lambda: {("flow",): watches.open, ("alerts",): alerts.open})
    metrics.read("watch_lag_seconds", lambda: {(): watches.lag})
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
    stack.push_async_callback(ended, [asyncio.create_task(views.sharing(), name="shared views")])
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


async def compacted(settings: Settings, tenant: Tenant | None, *, rehearse: bool = False) -> Compacted:
    """What went of the flows by their tenants' policies, or would go: of one tenant's, or of all. Raises as ``running`` does."""
    async with _database(settings) as database:
        provider = await _keys(settings, database)
        broken = telling_of_breaks(Alarm(Alerts(database), _unheard, _unheard), Sources(now, new_id))
        return await compact_all(database, provider.secrets(SIGNING), tenant, now, broken, rehearse=rehearse)


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
        timeout = settings.statement_timeout_seconds
        session = Session(timeout, settings.database_role, Pooler(settings.pooler))
        pool = PoolSettings(settings.pool_min, settings.pool_max, timeout, session)
        database = await stack.enter_async_context(connected(url, pool))
        await schema.check(database)
        yield database


async def _keys(settings: Settings, database: Database) -> KeyProvider:
    """The keys of this server, once it is certain that they are the database's."""
    return await kek.provided(database, _given_keys(settings), settings.key_path)


async def adopt_key(settings: Settings) -> tuple[str | None, str]:
    """Let this server's key-encryption key be the database's: the one before, and the one now. Raises as ``running`` does."""
    async with _database(settings) as database:
        return await kek.adopted(database, _given_keys(settings), settings.key_path)


def _given_keys(settings: Settings) -> str | None:
    return None if settings.keys is None else settings.keys.get_secret_value()
