"""One process's view of a database: what ``app`` builds for itself, and everything that it sends to PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any
from uuid import UUID, uuid4

import asyncpg

from server.cache import Heads, Texts
from server.repository.commits import Commits
from server.repository.database import Database, PoolSettings, connected
from server.repository.events import Events, StoredEvent
from server.repository.flows import Flows, Head, Record
from server.repository.plan import Asked, Birth
from server.repository.requests import Answered, Committed, Request
from server.repository.session import Session
from server.statemachine.alert import Alert, AlertKind, AlertSeverity
from server.statemachine.change import Change, ReportProgress, StartChild, TransitionPhase
from server.statemachine.event import Cause
from server.statemachine.flow import Occasion, create
from server.statemachine.replacement import content_of, replacement
from server.statemachine.states import PhaseState
from server.statemachine.values import Content, DocumentPlace, FlowKey, Tenant
from tests import cluster as clusters
from tests.repository import rows

CONNECTIONS = 8
NOON = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Sent:
    """One statement with its values, as the driver sent it."""

    text: str
    values: tuple[object, ...]


@dataclass(slots=True)
class Store:
    """The repository of one process."""

    database: Database
    flows: Flows
    events: Events
    heads: Heads
    commits: Commits
    sent: list[Sent]
    rung: list[FlowKey]
    _minutes: Iterator[int] = field(default_factory=lambda: count(1))

    def occasion(self, actor: str = "ann") -> Occasion:
        """The next commit's, a minute after the last."""
        return Occasion(actor, NOON + timedelta(minutes=next(self._minutes)), uuid4)

    def asked(self, tenant: Tenant, flow_id: UUID, *changes: Change, expected: int = 0, request: Request | None = None) -> Asked:
        """A commit to an existing flow."""
        return Asked(tenant, flow_id, changes, self.occasion(), expected, request)

    def birth(self, tenant: Tenant, *changes: Change, flow_id: UUID | None = None, request: Request | None = None) -> Asked:
        """A commit that makes a discovery flow with its child."""
        birth = Birth("discovery", "Wave 3", {"wave": "3"})
        return Asked(tenant, flow_id or uuid4(), (StartChild(), *changes), self.occasion(), 0, request, birth)

    async def replacing(self, tenant: Tenant, flow_id: UUID, content: Content | None = None) -> Asked:
        """A commit that replaces the flow by ``content``: the next time without a child and its documents, if nothing is said."""
        record = await self.record(tenant, flow_id)
        flow = record.head.flow
        if content is None:
            started = create(tenant, flow_id, flow.type, "Again", {}, [] if flow.children else [StartChild()], self.occasion()).flow
            content = content_of(started, {})
        change = replacement(content, record.documents, Cause.REVERT, "because", source_revision=1)
        return self.asked(tenant, flow_id, change, expected=flow.revision)

    async def commit(self, asked: Asked) -> Committed:
        """What the commit came to, when it is not a repeated request."""
        done = await self.commits.commit(asked)
        assert isinstance(done, Committed), done
        return done

    async def all_of(self, *asked: Asked) -> list[Committed | Answered | BaseException]:
        """What becomes of commits that are asked for at the same time, in this order."""
        return await asyncio.gather(*(self.commits.commit(one) for one in asked), return_exceptions=True)

    async def create(self, tenant: Tenant, *changes: Change) -> UUID:
        """The id of a new discovery flow with its child at revision 1."""
        return (await self.commit(self.birth(tenant, *changes))).flow.flow_id

    async def begun(self, tenant: Tenant) -> UUID:
        """The id of a flow at revision 2 whose first phase is IN_PROGRESS."""
        flow_id = await self.create(tenant)
        await self.commit(self.asked(tenant, flow_id, TransitionPhase("data_import", PhaseState.IN_PROGRESS)))
        return flow_id

    async def head(self, tenant: Tenant, flow_id: UUID) -> Head:
        """The flow as the database has it."""
        key = FlowKey(tenant, flow_id)
        return (await self.flows.heads([key]))[key]

    async def text(self, tenant: Tenant, flow_id: UUID, place: DocumentPlace) -> bytes | None:
        """The document as the database has it."""
        found = await self.flows.document(tenant, flow_id, place)
        return None if found is None else found[1]

    async def record(self, tenant: Tenant, flow_id: UUID) -> Record:
        """Everything about the flow."""
        return (await self.flows.records(tenant, [flow_id]))[0]

    async def history(self, tenant: Tenant, flow_id: UUID) -> list[StoredEvent]:
        """Every event of the flow."""
        return list((await self.events.page(tenant, flow_id, 0, 10_000)).events)


@asynccontextmanager
async def opened(url: str, lanes: int = 1, cache: int = 1024 * 1024) -> AsyncIterator[Store]:
    """A store on its own connections; with one lane, what is asked for at the same time goes out together."""
    session = Session(pooler=clusters.POOLER)
    async with connected(clusters.entrance(url), PoolSettings(CONNECTIONS, CONNECTIONS, session=session)) as database:
        sent: list[Sent] = []
        lent = [await database.connections.lend() for _ in range(CONNECTIONS)]
        for connection in lent:
            connection.add_query_logger(lambda query: _noted(sent, query))
        for connection in lent:
            await database.connections.take_back(connection)
        flows, heads, rung = Flows(database), Heads(cache), list[FlowKey]()
        commits = Commits(database, flows, heads, Texts(cache), lambda key, _: rung.append(key), lanes)
        yield Store(database, flows, Events(database), heads, commits, sent, rung)
        await commits.close(5.0)


@asynccontextmanager
async def superuser(service_url: str) -> AsyncIterator[asyncpg.Connection]:
    """A connection to the same database that row level security does not bind: it sees what is really there."""
    connection = await asyncpg.connect(service_url.replace("flowledger@", "postgres@", 1))
    try:
        yield connection
    finally:
        await connection.close()


def request(payload: bytes = b"payload", request_id: UUID | None = None) -> Request:
    """A request whose answer says which revision it led to."""
    return Request(request_id or uuid4(), payload.ljust(32, b"."), _answer)


def again(asked: Asked, occasion: Occasion) -> Asked:
    """The same request, sent a second time."""
    return replace(asked, occasion=occasion)


def report(number: int, of: int = 1000) -> ReportProgress:
    """A progress report of the first phase."""
    return ReportProgress("data_import", number / of)


def alert(subject: str, minute: int = 0, **more: Any) -> Alert:
    """An alert about that subject."""
    given = {"alert_id": uuid4(), "kind": AlertKind.FLOW_STUCK, "severity": AlertSeverity.WARNING, "message": f"{subject} is stuck"}
    return Alert(**{**given, "create_time": NOON + timedelta(minutes=minute), "subject": subject, **more})


def outsiders(tenant: Tenant) -> dict[str, Tenant]:
    """Everybody who might be mistaken for the tenant."""
    return {
        "another tenant": rows.tenant(),
        "the account with another engagement": Tenant(tenant.client_account_id, uuid4()),
        "the engagement under another account": Tenant(uuid4(), tenant.engagement_id),
        "the two ids swapped": Tenant(tenant.engagement_id, tenant.client_account_id),
    }


def _noted(sent: list[Sent], query: Any) -> None:
    if not query.query.startswith(("BEGIN", "COMMIT", "ROLLBACK")):  # what is around statements is not one
        sent.append(Sent(query.query, tuple(query.args)))


def _answer(results: object) -> bytes:
    assert isinstance(results, list | tuple)
    return ",".join(f"{one.flow.flow_id}@{one.flow.revision}" for one in results).encode()
