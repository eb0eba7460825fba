"""Where calls come in and errors go out: the only place that turns an exception into a status.

Every method is wrapped when it is registered, not by an interceptor: one that is forgotten cannot be called, and a call costs 40 us less.
"""

from __future__ import annotations

import asyncio
import inspect
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NoReturn, cast
from urllib.parse import quote, unquote
from uuid import uuid4

import grpc
import structlog
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.descriptor import Descriptor, ServiceDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass
from google.rpc import code_pb2, error_details_pb2, status_pb2  # type: ignore[import-untyped]
from grpc_status import rpc_status

from server.services.caller import Caller, caller_of
from server.services.deadlines import Deadlines
from server.statemachine.errors import (
    Draining,
    FlowError,
    InvalidRequest,
    LimitExceeded,
    PreconditionFailed,
    StoreUnavailable,
    invalid,
)

_log = structlog.get_logger("call")

DOMAIN = "flowledger"

# Every reason that an error can have, and its code. What is not here is INTERNAL.
CODES: Mapping[str, grpc.StatusCode] = MappingProxyType(
    {
        "INVALID_REQUEST": grpc.StatusCode.INVALID_ARGUMENT,
        "REQUEST_ID_REUSED": grpc.StatusCode.INVALID_ARGUMENT,
        "FLOW_NOT_FOUND": grpc.StatusCode.NOT_FOUND,
        "PHASE_NOT_FOUND": grpc.StatusCode.NOT_FOUND,
        "FLOW_EXISTS": grpc.StatusCode.ALREADY_EXISTS,
        "INVALID_PHASE_TRANSITION": grpc.StatusCode.FAILED_PRECONDITION,
        "DEPENDENCY_INCOMPLETE": grpc.StatusCode.FAILED_PRECONDITION,
        "FLOW_NOT_ACTIVE": grpc.StatusCode.FAILED_PRECONDITION,
        "FLOW_NOT_PAUSED": grpc.StatusCode.FAILED_PRECONDITION,
        "FLOW_NOT_DELETED": grpc.StatusCode.FAILED_PRECONDITION,
        "CHILD_EXISTS": grpc.StatusCode.FAILED_PRECONDITION,
        "NO_RECOVERY_POINT": grpc.StatusCode.FAILED_PRECONDITION,
        "RETRY_LIMIT_REACHED": grpc.StatusCode.FAILED_PRECONDITION,
        "CHECKPOINT_NOT_FOUND": grpc.StatusCode.NOT_FOUND,
        "CHECKPOINT_PINNED": grpc.StatusCode.FAILED_PRECONDITION,
        "CHECKPOINT_UNREADABLE": grpc.StatusCode.DATA_LOSS,
        "KEY_UNAVAILABLE": grpc.StatusCode.FAILED_PRECONDITION,
        "NO_KEY": grpc.StatusCode.FAILED_PRECONDITION,
        "OFFSET_OUT_OF_RANGE": grpc.StatusCode.OUT_OF_RANGE,
        "CONCURRENT_MODIFICATION": grpc.StatusCode.ABORTED,
        "REVISION_COMPACTED": grpc.StatusCode.OUT_OF_RANGE,
        "REVISION_IN_FUTURE": grpc.StatusCode.OUT_OF_RANGE,
        "HISTORY_DAMAGED": grpc.StatusCode.DATA_LOSS,
        "POSITION_COMPACTED": grpc.StatusCode.OUT_OF_RANGE,
        "POSITION_IN_FUTURE": grpc.StatusCode.OUT_OF_RANGE,
        "LIMIT_EXCEEDED": grpc.StatusCode.RESOURCE_EXHAUSTED,
        "QUOTA_EXCEEDED": grpc.StatusCode.RESOURCE_EXHAUSTED,
        "NO_CALLER": grpc.StatusCode.UNAUTHENTICATED,
        "STORE_UNAVAILABLE": grpc.StatusCode.UNAVAILABLE,
        "STREAM_STALLED": grpc.StatusCode.UNAVAILABLE,
        "DRAINING": grpc.StatusCode.UNAVAILABLE,
        "DEADLINE_EXCEEDED": grpc.StatusCode.DEADLINE_EXCEEDED,
        "INTERNAL": grpc.StatusCode.INTERNAL,
    }
)
_LATE = "no answer within the call's deadline: PostgreSQL is away or too busy; retry, with the same request_id if one was given"
_RETRY_AFTER = 0.5  # seconds; long enough for a connection to be made again
# How long a call is held at most that came while the server was about to close.
HELD_SECONDS = 1.0
# gRPC loses the status when the trailers exceed the metadata limit: stay below 2 KB together. The text stands in them twice, once
# percent-encoded, which makes three bytes of each byte outside printable ASCII.
_TEXT_BYTES = 420
_METADATA_BYTES = 400
_VALUE_BYTES = 200
_FIELD_BYTES = 100
_DESCRIPTION_BYTES = 300
_VIOLATIONS_BYTES = 800
_PLAIN = "".join(chr(code) for code in range(0x20, 0x7F) if chr(code) != "%")

