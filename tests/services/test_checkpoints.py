"""CheckpointService over the wire: taken, listed, downloaded, brought back, changed, removed."""

from __future__ import annotations

import asyncio
import json
import random
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from tests.services.checkpoints import MIB, Sealing, state, uploading
from tests.tenancy import Tenancy

BIG = 2**53 + 1


@pytest.fixture
def sealing(tenancy: Tenancy) -> Sealing:
    """A fresh tenant's checkpoints."""
    return Sealing(tenancy)


def noise(seed: int, size: int) -> bytes:
    """Bytes that do not compress."""
    return random.Random(seed).randbytes(size)


async def lived(tenancy: Tenancy) -> str:
    """A flow with documents and a phase under way, at revision 3."""
    flow_id = (await tenancy.create(state={"json": f'{{"n":{BIG}}}'}, child_data={"json": '{"rows":[1]}'}, labels={"wave": "3"})).flow_id
    await tenancy.move(flow_id, "data_import", "IN_PROGRESS")
    await tenancy.call("UpdateFlow", flow_id=flow_id, update={"metadata": {"json": '{"a":1}'}, "display_name": "First"})
    return flow_id


async def full(tenancy: Tenancy, flow_id: str) -> Any:
    return (await tenancy.call("GetFlow", flow_id=flow_id, view="FLOW_VIEW_FULL")).flow


async def test_a_checkpoint_is_told_of_as_it_was_taken(sealing: Sealing) -> None:
    flow_id = await lived(sealing.tenancy)
    taken = await sealing.create(flow_id, reason="before the audit", labels={"a": "b"}, ttl={"seconds": 60}, pinned=True)
    assert (taken.flow_id, taken.revision, taken.created_by, taken.reason) == (flow_id, 3, sealing.tenancy.user, "before the audit")
    assert (taken.kind, taken.pinned, dict(taken.labels), taken.etag, taken.key_version) == (2, True, {"a": "b"}, 1, 1)
    flow = await full(sealing.tenancy, flow_id)
    assert (taken.status, taken.progress_percent) == (flow.status, flow.progress_percent)
    assert taken.expire_time.ToDatetime() - taken.create_time.ToDatetime() == timedelta(seconds=60)
    assert taken.size_bytes > 100
    assert (await sealing.call("GetCheckpoint", checkpoint_id=taken.checkpoint_id)).checkpoint == taken
    assert await sealing.listed(flow_id=flow_id) == [taken]
    assert flow.revision == 3  # the flow did not move


async def test_a_manual_checkpoint_never_expires_by_itself(sealing: Sealing) -> None:
    assert not (await sealing.create(await lived(sealing.tenancy))).HasField("expire_time")


async def test_a_restore_brings_all_of_it_back_and_keeps_what_was_there(sealing: Sealing) -> None:
    tenancy = sealing.tenancy
    flow_id = await lived(tenancy)
    before, taken = await full(tenancy, flow_id), await sealing.create(flow_id)
    await tenancy.move(flow_id, "data_import", "COMPLETED")
    await tenancy.call(
        "UpdateFlow",
        flow_id=flow_id,
        update={"state": {"json": '{"n":2}'}, "cross_phase_context": {"json": '{"new":1}'}, "display_name": "Second", "labels": {"x": "y"}},
    )
    changed = await full(tenancy, flow_id)
    done = await sealing.call("RestoreCheckpoint", checkpoint_id=taken.checkpoint_id, reason="wrong file")
    after = await full(tenancy, flow_id)
    assert (done.flow.revision, after.revision, after.display_name, dict(after.labels)) == (6, 6, "First", {"wave": "3"})
    assert (after.state, after.metadata, after.cross_phase_context.json) == (before.state, before.metadata, "")
    assert after.children[0].data == before.children[0].data
    assert [phase.state for phase in after.children[0].phases] == [phase.state for phase in before.children[0].phases]
    assert done.flow.children[0].phases == after.children[0].phases
    replaced = done.event.changes[0].replaced
    assert (replaced.source_checkpoint_id, replaced.source_revision, replaced.reason) == (taken.checkpoint_id, 3, "wrong file")
    assert list(replaced.documents_removed) == ["cross_phase_context"]
    assert (done.diff.from_revision, done.diff.to_revision) == (5, 6)
    assert {document.document for document in done.diff.documents} == {"state", "cross_phase_context"}
    # What was there is a checkpoint now, and comes back as well.
    assert (done.pre_recovery.kind, done.pre_recovery.revision) == (4, 5)
    assert done.pre_recovery.HasField("expire_time")
    again = await sealing.call("RestoreCheckpoint", checkpoint_id=done.pre_recovery.checkpoint_id)
    last = await full(tenancy, flow_id)
    assert (again.flow.revision, last.state, last.cross_phase_context) == (7, changed.state, changed.cross_phase_context)


