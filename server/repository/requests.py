"""Request ids: what makes a retry safe when nobody knows whether the first try was stored."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from uuid import UUID

from sqlalchemy import UUID as UUIDType
from sqlalchemy import bindparam, select

from server.repository.database import Database
from server.repository.statement import Statement, gated, mine
from server.repository.tables import requests
from server.statemachine.errors import RequestIdReused
from server.statemachine.event import Event
from server.statemachine.value import dataclass
from server.statemachine.values import Flow, FlowSummary, Tenant


@dataclass(frozen=True, slots=True)
class Committed:
    """A flow after a commit, the event that records it, and that event's link in the hash chain."""

    flow: Flow
    summary: FlowSummary
    event: Event
    hash: bytes


@dataclass(frozen=True, slots=True)
class Request:
    """A caller's id for one request, the hash of what it asks, and how its answer is written down."""

    request_id: UUID
    payload_hash: bytes
    answer: Callable[[Sequence[Committed]], bytes]


@dataclass(frozen=True, slots=True)
class Answered:
    """The answer that the request was given the first time."""

    answer: bytes


_FIND = Statement(
    gated(
        select(requests.c.payload_hash, requests.c.answer).where(
            *mine(requests), requests.c.request_id == bindparam("request_id", type_=UUIDType())
        )
    )
)


async def answered(database: Database, tenant: Tenant, request: Request) -> Answered | None:
    """What the request was answered before; None when it is new. Raises RequestIdReused when the id was given to another request."""
    values = {
        "client_account_id": tenant.client_account_id,
        "engagement_id": tenant.engagement_id,
        "request_id": request.request_id,
    }
    rows = await database.read([tenant], _FIND, values)
    if not rows:
        return None
    payload_hash, answer = rows[0]
    if payload_hash != request.payload_hash:
        raise RequestIdReused(request.request_id)
    return Answered(answer)
