"""What one commit did: facts with their before and after, so that any revision can be told and rebuilt from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from datetime import datetime
from enum import unique
from uuid import UUID

from server.statemachine.states import FlowHold, FlowStatus, Member
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
    """A phase changed.

    ``taken_along_by`` names the phase whose roll-back or redo caused it, ``failed`` says that a failure was reported.
    """

    child_type: str
    before: Phase
    after: Phase
    reason: str = ""
    taken_along_by: str = ""
    failed: bool = False


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


@unique
class Cause(Member):
    """Why a flow's content was replaced as a whole; numbers as in the contract."""

    REVERT = 1
    FORK = 2
    RESTORE = 3
    RECOVERY = 4


@dataclass(frozen=True, slots=True)
class FlowReplaced:
    """The flow's content was replaced as a whole; a base is stored with the event, since its facts alone do not tell all of it."""

    cause: Cause
    reason: str = ""
    source_revision: int = 0
    source_flow_id: UUID | None = None
    source_checkpoint_id: UUID | None = None
    quarantine_id: UUID | None = None
    children_removed: tuple[str, ...] = ()
    documents_removed: tuple[DocumentPlace, ...] = ()


@dataclass(frozen=True, slots=True)
class EventLost:
    """What stood here was lost; a recovery filled the gap."""


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
    | FlowReplaced
    | EventLost
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
    # The flow's after the commit, so that an event can be picked by them without the flow.
    labels: Mapping[str, str] = field(default_factory=dict, hash=False)