async def test_a_rehearsed_restore_tells_what_would_change_and_writes_nothing(sealing: Sealing) -> None:
    flow_id = await lived(sealing.tenancy)
    taken = await sealing.create(flow_id)
    await sealing.tenancy.call("UpdateFlow", flow_id=flow_id, **state('{"n":2}'))
    before, request_id = await full(sealing.tenancy, flow_id), str(uuid4())
    would = await sealing.call("RestoreCheckpoint", checkpoint_id=taken.checkpoint_id, validate_only=True, request_id=request_id)
    assert (would.flow.revision, would.event.revision, would.HasField("pre_recovery")) == (5, 5, False)
    assert json.loads(would.diff.documents[0].json_patch) == [{"op": "replace", "path": "/n", "value": BIG}]
    assert await full(sealing.tenancy, flow_id) == before
    assert await sealing.listed() == [taken]
    done = await sealing.call("RestoreCheckpoint", checkpoint_id=taken.checkpoint_id, request_id=request_id)
    assert done.diff == would.diff


async def test_a_restore_that_is_refused_leaves_no_checkpoint_behind(sealing: Sealing) -> None:
    flow_id = await lived(sealing.tenancy)
    taken = await sealing.create(flow_id)
    fields: dict[str, Any] = {"checkpoint_id": taken.checkpoint_id}
    for only in ({}, {"validate_only": True}):
        refusal = await sealing.refusal("RestoreCheckpoint", **fields, expected_revision=2, **only)
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.ABORTED, "CONCURRENT_MODIFICATION")
    await sealing.tenancy.call("DeleteFlow", flow_id=flow_id)
    assert (await sealing.refusal("RestoreCheckpoint", **fields)).reason == "FLOW_NOT_ACTIVE"
    await sealing.tenancy.call("UndeleteFlow", flow_id=flow_id)
    await sealing.tenancy.call("CancelFlow", flow_id=flow_id)
    assert (await sealing.refusal("RestoreCheckpoint", **fields)).reason == "FLOW_NOT_ACTIVE"
    assert await sealing.listed() == [taken]


async def test_restores_race_with_commits_and_each_is_one_revision(sealing: Sealing) -> None:
    """A restore that others overtake is done again on what they left; its copy is always of the revision right before it."""
    tenancy = sealing.tenancy
    flow_id = await lived(tenancy)
    taken = await sealing.create(flow_id)

    async def commit(at: int) -> None:
        await tenancy.call("UpdateFlow", flow_id=flow_id, **state(f'{{"at":{at}}}'))

    restores = [sealing.call("RestoreCheckpoint", checkpoint_id=taken.checkpoint_id) for _ in range(4)]
    done, *_ = await asyncio.gather(asyncio.gather(*restores, return_exceptions=True), *(commit(at) for at in range(12)))
    succeeded = [one for one in done if not isinstance(one, BaseException)]
    assert succeeded
    assert (await full(tenancy, flow_id)).revision == 3 + 12 + len(succeeded)
    for one in succeeded:
        assert one.pre_recovery.revision == one.flow.revision - 1 == one.diff.from_revision
    copies = [one for one in await sealing.listed(kind="CHECKPOINT_KIND_PRE_RECOVERY")]
    assert {one.checkpoint_id for one in copies} == {one.pre_recovery.checkpoint_id for one in succeeded}


async def test_a_difference_is_told_between_checkpoints_and_to_the_flow(sealing: Sealing) -> None:
    flow_id = await lived(sealing.tenancy)
    one = await sealing.create(flow_id)
    await sealing.tenancy.call("UpdateFlow", flow_id=flow_id, **state('{"n":2}'))
    other = await sealing.create(flow_id)
    await sealing.tenancy.call("UpdateFlow", flow_id=flow_id, **state('{"n":3}'))
    between = (await sealing.call("DiffCheckpoints", from_checkpoint_id=one.checkpoint_id, to_checkpoint_id=other.checkpoint_id)).diff
    assert (between.from_revision, between.to_revision, len(between.documents)) == (3, 4, 1)
    assert json.loads(between.documents[0].json_patch)[0]["value"] == 2
    to_flow = (await sealing.call("DiffCheckpoints", from_checkpoint_id=one.checkpoint_id)).diff
    assert (to_flow.to_revision, json.loads(to_flow.documents[0].json_patch)[0]["value"]) == (5, 3)


