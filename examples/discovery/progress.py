"""Progress of one phase while it works: over one client stream for chatty phases, call by call for the others."""

from __future__ import annotations

import asyncio

from flowledger.v1 import change_pb2, flow_pb2, flow_service_pb2
from grpc import aio

from examples.discovery.ledger import AWAY, CHILD, Ledger, call_failed


class PhaseFailed(Exception):
    """A phase could not go on; ``code`` says whether it may be tried again."""

    def __init__(self, code: flow_pb2.FailureCode.ValueType, message: str) -> None:
        super().__init__(message)
        self.code = code


class PhaseHalted(Exception):
    """A phase needs something from a person before it can be done; nothing failed, so no retry is used up."""


class Interruption:
    """A failure that was asked for: it strikes one phase once, in the middle."""

    def __init__(self, phase: str | None) -> None:
        self._phase = phase

    def strike(self, phase: str, fraction: float) -> None:
        """Raises PhaseFailed the first time that the phase is half done or more."""
        if phase == self._phase and fraction >= 0.5:
            self._phase = None
            raise PhaseFailed(flow_pb2.FAILURE_CODE_EXTERNAL_SERVICE_ERROR, "an external system did not answer (asked for with --fail)")


class Progress:
    """Says how far one phase has come."""

    def __init__(self, ledger: Ledger, flow_id: str, phase: str, interruption: Interruption, pace: float) -> None:
        self._ledger, self._flow_id, self._phase, self._interruption, self._pace = ledger, flow_id, phase, interruption, pace

    async def report(self, done: int, total: int, what: str) -> None:
        """Reports that ``done`` of ``total`` ``what`` are done."""
        fraction = done / total if total else 1.0
        message = f"{done:,} of {total:,} {what}"
        await self._send(change_pb2.ProgressReport(phase=self._phase, child_type=CHILD, fraction=fraction, message=message))
        if self._pace:
            await asyncio.sleep(self._pace)
        self._interruption.strike(self._phase, fraction)

    async def close(self) -> None:
        """Returns once every report has been committed."""

    async def _send(self, report: change_pb2.ProgressReport) -> None:
        await self._ledger.report(self._flow_id, report)


class StreamedProgress(Progress):
    """The same over one StreamProgress call, which is opened again when it breaks."""

    _call: aio.StreamUnaryCall[flow_service_pb2.StreamProgressRequest, flow_service_pb2.StreamProgressResponse] | None = None
    _last: change_pb2.ProgressReport | None = None

    async def close(self) -> None:
        """Returns once the last report has been committed, by a call of its own if the stream broke."""
        if self._call is None:
            return
        call, self._call = self._call, None
        try:
            await call.done_writing()
            await call
        except aio.AioRpcError as error:
            await self._say_again(error)

    async def _send(self, report: change_pb2.ProgressReport) -> None:
        self._last = report
        if self._call is None:
            self._call = self._ledger.progress_call()
        try:
            await self._call.write(flow_service_pb2.StreamProgressRequest(flow_id=self._flow_id, progress=report))
        except aio.AioRpcError as error:
            self._call = None
            await self._say_again(error)
        except asyncio.InvalidStateError:  # the call ended between two writes; why is in its status
            call, self._call = self._call, None
            try:
                await call
            except aio.AioRpcError as error:
                await self._say_again(error)

    async def _say_again(self, error: aio.AioRpcError) -> None:
        """The last report by a call of its own, which waits until the service is back; the ones before it say less than it does."""
        if error.code() not in AWAY:
            raise call_failed(error) from None
        if self._last is not None:
            await self._ledger.report(self._flow_id, self._last)
