"""What a flow type is made of: phases, what each depends on, who must look at it, how often it may be retried."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from datetime import timedelta
from types import MappingProxyType

from server.statemachine.states import FlowStatus
from server.statemachine.value import dataclass


@dataclass(frozen=True, slots=True)
class PhaseDefinition:
    """One phase of a definition; ``status`` is what the child's status is while this is the furthest phase under way.

    A phase that is IN_PROGRESS for longer than ``longest_work``, or waits for somebody for longer than ``longest_wait``, is stuck.
    """

    name: str
    status: FlowStatus
    depends_on: tuple[str, ...] = ()
    weight: float = 1.0
    requires_validation: bool = False
    requires_approval: bool = False
    max_retries: int = 3
    longest_work: timedelta = timedelta(hours=24)
    longest_wait: timedelta = timedelta(days=7)


@dataclass(frozen=True, slots=True)
class Definition:
    """The phase graph of one child flow type.

    Phases stand after everything they depend on. Raises ValueError for a graph that does not: a duplicate name, an unknown or later
    dependency (and so a cycle), a weight that is not positive.
    """

    type: str
    version: int
    phases: tuple[PhaseDefinition, ...]
    position: Mapping[str, int] = field(init=False, compare=False, repr=False)
    shares: tuple[float, ...] = field(init=False, compare=False, repr=False)
    dependants: tuple[tuple[int, ...], ...] = field(init=False, compare=False, repr=False)
    # What derivation.py made of a hold and the phases' states, remembered.
    statuses: dict[tuple[object, ...], FlowStatus] = field(init=False, compare=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        position: dict[str, int] = {}
        for at, phase in enumerate(self.phases):
            if phase.name in position:
                raise ValueError(f"{self.type}: phase {phase.name} is there twice")
            if unknown := [name for name in phase.depends_on if name not in position]:
                raise ValueError(f"{self.type}: {phase.name} depends on {', '.join(unknown)}, which do not stand before it")
            if not phase.weight > 0:
                raise ValueError(f"{self.type}: the weight of {phase.name} is {phase.weight}, it must be above 0")
            position[phase.name] = at
        if not position:
            raise ValueError(f"{self.type}: a definition needs at least one phase")
        total = sum(phase.weight for phase in self.phases)
        object.__setattr__(self, "position", MappingProxyType(position))
        object.__setattr__(self, "shares", tuple(phase.weight / total for phase in self.phases))
        object.__setattr__(self, "dependants", tuple(self._all_dependants(phase.name) for phase in self.phases))

    def _all_dependants(self, name: str) -> tuple[int, ...]:
        reached, found = {name}, []
        for at, phase in enumerate(self.phases):  # in order, so one pass reaches indirect ones too
            if not reached.isdisjoint(phase.depends_on):
                reached.add(phase.name)
                found.append(at)
        return tuple(found)
