"""A difference as the contract tells it: nothing of it is lost on the way."""

from __future__ import annotations

from dataclasses import replace

from flowledger.v1 import event_pb2, flow_pb2

from server.operations import compared
from server.services.flow_diff import message
from server.statemachine.change import DeleteFlow, PauseFlow, ReplaceDocument, StartChild, UpdateFlow
from server.statemachine.diff import Side
from server.statemachine.values import DocumentPlace
from tests.statemachine.story import TIMEOUT, S, Story, begun, minute

STATE, DATA = DocumentPlace("state"), DocumentPlace("data", "discovery")


def side(story: Story) -> Side:
    return Side(story.flow, dict(story.documents))


async def test_every_part_is_told() -> None:
    story = begun("discovery", labels={"a": "1"})
    before = side(story)
    story.move("data_import", S.IN_PROGRESS)
    story.fail("data_import", TIMEOUT)
    story.do(UpdateFlow(display_name="new", labels={"a": "2"}, documents=(ReplaceDocument(STATE, b'{"n":9007199254740993}'),)))
    story.do(PauseFlow("lunch"))
    story.do(DeleteFlow("mistake"))
    found = message(await compared(before, side(story)))
    assert (found.from_revision, found.to_revision) == (1, story.flow.revision)
    assert (found.from_status, found.to_status) == (flow_pb2.FLOW_STATUS_INITIALIZED, flow_pb2.FLOW_STATUS_PAUSED)
    assert (found.from_progress_percent, found.to_progress_percent) == (0.0, story.progress)
    assert (found.fields.from_display_name, found.fields.to_display_name) == ("Wave 3", "new")
    assert (dict(found.fields.labels_before), dict(found.fields.labels_after), found.fields.labels_changed) == (
        {"a": "1"},
        {"a": "2"},
        True,
    )
    assert found.hold == event_pb2.HoldChanged(from_hold=event_pb2.FLOW_HOLD_NONE, to_hold=event_pb2.FLOW_HOLD_PAUSED, reason="lunch")
    (phase,) = found.phases
    assert (phase.child_type, phase.phase) == ("discovery", "data_import")
    assert (phase.from_state, phase.to_state) == (flow_pb2.PHASE_STATE_NOT_STARTED, flow_pb2.PHASE_STATE_RETRY_NEEDED)
    assert (phase.failure.code, phase.failure.message) == (flow_pb2.FAILURE_CODE_AGENT_TIMEOUT, TIMEOUT.message)
    (document,) = found.documents
    assert document.json_patch == '[{"op":"add","path":"/n","value":9007199254740993}]'
    assert (document.document, document.child_type, document.from_size_bytes, document.to_size_bytes) == ("state", "", 0, 22)
    assert (document.from_sha256, len(document.to_sha256), document.patch_omitted) == (b"", 32, False)
    assert not found.HasField("from_delete_time")
    assert found.to_delete_time.ToDatetime(minute(0).tzinfo) == story.flow.delete_time
    assert "deleted" in found.lines


async def test_what_does_not_differ_is_absent() -> None:
    story = begun("discovery")
    found = message(await compared(side(story), side(story)))
    assert not found.HasField("fields")
    assert not found.HasField("hold")
    assert (list(found.phases), list(found.documents), list(found.lines)) == ([], [], [])
    named = message(await compared(side(story), Side(replace(story.flow, display_name="new"), {})))
    assert (named.fields.to_display_name, named.fields.labels_changed) == ("new", False)


async def test_a_phase_of_a_child_that_is_not_there_has_no_state() -> None:
    story = begun("migration")
    story.complete(*(phase.name for phase in story.flow.children[0].definition.phases))
    before = side(story)
    story.do(StartChild())
    found = message(await compared(before, side(story)))
    assert list(found.children_added) == ["assessment"]
    assert {(phase.from_state, phase.to_state) for phase in found.phases} == {
        (flow_pb2.PHASE_STATE_UNSPECIFIED, flow_pb2.PHASE_STATE_NOT_STARTED)
    }


async def test_large_documents_are_compared_beside_the_event_loop_to_the_same_end() -> None:
    story = begun("discovery")
    one, other = ({DATA: b'{"a":%d,"b":"%s"}' % (at, b"x" * 100_000)} for at in (1, 2))
    found = message(await compared(Side(story.flow, one), Side(story.flow, other)))
    assert found.documents[0].json_patch == '[{"op":"replace","path":"/a","value":2}]'
    assert (found.documents[0].child_type, found.documents[0].document) == ("discovery", "data")


async def test_a_patch_that_is_left_out_is_said_to_be() -> None:
    story = begun("discovery")
    texts = [{STATE: b"{%s}" % b",".join(b'"%s%d":"%s"' % (name, at, b"x" * 100) for at in range(15_000))} for name in (b"a", b"b")]
    found = message(await compared(Side(story.flow, texts[0]), Side(story.flow, texts[1])))
    assert (found.documents[0].json_patch, found.documents[0].patch_omitted) == ("", True)
    assert found.documents[0].from_size_bytes == len(texts[0][STATE])
