"""A discovery flow from creation to its end, with an approval, watched meanwhile: nothing but grpc and the generated modules.

python examples/python_client/flow.py 127.0.0.1:50051
"""

import sys
import threading
import uuid

import grpc
from flowledger.v1 import change_pb2, event_pb2, flow_pb2, flow_service_pb2, flow_service_pb2_grpc

TENANT = (("x-client-account-id", str(uuid.uuid4())), ("x-engagement-id", str(uuid.uuid4())))
WORKER = (*TENANT, ("x-user-id", "worker-7"))
APPROVER = (*TENANT, ("x-user-id", "ada"))


class Driver:
    """Takes one flow's phases where they have to go."""

    def __init__(self, service: flow_service_pb2_grpc.FlowServiceStub, flow_id: str) -> None:
        self._service, self._flow_id = service, flow_id

    def move(self, phase: str, to: flow_pb2.PhaseState.ValueType, caller: tuple[tuple[str, str], ...] = WORKER, reason: str = "") -> None:
        """Move ``phase`` to another state; the request_id makes it safe to send the same request again when the answer got lost."""
        transition = change_pb2.PhaseTransition(phase=phase, to=to, reason=reason)
        request = flow_service_pb2.TransitionPhaseRequest(flow_id=self._flow_id, transition=transition, request_id=str(uuid.uuid4()))
        self._service.TransitionPhase(request, metadata=caller, timeout=10)

    def work(self, phase: flow_pb2.Phase) -> None:
        """Do the work of one phase; where it needs an approval, have it approved."""
        self.move(phase.name, flow_pb2.PHASE_STATE_IN_PROGRESS)
        if not phase.requires_approval:
            self.move(phase.name, flow_pb2.PHASE_STATE_COMPLETED)
            return
        try:
            self.move(phase.name, flow_pb2.PHASE_STATE_COMPLETED)
        except grpc.RpcError as error:
            print(f"refused: {error.code().name}: {error.details()}")
        self.move(phase.name, flow_pb2.PHASE_STATE_WAITING_APPROVAL)
        self.move(phase.name, flow_pb2.PHASE_STATE_COMPLETED, APPROVER, "looks right")

    def watch(self) -> None:
        """Print every revision until the flow ends."""
        request = flow_service_pb2.WatchFlowRequest(flow_id=self._flow_id, start=flow_service_pb2.WATCH_START_AFTER_REVISION)
        for message in self._service.WatchFlow(request, metadata=WORKER):
            if message.HasField("event"):
                event = message.event
                told = ", ".join(text(change) for change in event.changes)
                print(f"revision {event.revision} {flow_pb2.FlowStatus.Name(event.status)} {event.progress_percent:.0f} %: {told}")
            elif message.HasField("end"):
                print(f"end: {message.end.message}")


def text(change: event_pb2.EventChange) -> str:
    """One change in a few words."""
    if change.HasField("phase"):
        return f"{change.phase.phase} is {flow_pb2.PhaseState.Name(change.phase.to_state)}"
    return str(change.WhichOneof("kind"))


def run(address: str) -> None:
    """Create a flow, drive it to its end and watch it."""
    with grpc.insecure_channel(address) as channel:
        service = flow_service_pb2_grpc.FlowServiceStub(channel)
        request = flow_service_pb2.CreateFlowRequest(type="discovery", display_name="First steps", request_id=str(uuid.uuid4()))
        flow = service.CreateFlow(request, metadata=WORKER, timeout=10).flow
        driver = Driver(service, flow.flow_id)
        watching = threading.Thread(target=driver.watch, daemon=True)
        watching.start()
        for phase in flow.children[0].phases:  # in an order in which each finds what it depends on complete
            driver.work(phase)
        watching.join(timeout=10)


if __name__ == "__main__":
    run(sys.argv[1])
