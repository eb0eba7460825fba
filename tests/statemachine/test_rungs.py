"""Which rung holds, and why those above it do not, from what is known of a flow alone."""

from __future__ import annotations

from dataclasses import replace
from uuid import UUID

import pytest

from server.statemachine.evidence import Evidence, Gap, Texts, Told
from server.statemachine.finding import Finding, FindingKind
from server.statemachine.flow import Occasion
from server.statemachine.history import Base, Kept
from server.statemachine.integrity import NOTHING, Stored
from server.statemachine.recovered import recovered
from server.statemachine.rungs import LOST_MOST, Copy, Ground, Plan, Rung, last_revision, mendable, plan
from server.statemachine.stored_activity import StoredActivity
from server.statemachine.values import Flow, FlowKey

from .story import TENANT, S, Story, begun, minute, put
from .test_integrity import stored

HASH = bytes(32)
BROKEN = Finding(FindingKind.CHAIN_BROKEN, "broken")


def evidence(row: Stored, told: Told, activity: StoredActivity | None = None) -> Evidence:
    return Evidence(FlowKey(TENANT, UUID(int=3)), row, activity or StoredActivity(), Texts(), told)


def ground(
    row: Stored, told: Told, copy: Copy | None = None, lowest: Rung = Rung.CHECKPOINT, activity: StoredActivity | None = None
) -> Ground:
    return Ground(evidence(row, told, activity), copy, "no checkpoint", lowest, lambda: UUID(int=99), minute(9))


def copy_of(flow: Flow) -> Copy:
    return Copy(UUID(int=8), flow, {})


def why(found: Plan, rung: Rung) -> str:
    return dict(found.failures)[rung]


def test_a_checkpoint_that_cannot_be_is_none() -> None:
    story = begun("discovery")
    put(story, field_mapping=S.COMPLETED)
    found = plan(ground(NOTHING, Told(), copy_of(story.flow)))
    assert found.rung is None
    assert why(found, Rung.CHECKPOINT).endswith(
        "holds a flow that can not be: field_mapping is COMPLETED, and data_import is not COMPLETED"
    )


@pytest.mark.parametrize("beyond", [LOST_MOST + 2, 2**62])
def test_a_row_far_ahead_of_its_events_is_not_believed(beyond: int) -> None:
    row = stored(begun("discovery"), lambda row, _: row.update(revision=beyond))
    told = Told(1, b"other" * 6 + b"..", gaps=(Gap(1, 1, None, damaged=True),))
    found = plan(ground(row, told))
    assert why(found, Rung.REPAIR).endswith(f"the row says that it is at revision {beyond}, which can not be believed")
    assert last_revision(evidence(row, told), None) == 1
    assert last_revision(evidence(stored(begun("discovery")), told), copy_of(replace(begun("discovery").flow, revision=7))) == 7


def test_a_row_that_is_another_flows_is_not_believed() -> None:
    story = begun("discovery")
    state = Base(replace(story.flow, created_by="eve"), Kept(), HASH)
    found = plan(ground(stored(story), Told(1, HASH, state, gaps=(Gap(1, 1, None, damaged=True),))))
    assert why(found, Rung.REPAIR) == "the history is not sure up to its end, and created_by is not what the history tells"


def test_activity_that_cannot_be_read_is_a_loss_where_no_history_tells_it() -> None:
    activity = StoredActivity((), (Finding(FindingKind.FIELD_INVALID, "unreadable", "activity"),))
    found = plan(ground(stored(begun("discovery")), Told(1, HASH, gaps=(Gap(1, 1, None, damaged=True),)), activity=activity))
    assert (found.rung, found.losses[-1]) == (Rung.REPAIR, "1 entries of activity that cannot be read")


def test_what_only_a_checkpoint_knows_of_is_told_as_lost() -> None:
    flow = replace(begun("discovery").flow, revision=4)
    found = plan(ground(NOTHING, Told(), copy_of(flow)))
    assert found.rung is Rung.CHECKPOINT
    assert found.losses == (
        "what revision 1 to 4 did, who did it and when: the event is gone",
        "what was done after revision 4, if anything was: nothing tells of it",
    )


def test_what_cannot_be_mended_is_left() -> None:
    story = begun("discovery")
    told = Told(1, HASH, Base(story.flow, Kept(), HASH), sure=True, findings=(replace(BROKEN, recovery_only=True),))
    assert not mendable(evidence(stored(story), told))
    assert plan(ground(stored(story), told)).summary == "the flow is as it must be; 1 finding can not be mended, nor need they be"


def test_lost_events_are_noted_up_to_a_measure_the_newest_first() -> None:
    story = begun("discovery")
    gaps = (Gap(1, 10, b"a"), Gap(20, 29 + LOST_MOST, b"b"), Gap(40 + LOST_MOST, 44 + LOST_MOST, b"c"))
    head = 50 + LOST_MOST
    state = Base(replace(story.flow, revision=head), Kept(), HASH)
    known = evidence(stored(story), Told(head, HASH, state, sure=True, gaps=gaps))
    found = plan(Ground(known, None, "", Rung.REPAIR, lambda: UUID(int=99), minute(9)))
    made = recovered(found, known, head, "", UUID(int=7), Occasion("eve", minute(9), lambda: UUID(int=99)))
    assert made.lost == (Gap(35, 29 + LOST_MOST, None), gaps[2])
    assert made.flow.revision == head + 1
    assert Story(made.flow).status is story.status
