"""What every RPC about checkpoints and keys promises: nothing to strangers, one answer to one request id, no for whatever is malformed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import uuid4

import asyncpg
import grpc
import pytest
from flowledger.v1 import checkpoint_service_pb2 as pb

from server.services.boundary import CODES
from tests.services.malformed import faults
from tests.services.sealing_calls import CALLS, METHODS, MUTATIONS, Target, confirm, raw, refusal, request
from tests.services.test_tenants import STRANGERS
from tests.tenancy import Tenancy
from tests.tenant_rows import held

# These name nothing that could be somebody else's; each has its own test below.
OF_THE_CALLER = {"ListCheckpoints", "PruneCheckpoints", "RotateTenantKey", "GetKeyRotation", "EraseTenant"}
_OURS = frozenset({"INTERNAL", "STORE_UNAVAILABLE", "DEADLINE_EXCEEDED", "DRAINING"})

strangers = pytest.mark.parametrize("stranger", STRANGERS.values(), ids=[name.replace(" ", "_") for name in STRANGERS])


@pytest.fixture
async def target(tenancy: Tenancy) -> Target:
    """A fresh tenant's."""
    return await Target.fresh(tenancy)


def test_every_rpc_has_a_case() -> None:
    assert CALLS.keys() == METHODS.keys()


@pytest.mark.parametrize("name", sorted(CALLS))
async def test_each_call_succeeds_when_its_own_tenant_asks(target: Target, name: str) -> None:
    """What the cases below would look like if they proved nothing."""
    await raw(target.tenancy, name, request(name, target).SerializeToString())


@strangers
@pytest.mark.parametrize("name", sorted(CALLS.keys() - OF_THE_CALLER))
async def test_what_another_tenant_has_is_not_there(target: Target, name: str, stranger: Callable[[Tenancy], Tenancy]) -> None:
    before, other = await target.told(), stranger(target.tenancy)
    nobody = Target(target.sealing, str(uuid4()), str(uuid4()), str(uuid4()))
    theirs, nobodys = [await refusal(other, name, request(name, one).SerializeToString()) for one in (target, nobody)]
    assert theirs is not None
    assert nobodys is not None
    assert theirs.reason in ("FLOW_NOT_FOUND", "CHECKPOINT_NOT_FOUND")
    assert theirs.code is grpc.StatusCode.NOT_FOUND
    # No hint that it exists elsewhere.
    assert (theirs.reason, theirs.metadata.keys(), theirs.details, len(theirs.text)) == (
        nobodys.reason,
        nobodys.metadata.keys(),
        nobodys.details,
        len(nobodys.text),
    )
    assert await target.told() == before


@strangers
async def test_what_concerns_the_callers_tenant_concerns_no_other(target: Target, stranger: Callable[[Tenancy], Tenancy]) -> None:
    before, keys = await target.told(), await target.sealing.admin("GetKeyRotation")
    other = (await Target.fresh(stranger(target.tenancy))).sealing
    await other.call("PruneCheckpoints", keep_newest=1)
    assert {one.flow_id for one in await other.listed()}.isdisjoint({target.flow_id})
    assert await other.listed(flow_id=target.flow_id) == []
    assert (await other.call("PruneCheckpoints", flow_id=target.flow_id)).pruned_count == 0
    assert (await other.admin("RotateTenantKey")).key_version == 2
    assert (await other.refusal("EraseTenant", confirm=confirm(target.tenancy))).violations.keys() == {"confirm"}
    assert (await other.admin("EraseTenant", confirm=confirm(other.tenancy))).receipt.keys_destroyed == 3
    assert await target.told() == before
    assert await target.sealing.admin("GetKeyRotation") == keys


