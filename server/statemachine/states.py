"""The machine, in tables that can be read aloud. README and the database repeat them; tests/statemachine walks every pair."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum, unique
from types import MappingProxyType


class Member(Enum):
    """An enum whose members hash by identity and know their number: Enum's own hash is a call in Python, and so is its ``value``.

    Rules look members up all the time, and every answer holds some.
    """

    __hash__ = object.__hash__
    number: int

    def __init__(self, number: int) -> None:
        self.number = number


@unique
class PhaseState(Member):
    """The state of one phase; numbers as in the contract."""

    NOT_STARTED = 1
    IN_PROGRESS = 2
    WAITING_VALIDATION = 3
    WAITING_APPROVAL = 4
    COMPLETED = 5
    FAILED = 6
    RETRY_NEEDED = 7
    ROLLED_BACK = 8


@unique
class FlowStatus(Member):
    """The status of a flow or child flow, always derived; numbers as in the contract."""

    INITIALIZED = 1
    DATA_GATHERING = 2
    DISCOVERY = 3
    ASSESSMENT_READY = 4
    PLANNING = 5
    ACTIVE = 6
    WAITING_APPROVAL = 7
    RETRY_PENDING = 8
    ERROR_RECOVERY = 9
    FAILED = 10
    COMPLETED = 11
    PAUSED = 12
    CANCELLED = 13


@unique
class FlowHold(Member):
    """What a command laid on a flow; numbers as in the contract."""

    NONE = 1
    RECOVERING = 2
    PAUSED = 3
    CANCELLED = 4


@unique
class FailureCode(Member):
    """Why a phase failed; numbers as in the contract."""

    PHASE_EXECUTION_FAILED = 1
    AGENT_TIMEOUT = 2
    EXTERNAL_SERVICE_ERROR = 3
    TEMPORARY_RESOURCE_UNAVAILABLE = 4
    INVALID_TRANSITION = 5
    DATA_VALIDATION_FAILED = 6
    PERMISSION_DENIED = 7
    MALFORMED_REQUEST = 8


_S = PhaseState

# From a state to the states that may follow it. A definition may forbid more, never allow more.
TRANSITIONS: Mapping[PhaseState, tuple[PhaseState, ...]] = MappingProxyType(
    {
        _S.NOT_STARTED: (_S.IN_PROGRESS,),
        _S.IN_PROGRESS: (_S.WAITING_VALIDATION, _S.WAITING_APPROVAL, _S.COMPLETED, _S.FAILED, _S.RETRY_NEEDED),
        _S.WAITING_VALIDATION: (_S.WAITING_APPROVAL, _S.COMPLETED, _S.FAILED, _S.RETRY_NEEDED, _S.ROLLED_BACK),
        _S.WAITING_APPROVAL: (_S.COMPLETED, _S.FAILED, _S.RETRY_NEEDED, _S.ROLLED_BACK),
        _S.COMPLETED: (_S.ROLLED_BACK, _S.RETRY_NEEDED),
        _S.FAILED: (_S.RETRY_NEEDED, _S.ROLLED_BACK),
        _S.RETRY_NEEDED: (_S.IN_PROGRESS, _S.FAILED, _S.ROLLED_BACK),
        _S.ROLLED_BACK: (_S.IN_PROGRESS, _S.NOT_STARTED),
    }
)

# How much of a phase's weight counts as done in each state. IN_PROGRESS rises from here to IN_PROGRESS_FULL with the reported fraction.
STATE_WEIGHTS: Mapping[PhaseState, float] = MappingProxyType(
    {
        _S.NOT_STARTED: 0.0,
        _S.IN_PROGRESS: 0.3,
        _S.WAITING_VALIDATION: 0.7,
        _S.WAITING_APPROVAL: 0.8,
        _S.COMPLETED: 1.0,
        _S.FAILED: 0.0,
        _S.RETRY_NEEDED: 0.1,
        _S.ROLLED_BACK: 0.0,
    }
)
IN_PROGRESS_FULL = 0.7

# A phase in one of these has not begun, or nothing of it is left.
NOT_BEGUN = frozenset({_S.NOT_STARTED, _S.ROLLED_BACK})

RETRYABLE = frozenset(
    {
        FailureCode.PHASE_EXECUTION_FAILED,
        FailureCode.AGENT_TIMEOUT,
        FailureCode.EXTERNAL_SERVICE_ERROR,
        FailureCode.TEMPORARY_RESOURCE_UNAVAILABLE,
    }
)

# A flow in one of these has ended; only a rollback or a granted retry of a phase reopens it, and nothing reopens CANCELLED.
TERMINAL = frozenset({FlowStatus.COMPLETED, FlowStatus.FAILED, FlowStatus.CANCELLED})
