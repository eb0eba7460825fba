"""Request ids: what makes a retry safe when nobody knows whether the first try was stored."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any
from uuid import UUID

from asyncpg import UniqueViolationError
from sqlalchemy import CTE, LargeBinary, bindparam, insert, literal_column, select
from sqlalchemy import UUID as UUIDType
from sqlalchemy.types import TypeEngine

from server.repository.database import Database
from server.repository.statement import Statement, gate, gated, mine, of_tenant, opened
from server.repository.table_parts import TENANT_KEY, TIME
from server.repository.tables import requests
from server.statemachine.errors import RequestIdReused
from server.statemachine.event import Event
from server.statemachine.value import dataclass
from server.statemachine.values import Flow, FlowSummary, Tenant


@dataclass(frozen=True, slots=True)
class Committed:
    """A flow after a commit, the event that records it, and that event's link in the hash chain.

    ``answer`` is what the caller is told of it, where it was asked for together with the commit.
    """

    flow: Flow
    summary: FlowSummary
    event: Event
    hash: bytes
    answer: bytes = b""


Answer = Callable[[Sequence[Committed]], bytes]


@dataclass(frozen=True, slots=True)
class Request:
    """A caller's id for one request, the hash of what it asks, and how its answer is written down."""

    request_id: UUID
    payload_hash: bytes
    answer: Answer


@dataclass(frozen=True, slots=True)
class Answered:
    """The answer that the request was given the first time."""

    answer: bytes


@dataclass(frozen=True, slots=True)
class Reply:
    """A request and the answer to be remembered for it, where that is known before anything is stored."""

    request_id: UUID
    payload_hash: bytes
    answer: bytes


# Stands for the flow of a request that is about none, or about many.
NO_FLOW = UUID(int=0)


def put_reply(opener: CTE, done: CTE) -> CTE:
    """What remembers a reply in the same statement, if ``done`` has a row. Its values are ``reply_values``."""
    own: dict[str, TypeEngine[Any]] = {
        "request_id": UUIDType(),
        "flow_id": UUIDType(),
        "create_time": TIME,
        "payload_hash": LargeBinary(),
        "answer": LargeBinary(),
    }
    rows = select(
        *(bindparam(key, type_=UUIDType()) for key in TENANT_KEY), *(bindparam(f"reply_{name}", type_=kind) for name, kind in own.items())
    ).where(opened(opener), select(done.c[0]).limit(1).scalar_subquery().is_not(None))
    return insert(requests).from_select([*TENANT_KEY, *own], rows).returning(requests.c.client_account_id).cte("put_reply")


def reply_values(reply: Reply | None, flow_id: UUID, now: datetime) -> dict[str, object]:
    """The values of ``put_reply``; nothing without a reply."""
    if reply is None:
        return {}
    return {
        "reply_request_id": reply.request_id,
        "reply_flow_id": flow_id,
        "reply_create_time": now,
        "reply_payload_hash": reply.payload_hash,
        "reply_answer": reply.answer,
    }


_FIND = Statement(
    gated(
        select(requests.c.payload_hash, requests.c.answer).where(
            *mine(requests), requests.c.request_id == bindparam("request_id", type_=UUIDType())
        )
    )
)


async def answered(database: Database, tenant: Tenant, request: Request | Reply) -> Answered | None:
    """What the request was answered before; None when it is new. Raises RequestIdReused when the id was given to another request."""
    rows = await database.read([tenant], _FIND, {**of_tenant(tenant), "request_id": request.request_id})
    if not rows:
        return None
    payload_hash, answer = rows[0]
    if payload_hash != request.payload_hash:
        raise RequestIdReused(request.request_id)
    return Answered(answer)


async def requested(database: Database, tenant: Tenant, request_id: UUID) -> bool:
    """Whether a request with this id was answered before, whatever it asked."""
    return bool(await database.read([tenant], _FIND, {**of_tenant(tenant), "request_id": request_id}))


def _remembering() -> Statement:
    opener = gate()
    once = select(literal_column("1").label("one")).where(opened(opener)).cte("once")
    return Statement(select(once.c.one).add_cte(put_reply(opener, once)))


_REMEMBER = _remembering()


async def remember(database: Database, tenant: Tenant, reply: Reply, flow_id: UUID, now: datetime) -> Answered:
    """The answer to the request: this one, now remembered, or the one that it was given first. Raises RequestIdReused."""
    with suppress(UniqueViolationError):
        await database.read([tenant], _REMEMBER, {**of_tenant(tenant), **reply_values(reply, flow_id, now)})
        return Answered(reply.answer)
    found = await answered(database, tenant, reply)
    return Answered(reply.answer) if found is None else found
