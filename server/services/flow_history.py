"""FlowService's history: what happened, what differs, and old revisions as beginnings. What each RPC promises stands in the contract."""

from __future__ import annotations

import struct
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TypeVar

from flowledger.v1 import event_pb2
from flowledger.v1 import flow_service_pb2 as pb

from server.operations import Replaced, compared, replace_content, side
from server.repository.events import Narrowing
from server.repository.flows import Record
from server.repository.plan import Asked, Birth
from server.repository.requests import Answered, Request, answered
from server.repository.store import Store
from server.services import event_messages, flow_diff, page_token
from server.services.answers import basic_answer, basic_message, remembered
from server.services.caller import Caller
from server.services.fields import NAME_LENGTH, Fields
from server.services.flow_service import Sources
from server.statemachine import document
from server.statemachine.change import ReplaceContent
from server.statemachine.diff import Side
from server.statemachine.errors import FlowError
from server.statemachine.event import Cause
from server.statemachine.event_filter import EventFilter, EventKind
from server.statemachine.flow import Occasion
from server.statemachine.replacement import content_of, forked, replacement
from server.statemachine.values import FlowKey, Origin, Tenant

PAGE, PAGE_MOST = 100, 1000
PAGE_BYTES = 4 * 1024 * 1024  # a page ends early rather than to exceed a message
FILTERS = 20

_Done = TypeVar("_Done")


