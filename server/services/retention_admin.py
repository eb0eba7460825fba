"""AdminService's retention: what a tenant wants kept, and compaction when somebody asks for it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from typing import Any
from uuid import UUID

from flowledger.v1 import admin_service_pb2 as pb
from flowledger.v1 import policy_pb2

from server.repository.compaction import Compaction, Removed
from server.repository.database import Database
from server.repository.policies import Policies
from server.repository.requests import NO_FLOW, Answered, Reply, remember
from server.services import times
from server.services.caller import Caller
from server.services.fields import Fields
from server.services.flow_service import Sources
from server.services.replies import first_answer, reply_of
from server.statemachine import document
from server.statemachine.audit import AuditBreak
from server.statemachine.policy import Policy
from server.statemachine.states import PhaseState
from server.statemachine.values import FlowKey, Tenant

LONGEST = timedelta(days=36_500)
STATES = 20
_LIMITS = document.Limits()
_DAY = timedelta(hours=24)


class RetentionAdmin:
    """Sets policies and goes by them."""

    def __init__(
        self,
        database: Database,
        policies: Policies,
        compaction: Compaction,
        sources: Sources,
        broken: Callable[[Tenant, AuditBreak], Awaitable[None]],
    ) -> None:
        """``broken`` is told of chains that do not hold."""
        self._database, self._policies, self._compaction, self._sources, self._broken = database, policies, compaction, sources, broken

    async def GetPolicy(self, _: pb.GetPolicyRequest, caller: Caller) -> pb.GetPolicyResponse:
        """The tenant's policy."""
        return pb.GetPolicyResponse(policy=_message(await self._policies.get(caller.tenant)))

    async def UpdatePolicy(self, request: pb.UpdatePolicyRequest, caller: Caller) -> pb.UpdatePolicyResponse | bytes:
        """The policy as it is then."""
        fields = Fields(_LIMITS)
        wanted = _policy(fields, request)
        expected = fields.revision("policy.etag", request.policy.etag)
        fields.optional_uuid("request_id", request.request_id)
        fields.check()

        def reply(made: Policy) -> Reply | None:
            return reply_of(request, pb.UpdatePolicyResponse(policy=_message(made)))

        done = await self._policies.put(caller.tenant, wanted, expected, (caller.user, self._sources.now()), reply)
        return done.answer if isinstance(done, Answered) else pb.UpdatePolicyResponse(policy=_message(done))

    async def CompactFlows(self, request: pb.CompactFlowsRequest, caller: Caller) -> pb.CompactFlowsResponse | bytes:
        """What went."""
        fields = Fields(_LIMITS)
        flow_id = fields.optional_uuid("flow_id", request.flow_id)
        fields.optional_uuid("request_id", request.request_id)
        fields.check()
        if not request.validate_only and (found := await first_answer(self._database, caller.tenant, request)) is not None:
            return found
        response = pb.CompactFlowsResponse()
        async for removed in self._compacted(caller.tenant, flow_id, rehearse=request.validate_only):
            _add(response, removed)
            if removed.broken is not None:
                await self._broken(caller.tenant, removed.broken)
        return await self._remembered(request, caller.tenant, flow_id, response)

    async def _compacted(self, tenant: Tenant, flow_id: UUID | None, *, rehearse: bool) -> AsyncIterator[Removed]:
        policy = await self._policies.get(tenant)
        if flow_id is not None:
            yield await self._compaction.compact(FlowKey(tenant, flow_id), policy, self._sources.now(), rehearse=rehearse)
            return
        async for removed in self._compaction.compacted(tenant, policy, 1, self._sources.now, rehearse=rehearse):
            yield removed

    async def _remembered(
        self, request: Any, tenant: Tenant, flow_id: UUID | None, response: pb.CompactFlowsResponse
    ) -> pb.CompactFlowsResponse | bytes:
        told = None if request.validate_only else reply_of(request, response)
        if told is None:
            return response
        return (await remember(self._database, tenant, told, flow_id or NO_FLOW, self._sources.now())).answer


def _add(response: pb.CompactFlowsResponse, removed: Removed) -> None:
    response.flows += bool(removed.events or removed.versions)
    response.events_removed += removed.events
    response.versions_removed += removed.versions
    response.bytes_freed += removed.bytes
    response.flows_damaged += removed.broken is not None


def _policy(fields: Fields, request: pb.UpdatePolicyRequest) -> Policy:
    given = request.policy
    if not request.HasField("policy"):
        fields.wrong("policy", "is required")
    if given.keep_revisions < 0:
        fields.wrong("policy.keep_revisions", f"is {given.keep_revisions}, it must not be negative")
    if len(given.checkpoint_before) > STATES:
        fields.wrong("policy.checkpoint_before", f"has {len(given.checkpoint_before)}, the limit is {STATES}")
    states = [
        fields.member(f"policy.checkpoint_before[{at}]", number, PhaseState) for at, number in enumerate(given.checkpoint_before[:STATES])
    ]
    lifetime = _DAY
    if given.HasField("auto_checkpoint_ttl"):
        lifetime = fields.span("policy.auto_checkpoint_ttl", given.auto_checkpoint_ttl, timedelta(seconds=1), LONGEST)
    return Policy(
        max(given.keep_revisions, 0),
        fields.span("policy.keep_duration", given.keep_duration, timedelta(), LONGEST),
        given.keep_last_good,
        given.keep_terminal,
        frozenset(states),
        lifetime,
    )


def _message(policy: Policy) -> policy_pb2.Policy:
    return policy_pb2.Policy(
        keep_revisions=policy.keep_revisions,
        keep_duration=times.duration(policy.keep_duration) if policy.keep_duration else None,
        keep_last_good=policy.keep_last_good,
        keep_terminal=policy.keep_terminal,
        checkpoint_before=sorted(state.value for state in policy.checkpoint_before),  # type: ignore[misc]
        auto_checkpoint_ttl=times.duration(policy.auto_checkpoint_ttl),
        etag=policy.etag,
        update_time=times.maybe_timestamp(policy.update_time),
        updated_by=policy.updated_by,
    )
