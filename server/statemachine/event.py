"""What one commit did: facts with their before and after, so that any revision can be told and rebuilt from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from datetime import datetime
from uuid import UUID

from server.statemachine.states import FlowHold, FlowStatus
from server.statemachine.value import dataclass
from server.statemachine.values import ActivityEntry, DocumentPlace, Phase


@dataclass(frozen=True, slots=True)
class FlowCreated:
    """The flow came to be."""

    type: str
    display_name: str
    labels: Mapping[str, str] = field(hash=False)


@dataclass(frozen=True, slots=True)
class ChildStarted:
    """A child flow began."""

    child_flow_id: UUID
    type: str
    definition_version: int


@dataclass(frozen=True, slots=True)
class PhaseChanged:
    """A phase changed; ``taken_along_by`` names the phase whose roll-back or redo caused it."""

    child_type: str
    before: Phase
    after: Phase
    reason: str = ""
    taken_along_by: str = ""


@dataclass(frozen=True, slots=True)
class HoldChanged:
    """The flow was paused, resumed or cancelled."""

    before: FlowHold
    after: FlowHold
    reason_before: str
    reason: str


@dataclass(frozen=True, slots=True)
class NameChanged:
    """The flow's name changed."""

    before: str
    after: str


@dataclass(frozen=True, slots=True)
class LabelsChanged:
    """The flow's labels changed."""

    before: Mapping[str, str] = field(hash=False)
    after: Mapping[str, str] = field(hash=False)


@dataclass(frozen=True, slots=True)
class DocumentChanged:
    """A document changed; the event holds its size and hash, not the document."""

    place: DocumentPlace
    size: int
    sha256: bytes


@dataclass(frozen=True, slots=True)
class ActivityRecorded:
    """Analytics were added."""

    entries: tuple[ActivityEntry, ...]


@dataclass(frozen=True, slots=True)
class FlowDeleted:
    """The flow was soft-deleted."""

    reason: str


@dataclass(frozen=True, slots=True)
class FlowUndeleted:
    """The flow was brought back."""

    deleted: datetime


Fact = (
    FlowCreated
    | ChildStarted
    | PhaseChanged
    | HoldChanged
    | NameChanged
    | LabelsChanged
    | DocumentChanged
    | ActivityRecorded
    | FlowDeleted
    | FlowUndeleted
)


@dataclass(frozen=True, slots=True)
class Event:
    """The one record of one revision."""

    revision: int
    time: datetime
    actor: str
    facts: tuple[Fact, ...]
    status: FlowStatus
    progress: float
    progress_regressed: bool
