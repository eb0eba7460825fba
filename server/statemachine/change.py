"""What a caller can ask to have done to a flow: one frozen value for each kind of change."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from uuid import UUID

from server.statemachine.event import Cause
from server.statemachine.states import PhaseState
from server.statemachine.value import dataclass
from server.statemachine.values import ActivityEntry, Content, DocumentPlace, Failure


@dataclass(frozen=True, slots=True)
class TransitionPhase:
    """Move a phase to another state; an empty ``child_type`` means the only child that has the phase."""

    phase: str
    to: PhaseState
    child_type: str = ""
    reason: str = ""
    failure: Failure | None = None


@dataclass(frozen=True, slots=True)
class RetryPhase:
    """Begin a phase again."""

    phase: str
    child_type: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class RollbackPhase:
    """Take a phase's result back, and its dependants' with it."""

    phase: str
    child_type: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class ReportProgress:
    """Say how far a phase IN_PROGRESS has come."""

    phase: str
    fraction: float
    child_type: str = ""
    message: str = ""


@dataclass(frozen=True, slots=True)
class ReplaceDocument:
    """Put ``text`` in the place of a document."""

    place: DocumentPlace
    text: bytes


@dataclass(frozen=True, slots=True)
class MergeDocument:
    """Apply the RFC 7396 merge patch ``patch`` to a document."""

    place: DocumentPlace
    patch: bytes


@dataclass(frozen=True, slots=True)
class UpdateFlow:
    """Change what the caller owns; None leaves a field as it is."""

    display_name: str | None = None
    labels: Mapping[str, str] | None = field(default=None, hash=False)
    documents: tuple[ReplaceDocument | MergeDocument, ...] = ()


@dataclass(frozen=True, slots=True)
class RecordActivity:
    """Add to the flow's analytics."""

    entries: tuple[ActivityEntry, ...]


@dataclass(frozen=True, slots=True)
class PauseFlow:
    """Hold the flow until it is resumed."""

    reason: str = ""


@dataclass(frozen=True, slots=True)
class ResumeFlow:
    """End a pause."""

    reason: str = ""


@dataclass(frozen=True, slots=True)
class CancelFlow:
    """End the flow for good."""

    reason: str = ""


@dataclass(frozen=True, slots=True)
class StartChild:
    """Begin the next domain; an empty ``type`` means the first of the journey without a child."""

    type: str = ""
    data: bytes | None = None


@dataclass(frozen=True, slots=True)
class DeleteFlow:
    """Soft-delete the flow."""

    reason: str = ""


@dataclass(frozen=True, slots=True)
class UndeleteFlow:
    """Bring the soft-deleted flow back."""


@dataclass(frozen=True, slots=True)
class ReplaceContent:
    """Put ``content`` in the place of what the flow is.

    ``remove`` names the documents that the flow has and the content has not, ``keep`` those that are the same in both. Both were read at
    the revision that the commit expects.
    """

    content: Content
    cause: Cause
    reason: str = ""
    remove: tuple[DocumentPlace, ...] = ()
    keep: frozenset[DocumentPlace] = frozenset()
    source_revision: int = 0
    source_flow_id: UUID | None = None
    source_checkpoint_id: UUID | None = None
    quarantine_id: UUID | None = None


Change = (
    TransitionPhase
    | RetryPhase
    | RollbackPhase
    | ReportProgress
    | UpdateFlow
    | RecordActivity
    | PauseFlow
    | ResumeFlow
    | CancelFlow
    | StartChild
    | DeleteFlow
    | UndeleteFlow
    | ReplaceContent
)
