"""Everything that can be wrong with what a caller asks; each error is a sentence that the caller can act on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar
from uuid import UUID


@dataclass(frozen=True, slots=True)
class Violation:
    """One faulty field of a request: its path, and what to do about it."""

    field: str
    description: str


class FlowError(Exception):
    """An error whose text and metadata are meant for the caller."""

    reason: ClassVar[str]

    def __init__(self, message: str, **metadata: object) -> None:
        super().__init__(message)
        self.metadata: dict[str, str] = {key: str(value) for key, value in metadata.items()}


class InvalidRequest(FlowError):
    """Fields are malformed; all of them are named at once."""

    reason = "INVALID_REQUEST"

    def __init__(self, violations: Sequence[Violation]) -> None:
        told = "; ".join(f"{violation.field}: {violation.description}" for violation in violations[:3])
        more = f" (and {len(violations) - 3} more)" if len(violations) > 3 else ""
        super().__init__(f"{told}{more}")
        self.violations = tuple(violations)


def invalid(field: str, description: str) -> InvalidRequest:
    """The error for one faulty field."""
    return InvalidRequest([Violation(field, description)])


class RequestIdReused(FlowError):
    """The request id belongs to a request with another payload."""

    reason = "REQUEST_ID_REUSED"

    def __init__(self, request_id: UUID) -> None:
        super().__init__(f"request_id {request_id} was used for another request: use a new id for a new request", request_id=request_id)


class LimitExceeded(FlowError):
    """Something is larger than the service takes."""

    reason = "LIMIT_EXCEEDED"

    def __init__(self, what: str, limit: int, actual: int) -> None:
        super().__init__(f"{what} is {actual}, the limit is {limit}", field=what, limit=limit, actual=actual)


class QuotaExceeded(FlowError):
    """The tenant has as many of something as it may."""

    reason = "QUOTA_EXCEEDED"

    def __init__(self, what: str, limit: int, actual: int) -> None:
        super().__init__(f"{what}: {actual}, the limit is {limit}", quota=what, limit=limit, actual=actual)


class FlowNotFound(FlowError):
    """The tenant has no such flow."""

    reason = "FLOW_NOT_FOUND"

    def __init__(self, flow_id: UUID) -> None:
        super().__init__(f"there is no flow {flow_id}", flow_id=flow_id)


class PhaseNotFound(FlowError):
    """The flow has no such phase."""

    reason = "PHASE_NOT_FOUND"

    def __init__(self, phase: str, child_type: str, known: Sequence[str]) -> None:
        where = f"child {child_type}" if child_type else "the flow"
        super().__init__(
            f"{where} has no phase {phase[:100]!r}; its phases are: {', '.join(known) or 'none, it has no child yet'}",
            phase=phase[:100],
            phases=",".join(known),
        )


class FlowExists(FlowError):
    """The id is taken."""

    reason = "FLOW_EXISTS"

    def __init__(self, flow_id: UUID) -> None:
        super().__init__(f"flow {flow_id} exists already", flow_id=flow_id)


class ConcurrentModification(FlowError):
    """The flow moved on since the caller read it."""

    reason = "CONCURRENT_MODIFICATION"

    def __init__(self, expected: int, current: int) -> None:
        super().__init__(
            f"flow is at revision {current}, not {expected}: read it again, then retry",
            expected_revision=expected,
            current_revision=current,
        )
        self.expected, self.current = expected, current


class PreconditionFailed(FlowError):
    """The flow is not in a state that allows the change; ``subject`` names what is in the way."""

    def __init__(self, message: str, subject: str, **metadata: object) -> None:
        super().__init__(message, **metadata)
        self.subject = subject


class InvalidPhaseTransition(PreconditionFailed):
    """The table, or the phase's definition, does not allow the transition."""

    reason = "INVALID_PHASE_TRANSITION"

    def __init__(self, phase: str, message: str, valid: Sequence[str], **metadata: object) -> None:
        super().__init__(
            f"{message}; it may become: {', '.join(valid) or 'nothing now'}",
            f"phase/{phase}",
            phase=phase,
            valid_transitions=",".join(valid),
            **metadata,
        )


