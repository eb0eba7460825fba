"""FlowService: each method is a paragraph. What it does, writes and fails with stands in the contract."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cache
from typing import Any, TypeVar
from uuid import UUID

from flowledger.v1 import document_pb2, flow_pb2
from flowledger.v1 import flow_service_pb2 as pb
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message

from server.checkpoints.precaution import Precaution
from server.repository import filter as filters
from server.repository.document_store import offloaded
from server.repository.flows import DeletedFlows
from server.repository.plan import Asked, Birth
from server.repository.requests import Answer, Answered, Committed
from server.repository.store import Store
from server.services import convert, flow_messages, page_token
from server.services.answers import basic_answer, event_of, remembered, summary_answer
from server.services.boundary import Send
from server.services.caller import Caller
from server.services.fields import NAME_LENGTH, Fields
from server.services.progress_stream import ProgressStream
from server.services.reads import Reads
from server.services.watch import Watches
from server.statemachine import change as ask
from server.statemachine import document
from server.statemachine.derivation import summary
from server.statemachine.errors import LimitExceeded
from server.statemachine.flow import Occasion
from server.statemachine.graphs import JOURNEYS
from server.statemachine.values import FlowKey, FlowSummary

FLOWS_PAGE, FLOWS_PAGE_MOST = 50, 500
BATCH_FLOWS = 100

_Read = TypeVar("_Read")
_Response = TypeVar("_Response", bound=Message)
_SUMMARY, _BASIC, _FULL = flow_pb2.FLOW_VIEW_SUMMARY, flow_pb2.FLOW_VIEW_BASIC, flow_pb2.FLOW_VIEW_FULL

_CONSISTENCIES = frozenset(pb.ReadConsistency.values())
_VIEWS, _FORMS = frozenset(flow_pb2.FlowView.values()), frozenset(document_pb2.DocumentForm.values())


@dataclass(frozen=True, slots=True)
class Sources:
    """Where times and ids come from."""

    now: Callable[[], datetime]
    new_id: Callable[[], UUID]


class FlowService:
    """Keeps the state of flows."""

    def __init__(
        self,
        store: Store,
        reads: Reads,
        watches: Watches,
        sources: Sources,
        limits: document.Limits,
        token_key: bytes,
        precaution: Precaution,
    ) -> None:
        """``precaution`` takes checkpoints before commits that want one."""
        self._flows, self._history, self._commits = store.flows, store.history, store.commits
        self._reads, self._watches, self._precaution = reads, watches, precaution
        self._sources, self._limits, self._token_key = sources, limits, token_key

    # ---- making and changing --------------------------------------------------------------------------------------------------------

    async def CreateFlow(self, request: pb.CreateFlowRequest, caller: Caller) -> bytes:
        """The new flow, BASIC."""
        return await self._commit(await self._read(request, lambda fields: self._creation(fields, request, caller)), request)

    async def UpdateFlow(self, request: pb.UpdateFlowRequest, caller: Caller) -> bytes:
        """The flow with the caller's own fields changed."""
        return await self._change_one(request, "update", convert.update, caller, pb.UpdateFlowResponse)

    async def TransitionPhase(self, request: pb.TransitionPhaseRequest, caller: Caller) -> bytes:
        """The flow with a phase in another state."""
        return await self._change_one(request, "transition", convert.transition, caller, pb.TransitionPhaseResponse)

    async def RetryPhase(self, request: pb.RetryPhaseRequest, caller: Caller) -> bytes:
        """The flow with a phase begun again."""
        return await self._change_one(request, "retry", convert.retry, caller, pb.RetryPhaseResponse)

    async def RollbackPhase(self, request: pb.RollbackPhaseRequest, caller: Caller) -> bytes:
        """The flow with a phase and its dependants taken back."""
        return await self._change_one(request, "rollback", convert.rollback, caller, pb.RollbackPhaseResponse)

    async def ReportProgress(self, request: pb.ReportProgressRequest, caller: Caller) -> bytes:
        """The flow with a phase further on."""
        return await self._change_one(request, "progress", convert.progress, caller, pb.ReportProgressResponse)

    async def RecordActivity(self, request: pb.RecordActivityRequest, caller: Caller) -> bytes:
        """The flow with more analytics."""
        return await self._change_one(request, "activity", convert.activity, caller, pb.RecordActivityResponse)

    async def PauseFlow(self, request: pb.PauseFlowRequest, caller: Caller) -> bytes:
        """The flow, held."""
        return await self._change_one(request, "pause", convert.pause, caller, pb.PauseFlowResponse)

    async def ResumeFlow(self, request: pb.ResumeFlowRequest, caller: Caller) -> bytes:
        """The flow, no longer held."""
        return await self._change_one(request, "resume", convert.resume, caller, pb.ResumeFlowResponse)

    async def CancelFlow(self, request: pb.CancelFlowRequest, caller: Caller) -> bytes:
        """The flow, ended."""
        return await self._change_one(request, "cancel", convert.cancel, caller, pb.CancelFlowResponse)

    async def StartChildFlow(self, request: pb.StartChildFlowRequest, caller: Caller) -> bytes:
        """The flow with its next domain begun, BASIC."""
        answer = basic_answer(pb.StartChildFlowResponse)
        return await self._change(
            request, caller, answer, lambda fields: (convert.child_start(fields, "child_start", request.child_start),)
        )

    async def DeleteFlow(self, request: pb.DeleteFlowRequest, caller: Caller) -> bytes:
        """The flow, soft-deleted."""
        answer = summary_answer(pb.DeleteFlowResponse)
        return await self._change(request, caller, answer, lambda fields: (ask.DeleteFlow(fields.text("reason", request.reason)),))

    async def UndeleteFlow(self, request: pb.UndeleteFlowRequest, caller: Caller) -> bytes:
        """The flow, back again."""
        return await self._change(request, caller, summary_answer(pb.UndeleteFlowResponse), lambda _: (ask.UndeleteFlow(),))

    async def CommitFlow(self, request: pb.CommitFlowRequest, caller: Caller) -> bytes:
        """The flow with all changes applied."""
        _limited("changes", convert.CHANGES, len(request.changes))
        answer = summary_answer(pb.CommitFlowResponse)
        return await self._change(request, caller, answer, lambda fields: convert.changes(fields, "changes", request.changes))

    async def BatchUpdateFlows(self, request: pb.BatchUpdateFlowsRequest, caller: Caller) -> bytes:
        """The flows, all changed in one commit."""
        _limited("commits", BATCH_FLOWS, len(request.commits))
        for at, commit in enumerate(request.commits):
            _limited(f"commits[{at}].changes", convert.CHANGES, len(commit.changes))
        commits = await self._read(request, lambda fields: self._batch(fields, request, caller))

        def answer(results: Sequence[Committed]) -> bytes:
            told = [pb.FlowCommitted(flow=flow_messages.summarized(one.summary), event=event_of(one)) for one in results]
            return pb.BatchUpdateFlowsResponse(results=told).SerializeToString()

        if request.validate_only:
            return answer(await self._commits.rehearse_together(commits))
        found = await self._precaution.commit_together(commits, remembered(request, answer))
        return found.answer if isinstance(found, Answered) else answer(found)

    async def StreamProgress(self, requests: AsyncIterator[pb.StreamProgressRequest], caller: Caller) -> pb.StreamProgressResponse:
        """How many reports came and how many revisions they became."""
        return await ProgressStream(self._commits, self._sources.now, self._sources.new_id, caller, self._limits).run(requests)

    # ---- reading --------------------------------------------------------------------------------------------------------------------

    async def GetFlow(self, request: pb.GetFlowRequest, caller: Caller) -> pb.GetFlowResponse | bytes:
        """The flow in the view asked for."""
        fields = Fields(self._limits)
        flow_id = fields.uuid("flow_id", request.flow_id)
        least = fields.revision("min_revision", request.min_revision)
        view = _view(fields, request.view, _BASIC)
        _check_form(fields, request.form)
        _check_consistency(fields, request.consistency)
        at = fields.revision("at_revision", request.at_revision)
        if at and least:
            fields.wrong("at_revision", "does not go with min_revision: an old revision is never newer than itself")
        fields.check()
        key = FlowKey(caller.tenant, flow_id)
        if at:
            return pb.GetFlowResponse(flow=await self._past(key, at, view, request.form))
        read = self._reads.recent_flow if request.consistency == pb.READ_CONSISTENCY_CACHED else self._reads.flow
        return await read(key, view, request.form, least)

    async def BatchGetFlows(self, request: pb.BatchGetFlowsRequest, caller: Caller) -> pb.BatchGetFlowsResponse | bytes:
        """The flows in the order asked for."""
        _limited("flow_ids", BATCH_FLOWS, len(request.flow_ids))
        fields = Fields(self._limits)
        if not request.flow_ids:
            fields.wrong("flow_ids", f"must have 1 to {BATCH_FLOWS} ids")
        flow_ids = [fields.uuid(f"flow_ids[{at}]", text) for at, text in enumerate(request.flow_ids)]
        view = _view(fields, request.view, _BASIC)
        _check_form(fields, request.form)
        _check_consistency(fields, request.consistency)
        fields.check()
        if request.consistency == pb.READ_CONSISTENCY_CACHED:
            keys = [FlowKey(caller.tenant, flow_id) for flow_id in flow_ids]
            # Each answer holds one flow as field 1, so that together they are the response.
            return b"".join(await asyncio.gather(*(self._reads.recent_flow(key, view, request.form, 0) for key in keys)))
        return pb.BatchGetFlowsResponse(flows=await self._reads.flows(caller.tenant, flow_ids, view, request.form))

    async def ListFlows(self, request: pb.ListFlowsRequest, caller: Caller) -> pb.ListFlowsResponse:
        """One page of flows."""
        fields = Fields(self._limits)
        size = fields.page_size(request.page_size, FLOWS_PAGE, FLOWS_PAGE_MOST)
        view = _view(fields, request.view, _SUMMARY)
        if view == _FULL:
            fields.wrong("view", "must be SUMMARY or BASIC: documents are read flow by flow")
        wanted = fields.parsed(filters.parse, request.filter, filters.Filter())
        order = fields.parsed(filters.parse_order, request.order_by, filters.NEWEST_FIRST)
        fields.check()
        query = "\0".join((request.filter, request.order_by, str(request.show_deleted))).encode()
        purpose, owner = "ListFlows", page_token.owner(caller.tenant)
        start = None
        if request.page_token:
            start = _position(order, page_token.open(self._token_key, purpose, owner, query, request.page_token))
        shown = DeletedFlows.SHOWN if request.show_deleted else DeletedFlows.HIDDEN
        found = await self._flows.page(caller.tenant, wanted, order, start, size + 1, shown)
        page = found[:size]
        token = page_token.seal(self._token_key, purpose, owner, query, _place(order, page[-1])) if len(found) > size else ""
        if view == _BASIC and page:
            ids = [said.flow_id for said in page]
            flows = await self._reads.flows(caller.tenant, ids, _BASIC, document_pb2.DOCUMENT_FORM_JSON)
        else:
            flows = [flow_messages.summarized(said) for said in page]
        return pb.ListFlowsResponse(flows=flows, next_page_token=token)

    async def WatchFlow(self, request: pb.WatchFlowRequest, caller: Caller, send: Send) -> None:
        """Sends the flow's progress until it ends."""
        await self._watches.watch_flow(request, caller.tenant, Fields(self._limits), send)

    async def WatchFlows(self, request: pb.WatchFlowsRequest, caller: Caller, send: Send) -> None:
        """Sends the events of the tenant's flows that match, without end."""
        await self._watches.watch_flows(request, caller.tenant, Fields(self._limits), send)

    # ---- common to many -------------------------------------------------------------------------------------------------------------

    async def _change_one(
        self, request: Any, part: str, reading: Callable[..., ask.Change], caller: Caller, response: Callable[[], Message]
    ) -> bytes:
        """What every RPC does that is a short name for one change."""

        def changes(fields: Fields) -> tuple[ask.Change]:
            if part == "update" and not request.HasField(part):  # the others that are required have required fields of their own
                fields.wrong(part, "is required")
            return (reading(fields, part, getattr(request, part)),)

        return await self._change(request, caller, summary_answer(response), changes)

    async def _change(self, request: Any, caller: Caller, answer: Answer, reading: Callable[[Fields], tuple[ask.Change, ...]]) -> bytes:
        """The answer once the flow that the request names has changed as ``reading`` says."""

        def asked(fields: Fields) -> Asked:
            flow_id = fields.uuid("flow_id", request.flow_id)
            changes = reading(fields)
            expected = fields.revision("expected_revision", request.expected_revision)
            return Asked(caller.tenant, flow_id, changes, self._occasion(caller), expected, answer=answer)

        return await self._commit(await self._read(request, asked), request)

    async def _read(self, request: Any, reading: Callable[[Fields], _Read]) -> _Read:
        """What ``reading`` makes of the request. Raises InvalidRequest with all its faults."""

        def read() -> _Read:
            fields = Fields(self._limits)
            found = reading(fields)
            if request.request_id:
                fields.uuid("request_id", request.request_id)
            fields.check()
            return found

        return await offloaded(request.ByteSize(), read)

    def _creation(self, fields: Fields, request: pb.CreateFlowRequest, caller: Caller) -> Asked:
        flow_id = fields.optional_uuid("flow_id", request.flow_id) or self._sources.new_id()
        kind = fields.required("type", request.type, 100)
        if kind and kind not in JOURNEYS:
            fields.wrong("type", f"{kind[:100]!r} is not a flow type; known ones are {', '.join(JOURNEYS)}")
        name = fields.text("display_name", request.display_name, NAME_LENGTH)
        labels = fields.labels("labels", request.labels)
        changes: list[ask.Change] = []
        if request.skip_first_child and request.HasField("child_data"):
            fields.wrong("child_data", "has no child to belong to, because skip_first_child is set")
        elif not request.skip_first_child and kind in JOURNEYS:
            data = fields.document("child_data", request.child_data) if request.HasField("child_data") else None
            changes.append(ask.StartChild(data=data))
        documents = tuple(
            ask.ReplaceDocument(place, fields.document(name, getattr(request, name)))
            for name, place in convert.FLOW_DOCUMENTS.items()
            if request.HasField(name)  # type: ignore[arg-type]
        )
        if documents:
            changes.append(ask.UpdateFlow(documents=documents))
        answer = basic_answer(pb.CreateFlowResponse)
        return Asked(caller.tenant, flow_id, tuple(changes), self._occasion(caller), birth=Birth(kind, name, labels), answer=answer)

    def _batch(self, fields: Fields, request: pb.BatchUpdateFlowsRequest, caller: Caller) -> list[Asked]:
        if not request.commits:
            fields.wrong("commits", f"must have 1 to {BATCH_FLOWS} flows")
        occasion, seen, found = self._occasion(caller), set(), []
        for at, commit in enumerate(request.commits):
            path = f"commits[{at}]"
            flow_id = fields.uuid(f"{path}.flow_id", commit.flow_id)
            if flow_id in seen:
                fields.wrong(f"{path}.flow_id", "stands twice: put all changes of one flow into one commit")
            seen.add(flow_id)
            changes = convert.changes(fields, f"{path}.changes", commit.changes)
            expected = fields.revision(f"{path}.expected_revision", commit.expected_revision)
            found.append(Asked(caller.tenant, flow_id, changes, occasion, expected))
        return found

    def _occasion(self, caller: Caller) -> Occasion:
        return Occasion(caller.user, self._sources.now(), self._sources.new_id, self._limits)

    async def _commit(self, asked: Asked, request: Any) -> bytes:
        answer = asked.answer
        assert answer is not None
        if _tryable(request.DESCRIPTOR) and request.validate_only:
            return answer([await self._commits.rehearse(asked)])
        if request.request_id:
            asked = replace(asked, request=remembered(request, answer))
        found = await self._precaution.commit(asked)
        return found.answer if isinstance(found, Answered) else found.answer or answer([found])

    async def _past(
        self, key: FlowKey, at: int, view: flow_pb2.FlowView.ValueType, form: document_pb2.DocumentForm.ValueType
    ) -> flow_pb2.Flow:
        if view == _FULL:
            return (await self._reads.full([await self._history.record(key, at)], form))[0]
        flow = (await self._history.base(key, at)).flow
        return flow_messages.summarized(summary(flow)) if view == _SUMMARY else flow_messages.basic(flow)