async def test_a_page_token_is_refused_for_another_tenant(target: Target) -> None:
    token = (await target.sealing.call("ListCheckpoints", page_size=1)).next_page_token
    other = (await Target.fresh(target.tenancy.other_engagement())).sealing
    assert (await other.refusal("ListCheckpoints", page_size=1, page_token=token)).violations.keys() == {"page_token"}
    assert len((await target.sealing.call("ListCheckpoints", page_size=1, page_token=token)).checkpoints) == 1


@pytest.mark.parametrize("name", MUTATIONS)
async def test_a_request_id_has_one_answer_and_belongs_to_one_tenant(target: Target, name: str) -> None:
    other = await Target.fresh(target.tenancy.other_engagement())
    request_id = str(uuid4())
    body, theirs = [request(name, one, request_id=request_id).SerializeToString() for one in (target, other)]
    first = await raw(target.tenancy, name, body)
    second = await raw(other.tenancy, name, theirs)
    assert await raw(target.tenancy, name, body) == first  # byte for byte
    assert await raw(other.tenancy, name, theirs) == second
    # Whatever is asked with it after that: another RPC, or another payload.
    again: dict[str, Any] = {"reason": "another"} if name == "CreateCheckpoint" else {}
    refused = await refusal(
        target.tenancy, "CreateCheckpoint", request("CreateCheckpoint", target, request_id=request_id, **again).SerializeToString()
    )
    assert refused is not None
    assert (refused.code, refused.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "REQUEST_ID_REUSED")


@pytest.mark.parametrize("name", sorted(METHODS))
async def test_whatever_is_malformed_is_refused_and_leaves_nothing(target: Target, superuser: asyncpg.Connection, name: str) -> None:
    before = await held(superuser, target.tenancy)
    bodies = [("no message", b"\xff\xff")]
    for fault in faults(METHODS[name].input_type):
        faulty = request(name, target)
        fault.make(faulty)
        bodies.append((fault.name, faulty.SerializeToString()))
    for field in ("flow_id", "checkpoint_id", "from_checkpoint_id"):
        faulty = request(name, target)
        part = faulty.header if name == "UploadCheckpoint" else faulty
        if field in part.DESCRIPTOR.fields_by_name and name not in OF_THE_CALLER:
            part.ClearField(field)
            bodies.append((f"no {field}", faulty.SerializeToString()))
    for label, body in bodies:
        refused = await refusal(target.tenancy, name, body)
        assert refused is not None, label
        assert refused.reason in CODES.keys() - _OURS, (label, refused)
        assert refused.code is CODES[refused.reason], (label, refused)
    assert await held(superuser, target.tenancy) == before
    await raw(target.tenancy, name, request(name, target).SerializeToString())


@pytest.mark.parametrize(
    ("messages", "field"),
    [
        ([], "header"),
        ([{"chunk": b"first"}], "header"),
        ([{}], "header"),
        ([{"header": {}}, {"header": {}}], "header.flow_id"),
        ([{"header": {"flow_id": "given"}}, {"header": {"flow_id": "given"}}], "chunk"),
        ([{"header": {"flow_id": "given"}}, {}], "chunk"),
        ([{"header": {"flow_id": "given"}}, {"chunk": b""}], "chunk"),
        ([{"header": {"flow_id": "given", "size_bytes": 3}}, {"chunk": b"four"}], "header.size_bytes"),
        ([{"header": {"flow_id": "given", "sha256": bytes(32)}}, {"chunk": b"four"}], "header.sha256"),
    ],
)
async def test_an_upload_in_the_wrong_order_or_not_as_announced_is_refused(
    target: Target, superuser: asyncpg.Connection, messages: list[dict[str, Any]], field: str
) -> None:
    before = await held(superuser, target.tenancy)
    sent = [pb.UploadCheckpointRequest(**message) for message in messages]
    for message in sent:
        if message.header.flow_id == "given":
            message.header.flow_id = target.flow_id
    refused = await target.sealing.upload_refusal(sent)
    assert refused.violations.keys() == {field}
    assert await held(superuser, target.tenancy) == before