async def test_a_guarded_checkpoint_is_taken_at_its_revision_only(sealing: Sealing) -> None:
    flow_id = await lived(sealing.tenancy)
    refusal = await sealing.refusal("CreateCheckpoint", flow_id=flow_id, expected_revision=2)
    assert (refusal.reason, refusal.metadata) == ("CONCURRENT_MODIFICATION", {"expected_revision": "2", "current_revision": "3"})
    assert (await sealing.create(flow_id, expected_revision=3)).revision == 3


# ---- lists -------------------------------------------------------------------------------------------------------------------------


async def test_lists_are_narrowed_and_paged(sealing: Sealing) -> None:
    one, other = await lived(sealing.tenancy), await lived(sealing.tenancy)
    taken = [
        await sealing.create(flow, labels={"at": str(at), "of": "us"}, pinned=at == 2) for at, flow in enumerate((one, one, one, other))
    ]
    ids = [checkpoint.checkpoint_id for checkpoint in reversed(taken)]

    async def found(**fields: Any) -> list[str]:
        return [checkpoint.checkpoint_id for checkpoint in await sealing.listed(**fields)]

    assert await found() == ids
    assert await found(flow_id=one) == ids[1:]
    assert await found(labels={"of": "us"}) == ids
    assert await found(labels={"of": "us", "at": "1"}) == [ids[2]]
    assert await found(labels={"of": "them"}) == []
    assert await found(pinned_only=True) == [ids[1]]
    assert await found(kind="CHECKPOINT_KIND_AUTO") == []
    assert await found(kind="CHECKPOINT_KIND_MANUAL", flow_id=other) == [ids[0]]
    assert await found(flow_id=str(uuid4())) == []
    pages: list[str] = []
    token = ""
    while True:
        page = await sealing.call("ListCheckpoints", flow_id=one, page_size=2, page_token=token)
        pages += [checkpoint.checkpoint_id for checkpoint in page.checkpoints]
        if not (token := page.next_page_token):
            break
        refusal = await sealing.refusal("ListCheckpoints", flow_id=other, page_size=2, page_token=token)
        assert list(refusal.violations) == ["page_token"]
    assert pages == ids[1:]


# ---- changing and removing ----------------------------------------------------------------------------------------------------------


async def test_an_owner_changes_pin_expiry_and_labels(sealing: Sealing) -> None:
    taken = await sealing.create(await lived(sealing.tenancy), labels={"a": "b"})
    later = datetime.now(UTC) + timedelta(days=3)
    expire_time = Timestamp()
    expire_time.FromDatetime(later)
    fields: dict[str, Any] = {"checkpoint_id": taken.checkpoint_id}
    changed = (await sealing.call("UpdateCheckpoint", **fields, pinned=True, expire_time=expire_time)).checkpoint
    assert (changed.pinned, changed.expire_time, dict(changed.labels), changed.etag) == (True, expire_time, {"a": "b"}, 2)
    assert (await sealing.call("GetCheckpoint", **fields)).checkpoint == changed
    changed = (await sealing.call("UpdateCheckpoint", **fields, labels={"c": "d"}, replace_labels=True, etag=2)).checkpoint
    assert (changed.pinned, changed.expire_time, dict(changed.labels), changed.etag) == (True, expire_time, {"c": "d"}, 3)
    changed = (await sealing.call("UpdateCheckpoint", **fields, pinned=False, never_expires=True, replace_labels=True)).checkpoint
    assert (changed.pinned, changed.HasField("expire_time"), dict(changed.labels)) == (False, False, {})
    refusal = await sealing.refusal("UpdateCheckpoint", **fields, etag=2, pinned=True)
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.ABORTED, "CONCURRENT_MODIFICATION")
    assert refusal.metadata == {"expected_etag": "2", "current_etag": "4"}
    assert (await sealing.call("GetCheckpoint", **fields)).checkpoint == changed


async def test_changes_at_the_same_time_are_all_made(sealing: Sealing) -> None:
    taken = await sealing.create(await lived(sealing.tenancy))
    await asyncio.gather(*(sealing.call("UpdateCheckpoint", checkpoint_id=taken.checkpoint_id, pinned=at % 2 == 0) for at in range(4)))
    assert (await sealing.call("GetCheckpoint", checkpoint_id=taken.checkpoint_id)).checkpoint.etag == 5


