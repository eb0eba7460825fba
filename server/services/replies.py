"""Answers that are remembered for a request id, where they are known before anything is stored."""

from __future__ import annotations

import hashlib
from typing import Any
from uuid import UUID

from google.protobuf.message import Message

from server.repository.database import Database
from server.repository.requests import Reply, answered
from server.statemachine.values import Tenant


def payload_hash(request: Message, *more: bytes) -> bytes:
    """What tells one request from another. The id is part of it, and the RPC's name too: an id belongs to one request."""
    payload = request.DESCRIPTOR.full_name.encode() + b"\0" + request.SerializeToString(deterministic=True)
    return hashlib.sha256(payload + b"".join(more)).digest()


def reply_of(request: Any, answer: Message | None = None, *more: bytes) -> Reply | None:
    """The answer to be remembered; without one, what asks whether there is an answer. None for a request without an id."""
    if not request.request_id:
        return None
    return Reply(UUID(request.request_id), payload_hash(request, *more), b"" if answer is None else answer.SerializeToString())


async def first_answer(database: Database, tenant: Tenant, request: Any) -> bytes | None:
    """What the request was answered before; None when it is new, or has no id. Raises RequestIdReused."""
    asking = reply_of(request)
    found = None if asking is None else await answered(database, tenant, asking)
    return None if found is None else found.answer