Unary = Callable[[Any, Caller], Awaitable[Any]]
Send = Callable[[bytes], Awaitable[None]]
# Hears of each call: method, outcome, when it began (time.perf_counter), caller, flow and what the caller was told was wrong.
Tell = Callable[[str, str, float, Caller | None, str, str], None]
Context = grpc.aio.ServicerContext[Any, Any]


class Boundary:
    """Wraps the methods of a servicer; holds whether the server still takes calls."""

    def __init__(self, deadlines: Deadlines, max_response_bytes: int, tell: Tell) -> None:
        """``deadlines`` ends unary calls in time; ``tell`` hears of each call that ended."""
        self._deadlines, self._max_response_bytes, self._tell = deadlines, max_response_bytes, tell
        self._closing: asyncio.Event | None = None

    def drain(self) -> None:
        """Refuse new calls from now on; those under way go on.

        They are held until ``close`` before they are told: a client that has its answer sends its next call, and one that is on its way
        when gRPC closes is ended by it with CANCELLED.
        """
        if self._closing is None:
            self._closing = asyncio.Event()

    def close(self) -> None:
        """Tell those that are held; gRPC has begun to close, so their clients look for another connection."""
        self.drain()
        assert self._closing is not None
        self._closing.set()

    def handlers(self, service: ServiceDescriptor, *servicers: object) -> grpc.GenericRpcHandler:
        """The handlers of every RPC of ``service``, each from the one servicer that has it.

        Raises AttributeError for one that none has, and for one that several have.
        """
        methods = {}
        make: Any
        wrapped: Any
        for method in service.methods:
            found = [getattr(servicer, method.name) for servicer in servicers if hasattr(servicer, method.name)]
            if len(found) != 1:
                raise AttributeError(f"{service.full_name}/{method.name} is in {len(found)} servicers, it must be in one")
            call = found[0]
            name = f"{service.full_name}/{method.name}"
            if method.server_streaming:
                kind = self._sending if inspect.iscoroutinefunction(call) else self._streaming
                make, wrapped = grpc.unary_stream_rpc_method_handler, kind(name, call)
            elif method.client_streaming:
                make, wrapped = grpc.stream_unary_rpc_method_handler, self._collecting(name, call)
            else:
                make, wrapped = grpc.unary_unary_rpc_method_handler, self._unary(name, call)
            methods[method.name] = make(
                wrapped,
                request_deserializer=(_strict_reader if method.client_streaming else _reader)(method.input_type),
                response_serializer=_serialized,
            )
        return grpc.method_handlers_generic_handler(service.full_name, methods)

    def _unary(self, name: str, call: Unary) -> Callable[[Any, Context], Awaitable[Any]]:
        deadlines, most = self._deadlines, self._max_response_bytes

        async def unary(request: Any, context: Context) -> bytes:
            started, caller, limited, remaining = time.perf_counter(), None, None, None
            try:
                if self._closing is not None:
                    await self._refuse(self._closing)
                caller = self._admit(context)
                if type(request) is _Unreadable:
                    raise request.error()
                remaining = context.time_remaining()
                limited = deadlines.enter(remaining)
                response = await call(request, caller)
                if type(response) is not bytes:  # what a commit is answered was made along with it, or stored with an earlier one
                    response = response.SerializeToString()
                if len(response) > most:
                    raise LimitExceeded("response (bytes)", most, len(response))
            except (asyncio.CancelledError, Exception) as error:
                if isinstance(error, asyncio.CancelledError) and not (limited is not None and deadlines.ended(limited)):
                    self._tell(name, "CANCELLED", started, caller, _flow_of(request), "")
                    raise
                if isinstance(error, asyncio.CancelledError) and remaining is not None:
                    error = StoreUnavailable(_LATE)
                # gRPC keeps the frames of an aborted call until the collector comes by: a large request must not stay with them.
                flow, request = _flow_of(request), None
                await self._abort(context, name, caller, error, started, flow)
            finally:
                if limited is not None:
                    deadlines.leave(limited)
            self._tell(name, "OK", started, caller, _flow_of(request), "")
            return cast(bytes, response)

        return unary

    def _collecting(self, name: str, call: Unary) -> Callable[[AsyncIterator[Any], Context], Awaitable[Any]]:
        async def collecting(requests: AsyncIterator[Any], context: Context) -> Any:
            started = time.perf_counter()
            caller = None
            try:
                if self._closing is not None:
                    await self._refuse(self._closing)
                caller = self._admit(context)
                response = await call(requests, caller)
            except asyncio.CancelledError:
                self._tell(name, "CANCELLED", started, caller, "", "")
                raise
            except Exception as error:  # noqa: BLE001 - nothing may pass the boundary as it is
                await self._abort(context, name, caller, error, started, "")
            self._tell(name, "OK", started, caller, "", "")
            return response

        return collecting

    def _streaming(self, name: str, call: Callable[[Any, Caller], AsyncIterator[Any]]) -> Callable[[Any, Context], AsyncIterator[Any]]:
        async def streaming(request: Any, context: Context) -> AsyncIterator[Any]:
            started = time.perf_counter()
            caller = None
            try:
                if self._closing is not None:
                    await self._refuse(self._closing)
                caller = self._admit(context)
                if type(request) is _Unreadable:
                    raise request.error()
                responses = call(request, caller)
                try:
                    async for response in responses:
                        yield response
                finally:
                    # Deterministic, and synchronous in effect: the method's own clean-up awaits nothing.
                    await responses.aclose()  # type: ignore[attr-defined]
            except (asyncio.CancelledError, GeneratorExit):
                self._tell(name, "CANCELLED", started, caller, _flow_of(request), "")
                raise
            except Exception as error:  # noqa: BLE001 - nothing may pass the boundary as it is
                await self._abort(context, name, caller, error, started, _flow_of(request))
            self._tell(name, "OK", started, caller, _flow_of(request), "")

        return streaming

    def _sending(self, name: str, call: Callable[[Any, Caller, Send], Awaitable[None]]) -> Callable[[Any, Context], Awaitable[None]]:
        """For a method that sends its responses by itself, as bytes: no generator stands between it and gRPC."""

        async def sending(request: Any, context: Context) -> None:
            started = time.perf_counter()
            caller = None
            try:
                if self._closing is not None:
                    await self._refuse(self._closing)
                caller = self._admit(context)
                if type(request) is _Unreadable:
                    raise request.error()
                await call(request, caller, context.write)
            except (asyncio.CancelledError, grpc.aio.BaseError):  # the latter when the caller goes while something is sent
                self._tell(name, "CANCELLED", started, caller, _flow_of(request), "")
                raise
            except Exception as error:  # noqa: BLE001 - nothing may pass the boundary as it is
                await self._abort(context, name, caller, error, started, _flow_of(request))
            self._tell(name, "OK", started, caller, _flow_of(request), "")

        return sending

    def _admit(self, context: Context) -> Caller:
        return caller_of(context.invocation_metadata() or ())

    async def _refuse(self, closing: asyncio.Event) -> NoReturn:
        with suppress(TimeoutError):
            async with asyncio.timeout(HELD_SECONDS):
                await closing.wait()
        raise Draining("the server is stopping: send this to another, or again in a moment")

    async def _abort(self, context: Context, name: str, caller: Caller | None, error: BaseException, started: float, flow: str) -> NoReturn:
        """Ends the call with the one status that fits ``error``. Only our own errors' text is sent."""
        if isinstance(error, grpc.aio.AbortError):
            raise error
        if isinstance(error, FlowError) and error.reason in CODES:
            status = _status(error.reason, str(error), error.metadata, list(_details(error)))
            self._tell(name, error.reason, started, caller, flow, str(error))
            error.__traceback__ = None  # its frames hold the request
        elif isinstance(error, TimeoutError | asyncio.CancelledError):
            text = "the server's own limit for a call without a deadline ran out: set a deadline, and retry with the same request_id"
            status = _status("DEADLINE_EXCEEDED", text, {}, [])
            self._tell(name, "DEADLINE_EXCEEDED", started, caller, flow, "")
        else:
            error_id = str(uuid4())
            status = _status("INTERNAL", f"internal error {error_id}: the server's log says more", {"error_id": error_id}, [])
            _log.error("call_failed", method=name, error_id=error_id, exc_info=error, **_who(caller))
            self._tell(name, "INTERNAL", started, caller, flow, f"error id {error_id}")
        await context.abort_with_status(rpc_status.to_status(status))
        raise AssertionError("abort_with_status returned")


