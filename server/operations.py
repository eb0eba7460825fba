"""What more than one way in sets going: services, the sweeper and other operations call it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import field

from server.repository.flows import Record
from server.repository.plan import Asked
from server.repository.requests import Answered, Committed, Request
from server.repository.store import Store
from server.statemachine.change import ReplaceContent
from server.statemachine.diff import FlowDiff, Side, difference
from server.statemachine.errors import ConcurrentModification
from server.statemachine.flow import Occasion
from server.statemachine.value import dataclass
from server.statemachine.values import DocumentPlace, FlowKey

ATTEMPTS = 10
# Beyond this documents are compared beside the event loop: comparing costs many times what reading does.
COMPARED_INLINE_BYTES = 4 * 1024


@dataclass(frozen=True, slots=True)
class Replaced:
    """A flow before and after it was replaced as a whole, and the documents that it has then."""

    before: Record
    committed: Committed
    documents: Mapping[DocumentPlace, bytes] = field(hash=False)


async def replace_content(
    store: Store,
    key: FlowKey,
    occasion: Occasion,
    expected: int,
    prepared: Callable[[Record], ReplaceContent],
    remembered: Callable[[Record], Request | None] = lambda _: None,
    *,
    rehearse: bool = False,
) -> Replaced | Answered:
    """The flow with another content, which ``prepared`` makes of what it is; ``expected`` 0 means whatever revision is current.

    ``remembered`` is the request whose answer is kept; with ``rehearse`` nothing is written. What is prepared holds for one revision only,
    so it is prepared anew when others were first. Raises what ``prepared``, the rules and the commit raise.
    """
    for attempt in range(ATTEMPTS):
        before = (await store.flows.records(key.tenant, [key.flow_id]))[0]
        revision = before.head.flow.revision
        change = prepared(before)
        asked = Asked(key.tenant, key.flow_id, (change,), occasion, expected or revision, None if rehearse else remembered(before))
        try:
            done = await (store.commits.rehearse(asked) if rehearse else store.commits.commit(asked))
        except ConcurrentModification:
            if expected or attempt == ATTEMPTS - 1:
                raise
        else:
            return done if isinstance(done, Answered) else Replaced(before, done, change.content.documents)
    raise AssertionError("the last attempt returned or raised")


def side(record: Record) -> Side:
    """The record as one side of a comparison."""
    return Side(record.head.flow, record.documents)


async def compared(before: Side, after: Side) -> FlowDiff:
    """What makes ``after`` of ``before``, found beside the event loop where there is much to compare."""
    if before.size + after.size <= COMPARED_INLINE_BYTES:
        return difference(before, after)
    return await asyncio.to_thread(difference, before, after)
