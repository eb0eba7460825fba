"""Reading a flow as it is sent: from the database, or from what was sent before when that is known to be current.

STRONG, the default, asks the database which revision is current and so sees whatever was committed before the call. CACHED answers from
memory, then from Redis, then as STRONG does: what it returns was current at most ``stale_seconds`` ago and is never older than the caller's
``min_revision``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias
from uuid import UUID

from flowledger.v1 import document_pb2, flow_pb2
from flowledger.v1 import flow_service_pb2 as pb

from server.cache import CachedView, SharedViews, Views
from server.repository.document_store import offloaded
from server.repository.flows import Flows, Record
from server.services import flow_messages
from server.statemachine import document
from server.statemachine.errors import FlowNotFound, LimitExceeded, RevisionInFuture
from server.statemachine.values import FlowKey, Tenant

_SUMMARY, _BASIC, _FULL = flow_pb2.FLOW_VIEW_SUMMARY, flow_pb2.FLOW_VIEW_BASIC, flow_pb2.FLOW_VIEW_FULL

View: TypeAlias = "flow_pb2.FlowView.ValueType"
Form: TypeAlias = "document_pb2.DocumentForm.ValueType"


class Reads:
    """Reads of flows, gathered and cached. An answer is the bytes of a GetFlowResponse; several in a row are a BatchGetFlowsResponse."""

    def __init__(
        self,
        flows: Flows,
        views: Views,
        shared: SharedViews | None,
        clock: Callable[[], float],
        stale_seconds: float,
        limits: document.Limits,
    ) -> None:
        """``clock`` tells the time that processes share, in seconds."""
        self._flows, self._views, self._shared, self._clock, self._stale = flows, views, shared, clock, stale_seconds
        self._limits = limits

    async def flow(self, key: FlowKey, view: View, form: Form, least: int) -> bytes:
        """The flow as it is. Raises FlowNotFound, RevisionInFuture when it has not come to ``least``, LimitExceeded."""
        name = _name(view, form)
        known = self._views.get(key, name)
        if known is not None:
            asked = self._clock()
            revision = await self._flows.revision(key)
            if revision is None:
                raise FlowNotFound(key.flow_id)
            if revision == known.revision:
                self._views.put(key, name, CachedView(revision, known.answer, asked))
                return _reached(known, least).answer
            self._views.heard(key, revision)
        return _reached(await self._read(key, view, form), least).answer

    async def recent_flow(self, key: FlowKey, view: View, form: Form, least: int) -> bytes:
        """The flow as it was a moment ago, if that is known, and as it is otherwise. Raises as ``flow`` does."""
        name, oldest = _name(view, form), self._clock() - self._stale
        known = self._views.get(key, name)
        if known is not None and known.time >= oldest and known.revision >= least:
            return known.answer
        if self._shared is not None:
            shared = await self._shared.get(key, name, max(least, 0 if known is None else known.revision))
            if shared is not None and shared.time >= oldest:
                self._views.put(key, name, shared)
                return shared.answer
        return await self.flow(key, view, form, least)

    async def flows(self, tenant: Tenant, flow_ids: Sequence[UUID], view: View, form: Form) -> list[flow_pb2.Flow]:
        """The flows in the order asked for. Raises FlowNotFound for the first that is missing, LimitExceeded."""
        if view == _SUMMARY:
            return [flow_messages.summarized(said) for said in await self._flows.summaries(tenant, flow_ids)]
        if view == _BASIC:
            return [flow_messages.basic(flow) for flow in await self._flows.flows(tenant, flow_ids)]
        return await self.full(await self._flows.records(tenant, flow_ids), form)

    async def full(self, records: Sequence[Record], form: Form) -> list[flow_pb2.Flow]:
        """The records in FULL view. Raises LimitExceeded for documents that do not fit into a response."""
        size = sum(len(text) for record in records for text in record.documents.values())
        most = self._limits.max_bytes * 3
        if size > most:
            raise LimitExceeded("documents of one response (bytes)", most, size)

        def written() -> list[flow_pb2.Flow]:
            return [flow_messages.full(record.head.flow, record.documents, record.activity, form) for record in records]

        return await offloaded(size, written)

    async def _read(self, key: FlowKey, view: View, form: Form) -> CachedView:
        asked = self._clock()  # before the read: what it shows was current then, or later
        flow = (await self.flows(key.tenant, [key.flow_id], view, form))[0]
        found = CachedView(flow.revision, pb.GetFlowResponse(flow=flow).SerializeToString(), asked)
        name = _name(view, form)
        self._views.put(key, name, found)
        if self._shared is not None:
            self._shared.put(key, name, found)
        return found


def _name(view: View, form: Form) -> tuple[int, int]:
    # Without documents there is no form to tell apart.
    return view, (form or document_pb2.DOCUMENT_FORM_JSON) if view == _FULL else 0


def _reached(found: CachedView, least: int) -> CachedView:
    if found.revision < least:
        raise RevisionInFuture(least, found.revision)
    return found