async def test_a_pinned_checkpoint_is_not_removed(sealing: Sealing) -> None:
    flow_id = await lived(sealing.tenancy)
    taken = await sealing.create(flow_id, pinned=True)
    refusal = await sealing.refusal("DeleteCheckpoint", checkpoint_id=taken.checkpoint_id)
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "CHECKPOINT_PINNED")
    assert (await sealing.call("PruneCheckpoints", flow_id=flow_id)).pruned_count == 0
    await sealing.call("UpdateCheckpoint", checkpoint_id=taken.checkpoint_id, pinned=False)
    assert (await sealing.call("DeleteCheckpoint", checkpoint_id=taken.checkpoint_id)).freed_bytes > 0
    assert (await sealing.refusal("GetCheckpoint", checkpoint_id=taken.checkpoint_id)).reason == "CHECKPOINT_NOT_FOUND"


async def test_pruning_removes_what_matches_the_oldest_first(sealing: Sealing) -> None:
    one, other = await lived(sealing.tenancy), await lived(sealing.tenancy)
    ones = [await sealing.create(one, pinned=at == 1) for at in range(5)]
    others = [await sealing.create(other) for _ in range(2)]
    would = await sealing.call("PruneCheckpoints", keep_newest=2, validate_only=True)
    assert (would.pruned_count, len(await sealing.listed())) == (2, 7)  # of the first flow 0 and 2: 1 is pinned
    done = await sealing.call("PruneCheckpoints", keep_newest=2)
    assert (done.pruned_count, done.freed_bytes, done.more) == (2, would.freed_bytes, False)
    left = {checkpoint.checkpoint_id for checkpoint in await sealing.listed()}
    assert left == {found.checkpoint_id for found in (ones[1], ones[3], ones[4], *others)}
    cut = others[1].create_time
    assert (await sealing.call("PruneCheckpoints", flow_id=other, create_time_before=cut)).pruned_count == 1
    assert [found.checkpoint_id for found in await sealing.listed(flow_id=other)] == [others[1].checkpoint_id]
    assert (await sealing.call("PruneCheckpoints", kind="CHECKPOINT_KIND_AUTO")).pruned_count == 0
    assert (await sealing.call("PruneCheckpoints", expired_only=True)).pruned_count == 0
    refusal = await sealing.refusal("PruneCheckpoints")
    assert list(refusal.violations) == ["flow_id"]


