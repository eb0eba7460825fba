"""FlowService's recovery: whether a flow is right, what may be done about it, and bringing it back. The contract says what is promised."""

from __future__ import annotations

from flowledger.v1 import flow_service_pb2 as pb

from server.repository.requests import Answered
from server.rescue import Asked, Done, Rescue
from server.services import event_messages, flow_messages, rescue_messages
from server.services.answers import remembered
from server.services.caller import Caller
from server.services.fields import Fields
from server.services.flow_service import Sources
from server.statemachine import document
from server.statemachine.flow import Occasion
from server.statemachine.rungs import Rung, last_revision, mendable
from server.statemachine.values import FlowKey


class FlowRescue:
    """Looks at flows and brings them back."""

    def __init__(self, rescue: Rescue, sources: Sources, limits: document.Limits) -> None:
        self._rescue, self._sources, self._limits = rescue, sources, limits

    async def ValidateFlow(self, request: pb.ValidateFlowRequest, caller: Caller) -> pb.ValidateFlowResponse:
        """What is wrong with the flow."""
        evidence = await self._rescue.examine(self._key(request.flow_id, caller))
        found = evidence.findings()
        return pb.ValidateFlowResponse(
            findings=rescue_messages.findings(found),
            omitted_count=max(0, len(found) - rescue_messages.FINDINGS),
            revision=last_revision(evidence, None),
            mendable=mendable(evidence),
        )

    async def GetRecoveryOptions(self, request: pb.GetRecoveryOptionsRequest, caller: Caller) -> pb.GetRecoveryOptionsResponse:
        """What may be done now."""
        revision, options = await self._rescue.options(self._key(request.flow_id, caller), self._occasion(caller))
        return pb.GetRecoveryOptionsResponse(options=[rescue_messages.option(one) for one in options], revision=revision)

    async def RecoverFlow(self, request: pb.RecoverFlowRequest, caller: Caller) -> pb.RecoverFlowResponse | bytes:
        """The flow brought back, or the plan for that."""
        fields = Fields(self._limits)
        flow_id = fields.uuid("flow_id", request.flow_id)
        lowest = fields.member("lowest_rung", request.lowest_rung, Rung, Rung.CHECKPOINT)
        if lowest is Rung.NONE and request.lowest_rung == Rung.NONE.value:
            fields.wrong("lowest_rung", "NONE changes nothing: ValidateFlow says what is wrong")
        reason = fields.text("reason", request.reason)
        expected = fields.revision("expected_revision", request.expected_revision)
        fields.optional_uuid("request_id", request.request_id)
        fields.check()
        asked = Asked(FlowKey(caller.tenant, flow_id), lowest, reason, self._occasion(caller), expected, rehearse=request.validate_only)
        asking = remembered(request, lambda _: b"")  # only asks: recover writes the answer down itself
        done = await self._rescue.recover(asked, asking, lambda done: _answer(done).SerializeToString())
        return done.answer if isinstance(done, Answered) else _answer(done)

    def _key(self, flow_id: str, caller: Caller) -> FlowKey:
        fields = Fields(self._limits)
        key = FlowKey(caller.tenant, fields.uuid("flow_id", flow_id))
        fields.check()
        return key

    def _occasion(self, caller: Caller) -> Occasion:
        return Occasion(caller.user, self._sources.now(), self._sources.new_id, self._limits)


def _answer(done: Done) -> pb.RecoverFlowResponse:
    flow, made = done.flow, done.recovered
    return pb.RecoverFlowResponse(
        plan=rescue_messages.plan(done),
        flow=None if flow is None else flow_messages.basic(flow),
        event=None if made is None else event_messages.event(str(made.flow.flow_id), made.event, done.hash),
    )
