"""What the caller owns, and several changes in one commit."""

from __future__ import annotations

from hashlib import sha256

import pytest

from server.statemachine.change import (
    MergeDocument,
    PauseFlow,
    ReplaceDocument,
    ReportProgress,
    ResumeFlow,
    StartChild,
    TransitionPhase,
    UpdateFlow,
)
from server.statemachine.document import Limits
from server.statemachine.errors import FlowNotActive, InvalidPhaseTransition, InvalidRequest, LimitExceeded
from server.statemachine.event import DocumentChanged, FlowCreated, HoldChanged, LabelsChanged, NameChanged, PhaseChanged
from server.statemachine.flow import Occasion, apply
from server.statemachine.values import DocumentName, DocumentPlace

from .story import S, begun, minute

STATE = DocumentPlace(DocumentName.STATE.value)
DATA = DocumentPlace(DocumentName.DATA.value, "discovery")


def update(*documents: ReplaceDocument | MergeDocument) -> UpdateFlow:
    return UpdateFlow(documents=documents)


def test_name_and_labels_are_replaced_and_told_with_before_and_after() -> None:
    story = begun("discovery", labels={"wave": "3"})
    outcome = story.do(UpdateFlow(display_name="Wave 4", labels={"wave": "4", "site": "iad2"}))
    assert (story.flow.display_name, story.flow.labels) == ("Wave 4", {"wave": "4", "site": "iad2"})
    assert outcome.event.facts == (
        NameChanged("Wave 3", "Wave 4"),
        LabelsChanged({"wave": "3"}, {"wave": "4", "site": "iad2"}),
    )


def test_what_stays_the_same_is_not_told() -> None:
    story = begun("discovery", labels={"wave": "3"})
    outcome = story.do(UpdateFlow(display_name="Wave 3", labels={"wave": "3"}))
    assert (outcome.event.facts, story.flow.revision) == ((), 2)


def test_what_is_not_given_stays() -> None:
    story = begun("discovery", labels={"wave": "3"})
    story.do(UpdateFlow())
    assert (story.flow.display_name, story.flow.labels) == ("Wave 3", {"wave": "3"})


def test_a_name_can_be_emptied_and_labels_removed() -> None:
    story = begun("discovery", labels={"wave": "3"})
    story.do(UpdateFlow(display_name="", labels={}))
    assert (story.flow.display_name, story.flow.labels) == ("", {})


def test_a_replaced_document_is_stored_as_it_came_and_told_by_size_and_hash() -> None:
    story = begun("discovery")
    text = b'{ "rows": 90071992547409931 }'
    outcome = story.do(update(ReplaceDocument(STATE, text)))
    assert outcome.documents == {STATE: text}
    assert outcome.event.facts == (DocumentChanged(STATE, len(text), sha256(text).digest()),)


def test_a_patch_is_merged_into_the_stored_document() -> None:
    story = begun("discovery")
    story.do(update(ReplaceDocument(STATE, b'{"a":1,"b":{"c":90071992547409931,"d":2}}')))
    outcome = story.do(update(MergeDocument(STATE, b'{"a":null,"b":{"d":3.10}}')))
    assert outcome.documents == {STATE: b'{"b":{"c":90071992547409931,"d":3.10}}'}


def test_a_patch_of_a_document_that_is_not_there_begins_with_an_empty_one() -> None:
    outcome = begun("discovery").do(update(MergeDocument(DATA, b'{"rows":1}')))
    assert outcome.documents == {DATA: b'{"rows":1}'}


def test_a_second_patch_of_one_commit_sees_the_first() -> None:
    story = begun("discovery")
    story.do(update(ReplaceDocument(STATE, b'{"old":1}')))
    outcome = story.do(
        update(MergeDocument(STATE, b'{"a":1}')),
        update(MergeDocument(STATE, b'{"b":2}'), ReplaceDocument(DATA, b"{}"), MergeDocument(DATA, b'{"x":1}')),
    )
    assert outcome.documents == {STATE: b'{"old":1,"a":1,"b":2}', DATA: b'{"x":1}'}
    assert [fact.place for fact in outcome.event.facts if isinstance(fact, DocumentChanged)] == [STATE, STATE, DATA, DATA]


