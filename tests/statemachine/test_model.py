"""Names, labels, documents and commands in any order, against a model of plain dictionaries."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TypeAlias

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from server.statemachine.change import (
    CancelFlow,
    Change,
    DeleteFlow,
    MergeDocument,
    PauseFlow,
    ReplaceDocument,
    ResumeFlow,
    UndeleteFlow,
    UpdateFlow,
)
from server.statemachine.errors import FlowNotActive, FlowNotDeleted, FlowNotPaused, PreconditionFailed
from server.statemachine.states import FlowStatus
from server.statemachine.values import DocumentPlace

from .steady import steady
from .story import Story, begun

Json: TypeAlias = "bool | int | str | list[Json] | dict[str, Json] | None"
NAMES = st.sampled_from(["a", "b", "c"])
PLACES = st.sampled_from([DocumentPlace("state"), DocumentPlace("metadata"), DocumentPlace("data", "planning")])
VALUES: st.SearchStrategy[Json] = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=6,
)
OBJECTS = st.dictionaries(NAMES, VALUES, max_size=3)


def merged(target: Json, patch: Json) -> Json:
    """MergePatch, as RFC 7396 section 2 writes it."""
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            result.pop(name, None)
        else:
            result[name] = merged(result.get(name), value)
    return result


class Owned(RuleBasedStateMachine):
    """What the caller owns, and whether it may be changed now."""

    @initialize()
    def begin(self) -> None:
        self.story: Story = begun("planning")
        self.name, self.labels = "Wave 3", dict[str, str]()
        self.documents: dict[DocumentPlace, Json] = {}
        self.status, self.deleted, self.commits = "INITIALIZED", False, 1

    def ask(self, change: Change, accepted: bool, error: type[PreconditionFailed], model: Callable[[], None]) -> None:
        """The change is accepted, and then the model changes too; or refused with ``error``."""
        if accepted:
            self.story.do(change)
            self.commits += 1
            model()
        else:
            with pytest.raises(error):
                self.story.do(change)

    def update(self, change: UpdateFlow, model: Callable[[], None]) -> None:
        self.ask(change, not self.deleted and self.status != "CANCELLED", FlowNotActive, model)

    @rule(place=PLACES, value=OBJECTS)
    def replace(self, place: DocumentPlace, value: dict[str, Json]) -> None:
        change = UpdateFlow(documents=(ReplaceDocument(place, json.dumps(value).encode()),))
        self.update(change, lambda: self.documents.update({place: value}))

    @rule(place=PLACES, patches=st.lists(OBJECTS, min_size=1, max_size=2))
    def merge(self, place: DocumentPlace, patches: list[dict[str, Json]]) -> None:
        def model() -> None:
            for patch in patches:
                self.documents[place] = merged(self.documents.get(place, {}), patch)

        self.update(UpdateFlow(documents=tuple(MergeDocument(place, json.dumps(patch).encode()) for patch in patches)), model)

    @rule(name=NAMES, labels=st.dictionaries(NAMES, NAMES, max_size=2))
    def rename(self, name: str, labels: dict[str, str]) -> None:
        def model() -> None:
            self.name, self.labels = name, labels

        self.update(UpdateFlow(display_name=name, labels=labels), model)

    def become(self, status: str) -> Callable[[], None]:
        return lambda: setattr(self, "status", status)

    @rule()
    def pause(self) -> None:
        self.ask(PauseFlow(), self.status == "INITIALIZED" and not self.deleted, FlowNotActive, self.become("PAUSED"))

    @rule()
    def resume(self) -> None:
        gone = self.deleted or self.status == "CANCELLED"
        error = FlowNotActive if gone else FlowNotPaused
        self.ask(ResumeFlow(), self.status == "PAUSED" and not self.deleted, error, self.become("INITIALIZED"))

    @precondition(lambda self: self.commits > 12)  # nothing much happens after it
    @rule()
    def cancel(self) -> None:
        self.ask(CancelFlow(), self.status != "CANCELLED" and not self.deleted, FlowNotActive, self.become("CANCELLED"))

    @rule()
    def delete(self) -> None:
        self.ask(DeleteFlow(), not self.deleted, FlowNotActive, lambda: setattr(self, "deleted", True))

    @rule()
    def undelete(self) -> None:
        self.ask(UndeleteFlow(), self.deleted, FlowNotDeleted, lambda: setattr(self, "deleted", False))

    @invariant()
    def flow_is_as_the_model_says(self) -> None:
        flow = self.story.flow
        assert (flow.display_name, flow.labels, flow.revision) == (self.name, self.labels, self.commits)
        assert (self.story.status, flow.delete_time is not None) == (FlowStatus[self.status], self.deleted)

    @invariant()
    def documents_are_as_the_model_says(self) -> None:
        assert {place: json.loads(text) for place, text in self.story.documents.items()} == self.documents


Owned.TestCase.settings = steady(40, steps=30)
TestWhatTheCallerOwnsIsAsAModelSays = Owned.TestCase
