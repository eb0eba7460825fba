"""What can go wrong, as exceptions to branch on: one class for each code, the reason and what belongs to it as attributes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import grpc
from google.rpc import error_details_pb2  # type: ignore[import-untyped]  # ships no stubs
from grpc_status import rpc_status

# What gRPC itself says when a connection, or the server, went away in the middle of a call.
_BROKEN = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN})


@dataclass(frozen=True)
class Told:
    """What an error says besides its text."""

    # Stable and made for programs, for example CONCURRENT_MODIFICATION; empty when the error is not Flowledger's own.
    reason: str = ""
    # What belongs to the reason, for example current_revision.
    metadata: Mapping[str, str] = field(default_factory=dict)
    # For INVALID_REQUEST: each field that is wrong, with a sentence.
    violations: tuple[tuple[str, str], ...] = ()
    # How many seconds to wait before the next try, as the server asks.
    retry_seconds: float = 0.0


class FlowledgerError(Exception):
    """A call that failed; the text is a sentence for people."""

    def __init__(self, text: str, code: grpc.StatusCode, told: Told, request_id: str = "") -> None:
        super().__init__(text)
        self.code = code
        self.reason, self.metadata, self.violations, self.retry_seconds = told.reason, told.metadata, told.violations, told.retry_seconds
        # The id that a change was sent under: sent again under it, the change happens once, whatever became of this call.
        self.request_id = request_id

    @property
    def passing(self) -> bool:
        """Whether the same call may succeed in a moment: the server went away, is stopping, or lacks its database."""
        return self.code is grpc.StatusCode.UNAVAILABLE if self.reason else self.code in _BROKEN

    def __str__(self) -> str:
        told = [f"{name}: {text}" for name, text in self.violations if text not in self.args[0]]
        return "; ".join([self.args[0], *told]) + f" ({self.reason or self.code.name})"

    def _number(self, name: str) -> int | None:
        value = self.metadata.get(name, "")
        return int(value) if value.isdecimal() else None

    def _names(self, name: str) -> tuple[str, ...]:
        return tuple(filter(None, self.metadata.get(name, "").split(",")))


class InvalidRequest(FlowledgerError):
    """INVALID_ARGUMENT: ``violations`` has every field that is wrong."""


class NotFound(FlowledgerError):
    """NOT_FOUND: there is no such thing, or it is another tenant's."""


class AlreadyExists(FlowledgerError):
    """ALREADY_EXISTS: the id is taken."""


class PreconditionFailed(FlowledgerError):
    """FAILED_PRECONDITION: the flow's state does not allow it."""

    @property
    def valid_transitions(self) -> tuple[str, ...]:
        """For INVALID_PHASE_TRANSITION: the states that may follow."""
        return self._names("valid_transitions")

    @property
    def missing_dependencies(self) -> tuple[str, ...]:
        """For DEPENDENCY_INCOMPLETE: what must be COMPLETED first."""
        return self._names("missing_dependencies")


class ConcurrentModification(FlowledgerError):
    """ABORTED: somebody else was first. Read the flow again, then decide again."""

    @property
    def expected_revision(self) -> int | None:
        """What the call expected."""
        return self._number("expected_revision")

    @property
    def current_revision(self) -> int | None:
        """What the flow had come to."""
        return self._number("current_revision")


class OutOfRange(FlowledgerError):
    """OUT_OF_RANGE: that revision is no longer kept, or has not come yet."""

    @property
    def oldest_revision(self) -> int | None:
        """The oldest revision that is kept."""
        return self._number("oldest_revision")

    @property
    def head_revision(self) -> int | None:
        """The newest revision there is."""
        return self._number("head_revision")


class LimitReached(FlowledgerError):
    """RESOURCE_EXHAUSTED: something is too large, or there is too much of it."""


class DataLost(FlowledgerError):
    """DATA_LOSS: what is stored cannot be read."""


class Unauthenticated(FlowledgerError):
    """UNAUTHENTICATED: the caller is not known."""


class Forbidden(FlowledgerError):
    """PERMISSION_DENIED: the caller may not do this."""


class Unavailable(FlowledgerError):
    """UNAVAILABLE, or a connection that broke, for longer than the call could wait. Whether a change happened is not known."""


class DeadlineExceeded(FlowledgerError):
    """DEADLINE_EXCEEDED: no answer in time. Whether a change happened is not known."""


class InternalError(FlowledgerError):
    """INTERNAL: a fault of the service; its log has ``error_id``."""

    @property
    def error_id(self) -> str:
        """Where the service's log says more."""
        return self.metadata.get("error_id", "")


class WatchBroken(Exception):
    """A stream did not keep its promise: a revision is missing or came twice."""


CLASSES: Mapping[grpc.StatusCode, type[FlowledgerError]] = MappingProxyType(
    {
        grpc.StatusCode.INVALID_ARGUMENT: InvalidRequest,
        grpc.StatusCode.NOT_FOUND: NotFound,
        grpc.StatusCode.ALREADY_EXISTS: AlreadyExists,
        grpc.StatusCode.FAILED_PRECONDITION: PreconditionFailed,
        grpc.StatusCode.ABORTED: ConcurrentModification,
        grpc.StatusCode.OUT_OF_RANGE: OutOfRange,
        grpc.StatusCode.RESOURCE_EXHAUSTED: LimitReached,
        grpc.StatusCode.DATA_LOSS: DataLost,
        grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
        grpc.StatusCode.PERMISSION_DENIED: Forbidden,
        grpc.StatusCode.UNAVAILABLE: Unavailable,
        grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
        grpc.StatusCode.INTERNAL: InternalError,
    }
)


def error_of(error: grpc.RpcError, request_id: str = "") -> FlowledgerError:
    """What gRPC reports, of a call or a stream, synchronous or not, as one of our own errors."""
    code: grpc.StatusCode = error.code()
    text: str = error.details() or "the service gave no reason"
    told = _told(error)
    kind = CLASSES.get(code, FlowledgerError)
    if not told.reason and code in _BROKEN:
        kind = Unavailable
    return kind(text, code, told, request_id)


def _told(error: grpc.RpcError) -> Told:
    try:
        status = rpc_status.from_call(error)  # type: ignore[arg-type]  # it takes whatever has a code, details and trailers
    except ValueError:  # whatever stands between has put another code in its place
        return Told()
    reason, metadata, violations, seconds = "", dict[str, str](), [], 0.0
    for detail in status.details if status is not None else ():
        info, request, retry = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
        if detail.Unpack(info):
            reason, metadata = info.reason, dict(info.metadata)
        elif detail.Unpack(request):
            violations = [(violation.field, violation.description) for violation in request.field_violations]
        elif detail.Unpack(retry):
            seconds = retry.retry_delay.ToTimedelta().total_seconds()
    return Told(reason, metadata, tuple(violations), seconds)