# ---- streams ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 1000, MIB - 1, MIB, MIB + 1, 3 * MIB, 3 * MIB + 17])
@pytest.mark.parametrize("chunk", [MIB, 700_001])
async def test_an_upload_comes_back_byte_for_byte(sealing: Sealing, size: int, chunk: int) -> None:
    flow_id, payload = await lived(sealing.tenancy), noise(size, size)
    done = await sealing.upload(payload, chunk, flow_id=flow_id, reason="large")
    assert (done.checkpoint.payload_bytes, done.checkpoint.revision, done.checkpoint.reason) == (size, 3, "large")
    assert await sealing.download(done.checkpoint.checkpoint_id) == payload
    for offset in sorted({0, 1, size // 2, max(0, size - 1), size, min(size, MIB), min(size, MIB + 1)}):
        assert await sealing.download(done.checkpoint.checkpoint_id, offset=offset, part="CHECKPOINT_PART_PAYLOAD") == payload[offset:]
    refusal = await sealing.refusal("DownloadCheckpoint", checkpoint_id=done.checkpoint.checkpoint_id, offset=size + 1)
    assert (refusal.code, refusal.reason, refusal.metadata) == (
        grpc.StatusCode.OUT_OF_RANGE,
        "OFFSET_OUT_OF_RANGE",
        {"offset": str(size + 1), "size": str(size)},
    )


async def test_an_empty_payload_is_one_too(sealing: Sealing) -> None:
    done = await sealing.upload(b"", flow_id=await lived(sealing.tenancy))
    assert await sealing.download(done.checkpoint.checkpoint_id) == b""
    assert await sealing.download(done.checkpoint.checkpoint_id, part="CHECKPOINT_PART_PAYLOAD") == b""


async def test_a_snapshot_is_json_that_a_person_can_read(sealing: Sealing) -> None:
    flow_id = await lived(sealing.tenancy)
    taken = await sealing.create(flow_id)
    text = await sealing.download(taken.checkpoint_id)
    found = json.loads(text)
    assert (found["flow"]["display_name"], found["flow"]["revision"]) == ("First", 3)
    assert {(one["document"], one["child_type"]): one["json"] for one in found["documents"]} == {
        ("state", ""): {"n": BIG},
        ("metadata", ""): {"a": 1},
        ("data", "discovery"): {"rows": [1]},
    }
    for offset in (0, 1, 20, len(text) - 1, len(text)):
        assert await sealing.download(taken.checkpoint_id, part="CHECKPOINT_PART_SNAPSHOT", offset=offset) == text[offset:]
    refusal = await sealing.refusal("DownloadCheckpoint", checkpoint_id=taken.checkpoint_id, part="CHECKPOINT_PART_PAYLOAD")
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.NOT_FOUND, "CHECKPOINT_NOT_FOUND")
    bare = (await sealing.tenancy.create(type="migration", skip_first_child=True)).flow_id
    assert json.loads(await sealing.download((await sealing.create(bare)).checkpoint_id))["documents"] == []


async def test_large_documents_are_chunked_too(sealing: Sealing) -> None:
    flow_id = await lived(sealing.tenancy)
    large = json.dumps({"hex": noise(5, MIB + MIB // 2).hex()})
    await sealing.tenancy.call("UpdateFlow", flow_id=flow_id, **state(large))
    taken = await sealing.create(flow_id)
    await sealing.tenancy.call("UpdateFlow", flow_id=flow_id, **state("{}"))
    text = await sealing.download(taken.checkpoint_id)
    assert [one["json"] for one in json.loads(text)["documents"] if one["document"] == "state"] == [json.loads(large)]
    assert await sealing.download(taken.checkpoint_id, offset=MIB + 5) == text[MIB + 5 :]
    await sealing.call("RestoreCheckpoint", checkpoint_id=taken.checkpoint_id)
    assert (await full(sealing.tenancy, flow_id)).state.json == large


async def test_a_faulty_upload_is_refused_and_leaves_nothing(sealing: Sealing) -> None:
    flow_id, payload = await lived(sealing.tenancy), noise(1, 2 * MIB)
    good = list(uploading(payload, flow_id=flow_id))
    header = good[0]

    def with_header(**fields: Any) -> list[Any]:
        return list(uploading(payload, flow_id=flow_id, **fields))

    cases: dict[str, list[Any]] = {
        "header": good[1:],
        "chunk": [header, header],
        "header.size_bytes": with_header(size_bytes=2 * MIB + 1),
        "header.sha256": with_header(sha256=bytes(32)),
        "header.flow_id": list(uploading(payload, flow_id="x")),
        "header.labels['A']": with_header(labels={"A": ""}),
        "header.ttl": with_header(ttl={"seconds": -1}),
        "header.expire_time": with_header(expire_time={"seconds": 1}),
        "header.request_id": with_header(request_id="x"),
        "header.expected_revision": with_header(expected_revision=-1),
    }
    for field, messages in cases.items():
        refusal = await sealing.upload_refusal(messages)
        assert (refusal.reason, list(refusal.violations)) == ("INVALID_REQUEST", [field]), field
    for chunk in (b"", bytes(MIB + 1)):
        refusal = await sealing.upload_refusal([header, type(header)(chunk=chunk)])
        assert list(refusal.violations) == ["chunk"]
    assert list((await sealing.upload_refusal([])).violations) == ["header"]
    assert list((await sealing.upload_refusal([type(header)()])).violations) == ["header"]
    assert list((await sealing.upload_refusal([header, type(header)()])).violations) == ["chunk"]
    assert list((await sealing.upload_refusal(with_header(sha256=b"short"))).violations) == ["header.sha256"]
    assert (await sealing.upload_refusal(with_header(size_bytes=257 * MIB))).reason == "LIMIT_EXCEEDED"
    assert (await sealing.upload_refusal(with_header(expected_revision=2))).reason == "CONCURRENT_MODIFICATION"
    assert (await sealing.upload_refusal(uploading(payload, flow_id=str(uuid4())))).reason == "FLOW_NOT_FOUND"
    assert await sealing.listed() == []
    done = await sealing.upload(payload, flow_id=flow_id, size_bytes=2 * MIB, expected_revision=3)
    assert (await sealing.upload(payload, flow_id=flow_id, sha256=done.sha256)).sha256 == done.sha256


async def test_more_than_256_mib_are_refused_when_they_come(sealing: Sealing) -> None:
    flow_id = await lived(sealing.tenancy)
    refusal = await sealing.upload_refusal(uploading(bytes(257 * MIB), flow_id=flow_id))
    assert (refusal.code, refusal.reason, refusal.metadata["limit"]) == (
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "LIMIT_EXCEEDED",
        str(256 * MIB),
    )
    assert await sealing.listed() == []