@cache
def _tryable(kind: Descriptor) -> bool:
    """Whether requests of this kind can ask for validation alone."""
    return "validate_only" in kind.fields_by_name


def _limited(field: str, limit: int, actual: int) -> None:
    if actual > limit:
        raise LimitExceeded(field, limit, actual)


def _view(fields: Fields, view: flow_pb2.FlowView.ValueType, default: flow_pb2.FlowView.ValueType) -> flow_pb2.FlowView.ValueType:
    if view not in _VIEWS:
        fields.wrong("view", f"{view} is unknown; one of SUMMARY, BASIC, FULL")
    return view or default


def _check_form(fields: Fields, form: document_pb2.DocumentForm.ValueType) -> None:
    if form not in _FORMS:
        fields.wrong("form", f"{form} is unknown; one of JSON, STRUCT")


def _check_consistency(fields: Fields, consistency: pb.ReadConsistency.ValueType) -> None:
    if consistency not in _CONSISTENCIES:
        fields.wrong("consistency", f"{consistency} is unknown; one of STRONG, CACHED")


def _place(order: filters.Order, last: FlowSummary) -> bytes:
    """Where a page ended: the id and the value that it is ordered by."""
    value = getattr(last, order.column)
    text = value if isinstance(value, str) else value.isoformat()
    return last.flow_id.bytes + text.encode()


def _position(order: filters.Order, place: bytes) -> tuple[str | datetime, UUID]:
    text = place[16:].decode()
    return (text if order.column == "display_name" else datetime.fromisoformat(text)), UUID(bytes=place[:16])