class FlowHistory:
    """Tells what flows were, and makes what they were the newest again."""

    def __init__(self, store: Store, sources: Sources, limits: document.Limits, token_key: bytes) -> None:
        self._store = store
        self._sources, self._limits, self._token_key = sources, limits, token_key

    async def ListFlowEvents(self, request: pb.ListFlowEventsRequest, caller: Caller) -> pb.ListFlowEventsResponse:
        """One page of events."""
        fields = Fields(self._limits)
        flow_id = fields.uuid("flow_id", request.flow_id)
        after = fields.revision("after_revision", request.after_revision)
        size = fields.page_size(request.page_size, PAGE, PAGE_MOST)
        narrowing = _narrowing(fields, request)
        fields.check()
        query, purpose, owner = _query(request), "ListFlowEvents", page_token.owner(caller.tenant)
        if request.page_token:
            (after,) = struct.unpack(">q", page_token.open(self._token_key, purpose, owner, query, request.page_token))
        if narrowing == Narrowing():
            page = await self._store.events.page(caller.tenant, flow_id, after, size)
            reached = page.events[-1].event.revision if page.events else after
        else:
            narrowed = await self._store.events.narrowed(caller.tenant, flow_id, after, size, narrowing)
            page, reached = narrowed.page, narrowed.reached
        found: list[event_pb2.FlowEvent] = []
        room = PAGE_BYTES
        for stored in page.events:
            event = event_messages.event(str(flow_id), stored.event, stored.hash)
            room -= event.ByteSize()
            if room < 0 and found:
                reached = found[-1].revision  # the next page begins with this one
                break
            found.append(event)
        more = reached < page.head
        return pb.ListFlowEventsResponse(
            events=found,
            next_page_token=page_token.seal(self._token_key, purpose, owner, query, struct.pack(">q", reached)) if more else "",
            oldest_revision=page.oldest,
            head_revision=page.head,
        )

    async def DiffFlow(self, request: pb.DiffFlowRequest, caller: Caller) -> pb.DiffFlowResponse:
        """What differs between two revisions."""
        fields = Fields(self._limits)
        key = FlowKey(caller.tenant, fields.uuid("flow_id", request.flow_id))
        before = fields.revision("from_revision", request.from_revision)
        after = fields.revision("to_revision", request.to_revision)
        fields.check()
        found = await compared(side(await self._record(key, before)), side(await self._record(key, after)))
        return pb.DiffFlowResponse(diff=flow_diff.message(found))

    async def RevertFlow(self, request: pb.RevertFlowRequest, caller: Caller) -> pb.RevertFlowResponse | bytes:
        """The flow as it was, at a new revision."""
        fields = Fields(self._limits)
        key = FlowKey(caller.tenant, fields.uuid("flow_id", request.flow_id))
        revision = fields.revision("revision", request.revision)
        if not request.revision:
            fields.wrong("revision", "is required: the revision whose content the flow shall have")
        reason = fields.text("reason", request.reason)
        expected = fields.revision("expected_revision", request.expected_revision)
        fields.optional_uuid("request_id", request.request_id)
        fields.check()
        asking = None if request.validate_only else remembered(request, basic_answer(pb.RevertFlowResponse))

        async def revert() -> Replaced | Answered:
            old = await self._store.history.record(key, revision)
            content = content_of(old.head.flow, old.documents)

            def prepared(before: Record) -> ReplaceContent:
                return replacement(content, before.documents, Cause.REVERT, reason, source_revision=revision)

            return await replace_content(
                self._store, key, self._occasion(caller), expected, prepared, lambda _: asking, rehearse=request.validate_only
            )

        done = await self._once(caller.tenant, asking, revert)
        if isinstance(done, Answered):
            return done.answer
        response = basic_message(pb.RevertFlowResponse, done.committed)
        if request.validate_only:
            would = replace(done.committed.flow, revision=0)  # it is none of the flow's revisions
            response.diff.CopyFrom(flow_diff.message(await compared(side(done.before), Side(would, done.documents))))
        return response

    async def ForkFlow(self, request: pb.ForkFlowRequest, caller: Caller) -> pb.ForkFlowResponse | bytes:
        """A new flow that begins as another was."""
        fields = Fields(self._limits)
        source = FlowKey(caller.tenant, fields.uuid("flow_id", request.flow_id))
        revision = fields.revision("revision", request.revision)
        flow_id = fields.optional_uuid("new_flow_id", request.new_flow_id) or self._sources.new_id()
        name = fields.text("display_name", request.display_name, NAME_LENGTH) if request.HasField("display_name") else None
        reason = fields.text("reason", request.reason)
        fields.optional_uuid("request_id", request.request_id)
        fields.check()
        asking = None if request.validate_only else remembered(request, basic_answer(pb.ForkFlowResponse))

        async def fork() -> Answered | pb.ForkFlowResponse:
            old = await self._record(source, revision)
            flow, occasion = old.head.flow, self._occasion(caller)
            content = forked(content_of(flow, old.documents), occasion.new_id, occasion.now)
            if name is not None:
                content = replace(content, display_name=name)
            change = replacement(content, {}, Cause.FORK, reason, source_revision=flow.revision, source_flow_id=flow.flow_id)
            birth = Birth(flow.type, content.display_name, content.labels, Origin(flow.flow_id, flow.revision))
            asked = Asked(caller.tenant, flow_id, (change,), occasion, request=asking, birth=birth)
            commits = self._store.commits
            done = await (commits.rehearse(asked) if request.validate_only else commits.commit(asked))
            return done if isinstance(done, Answered) else basic_message(pb.ForkFlowResponse, done)

        found = await self._once(caller.tenant, asking, fork)
        return found.answer if isinstance(found, Answered) else found

    async def _once(self, tenant: Tenant, asking: Request | None, work: Callable[[], Awaitable[_Done]]) -> _Done | Answered:
        """What ``work`` comes to, or what the same request was answered before: what it needs may be gone by then."""
        try:
            return await work()
        except FlowError:
            found = None if asking is None else await answered(self._store.database, tenant, asking)
            if found is None:
                raise
            return found

    async def _record(self, key: FlowKey, revision: int) -> Record:
        """The flow at the revision, or as it is for 0."""
        if revision:
            return await self._store.history.record(key, revision)
        return (await self._store.flows.records(key.tenant, [key.flow_id]))[0]

    def _occasion(self, caller: Caller) -> Occasion:
        return Occasion(caller.user, self._sources.now(), self._sources.new_id, self._limits)


def _narrowing(fields: Fields, request: pb.ListFlowEventsRequest) -> Narrowing:
    for name in ("kinds", "phases"):
        if len(getattr(request, name)) > FILTERS:
            fields.wrong(name, f"has {len(getattr(request, name))}, the limit is {FILTERS}")
    kinds = frozenset(fields.member(f"kinds[{at}]", number, EventKind) for at, number in enumerate(request.kinds[:FILTERS]))
    phases = frozenset(fields.required(f"phases[{at}]", name, 100) for at, name in enumerate(request.phases[:FILTERS]))
    start = fields.time("start_time", request.start_time) if request.HasField("start_time") else None
    end = fields.time("end_time", request.end_time) if request.HasField("end_time") else None
    return Narrowing(EventFilter(kinds, phases), fields.text("actor", request.actor, NAME_LENGTH), start, end)


def _query(request: pb.ListFlowEventsRequest) -> bytes:
    """All that selects: the request without its place and size."""
    query = pb.ListFlowEventsRequest()
    query.CopyFrom(request)
    query.ClearField("page_token")
    query.ClearField("page_size")
    return query.SerializeToString(deterministic=True)
