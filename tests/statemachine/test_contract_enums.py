"""The contract's enums and ours have the same names and numbers."""

from __future__ import annotations

from enum import Enum

import pytest
from flowledger.v1 import activity_pb2, event_pb2, flow_pb2
from google.protobuf.descriptor import EnumDescriptor

from server.statemachine.event_filter import EventKind
from server.statemachine.states import FailureCode, FlowHold, FlowStatus, PhaseState
from server.statemachine.values import ActivityKind


@pytest.mark.parametrize(
    ("ours", "contract", "prefix"),
    [
        (PhaseState, flow_pb2.PhaseState.DESCRIPTOR, "PHASE_STATE_"),
        (FlowStatus, flow_pb2.FlowStatus.DESCRIPTOR, "FLOW_STATUS_"),
        (FailureCode, flow_pb2.FailureCode.DESCRIPTOR, "FAILURE_CODE_"),
        (FlowHold, event_pb2.FlowHold.DESCRIPTOR, "FLOW_HOLD_"),
        (ActivityKind, activity_pb2.ActivityKind.DESCRIPTOR, "ACTIVITY_KIND_"),
        (EventKind, event_pb2.EventKind.DESCRIPTOR, "EVENT_KIND_"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_contract_names_and_numbers_each_value_as_we_do(ours: type[Enum], contract: EnumDescriptor, prefix: str) -> None:
    told = {value.name: value.number for value in contract.values}
    assert told == {f"{prefix}UNSPECIFIED": 0, **{f"{prefix}{member.name}": member.value for member in ours}}
