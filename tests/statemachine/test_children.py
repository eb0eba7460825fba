"""How a flow is made, and how a journey is handed over from domain to domain."""

from __future__ import annotations

from dataclasses import replace
from uuid import UUID

import pytest

from server.statemachine.change import ReportProgress, StartChild, TransitionPhase
from server.statemachine.definition import Definition
from server.statemachine.errors import ChildExists, DependencyIncomplete, InvalidRequest
from server.statemachine.event import ChildStarted, DocumentChanged, FlowCreated
from server.statemachine.flow import Occasion, create, new_child
from server.statemachine.graphs import BUILT_IN, JOURNEYS
from server.statemachine.states import FlowStatus
from server.statemachine.values import DocumentPlace

from .story import BEGINNING, TENANT, S, begun, minute, plain

DOMAINS = ("discovery", "assessment", "planning", "execution")


def occasion() -> Occasion:
    return Occasion("ann", BEGINNING, lambda: UUID(int=9))


def test_the_journeys_are_the_migration_and_each_domain_alone() -> None:
    assert dict(JOURNEYS) == {"migration": DOMAINS, **{domain: (domain,) for domain in DOMAINS}}
    assert tuple(BUILT_IN) == DOMAINS


def test_the_discovery_graph_is_the_designs() -> None:
    told = [(p.name, p.status.name, p.depends_on, p.requires_validation, p.requires_approval) for p in BUILT_IN["discovery"].phases]
    assert told == [
        ("data_import", "DATA_GATHERING", (), False, False),
        ("field_mapping", "DISCOVERY", ("data_import",), False, True),
        ("data_cleansing", "DISCOVERY", ("field_mapping",), False, False),
        ("asset_creation", "DISCOVERY", ("data_cleansing",), False, False),
        ("asset_inventory", "ASSESSMENT_READY", ("asset_creation",), False, False),
        ("dependency_analysis", "PLANNING", ("asset_inventory",), False, False),
        ("tech_debt_analysis", "PLANNING", ("asset_inventory",), False, False),
    ]


def test_a_new_flow_is_at_revision_one_with_its_first_child() -> None:
    story = begun("migration", labels={"wave": "3"})
    flow = story.flow
    assert (flow.revision, flow.type, flow.display_name, flow.labels) == (1, "migration", "Wave 3", {"wave": "3"})
    assert (flow.created_by, flow.create_time, flow.updated_by, flow.update_time) == ("ann", minute(1), "ann", minute(1))
    assert [(child.type, child.child_flow_id, child.create_time) for child in flow.children] == [
        ("discovery", UUID(int=1000), minute(1)),
    ]
    assert set(story.states().values()) == {S.NOT_STARTED}
    assert story.event.facts == (FlowCreated("migration", "Wave 3", {"wave": "3"}), ChildStarted(UUID(int=1000), "discovery", 1))
    assert (story.event.revision, story.event.actor, story.event.time) == (1, "ann", minute(1))
    assert (story.event.status, story.event.progress, story.event.progress_regressed) == (FlowStatus.INITIALIZED, 0.0, False)


def test_a_flow_can_be_made_without_a_child() -> None:
    outcome = create(TENANT, UUID(int=3), "migration", "", {}, [], occasion())
    assert (outcome.flow.children, outcome.flow.revision) == ((), 1)


def test_an_unknown_flow_type_is_refused_with_those_that_are_known() -> None:
    with pytest.raises(InvalidRequest, match="migration, discovery, assessment, planning, execution") as refused:
        create(TENANT, UUID(int=3), "cleanup", "", {}, [], occasion())
    assert refused.value.violations[0].field == "type"


def test_the_next_domain_starts_only_when_the_earlier_one_is_complete() -> None:
    story = begun("migration")
    with pytest.raises(DependencyIncomplete) as refused:
        story.do(StartChild())
    assert refused.value.metadata == {"missing_dependencies": "discovery"}
    assert refused.value.subject == "child/assessment"
    story.complete_child("discovery")
    outcome = story.do(StartChild(data=b'{"apps":12}'))
    assert [child.type for child in story.flow.children] == ["discovery", "assessment"]
    place = DocumentPlace("data", "assessment")
    assert outcome.documents == {place: b'{"apps":12}'}
    assert [type(fact) for fact in outcome.event.facts] == [ChildStarted, DocumentChanged]


def test_a_domain_cannot_be_skipped() -> None:
    story = begun("migration")
    story.complete_child("discovery")
    with pytest.raises(DependencyIncomplete) as refused:
        story.do(StartChild("execution"))
    assert refused.value.metadata == {"missing_dependencies": "assessment,planning"}


def test_a_domain_whose_predecessor_was_rolled_back_does_not_start() -> None:
    story = begun("migration")
    story.complete_child("discovery")
    story.roll_back("asset_inventory")
    with pytest.raises(DependencyIncomplete) as refused:
        story.do(StartChild("assessment"))
    assert refused.value.metadata == {"missing_dependencies": "discovery"}


def test_a_domain_starts_once() -> None:
    with pytest.raises(ChildExists, match="a child of type discovery already") as refused:
        begun("migration").do(StartChild("discovery"))
    assert refused.value.metadata == {"child_type": "discovery"}


def test_a_journey_at_its_last_domain_has_no_next_one() -> None:
    with pytest.raises(ChildExists, match="for every domain of its journey"):
        begun("planning").do(StartChild())


def test_a_domain_outside_the_journey_is_refused() -> None:
    story = begun("planning")
    with pytest.raises(InvalidRequest, match="is not in the journey planning") as refused:
        story.do(StartChild("discovery"))
    assert refused.value.violations[0].field == "child_start.type"


def test_a_phase_name_that_two_children_have_needs_the_child_type() -> None:
    story = begun("migration")
    twins = tuple(new_child(UUID(int=at), Definition(kind, 1, (plain("review"),)), minute(1)) for at, kind in enumerate(DOMAINS[:2]))
    story.flow = replace(story.flow, children=twins)
    with pytest.raises(InvalidRequest, match="phase review is in discovery, assessment") as refused:
        story.move("review", S.IN_PROGRESS)
    assert refused.value.violations[0].field == "child_type"
    story.do(TransitionPhase("review", S.IN_PROGRESS, child_type="assessment"))
    assert [child.phases[0].state for child in story.flow.children] == [S.NOT_STARTED, S.IN_PROGRESS]


def test_a_change_touches_the_update_time_of_its_own_child_only() -> None:
    story = begun("migration")
    story.complete_child("discovery")
    story.do(StartChild())
    discovery, started = story.flow.children[0].update_time, story.flow.revision
    story.move("application_selection", S.IN_PROGRESS)
    story.do(ReportProgress("application_selection", 0.5))
    assert [child.update_time for child in story.flow.children] == [discovery, minute(started + 2)]
    assert story.flow.children[1].create_time == minute(started)


def test_an_earlier_domain_can_be_reopened_while_a_later_one_is_under_way() -> None:
    story = begun("migration")
    story.complete_child("discovery")
    story.do(StartChild())
    story.complete("application_selection")
    story.move("tech_debt_analysis", S.RETRY_NEEDED)
    assert story.status is FlowStatus.RETRY_PENDING
    story.move("architecture_review", S.IN_PROGRESS)
    assert story.state("architecture_review") is S.IN_PROGRESS
