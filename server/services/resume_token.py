"""Resume tokens: where a watch goes on, in a form that only we can make and that any server on the same database takes.

A token is sealed as a page token is, for its tenant. What it says is signed and not secret; it opens nothing: whoever shows it is still
asked who they are, and sees what they would see without it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import field
from functools import lru_cache
from uuid import UUID

from server.repository.feed import Cursor
from server.services import page_token
from server.statemachine.errors import InvalidRequest, invalid
from server.statemachine.event_filter import EventFilter, EventKind
from server.statemachine.value import dataclass
from server.statemachine.values import Tenant

FIELD = "resume_token"
# Room for the names of phases in a token.
PHASES_BYTES = 1000

_FLOW, _FEED = "WatchFlow", "WatchFlows"
_FLOW_HEAD, _FEED_HEAD = struct.Struct(">B16sqH"), struct.Struct(">q16sqq")
_SNAPSHOT_FIRST, _LATEST_ONLY = 1, 2


@dataclass(frozen=True, slots=True)
class FlowPosition:
    """Where a watch of one flow is, and all that tells it from others: ``snapshot_first`` until its first snapshot is delivered."""

    flow_id: UUID
    revision: int
    snapshot_first: bool = False
    latest_only: bool = False
    wanted: EventFilter = field(default_factory=EventFilter)


@dataclass(frozen=True, slots=True)
class FeedPosition:
    """Where a watch of many flows is; what was removed up to ``forgiven`` it did not ask for."""

    cursor: Cursor
    forgiven: int = -1


class ResumeTokens:
    """Makes and opens the tokens of one installation."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def of_flow(self, tenant: Tenant, position: FlowPosition) -> str:
        """The token for a watch of one flow."""
        flags = _SNAPSHOT_FIRST * position.snapshot_first | _LATEST_ONLY * position.latest_only
        kinds, phases = _packed(position.wanted)
        head = _FLOW_HEAD.pack(flags, position.flow_id.bytes, position.revision, kinds)
        return page_token.seal(self._key, _FLOW, page_token.owner(tenant), b"", head + phases)

    def flow(self, tenant: Tenant, token: str) -> FlowPosition:
        """What ``of_flow`` was given. Raises InvalidRequest for any text that it did not return for this tenant."""
        found = page_token.open(self._key, _FLOW, page_token.owner(tenant), b"", token, FIELD)
        flags, flow_id, revision, kinds = _FLOW_HEAD.unpack_from(found)
        names = found[_FLOW_HEAD.size :].decode()
        wanted = EventFilter(_kinds(kinds), frozenset(names.split("\0")) if names else frozenset())
        return FlowPosition(UUID(bytes=flow_id), revision, bool(flags & _SNAPSHOT_FIRST), bool(flags & _LATEST_ONLY), wanted)

    def of_feed(self, tenant: Tenant, query: bytes, position: FeedPosition) -> str:
        """The token for a watch of many flows; ``query`` is all that picks its events."""
        cursor = position.cursor
        head = _FEED_HEAD.pack(cursor.position, cursor.flow_id.bytes, cursor.revision, position.forgiven)
        return page_token.seal(self._key, _FEED, page_token.owner(tenant), query, head)

    def feed(self, tenant: Tenant, query: bytes, token: str) -> FeedPosition:
        """What ``of_feed`` was given. Raises InvalidRequest for any text that it did not return for this tenant and query."""
        found = page_token.open(self._key, _FEED, page_token.owner(tenant), query, token, FIELD)
        position, flow_id, revision, forgiven = _FEED_HEAD.unpack(found)
        return FeedPosition(Cursor(position, UUID(bytes=flow_id), revision), forgiven)


def differs(what: str) -> InvalidRequest:
    """The error for a request that says something else than its token."""
    return invalid(what, "is not what resume_token was made for: leave it out, or give it as it was")


@lru_cache(maxsize=1024)
def _packed(wanted: EventFilter) -> tuple[int, bytes]:
    return sum(1 << kind.value for kind in wanted.kinds), "\0".join(sorted(wanted.phases)).encode()


def _kinds(mask: int) -> frozenset[EventKind]:
    return frozenset(kind for kind in EventKind if mask & 1 << kind.value)


def query_of(filter: str, kinds: Iterable[EventKind]) -> bytes:
    """All that picks the events of a watch of many flows, in one spelling."""
    return "\0".join((filter, *sorted(kind.name for kind in kinds))).encode()
