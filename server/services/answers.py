"""What mutations answer, and how an answer is remembered for a repeat of its request."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any, TypeVar
from uuid import UUID

from flowledger.v1 import event_pb2
from google.protobuf.message import Message

from server.repository.requests import Committed, Request
from server.services import convert

_Response = TypeVar("_Response", bound=Message)


def event_of(one: Committed) -> event_pb2.FlowEvent:
    """The event that records the commit."""
    return convert.event(str(one.flow.flow_id), one.event, one.hash)


def summary_answer(response: type[_Response]) -> Callable[[Sequence[Committed]], _Response]:
    """The usual answer: the flow in SUMMARY view and the event."""

    def answer(results: Sequence[Committed]) -> _Response:
        return response(flow=convert.summarized(results[0].summary), event=event_of(results[0]))

    return answer


def basic_answer(response: type[_Response]) -> Callable[[Sequence[Committed]], _Response]:
    """The answer of what makes children: the flow in BASIC view and the event."""

    def answer(results: Sequence[Committed]) -> _Response:
        return response(flow=convert.basic(results[0].flow), event=event_of(results[0]))

    return answer


def remembered(request: Any, answer: Callable[[Sequence[Committed]], Message]) -> Request | None:
    """The request as it is remembered. The id is part of the hashed payload, and the RPC's name too: an id belongs to one request."""
    if not request.request_id:
        return None
    payload = request.DESCRIPTOR.full_name.encode() + b"\0" + request.SerializeToString(deterministic=True)
    return Request(UUID(request.request_id), hashlib.sha256(payload).digest(), lambda results: answer(results).SerializeToString())
