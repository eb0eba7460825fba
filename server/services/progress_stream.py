"""StreamProgress: many reports over one call; what arrives while a commit is out is merged into the next one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import datetime
from uuid import UUID

from flowledger.v1 import flow_service_pb2 as pb

from server.repository.commits import Commits
from server.repository.plan import Asked
from server.repository.requests import Answered, Committed
from server.services import convert, flow_messages
from server.services.caller import Caller
from server.services.fields import Fields
from server.statemachine import document
from server.statemachine.change import ReportProgress
from server.statemachine.errors import FlowError, invalid
from server.statemachine.flow import Occasion

# Reports of so many phases wait at most; a worker that reports more at once is held back by flow control.
WAITING_PHASES = 1000

# How long a stream's reports are merged between two commits while they keep coming.
PACE_SECONDS = 0.02

_Place = tuple[UUID, str, str]


class ProgressStream:
    """One caller's stream of reports."""

    def __init__(
        self, commits: Commits, now: Callable[[], datetime], new_id: Callable[[], UUID], caller: Caller, limits: document.Limits
    ) -> None:
        self._commits, self._now, self._new_id, self._caller, self._limits = commits, now, new_id, caller, limits
        self._fields = Fields(limits)
        self._waiting: dict[_Place, tuple[int, ReportProgress]] = {}
        self._flow_id: UUID | None = None  # of the last report
        self._last: Committed | None = None
        self._committed = 0

    async def run(self, requests: AsyncIterator[pb.StreamProgressRequest]) -> pb.StreamProgressResponse:
        """The counts, once the caller has closed its side and everything is on disk."""
        try:
            async with asyncio.TaskGroup() as group:  # a refused commit ends the reading, also of a caller that says no more
                received = await self._take(requests, group)
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None
        if self._last is None:
            raise invalid("progress", "is required: the stream held no report")
        return pb.StreamProgressResponse(
            flow=flow_messages.summarized(self._last.summary), received_count=received, committed_count=self._committed
        )

    async def _take(self, requests: AsyncIterator[pb.StreamProgressRequest], group: asyncio.TaskGroup) -> int:
        """How many reports came; the commits are tasks of ``group``."""
        received = 0
        sending: asyncio.Task[None] | None = None
        async for request in requests:
            try:
                flow_id, report = self._read(request, received)
            except FlowError:
                if sending is not None:
                    await sending  # what was accepted before the faulty report is kept
                raise
            self._merge((flow_id, report.child_type, report.phase), received, report)
            received += 1
            if sending is None or sending.done():
                sending = group.create_task(self._send())
            elif len(self._waiting) >= WAITING_PHASES:
                await sending
        return received

    def _read(self, request: pb.StreamProgressRequest, at: int) -> tuple[UUID, ReportProgress]:
        fields = self._fields  # the first fault ends the stream, so that one will do
        flow_id = self._flow_id
        if request.flow_id or flow_id is None:
            flow_id = fields.uuid("flow_id", request.flow_id)
        report = convert.progress(fields, "progress", request.progress)
        try:
            fields.check()
        except FlowError as error:
            error.metadata["report_index"] = str(at)
            raise
        self._flow_id = flow_id
        return flow_id, report

    def _merge(self, place: _Place, at: int, report: ReportProgress) -> None:
        earlier = self._waiting.get(place)
        if earlier is not None:
            at = earlier[0]  # what refuses the merged report would have refused its first one
            if not report.message:
                report = ReportProgress(report.phase, report.fraction, report.child_type, earlier[1].message)
        self._waiting[place] = at, report

    async def _send(self) -> None:
        """Commit until nothing waits; the reports of one flow that wait together are one commit."""
        while self._waiting:
            waiting, self._waiting = self._waiting, {}
            flows: dict[UUID, list[tuple[int, ReportProgress]]] = {}
            for (flow_id, _, _), numbered in waiting.items():
                flows.setdefault(flow_id, []).append(numbered)
            commits = [self._commit(flow_id, reports) for flow_id, reports in flows.items()]
            for ended in await asyncio.gather(*commits, return_exceptions=True):  # every one ends before the first error is told
                if ended is not None:
                    raise ended
            if self._waiting:  # more is coming in: a gauge need not be stored more often than anybody looks at it
                await asyncio.sleep(PACE_SECONDS)

    async def _commit(self, flow_id: UUID, reports: list[tuple[int, ReportProgress]]) -> None:
        occasion = Occasion(self._caller.user, self._now(), self._new_id, self._limits)
        try:
            found = await self._commits.commit(Asked(self._caller.tenant, flow_id, tuple(report for _, report in reports), occasion))
        except FlowError as error:
            at = int(error.metadata.pop("change_index", "0"))
            error.metadata["report_index"] = str(reports[at][0])
            if at:
                await self._commit(flow_id, reports[:at])  # what was accepted before the refused report is kept
            raise
        assert not isinstance(found, Answered)  # no request id, no earlier answer
        self._committed += 1
        if flow_id == self._flow_id:  # the last report's own commit comes after it, so this ends as the flow of the last report
            self._last = found
