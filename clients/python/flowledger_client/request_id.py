"""The id that makes a change happen once, however often it is sent."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar
from uuid import UUID

from google.protobuf.message import Message

Q = TypeVar("Q", bound=Message)


def identified(request: Q, new_id: Callable[[], UUID]) -> tuple[Q, str]:
    """The request as it is sent, and its id: whatever changes something has a `request_id`, and gets one unless the caller gave it.

    The caller's own message stays as it is: sent a second time on purpose, it is another change.
    """
    if "request_id" not in request.DESCRIPTOR.fields_by_name:
        return request, ""
    given: str = request.request_id  # type: ignore[attr-defined]
    if given:
        return request, given
    sent = type(request)()
    sent.CopyFrom(request)
    sent.request_id = made = str(new_id())  # type: ignore[attr-defined]
    return sent, made