@dataclass(frozen=True, slots=True)
class _Unreadable:
    """Stands for a request whose bytes are no such message: gRPC itself would answer UNKNOWN, with the exception's text."""

    message: str

    def error(self) -> InvalidRequest:
        return invalid("request", f"cannot be read as {self.message}: is it made from this version of the contract, and all text UTF-8?")


def _reader(kind: Descriptor) -> Callable[[bytes], Message | _Unreadable]:
    """Reads request bytes and never raises."""
    from_bytes, unreadable = GetMessageClass(kind).FromString, _Unreadable(kind.full_name)

    def read(data: bytes) -> Message | _Unreadable:
        try:
            return from_bytes(data)
        except DecodeError:
            return unreadable

    return read


def _strict_reader(kind: Descriptor) -> Callable[[bytes], Message]:
    """Reads the bytes of a stream's request: what it raises comes out where the method asks for its next request."""
    from_bytes, unreadable = GetMessageClass(kind).FromString, _Unreadable(kind.full_name)

    def read(data: bytes) -> Message:
        try:
            return from_bytes(data)
        except DecodeError:
            raise unreadable.error() from None

    return read


def _serialized(message: Message | bytes) -> bytes:
    """What is bytes already is sent as it is."""
    return message if type(message) is bytes else message.SerializeToString()  # type: ignore[union-attr]


