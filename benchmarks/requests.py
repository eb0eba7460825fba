"""What the load generator sends to the service: framed requests, made of parts that are serialised once."""

from __future__ import annotations

import itertools
import random
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from flowledger.v1 import change_pb2, document_pb2, flow_pb2, flow_service_pb2

from benchmarks.documents import document
from benchmarks.wire import Metadata, message

SERVICE = "/flowledger.v1.FlowService/"
PHASE = "data_import"  # the first phase of a discovery: nothing comes before it
DOCUMENT_SIZE = 10 * 1_024
_FRACTIONS = 16


@dataclass(frozen=True, slots=True)
class Tenant:
    """One tenant and its flows."""

    metadata: Metadata
    flow_ids: Sequence[str]


def tenants(count: int, flows: int, seed: int) -> tuple[Tenant, ...]:
    """``count`` tenants that share ``flows`` flows evenly; the ids follow from ``seed``."""
    chance = random.Random(seed)

    def identifier() -> str:
        return str(uuid.UUID(int=chance.getrandbits(128), version=4))

    return tuple(
        Tenant(
            (("x-client-account-id", identifier()), ("x-engagement-id", identifier()), ("x-user-id", "bench")),
            [identifier() for _ in range(flows // count)],
        )
        for _ in range(count)
    )


class Rotation:
    """Which flow each caller takes next: its own share of its tenant's flows in turn, so that no two callers meet on one flow.

    Callers are dealt to the tenants one by one: caller number n belongs to tenant n modulo their number, as connections are.
    """

    def __init__(self, owners: Sequence[Tenant], callers: int) -> None:
        each = max(1, callers // len(owners))
        self._shares = [
            itertools.cycle(owners[caller % len(owners)].flow_ids[caller // len(owners) :: each]) for caller in range(max(callers, 1))
        ]

    def next(self, caller: int) -> str:
        """The id of the flow."""
        return next(self._shares[caller])


def _flow_id(identifier: str) -> bytes:
    return flow_service_pb2.GetFlowRequest(flow_id=identifier).SerializeToString()  # field 1 of every request


class Each:
    """Every flow of one tenant once, then nothing: for setting up."""

    def __init__(self, tenant: Tenant, rest: Sequence[bytes]) -> None:
        self._requests = (message(_flow_id(flow) + rest[number % len(rest)]) for number, flow in enumerate(tenant.flow_ids))

    def next(self, caller: int) -> bytes | None:  # noqa: ARG002 - whoever is free takes the next one
        """The next flow's request."""
        return next(self._requests, None)


class Turns:
    """One flow after another, with one of ``rest`` after its id."""

    def __init__(self, owners: Sequence[Tenant], callers: int, rest: Sequence[bytes]) -> None:
        self._rotation, self._rest, self._count = Rotation(owners, callers), rest, itertools.count()
        self._ids = {flow: _flow_id(flow) for tenant in owners for flow in tenant.flow_ids}

    def next(self, caller: int) -> bytes:
        """The next request."""
        return message(self._ids[self._rotation.next(caller)] + self._rest[next(self._count) % len(self._rest)])


class Identified:
    """The same requests, each with a request_id of its own as field 4."""

    def __init__(self, requests: Turns) -> None:
        self._requests, self._last = requests, uuid.uuid4().int >> 64 << 64

    def next(self, caller: int) -> bytes:
        """The next request."""
        self._last += 1
        return message(self._requests.next(caller)[5:] + b"\x22\x24" + str(uuid.UUID(int=self._last)).encode())


class Toggles:
    """Moves the phase of each flow from IN_PROGRESS to RETRY_NEEDED and back, for ever; starts with flows that are IN_PROGRESS."""

    def __init__(self, owners: Sequence[Tenant], callers: int, running: dict[str, bool]) -> None:
        self._rotation, self._running = Rotation(owners, callers), running

    def next(self, caller: int) -> bytes:
        """The next request; ``running`` remembers what becomes of the flow."""
        flow = self._rotation.next(caller)
        self._running[flow] = not self._running.get(flow, True)
        return message(_flow_id(flow) + (BEGIN if self._running[flow] else AGAIN))


def _transition(to: flow_pb2.PhaseState.ValueType) -> bytes:
    request = flow_service_pb2.TransitionPhaseRequest(transition=change_pb2.PhaseTransition(phase=PHASE, to=to))
    return request.SerializeToString()


def _report(number: int) -> change_pb2.ProgressReport:
    return change_pb2.ProgressReport(phase=PHASE, fraction=(number + 1) / (_FRACTIONS + 1), message=f"{number * 23} of 371 rows imported")


def _update(seed: int) -> bytes:
    update = change_pb2.FlowUpdate(state=document_pb2.Document(json=document(DOCUMENT_SIZE, seed)))
    update.update_mask.paths.append("state")
    return flow_service_pb2.UpdateFlowRequest(update=update).SerializeToString()


def _creation(seed: int) -> bytes:
    state = document_pb2.Document(json=document(DOCUMENT_SIZE, seed))
    return flow_service_pb2.CreateFlowRequest(type="discovery", state=state).SerializeToString()


BEGIN = _transition(flow_pb2.PHASE_STATE_IN_PROGRESS)
AGAIN = _transition(flow_pb2.PHASE_STATE_RETRY_NEEDED)
REPORTS = [flow_service_pb2.ReportProgressRequest(progress=_report(number)).SerializeToString() for number in range(_FRACTIONS)]
STREAM_REPORTS = [
    message(flow_service_pb2.StreamProgressRequest(progress=_report(number)).SerializeToString()) for number in range(_FRACTIONS)
]
UPDATES = [_update(seed) for seed in range(_FRACTIONS)]
CREATIONS = [_creation(seed) for seed in range(_FRACTIONS)]
SUMMARY = flow_service_pb2.GetFlowRequest(view=flow_pb2.FLOW_VIEW_SUMMARY).SerializeToString()
FULL = flow_service_pb2.GetFlowRequest(view=flow_pb2.FLOW_VIEW_FULL).SerializeToString()