class DependencyIncomplete(PreconditionFailed):
    """What the step depends on is not complete."""

    reason = "DEPENDENCY_INCOMPLETE"

    def __init__(self, what: str, name: str, missing: Sequence[str]) -> None:
        super().__init__(
            f"{what} {name} cannot begin before these are COMPLETED: {', '.join(missing)}",
            f"{what}/{name}",
            missing_dependencies=",".join(missing),
        )


class RetryLimitReached(PreconditionFailed):
    """The phase was begun again as often as its definition allows."""

    reason = "RETRY_LIMIT_REACHED"

    def __init__(self, phase: str, retry_count: int, max_retries: int) -> None:
        super().__init__(
            f"phase {phase} was retried {retry_count} times and its limit is {max_retries}: "
            "a person may grant one more by a transition from FAILED to RETRY_NEEDED",
            f"phase/{phase}",
            phase=phase,
            retry_count=retry_count,
            max_retries=max_retries,
            retry_allowed="false",
        )


class FlowNotActive(PreconditionFailed):
    """The flow is paused, ended or deleted."""

    reason = "FLOW_NOT_ACTIVE"

    def __init__(self, status: str, what: str, remedy: str) -> None:
        super().__init__(f"flow is {status} and takes no {what}: {remedy}", "flow", status=status)


class FlowNotPaused(PreconditionFailed):
    """Only a paused flow can be resumed."""

    reason = "FLOW_NOT_PAUSED"

    def __init__(self, status: str) -> None:
        super().__init__(f"flow is {status}: only a PAUSED one can be resumed", "flow", status=status)


class FlowNotDeleted(PreconditionFailed):
    """Only a deleted flow can be undeleted."""

    reason = "FLOW_NOT_DELETED"

    def __init__(self) -> None:
        super().__init__("flow is not deleted", "flow")


class ChildExists(PreconditionFailed):
    """The flow has that child already, or its journey has no further domain."""

    reason = "CHILD_EXISTS"

    def __init__(self, child_type: str) -> None:
        what = f"a child of type {child_type} already" if child_type else "a child for every domain of its journey already"
        super().__init__(f"flow has {what}", f"child/{child_type}", child_type=child_type)


class RevisionInFuture(FlowError):
    """The flow has not come that far."""

    reason = "REVISION_IN_FUTURE"

    def __init__(self, asked: int, head: int) -> None:
        super().__init__(f"flow is at revision {head} and has not reached {asked}", asked_revision=asked, head_revision=head)


class RevisionCompacted(FlowError):
    """History that old is no longer kept."""

    reason = "REVISION_COMPACTED"

    def __init__(self, asked: int, oldest: int, head: int) -> None:
        super().__init__(
            f"history after revision {asked} is no longer complete, the oldest kept is {oldest}: start from a snapshot",
            asked_revision=asked,
            oldest_revision=oldest,
            head_revision=head,
        )
        self.oldest = oldest


class PositionCompacted(FlowError):
    """Events after a position in the tenant's feed are no longer kept."""

    reason = "POSITION_COMPACTED"

    def __init__(self) -> None:
        super().__init__("events after this position are no longer kept: read the flows as they are, and start anew")


class PositionInFuture(FlowError):
    """A position in the tenant's feed is ahead of what is stored."""

    reason = "POSITION_IN_FUTURE"

    def __init__(self) -> None:
        super().__init__("the feed has not come to this position, so the database was set back: read the flows as they are, and start anew")


class HistoryDamaged(FlowError):
    """A revision that is kept cannot be rebuilt: what is stored of it is damaged."""

    reason = "HISTORY_DAMAGED"

    def __init__(self, revision: int) -> None:
        super().__init__(
            f"revision {revision} cannot be rebuilt, what is stored of it is damaged: ValidateFlow says what, RecoverFlow what can be done",
            revision=revision,
        )


class NoCaller(FlowError):
    """The call does not say who makes it."""

    reason = "NO_CALLER"


class StoreUnavailable(FlowError):
    """PostgreSQL is away or too busy; nothing can be said of a write that was under way, its request id makes a retry safe."""

    reason = "STORE_UNAVAILABLE"


class StreamStalled(FlowError):
    """Whoever asked for a stream does not take what it says."""

    reason = "STREAM_STALLED"

    def __init__(self) -> None:
        super().__init__("the stream is old, and nothing was taken from it for a while: resume")


class Draining(FlowError):
    """The server is about to stop."""

    reason = "DRAINING"
