"""What mutations answer, and how an answer is remembered for a repeat of its request."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, TypeVar, cast
from uuid import UUID

from flowledger.v1 import event_pb2
from google.protobuf.message import Message

from server.repository.requests import Answer, Committed, Request
from server.services import event_messages, flow_messages

_Response = TypeVar("_Response", bound=Message)


def event_of(one: Committed) -> event_pb2.FlowEvent:
    """The event that records the commit."""
    found = event_pb2.FlowEvent()
    _write_event(found, one)
    return found


def _write_event(target: event_pb2.FlowEvent, one: Committed) -> None:
    event_messages.write_event(target, str(one.flow.flow_id), one.event, one.hash)


@cache
def summary_answer(response: Callable[[], Message]) -> Answer:
    """The usual answer: the flow in SUMMARY view and the event."""

    def answer(results: Sequence[Committed]) -> bytes:
        made: Any = response()
        flow_messages.write_summary(made.flow, results[0].summary)
        _write_event(made.event, results[0])
        return cast(bytes, made.SerializeToString())

    return answer


@cache
def basic_answer(response: Callable[[], Message]) -> Answer:
    """The answer of what makes children: the flow in BASIC view and the event."""
    return lambda results: basic_message(response, results[0]).SerializeToString()


def basic_message(response: Callable[[], _Response], one: Committed) -> _Response:
    """The same, as a message to add to."""
    made: Any = response()
    flow_messages.write_basic(made.flow, one.flow)
    _write_event(made.event, one)
    return cast(_Response, made)


def remembered(request: Any, answer: Answer) -> Request | None:
    """The request as it is remembered. The id is part of the hashed payload, and the RPC's name too: an id belongs to one request."""
    if not request.request_id:
        return None
    payload = request.DESCRIPTOR.full_name.encode() + b"\0" + request.SerializeToString(deterministic=True)
    return Request(UUID(request.request_id), hashlib.sha256(payload).digest(), answer)
