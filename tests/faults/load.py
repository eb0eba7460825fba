"""Commits in numbers: requests that can be sent again, and what was acknowledged of them."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4

import grpc
from flowledger.v1 import flow_service_pb2 as pb

from tests.faults.audit import Ledger
from tests.tenancy import PATIENCE, Tenancy

# What leaves it open whether the commit happened, or says that it did not for now.
AGAIN = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
PAUSE_SECONDS = 0.05

_BEGIN = {"phase": "data_import", "to": "PHASE_STATE_IN_PROGRESS"}


@dataclass(frozen=True, slots=True)
class Commit:
    """One mutation that carries a request id."""

    rpc: str
    request: Any

    @classmethod
    def of(cls, rpc: str, **fields: Any) -> Commit:
        """A commit made of ``fields``, with a new request id unless one is given."""
        return cls(rpc, getattr(pb, f"{rpc}Request")(**{"request_id": str(uuid4()), **fields}))


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """What the server said it has stored."""

    flow_id: UUID
    revision: int
    hash: bytes


async def send(tenancy: Tenancy, commit: Commit, deadline: float = PATIENCE) -> Acknowledged:
    """The server's acknowledgement of one try."""
    response = await tenancy.send(commit.rpc, commit.request, deadline)
    event = response.event
    assert (event.flow_id, event.revision) == (response.flow.flow_id, response.flow.revision)
    return Acknowledged(UUID(event.flow_id), event.revision, event.hash)


async def send_until_acknowledged(tenancy: Tenancy, commit: Commit, seconds: float = 30.0) -> Acknowledged:
    """The acknowledgement, however many tries it takes. Raises TimeoutError after ``seconds``."""
    async with asyncio.timeout(seconds):
        while True:
            try:
                return await send(tenancy, commit)
            except grpc.aio.AioRpcError as error:
                if error.code() not in AGAIN:
                    raise
                await asyncio.sleep(PAUSE_SECONDS)  # as a client would


async def mixed(tenancy: Tenancy, chance: random.Random, number: int) -> list[Commit]:
    """``number`` commits of all kinds, in no order, and the flows that they need: each is acceptable at any time."""
    share = number // 8
    reported = await asyncio.gather(*(_begun(tenancy) for _ in range(20)))
    waiting = await asyncio.gather(*(tenancy.create() for _ in range(share)))
    childless = await asyncio.gather(*(tenancy.create(type="migration", skip_first_child=True) for _ in range(share)))
    document = {"json": '{"rows":"' + "x" * 2000 + '"}'}
    commits = [_create(chance, document, at) for at in range(share)]
    commits += [Commit.of("StartChildFlow", flow_id=flow.flow_id, child_start={"data": document}) for flow in childless]
    commits += [Commit.of("TransitionPhase", flow_id=flow.flow_id, transition=_BEGIN) for flow in waiting]
    while len(commits) < number:
        flow_id = chance.choice(reported)
        commits.append(chance.choice((_report, _update))(chance, flow_id, len(commits)))
    chance.shuffle(commits)
    return commits


async def _begun(tenancy: Tenancy) -> str:
    flow = await tenancy.create()
    await tenancy.move(flow.flow_id, "data_import", "IN_PROGRESS")
    return flow.flow_id


def _create(chance: random.Random, document: dict[str, str], at: int) -> Commit:
    named = str(UUID(int=chance.getrandbits(128), version=4)) if at % 2 else ""  # half of the ids are the server's own
    return Commit.of("CreateFlow", flow_id=named, type="discovery", display_name=f"flow {at}", state=document, child_data=document)


def _report(chance: random.Random, flow_id: str, at: int) -> Commit:
    progress = {"phase": "data_import", "fraction": chance.random(), "message": f"report {at}"}
    return Commit.of("ReportProgress", flow_id=flow_id, progress=progress)


def _update(chance: random.Random, flow_id: str, at: int) -> Commit:
    state = {"json": f'{{"update":{at},"chance":{chance.random()}}}'}
    return Commit.of("UpdateFlow", flow_id=flow_id, update={"display_name": f"update {at}", "state": state})


def assert_each_is_there_once(ledger: Ledger, acknowledged: Sequence[Acknowledged]) -> None:
    """Every acknowledgement is an event of its own in the ledger."""
    places = {(one.flow_id, one.revision) for one in acknowledged}
    assert len(places) == len(acknowledged), "two commits were told the same revision of one flow"
    lost = [one for one in acknowledged if ledger.hashes.get(one.flow_id, ())[one.revision - 1 : one.revision] != (one.hash,)]
    assert not lost, f"{len(lost)} acknowledged commits are not there, such as {lost[0]}"
