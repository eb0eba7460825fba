"""What differs between two states of a flow is told completely, and in the journey's order."""

from __future__ import annotations

from dataclasses import replace

from server.statemachine.change import (
    CancelFlow,
    DeleteFlow,
    PauseFlow,
    ReplaceDocument,
    ReportProgress,
    StartChild,
    UndeleteFlow,
    UpdateFlow,
)
from server.statemachine.diff import MOST_PATCHES, FlowDiff, Side, difference
from server.statemachine.document import sha256
from server.statemachine.json_patch import MOST_BYTES
from server.statemachine.states import FlowStatus
from server.statemachine.values import DocumentPlace

from .story import S, Story, begun

STATE, DATA = DocumentPlace("state"), DocumentPlace("data", "discovery")


def side(story: Story) -> Side:
    return Side(story.flow, dict(story.documents))


def lines(found: FlowDiff) -> tuple[str, ...]:
    return found.lines


def test_a_state_does_not_differ_from_itself() -> None:
    story = begun("discovery")
    story.do(UpdateFlow(documents=(ReplaceDocument(STATE, b"{}"),)))
    found = difference(side(story), side(story))
    assert (found.phases, found.documents, found.children_added, found.children_removed, found.lines) == ((), (), (), (), ())


def test_everything_that_a_flow_is_made_of_is_compared() -> None:
    story = begun("migration")
    story.do(UpdateFlow(display_name="old", labels={"a": "1", "b": "2"}, documents=(ReplaceDocument(STATE, b'{"n":1}'),)))
    before = side(story)
    story.move("data_import", S.IN_PROGRESS)
    story.do(ReportProgress("data_import", 0.5))
    story.do(UpdateFlow(display_name="new", labels={"a": "3", "c": "4"}))
    story.do(UpdateFlow(documents=(ReplaceDocument(STATE, b'{"n":1.0}'), ReplaceDocument(DATA, b'{"rows":[]}'))))
    story.do(PauseFlow("lunch"))
    found = difference(before, side(story))
    assert (found.before, found.after) == (before.flow, story.flow)
    assert (found.status_before, found.status_after) == (FlowStatus.INITIALIZED, FlowStatus.PAUSED)
    assert found.progress_before == 0.0 < found.progress_after
    (phase,) = found.phases
    assert (phase.child_type, phase.name) == ("discovery", "data_import")
    assert phase.before is not None
    assert phase.after is not None
    assert (phase.before.state, phase.after.state, phase.after.fraction) == (S.NOT_STARTED, S.IN_PROGRESS, 0.5)
    data, state = found.documents
    assert (data.place, data.patch, data.size_before, data.sha256_before) == (DATA, b'[{"op":"add","path":"/rows","value":[]}]', 0, b"")
    assert (data.size_after, data.sha256_after) == (11, sha256(b'{"rows":[]}'))
    assert (state.place, state.patch) == (STATE, b'[{"op":"replace","path":"/n","value":1.0}]')
    assert (state.size_before, state.size_after, state.sha256_before) == (7, 9, sha256(b'{"n":1}'))
    assert found.lines == (
        "status: INITIALIZED -> PAUSED",
        f"progress: 0 % -> {found.progress_after:g} %",
        "display_name: 'old' -> 'new'",
        "label a: '1' -> '3'",
        "label b: '2' -> not there",
        "label c: not there -> '4'",
        "hold: NONE -> PAUSED (lunch)",
        "phase discovery/data_import: NOT_STARTED -> IN_PROGRESS 50%",
        "data/discovery: 0 -> 11 bytes",
        "data/discovery /rows: [] added",
        "state: 7 -> 9 bytes",
        "state /n: 1 -> 1.0",
    )


def test_backwards_a_difference_is_the_other_way_round() -> None:
    story = begun("migration")
    before = side(story)
    story.move("data_import", S.IN_PROGRESS)
    story.do(UpdateFlow(documents=(ReplaceDocument(STATE, b'{"n":1}'),)))
    there, back = difference(before, side(story)), difference(side(story), before)
    assert [(one.before, one.after) for one in there.phases] == [(one.after, one.before) for one in back.phases]
    assert [one.patch for one in back.documents] == [b'[{"op":"remove","path":"/n"}]']
    assert (back.documents[0].size_after, back.documents[0].sha256_after) == (0, b"")


