"""Old revisions of flows with short and long histories: what a rebuild costs must not depend on how much there was.

The histories are real ones, written through the service: progress reports, and after every tenth part another version of the 10 KiB
document. The revisions that are asked for are picked at random.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from flowledger.v1 import flow_pb2, flow_service_pb2

from benchmarks.generator import Requests, Target, unary_load
from benchmarks.postgres import Postgres
from benchmarks.requests import REPORTS, UPDATES, Tenant, Turns, tenants
from benchmarks.sample import Measure
from benchmarks.service import fill, unary
from benchmarks.serving import Serving, serving
from benchmarks.wire import message

LENGTHS = (10, 1_000, 100_000)
CALLERS = (1, 16)
BEGUN = 2  # the revision of a flow when it is filled
_PARTS = 10
_WRITERS = 64


def name_of(length: int) -> str:
    """What the measure on a history of that length is called."""
    return f"get_flow at_revision, {length:,} revisions"


@asynccontextmanager
async def history(postgres: Postgres, longest: int) -> AsyncIterator[list[Measure]]:
    """The measures ``get_flow at_revision, N revisions`` for each length up to ``longest``, FULL view."""
    async with serving(postgres) as started:
        measures = []
        for number, length in enumerate(length for length in LENGTHS if length <= longest):
            owner = tenants(1, 1, 20 + number)[0]
            await fill(started, owner)
            await _grow(started, owner, length)
            target = started.target("GetFlow", (owner,))
            measures += [_measure(name_of(length), target, owner, length, callers) for callers in CALLERS]
        yield measures


async def _grow(started: Serving, owner: Tenant, length: int) -> None:
    """Brings the flow from where it is filled to that revision."""
    revision = BEGUN
    for part in range(1, _PARTS + 1):
        end = BEGUN + (length - BEGUN) * part // _PARTS
        await _write(started, owner, "ReportProgress", REPORTS, end - revision - 1)
        await _write(started, owner, "UpdateFlow", [UPDATES[part % len(UPDATES)]], min(1, end - revision))
        revision = end


async def _write(started: Serving, owner: Tenant, method: str, rest: Sequence[bytes], number: int) -> None:
    if number > 0:
        turns = Turns((owner,), 1, rest)
        await unary_load(started.target(method, (owner,)), _Some(lambda: turns.next(0), number), min(number, _WRITERS), 3_600)


def _measure(name: str, target: Target, owner: Tenant, length: int, callers: int) -> Measure:
    chance = random.Random(length)

    def one() -> bytes:
        request = flow_service_pb2.GetFlowRequest(
            flow_id=owner.flow_ids[0], at_revision=chance.randint(1, length), view=flow_pb2.FLOW_VIEW_FULL
        )
        return message(request.SerializeToString())

    return unary(name, target, callers, lambda _: _Some(one, None))


class _Some(Requests):
    """So many requests, whoever is free takes the next one; without a number there is no end."""

    def __init__(self, one: Callable[[], bytes], number: int | None) -> None:
        self._one, self._left = one, number

    def next(self, caller: int) -> bytes | None:  # noqa: ARG002 - they are all about one flow
        """The next request."""
        if self._left is not None:
            if self._left == 0:
                return None
            self._left -= 1
        return self._one()
