"""What a flow is: frozen values without behaviour beyond looking things up in themselves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from datetime import datetime, timedelta
from enum import Enum, unique
from typing import Self
from uuid import UUID

from server.statemachine.definition import Definition
from server.statemachine.states import FailureCode, FlowHold, FlowStatus, Member, PhaseState
from server.statemachine.value import dataclass


@dataclass(frozen=True, slots=True)
class Tenant:
    """The pair that owns a flow; tenants never see each other."""

    client_account_id: UUID
    engagement_id: UUID


class FlowKey(bytes):
    """Names one flow of one tenant: the 48 bytes of its three ids.

    Bytes, because they hash and compare in C and remember their hash: every commit looks its flow up a dozen times, and a UUID hashes
    and compares itself in Python.
    """

    tenant: Tenant
    flow_id: UUID

    def __new__(cls, tenant: Tenant, flow_id: UUID) -> Self:
        """The key of ``flow_id`` of ``tenant``."""
        self = super().__new__(cls, tenant.client_account_id.bytes + tenant.engagement_id.bytes + flow_id.bytes)
        self.tenant, self.flow_id = tenant, flow_id
        return self


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a phase failed."""

    code: FailureCode
    message: str = ""


@dataclass(frozen=True, slots=True)
class Phase:
    """One step of a child flow; what its definition says of it is found by its name."""

    name: str
    state: PhaseState = PhaseState.NOT_STARTED
    fraction: float = 0.0
    message: str = ""
    retry_count: int = 0
    failure: Failure | None = None
    start_time: datetime | None = None
    state_time: datetime | None = None
    end_time: datetime | None = None
    # How the repository writes it down, remembered: of a child's phases all but one are written as they were.
    memo_text: bytes | None = field(default=None, init=False, repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class ChildFlow:
    """One domain's part of a journey; ``phases`` are in the definition's order."""

    child_flow_id: UUID
    definition: Definition
    phases: tuple[Phase, ...]
    create_time: datetime
    update_time: datetime
    # What derivation.py made of the phases, remembered: a commit asks for it several times, of the child before and of the child after.
    memo_progress: float | None = field(default=None, init=False, repr=False, compare=False)
    memo_status: FlowStatus | None = field(default=None, init=False, repr=False, compare=False)

    @property
    def type(self) -> str:
        """The domain."""
        return self.definition.type


@unique
class ActivityKind(Member):
    """What an activity entry tells of; numbers as in the contract."""

    TRANSITION = 1
    RETRY = 2
    ERROR = 3
    TIMING = 4
    COLLABORATION = 5
    PERFORMANCE = 6
    MEMORY = 7


@dataclass(frozen=True, slots=True)
class ActivityEntry:
    """One line of analytics; ``time``, ``actor`` and ``sequence`` are set when it is recorded."""

    kind: ActivityKind
    phase: str = ""
    subject: str = ""
    participants: tuple[str, ...] = ()
    message: str = ""
    value: float | None = None
    unit: str = ""
    duration: timedelta | None = None
    time: datetime | None = None
    actor: str = ""
    sequence: int = 0


@unique
class DocumentName(Enum):
    """The documents of a flow; each child has a ``data`` of its own."""

    STATE = "state"
    METADATA = "metadata"
    CROSS_PHASE_CONTEXT = "cross_phase_context"
    DATA = "data"


@dataclass(frozen=True, slots=True, order=True)
class DocumentPlace:
    """Which document of a flow; ``child_type`` is empty for the flow's own."""

    name: str
    child_type: str = ""

    def __str__(self) -> str:
        return f"{self.name}/{self.child_type}" if self.child_type else self.name


@dataclass(frozen=True, slots=True)
class Origin:
    """The flow and revision that a flow was forked from."""

    flow_id: UUID
    revision: int


@dataclass(frozen=True, slots=True)
class Flow:
    """One journey without its documents; status and progress are derived, see derivation.py."""

    tenant: Tenant
    flow_id: UUID
    type: str
    revision: int
    created_by: str
    create_time: datetime
    updated_by: str
    update_time: datetime
    display_name: str = ""
    labels: Mapping[str, str] = field(default_factory=dict, hash=False)
    hold: FlowHold = FlowHold.NONE
    hold_reason: str = ""
    children: tuple[ChildFlow, ...] = ()
    totals: Mapping[ActivityKind, int] = field(default_factory=dict, hash=False)
    end_time: datetime | None = None
    delete_time: datetime | None = None
    origin: Origin | None = None
    # As a child's: the next commit compares with it.
    memo_progress: float | None = field(default=None, init=False, repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class Content:
    """What can be brought back of a flow: everything but its identity, its revision and its analytics."""

    display_name: str
    labels: Mapping[str, str] = field(hash=False)
    hold: FlowHold
    hold_reason: str
    children: tuple[ChildFlow, ...]
    documents: Mapping[DocumentPlace, bytes] = field(hash=False)


@dataclass(frozen=True, slots=True)
class FlowSummary:
    """What lists and answers show of a flow: everything that its one hot row holds."""

    tenant: Tenant
    flow_id: UUID
    type: str
    display_name: str
    revision: int
    status: FlowStatus
    progress: float
    current_child: str
    current_phases: tuple[str, ...]
    labels: Mapping[str, str] = field(hash=False)
    create_time: datetime
    created_by: str
    update_time: datetime
    updated_by: str
    end_time: datetime | None
    delete_time: datetime | None
    hold_reason: str
    origin: Origin | None = None
