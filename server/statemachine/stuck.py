"""Whether a flow is stuck: a phase in one state for longer than its definition allows, or retried again and again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime, timedelta
from uuid import UUID

import orjson

from server.statemachine.alert import Alert, AlertKind, AlertSeverity
from server.statemachine.definition import PhaseDefinition
from server.statemachine.graphs import BUILT_IN
from server.statemachine.loose import time_of
from server.statemachine.states import PhaseState
from server.statemachine.value import dataclass

# Where a phase waits for somebody; in no other state but these and IN_PROGRESS is anybody to do something about it.
WAITS = frozenset({PhaseState.WAITING_VALIDATION, PhaseState.WAITING_APPROVAL, PhaseState.RETRY_NEEDED})
WATCHED = frozenset({PhaseState.IN_PROGRESS, *WAITS})
# So many retries of one phase within so long are a storm.
STORM, STORM_SPAN = 5, timedelta(hours=1)
_UNREADABLE = "?"


@dataclass(frozen=True, slots=True)
class Stay:
    """A phase that is in one state for longer than is allowed."""

    child_type: str
    phase: str
    state: PhaseState
    since: datetime
    allowed: timedelta

    def alert(self, alert_id: UUID, flow_id: UUID, now: datetime) -> Alert:
        """What is told of it, once for each time that the phase came into its state."""
        spent, allowed = _told(now - self.since), _told(self.allowed)
        text = (
            f"{self.phase} of {self.child_type} has been {self.state.name} for {spent}, its definition allows {allowed}: "
            "GetRecoveryOptions says what may be done"
        )
        subject = f"{flow_id} {self.child_type}/{self.phase} {self.state.name} {self.since.isoformat()}"
        return Alert(alert_id, AlertKind.FLOW_STUCK, AlertSeverity.WARNING, now, text, subject, flow_id, self.child_type, self.phase)


@dataclass(frozen=True, slots=True)
class Storm:
    """A phase that is retried again and again."""

    child_type: str
    phase: str
    retries: int

    def alert(self, alert_id: UUID, flow_id: UUID, now: datetime) -> Alert:
        """What is told of it, once a day."""
        text = (
            f"{self.phase} of {self.child_type} was retried {self.retries} times within {_told(STORM_SPAN)}: "
            "its failures and GetRecoveryOptions say more"
        )
        subject = f"{flow_id} {self.child_type}/{self.phase} {now.date().isoformat()}"
        return Alert(alert_id, AlertKind.RETRY_STORM, AlertSeverity.WARNING, now, text, subject, flow_id, self.child_type, self.phase)


def shortest(domain: str) -> timedelta:
    """What no phase of the domain is stuck before."""
    return min(min(phase.longest_work, phase.longest_wait) for phase in BUILT_IN[domain].phases)


def stays(domain: str, phases: str, now: datetime) -> list[Stay]:
    """The phases that are stuck, of a child as it is stored; what cannot be read is ValidateFlow's to tell of."""
    return list(_stays(domain, phases, now))


def storms(bodies: Iterable[str]) -> list[Storm]:
    """The phases that so many of the entries tell a retry of, as they are stored."""
    counted = Counter(map(_place, bodies))
    return [Storm(*place, retries) for place, retries in counted.items() if retries >= STORM and _UNREADABLE not in place]


def _stays(domain: str, phases: str, now: datetime) -> Iterator[Stay]:
    definition = BUILT_IN[domain]
    rows = _json(phases)
    for row in rows if isinstance(rows, list) else ():
        name, told = (row.get("name"), row.get("state")) if isinstance(row, dict) else (None, None)
        state = PhaseState.__members__.get(told) if isinstance(told, str) else None
        since = time_of(row.get("state_time")) if isinstance(row, dict) else None
        if not isinstance(name, str) or name not in definition.position or state is None or since is None:
            continue
        allowed = _allowed(definition.phases[definition.position[name]], state)
        if allowed is not None and now - since > allowed:
            yield Stay(domain, name, state, since, allowed)


def _allowed(phase: PhaseDefinition, state: PhaseState) -> timedelta | None:
    if state is PhaseState.IN_PROGRESS:
        return phase.longest_work
    return phase.longest_wait if state in WAITS else None


def _place(body: str) -> tuple[str, str]:
    """Of which child and phase the entry is."""
    found = _json(body)
    if not isinstance(found, Mapping):
        return _UNREADABLE, ""
    child, phase = found.get("subject", ""), found.get("phase", "")
    return (child, phase) if isinstance(child, str) and isinstance(phase, str) else (_UNREADABLE, "")


def _json(text: str) -> object:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return None


def _told(span: timedelta) -> str:
    """The span for people."""
    hours = span / timedelta(hours=1)
    return f"{hours / 24:.0f} days" if hours >= 48 else f"{hours:.0f} hours" if hours >= 2 else f"{hours * 60:.0f} minutes"