def _status(reason: str, text: str, metadata: Mapping[str, str], details: Iterable[Message]) -> status_pb2.Status:
    kept, left = {}, _METADATA_BYTES
    for key, value in metadata.items():
        kept[key] = _short(value, min(_VALUE_BYTES, left))
        left -= len(kept[key].encode())
    info = error_details_pb2.ErrorInfo(reason=reason, domain=DOMAIN, metadata=kept)
    status = status_pb2.Status(code=code_pb2.Code.Value(CODES[reason].name), message=_short_encoded(text))
    for detail in (info, *details):
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    return status


def _details(error: FlowError) -> Iterable[Message]:
    if isinstance(error, InvalidRequest):
        yield _violations(error)
    elif isinstance(error, PreconditionFailed):
        violation = error_details_pb2.PreconditionFailure.Violation(
            type=error.reason, subject=_short(error.subject, _FIELD_BYTES), description=_short(str(error), _DESCRIPTION_BYTES)
        )
        yield error_details_pb2.PreconditionFailure(violations=[violation])
    elif CODES[error.reason] is grpc.StatusCode.UNAVAILABLE:
        yield error_details_pb2.RetryInfo(retry_delay=duration_pb2.Duration(nanos=int(_RETRY_AFTER * 1e9)))


def _violations(error: InvalidRequest) -> error_details_pb2.BadRequest:
    found = error_details_pb2.BadRequest()
    for at, violation in enumerate(error.violations):
        field, description = _short(violation.field, _FIELD_BYTES), _short(violation.description, _DESCRIPTION_BYTES)
        found.field_violations.add(field=field, description=description)
        if found.ByteSize() > _VIOLATIONS_BYTES:
            del found.field_violations[at:]
            found.field_violations.add(field="...", description=f"and {len(error.violations) - at} more")
            break
    return found


def _short(text: str, most: int) -> str:
    """The text, cut to ``most`` bytes of UTF-8."""
    encoded = text.encode()
    return text if len(encoded) <= most else f"{encoded[: max(most - 3, 0)].decode(errors='ignore')}..."[:most]


def _short_encoded(text: str) -> str:
    """The text, cut so that it fits when gRPC percent-encodes it."""
    encoded = quote(text, safe=_PLAIN)
    if len(encoded) <= _TEXT_BYTES:
        return text
    whole = re.sub(r"%.?$", "", encoded[: _TEXT_BYTES - 3])
    return f"{unquote(whole, errors='ignore')}..."


def _who(caller: Caller | None) -> dict[str, str]:
    if caller is None:
        return {}
    tenant = caller.tenant
    return {"account": str(tenant.client_account_id), "engagement": str(tenant.engagement_id), "user": caller.user}


def _flow_of(request: object) -> str:
    return getattr(request, "flow_id", "")[:36]