def test_a_patch_that_makes_a_document_too_large_is_refused() -> None:
    story = begun("discovery")
    story.do(update(ReplaceDocument(STATE, b'{"a":"' + b"x" * 40 + b'"}')))
    tight = Occasion("ann", minute(3), lambda: next(story.ids), Limits(max_bytes=60))
    with pytest.raises(LimitExceeded) as refused:
        apply(story.flow, [update(MergeDocument(STATE, b'{"b":"' + b"y" * 40 + b'"}'))], tight, story.documents)
    assert (refused.value.metadata["limit"], int(refused.value.metadata["actual"]) > 60) == ("60", True)
    fits = apply(story.flow, [update(MergeDocument(STATE, b'{"b":1}'))], tight, story.documents)
    assert len(fits.documents[STATE]) <= 60


@pytest.mark.parametrize("kind", [ReplaceDocument, MergeDocument])
def test_data_of_a_child_that_is_not_there_is_refused(kind: type[ReplaceDocument] | type[MergeDocument]) -> None:
    story = begun("migration")
    with pytest.raises(InvalidRequest, match="flow has no child of this type") as refused:
        story.do(update(kind(DocumentPlace("data", "execution"), b"{}")))
    assert refused.value.violations[0].field == "update.child_data[execution]"


def test_a_child_started_in_the_same_commit_takes_data() -> None:
    story = begun("migration")
    story.complete_child("discovery")
    place = DocumentPlace("data", "assessment")
    outcome = story.do(StartChild(data=b'{"a":1}'), update(MergeDocument(place, b'{"b":2}')))
    assert outcome.documents == {place: b'{"a":1,"b":2}'}


def test_documents_of_a_new_flow_are_in_its_first_commit() -> None:
    story = begun("discovery", update(ReplaceDocument(STATE, b'{"a":1}')))
    assert story.outcomes[0].documents == {STATE: b'{"a":1}'}
    assert isinstance(story.event.facts[0], FlowCreated)
    assert isinstance(story.event.facts[-1], DocumentChanged)


def test_changes_are_applied_in_order_in_one_revision_with_one_event() -> None:
    story = begun("discovery")
    outcome = story.do(
        TransitionPhase("data_import", S.IN_PROGRESS),
        ReportProgress("data_import", 0.5),
        UpdateFlow(display_name="Wave 4"),
        TransitionPhase("data_import", S.COMPLETED),
        PauseFlow("lunch"),
    )
    assert story.flow.revision == outcome.event.revision == 2
    assert [type(fact) for fact in outcome.event.facts] == [PhaseChanged, PhaseChanged, NameChanged, PhaseChanged, HoldChanged]
    assert story.state("data_import") is S.COMPLETED


def test_a_refused_change_names_its_place_among_several_and_changes_nothing() -> None:
    story = begun("discovery")
    before = story.flow
    with pytest.raises(InvalidPhaseTransition) as refused:
        story.do(
            UpdateFlow(display_name="Wave 4"),
            TransitionPhase("data_import", S.IN_PROGRESS),
            TransitionPhase("field_mapping", S.COMPLETED),
        )
    assert refused.value.metadata["change_index"] == "2"
    assert story.flow == before


def test_a_change_sees_what_the_ones_before_it_did() -> None:
    story = begun("discovery")
    with pytest.raises(FlowNotActive) as refused:
        story.do(PauseFlow(), TransitionPhase("data_import", S.IN_PROGRESS))
    assert refused.value.metadata == {"status": "PAUSED", "change_index": "1"}
    story.do(PauseFlow(), ResumeFlow(), TransitionPhase("data_import", S.IN_PROGRESS))
    assert story.state("data_import") is S.IN_PROGRESS


def test_a_single_change_needs_no_index() -> None:
    with pytest.raises(InvalidPhaseTransition) as refused:
        begun("discovery").move("data_import", S.COMPLETED)
    assert "change_index" not in refused.value.metadata


def test_every_commit_is_one_revision_by_its_actor_at_its_time() -> None:
    story = begun("discovery")
    story.do(UpdateFlow(), actor="bob")
    assert (story.flow.revision, story.flow.updated_by, story.flow.update_time) == (2, "bob", minute(2))
    assert (story.flow.created_by, story.flow.create_time) == ("ann", minute(1))


def test_a_flows_history_does_not_run_backwards_when_a_clock_does() -> None:
    story = begun("discovery")
    story.move("data_import", S.IN_PROGRESS)
    behind = Occasion("bob", minute(0), lambda: next(story.ids))
    outcome = apply(story.flow, [TransitionPhase("data_import", S.COMPLETED)], behind, {})
    assert outcome.event.time == outcome.flow.update_time == outcome.flow.children[0].phases[0].end_time == minute(2)