def test_a_child_that_is_on_one_side_only_has_all_its_phases_told() -> None:
    story = begun("migration")
    story.complete(*(phase.name for phase in story.flow.children[0].definition.phases))
    before = side(story)
    story.do(StartChild())
    found = difference(before, side(story))
    assert (found.children_added, found.children_removed) == (("assessment",), ())
    assert {(one.child_type, one.before) for one in found.phases} == {("assessment", None)}
    assert [one.name for one in found.phases] == [phase.name for phase in story.flow.children[1].definition.phases]
    assert "child assessment: added" in found.lines
    assert "phase assessment/application_selection: not there -> NOT_STARTED" in found.lines
    back = difference(side(story), before)
    assert (back.children_added, back.children_removed) == ((), ("assessment",))
    assert {(one.child_type, one.after) for one in back.phases} == {("assessment", None)}


def test_phases_are_told_in_the_journeys_order() -> None:
    story = begun("migration")
    before = side(story)
    story.complete(*(phase.name for phase in story.flow.children[0].definition.phases))
    story.do(StartChild())
    story.move("application_selection", S.IN_PROGRESS)
    found = difference(before, side(story))
    names = [f"{child.type}/{phase.name}" for child in story.flow.children for phase in child.phases]
    assert [f"{one.child_type}/{one.name}" for one in found.phases] == names


def test_deletion_and_what_only_times_tell_are_differences_too() -> None:
    story = begun("discovery")
    before = side(story)
    story.do(DeleteFlow("mistake"))
    deleted = side(story)
    assert lines(difference(before, deleted)) == ("deleted",)
    story.do(UndeleteFlow())
    assert lines(difference(deleted, side(story))) == ("undeleted",)
    phase = story.flow.children[0].phases[0]
    moved = replace(phase, message="later")
    child = replace(story.flow.children[0], phases=(moved, *story.flow.children[0].phases[1:]))
    (line,) = difference(before, Side(replace(story.flow, children=(child,)), {})).lines
    assert line == "phase discovery/data_import: NOT_STARTED -> the same, message or times differ"


def test_a_hold_without_a_reason_is_told_without_one() -> None:
    story = begun("discovery")
    before = side(story)
    story.do(CancelFlow())
    assert "hold: NONE -> CANCELLED" in difference(before, side(story)).lines


def test_a_document_of_the_same_value_in_another_spelling_differs_by_its_bytes_alone() -> None:
    story = begun("discovery")
    one, other = (Side(story.flow, {STATE: text}) for text in (b'{"a":1}', b'{ "a" : 1 }'))
    (found,) = difference(one, other).documents
    assert (found.patch, found.size_before, found.size_after) == (b"[]", 7, 11)
    assert difference(one, other).lines == ("state: 7 -> 11 bytes, of the same value",)


def test_a_document_that_is_none_is_told_without_a_patch() -> None:
    story = begun("discovery")
    found = difference(Side(story.flow, {STATE: b"{"}), Side(story.flow, {STATE: b"{}"}))
    assert [one.patch for one in found.documents] == [None]
    assert found.lines == ("state: 1 -> 2 bytes", "state is no document on one side")


def test_all_patches_together_fit_into_a_message() -> None:
    story = begun("migration")
    places = [STATE, DocumentPlace("metadata"), DocumentPlace("cross_phase_context"), DATA, DocumentPlace("data", "planning")]
    text = b'{"a":"%s"}' % (b"x" * (MOST_BYTES - 1000))
    found = difference(Side(story.flow, {}), Side(story.flow, dict.fromkeys(places, text)))
    assert len(found.documents) == 5
    assert sum(len(one.patch or b"") for one in found.documents) <= MOST_PATCHES
    assert [one.patch is None for one in found.documents] == [False, False, False, True, True]
    assert all(one.size_after == len(text) for one in found.documents)
