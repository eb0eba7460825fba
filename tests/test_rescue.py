"""Damaged flows are brought back by the first rung that holds, and nothing is lost on the way that could be kept."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from typing import Any
from uuid import uuid4

import asyncpg
import orjson
import pytest
import zstandard

from server.operations import replace_content
from server.repository import event_codec
from server.repository.history import History
from server.repository.plan import Asked as AskedCommit
from server.repository.plan import Birth
from server.repository.requests import Answered, Request
from server.repository.store import Store as Whole
from server.rescue import Done, Rescue
from server.statemachine.alert import AlertKind, AlertSeverity
from server.statemachine.change import CancelFlow, Change, DeleteFlow, PauseFlow, StartChild, TransitionPhase
from server.statemachine.errors import ConcurrentModification, FlowNotActive, FlowNotFound, NoRecoveryPoint
from server.statemachine.event import Cause, EventLost, FlowReplaced
from server.statemachine.finding import FindingKind
from server.statemachine.recovery import Remedy
from server.statemachine.replacement import content_of, replacement
from server.statemachine.rungs import LOST_MOST, Rung
from server.statemachine.states import PhaseState
from server.statemachine.values import FlowKey, Origin
from tests.cluster import Cluster
from tests.conftest import Urls, cloned
from tests.damage import UNBOUND, WAYS
from tests.repository import rows
from tests.repository.store import Store, opened, outsiders, report, request, superuser
from tests.repository.test_examiner import grown
from tests.repository.test_history import DATA, STATE, STORY, lived, written
from tests.repository.test_tenants import everything
from tests.rescuing import Bell, NoCheckpoints, One, asked, copy_of, left, recover, rescue

K, S = FindingKind, PhaseState

# Where the flow does not come back by a REPAIR: the document that is damaged is kept nowhere else, or nothing can be mended.
RUNGS: dict[str, Rung] = {
    **dict.fromkeys(
        (
            "document damaged",
            "document cut off",
            "document of a bit less",
            "document that promises too much",
            "document without bytes",
            "document missing",
            "an event too many",
        ),
        Rung.REVISION,
    ),
    **dict.fromkeys(
        ("event's actor changed", "last event's actor changed", "earlier document damaged", "earlier document missing"), Rung.NONE
    ),
}
# What stays true of history: an event that is lost stays lost, one that was changed stays changed, and so does an earlier document.
LOST, CHANGED, UNKEPT = (K.EVENT_MISSING, True), (K.CHAIN_BROKEN, False), (K.HISTORY_DAMAGED, True)
STAYS: dict[str, set[tuple[FindingKind, bool]]] = {
    **{name: {LOST} for name, way in WAYS.items() if way.finds in (K.EVENT_MISSING, K.EVENT_DAMAGED)},
    **{name: {CHANGED} for name in ("event's actor changed", "last event's actor changed", "an event too many")},
    **{name: {UNKEPT} for name, rung in RUNGS.items() if rung is Rung.REVISION and name.startswith("document")},
    **{name: {UNKEPT} for name in ("earlier document damaged", "earlier document missing")},
    "revision ahead of its events": {LOST},
}


@pytest.fixture(scope="module")
def unbound(postgres: Cluster, template: str) -> Iterator[Urls]:
    """A database without constraints."""
    for urls in cloned(postgres, template):
        postgres.run(UNBOUND, urls.name)
        yield urls


@pytest.fixture(scope="module")
async def store(unbound: Urls) -> AsyncIterator[Store]:
    """A store on it."""
    async with opened(unbound.service) as store:
        yield store


@pytest.fixture(scope="module")
async def hand(unbound: Urls) -> AsyncIterator[asyncpg.Connection]:
    """Who does the damage, and sees everything."""
    async with superuser(unbound.service) as connection:
        yield connection


async def goes_on(store: Store, key: FlowKey) -> None:
    """The flow takes commits, its log has no gap, and its newest revisions can be rebuilt."""
    head = await store.head(key.tenant, key.flow_id)
    done = await store.commit(store.asked(key.tenant, key.flow_id, written(STATE, b'{"goes":"on"}')))
    assert done.flow.revision == head.flow.revision + 1
    history = await store.history(key.tenant, key.flow_id)
    assert [one.event.revision for one in history] == list(range(1, done.flow.revision + 1))
    for revision in (head.flow.revision, done.flow.revision):
        past = await History(store.database).record(key, revision)
        assert past.head.flow.revision == revision
    assert past == await store.record(key.tenant, key.flow_id)


@pytest.mark.parametrize("name", WAYS, ids=[name.replace(" ", "_") for name in WAYS])
async def test_damage_is_found_and_mended_and_the_flow_goes_on(store: Store, hand: asyncpg.Connection, name: str) -> None:
    tenant, way, rung = rows.tenant(), WAYS[name], RUNGS.get(name, Rung.REPAIR)
    flow_id, beside = await grown(store, tenant), await store.begun(tenant)
    key = FlowKey(tenant, flow_id)
    before, next_door = await store.record(tenant, flow_id), await everything(hand, rows.tenant())
    neighbour = await store.record(tenant, beside)
    assert await left(store, key) == set()
    assert not (await hand.execute(way.sql, flow_id)).endswith(" 0")
    damaged = await everything(hand, tenant)
    found = (await rescue(store).examine(key)).findings()
    assert way.finds in {finding.kind for finding in found}, found
    assert not way.field or way.field in {finding.field for finding in found if finding.kind is way.finds}, found
    assert all(finding.description for finding in found)
    would = await recover(store, key, rehearse=True)
    assert await everything(hand, tenant) == damaged
    done = await recover(store, key)
    assert (done.plan.rung, would.plan.rung) == (rung, rung)
    if rung is Rung.NONE:
        assert await everything(hand, tenant) == damaged
    else:
        assert done.recovered is not None
        after = await store.record(tenant, flow_id)
        assert after.head.flow == done.recovered.flow
        assert after.head.hash == done.hash
        assert after.head.flow.revision > before.head.flow.revision
        if rung is Rung.REPAIR:
            told = ("type", "display_name", "labels", "hold", "children", "created_by", "create_time", "totals", "origin", "delete_time")
            assert [getattr(after.head.flow, name) for name in told] == [getattr(before.head.flow, name) for name in told]
            assert (after.documents, after.activity) == (before.documents, before.activity)
        fact = done.recovered.event.facts[0]
        assert isinstance(fact, FlowReplaced)
        assert (fact.cause, fact.reason, fact.quarantine_id) == (Cause.RECOVERY, "because", done.quarantine_id)
    assert await left(store, key) == STAYS.get(name, set())
    assert (await recover(store, key)).plan.rung is Rung.NONE
    await goes_on(store, key)
    assert await left(store, key) == STAYS.get(name, set())
    assert (await store.record(tenant, beside), await everything(hand, rows.tenant())) == (neighbour, next_door)


async def test_what_is_replaced_lies_in_quarantine_as_it_was(store: Store, hand: asyncpg.Connection) -> None:
    tenant = rows.tenant()
    flow_id = await grown(store, tenant)
    key = FlowKey(tenant, flow_id)
    for name in ("progress NaN", "phase state unknown", "document's hash", "base unreadable"):
        await hand.execute(WAYS[name].sql, flow_id)
    await hand.execute("UPDATE events SET hash = sha256('x') WHERE flow_id = $1 AND revision = 20", flow_id)
    await hand.execute("UPDATE events SET body = '{' WHERE flow_id = $1 AND revision = 105", flow_id)
    tables = ("flows", "discovery_flows", "documents", "activity", "events", "bases")
    await hand.execute("SET timezone = 'UTC'")  # as the service has it
    query = "SELECT to_json({0})::text FROM {0} WHERE flow_id = $1"
    before = {table: [orjson.loads(row[0]) for row in await hand.fetch(query.format(table), flow_id)] for table in tables}
    done = await recover(store, key)
    row = await hand.fetchrow("SELECT * FROM quarantine WHERE quarantine_id = $1", done.quarantine_id)
    assert row is not None
    assert (row["flow_id"], row["actor"], row["reason"], row["create_time"]) == (flow_id, "eve", "because", done.recovered.event.time)  # type: ignore[union-attr]
    body = orjson.loads(zstandard.ZstdDecompressor().decompress(row["body"]))
    assert (body["format"], body["flow_id"], body["revision"]) == (1, str(flow_id), 111)
    for table in ("flows", "discovery_flows", "documents", "activity"):
        assert sorted(map(orjson.dumps, body["tables"][table])) == sorted(map(orjson.dumps, before[table]))
    spoilt = [event for event in before["events"] if event["revision"] in (20, 105)]
    assert body["tables"]["events"] == sorted(spoilt, key=lambda event: event["revision"])
    assert body["tables"]["bases"] == before["bases"]
    # PostgreSQL reads it back as it was: an operator can put any row where it stood.
    text = orjson.dumps(body["tables"]["flows"][0]).decode()
    assert await hand.fetchval("SELECT (json_populate_record(NULL::flows, $1)).progress::text", text) == "NaN"
    sha = await hand.fetchval("SELECT (json_populate_record(NULL::flows, $1)).head_hash", text)
    assert sha == bytes.fromhex(before["flows"][0]["head_hash"][2:])


async def test_a_document_comes_back_from_wherever_the_same_text_is_kept(store: Store, hand: asyncpg.Connection) -> None:
    tenant = rows.tenant()
    flow_id = await store.create(tenant, written(STATE, b'{"a":1}'))
    key = FlowKey(tenant, flow_id)
    for text in (b'{"a":2}', b'{"a":1}'):  # what is damaged is what it had been before
        await store.commit(store.asked(tenant, flow_id, written(STATE, text)))
    await hand.execute(WAYS["document damaged"].sql, flow_id)
    done = await recover(store, key)
    assert (done.plan.rung, done.plan.losses) == (Rung.REPAIR, ())
    assert await store.text(tenant, flow_id, STATE) == b'{"a":1}'
    assert [(await History(store.database).record(key, at)).documents[STATE] for at in (1, 2, 3)] == [b'{"a":1}', b'{"a":2}', b'{"a":1}']
    await store.commit(store.asked(tenant, flow_id, written(STATE, b'{"a":3}')))
    copy = await copy_of(store, key)
    await hand.execute(WAYS["document missing"].sql, flow_id)
    done = await recover(store, key, copy=copy)  # the checkpoint has it
    assert (done.plan.rung, done.plan.losses) == (Rung.REPAIR, ())
    assert await store.text(tenant, flow_id, STATE) == b'{"a":3}'
    assert await left(store, key) == set()


async def test_a_lost_document_takes_the_flow_back_to_where_it_was_whole(store: Store, hand: asyncpg.Connection) -> None:
    tenant = rows.tenant()
    flow_id = await store.create(tenant, written(STATE, b'{"a":1}'))
    key = FlowKey(tenant, flow_id)
    await lived(store, tenant, flow_id, [(TransitionPhase("data_import", S.IN_PROGRESS),), (report(400),), (written(STATE, b'{"a":2}'),)])
    third = await History(store.database).record(key, 3)
    await lived(store, tenant, flow_id, [(TransitionPhase("data_import", S.COMPLETED),)])
    await hand.execute(WAYS["document damaged"].sql, flow_id)
    would = await recover(store, key, rehearse=True)
    assert would.plan.failures == ((Rung.REPAIR, "state of revision 4 can not be had any more"),)
    assert (would.plan.rung, would.plan.source_revision) == (Rung.REVISION, 3)
    assert would.plan.losses == ("revisions 4 to 5 are undone: what was done in them must be done again",)
    assert would.diff is not None
    assert "phase discovery/data_import: COMPLETED -> IN_PROGRESS 40%" in would.diff.lines
    done = await recover(store, key)
    after = await store.record(tenant, flow_id)
    assert (after.documents, after.head.flow.children[0].phases) == (third.documents, third.head.flow.children[0].phases)
    assert after.head.flow.totals == {**third.head.flow.totals, **after.head.flow.totals}  # analytics are not set back
    assert done.recovered is not None
    assert done.recovered.event.progress_regressed
    assert len((await History(store.database).record(key, 3)).documents) == 1
    assert await left(store, key) == {UNKEPT}


async def test_a_newer_checkpoint_is_taken_before_an_older_revision(store: Store, hand: asyncpg.Connection) -> None:
    tenant = rows.tenant()
    flow_id = await store.create(tenant)
    key = FlowKey(tenant, flow_id)
    await lived(store, tenant, flow_id, [(written(STATE, b'{"a":1}'),), (TransitionPhase("data_import", S.IN_PROGRESS),), (report(1),)])
    copy = await copy_of(store, key)
    await lived(store, tenant, flow_id, [(report(2),), (written(STATE, b'{"a":2}'),)])
    await hand.execute("UPDATE documents SET body = 'x' WHERE flow_id = $1", flow_id)
    await hand.execute("UPDATE document_versions SET body = 'x' WHERE flow_id = $1", flow_id)
    by_revision = await recover(store, key, Rung.REVISION, copy, rehearse=True)
    assert (by_revision.plan.rung, by_revision.plan.source_revision) == (Rung.REVISION, 1)
    done = await recover(store, key, copy=copy)
    assert (done.plan.rung, done.plan.source_revision, done.plan.source_checkpoint_id) == (Rung.CHECKPOINT, 4, copy.checkpoint_id)
    assert [rung for rung, _ in done.plan.failures] == [Rung.REPAIR, Rung.REVISION]
    after = await store.record(tenant, flow_id)
    assert after.documents == {STATE: b'{"a":1}'}
    assert after.head.flow.children[0].phases == copy.flow.children[0].phases
    assert await left(store, key) == {UNKEPT}
    await goes_on(store, key)


async def test_a_checkpoint_brings_back_a_flow_of_which_nothing_else_is_left(store: Store, hand: asyncpg.Connection) -> None:
    tenant = rows.tenant()
    flow_id = await grown(store, tenant)
    key = FlowKey(tenant, flow_id)
    copy = await copy_of(store, key)
    for table in ("discovery_flows", "documents", "activity", "events", "bases", "document_versions", "flows"):
        await hand.execute(f"DELETE FROM {table} WHERE flow_id = $1", flow_id)
    with pytest.raises(FlowNotFound):
        await recover(store, key)
    # One row that says that there is a checkpoint: what is in it is told by the port.
    values = {**rows.row("checkpoints", tenant, uuid4()), "flow_id": flow_id}
    await rows.put(hand, "checkpoints", values)
    done = await recover(store, key, copy=copy)
    assert (done.plan.rung, done.revision) == (Rung.CHECKPOINT, 110)
    after = await store.record(tenant, flow_id)
    assert (after.head.flow.revision, after.documents, after.head.flow.created_by) == (111, copy.documents, "ann")
    assert after.head.flow.children == copy.flow.children
    assert await left(store, key) == {LOST}
    await goes_on(store, key)


async def test_a_reset_is_done_only_when_it_is_asked_for_by_name(store: Store, hand: asyncpg.Connection) -> None:
    tenant = rows.tenant()
    flow_id = await grown(store, tenant)
    key = FlowKey(tenant, flow_id)
    for sql in ("DELETE FROM bases WHERE flow_id = $1", "DELETE FROM events WHERE flow_id = $1", WAYS["phases missing"].sql):
        await hand.execute(sql, flow_id)
    bell = Bell()
    for lowest in (Rung.REPAIR, Rung.REVISION, Rung.CHECKPOINT):
        with pytest.raises(NoRecoveryPoint, match="nothing brings the flow back"):
            await rescue(store, bell).recover(asked(store, key, lowest), None, lambda _: b"")
        would = await recover(store, key, lowest, rehearse=True)
        assert would.plan.rung is None
        assert [rung for rung, _ in would.plan.failures] == [Rung.REPAIR, Rung.REVISION, Rung.CHECKPOINT][: lowest.value - 1]
    assert {(one.kind, one.severity, one.flow_id) for _, one in bell.rung} == {(AlertKind.RECOVERY_FAILED, AlertSeverity.CRITICAL, flow_id)}
    assert len({one.subject for _, one in bell.rung}) == 1
    assert not await hand.fetchval("SELECT count(*) FROM quarantine WHERE flow_id = $1", flow_id)
    done = await recover(store, key, Rung.RESET)
    assert done.plan.rung is Rung.RESET
    after = await store.record(tenant, flow_id)
    assert (after.head.flow.type, after.head.flow.display_name, after.head.flow.revision) == ("discovery", "Wave 3", 111)
    assert {phase.state for phase in after.head.flow.children[0].phases} == {S.NOT_STARTED}
    assert any("all progress" in loss for loss in done.plan.losses)
    assert await left(store, key) == {LOST}
    await goes_on(store, key)


async def test_a_reset_gives_back_what_the_flow_was_created_with(store: Store, hand: asyncpg.Connection) -> None:
    tenant = rows.tenant()
    flow_id = await store.create(tenant, written(STATE, b'{"first":1}'))
    key = FlowKey(tenant, flow_id)
    first = await store.record(tenant, flow_id)
    await lived(store, tenant, flow_id, STORY[:6])
    # Sure as it is, revision 1 is not enough for a REVISION once its own event was changed.
    await hand.execute("UPDATE events SET actor = 'mallory' WHERE flow_id = $1 AND revision = 1", flow_id)
    await hand.execute(WAYS["phases missing"].sql, flow_id)
    done = await recover(store, key, Rung.RESET)
    after = await store.record(tenant, flow_id)
    assert (done.plan.rung, after.documents) == (Rung.RESET, first.documents)
    assert after.head.flow.children[0].child_flow_id == first.head.flow.children[0].child_flow_id


async def test_a_flow_whose_type_nobody_knows_cannot_be_reset(store: Store, hand: asyncpg.Connection) -> None:
    tenant = rows.tenant()
    flow_id = await store.create(tenant)
    await hand.execute("DELETE FROM events WHERE flow_id = $1", flow_id)
    await hand.execute("UPDATE flows SET type = 'laundry' WHERE flow_id = $1", flow_id)
    with pytest.raises(NoRecoveryPoint, match="of which type"):
        await recover(store, FlowKey(tenant, flow_id), Rung.RESET)


@pytest.mark.parametrize("command", ["paused", "cancelled", "deleted"])
@pytest.mark.parametrize("way", ["progress 150", "document damaged", "document damaged and the row gone"])
async def test_what_was_commanded_stays_commanded(store: Store, hand: asyncpg.Connection, command: str, way: str) -> None:
    """A recovery does not undo what people decided: going back to before it was cancelled does not bring a flow to life."""
    tenant = rows.tenant()
    flow_id = await store.begun(tenant)
    key = FlowKey(tenant, flow_id)
    changes: dict[str, Change] = {"paused": PauseFlow("lunch"), "cancelled": CancelFlow("no budget"), "deleted": DeleteFlow("mistake")}
    await lived(store, tenant, flow_id, [(written(STATE, b'{"a":1}'),), (written(STATE, b'{"a":2}'),), (changes[command],)])
    before = (await store.head(tenant, flow_id)).flow
    for name in way.split(" and the "):
        await hand.execute(WAYS[name].sql, flow_id)
    done = await recover(store, key)
    assert done.plan.rung is (Rung.REPAIR if way == "progress 150" else Rung.REVISION)
    after = (await store.head(tenant, flow_id)).flow
    assert (after.hold, after.hold_reason, after.delete_time) == (before.hold, before.hold_reason, before.delete_time)
    assert (after.end_time is None) == (before.end_time is None)
    assert await left(store, key) == (set() if way == "progress 150" else {UNKEPT})
    with pytest.raises(FlowNotActive):
        await store.commit(store.asked(tenant, flow_id, report(1)))


async def test_a_row_that_is_older_than_its_history_is_brought_up_to_it(store: Store, hand: asyncpg.Connection) -> None:
    """As when somebody restores one table from yesterday's dump."""
    tenant = rows.tenant()
    flow_id = await store.create(tenant)
    key = FlowKey(tenant, flow_id)
    await lived(store, tenant, flow_id, STORY[:4])
    tables = ("flows", "discovery_flows")
    kept = {table: await hand.fetchval(f"SELECT to_json({table})::text FROM {table} WHERE flow_id = $1", flow_id) for table in tables}
    await lived(store, tenant, flow_id, STORY[4:9])
    before = await store.record(tenant, flow_id)
    for table, text in kept.items():
        await hand.execute(f"DELETE FROM {table} WHERE flow_id = $1", flow_id)
        await hand.execute(f"INSERT INTO {table} SELECT * FROM json_populate_record(NULL::{table}, $1)", text)
    done = await recover(store, key)
    assert done.plan.rung is Rung.REPAIR
    after = await store.record(tenant, flow_id)
    assert (after.head.flow.children, after.documents) == (before.head.flow.children, before.documents)
    assert await left(store, key) == set()


async def test_a_child_that_was_lost_with_the_last_events_is_not_forgotten_for_a_repair(store: Store, hand: asyncpg.Connection) -> None:
    tenant = rows.tenant()
    new = store.birth(tenant)
    assert new.birth is not None
    flow_id = (await store.commit(replace(new, birth=replace(new.birth, type="migration"), changes=(StartChild(),)))).flow.flow_id
    key = FlowKey(tenant, flow_id)
    for phase in ("data_import", "field_mapping", "data_cleansing", "asset_creation", "asset_inventory", "dependency_analysis"):
        await _complete(store, key, phase)
    await _complete(store, key, "tech_debt_analysis")
    await store.commit(store.asked(tenant, flow_id, StartChild("assessment", b'{"of":"assessment"}')))
    await store.commit(store.asked(tenant, flow_id, TransitionPhase("application_selection", S.IN_PROGRESS)))
    before = await store.record(tenant, flow_id)
    last = before.head.flow.revision
    await hand.execute("DELETE FROM events WHERE flow_id = $1 AND revision = $2", flow_id, last)
    await hand.execute("DELETE FROM assessment_flows WHERE flow_id = $1", flow_id)
    done = await recover(store, key)
    assert (done.plan.rung, done.plan.source_revision) == (Rung.REVISION, last - 1)
    assert done.plan.failures[0][1].endswith("the row says that assessment is under way, and it is not there")
    after = await store.record(tenant, flow_id)
    assert [child.type for child in after.head.flow.children] == ["discovery", "assessment"]
    assert after.head.flow.children[0] == before.head.flow.children[0]
    assert after.documents == before.documents
    assert await left(store, key) == {LOST}


async def _complete(store: Store, key: FlowKey, phase: str) -> None:
    states = [S.IN_PROGRESS, *([S.WAITING_APPROVAL] if phase == "field_mapping" else []), S.COMPLETED]
    await store.commit(store.asked(key.tenant, key.flow_id, *(TransitionPhase(phase, state) for state in states)))


async def test_a_revision_beyond_belief_is_not_believed(store: Store, hand: asyncpg.Connection) -> None:
    tenant = rows.tenant()
    flow_id = await store.begun(tenant)
    key = FlowKey(tenant, flow_id)
    await hand.execute("UPDATE flows SET revision = $2 WHERE flow_id = $1", flow_id, 2**63 - 1)
    done = await recover(store, key)
    assert (done.plan.rung, (await store.head(tenant, flow_id)).flow.revision) == (Rung.REPAIR, 3)
    await hand.execute("UPDATE flows SET revision = $2, head_hash = sha256('x') WHERE flow_id = $1", flow_id, LOST_MOST + 4)
    done = await recover(store, key)
    assert (done.plan.rung, (await store.head(tenant, flow_id)).flow.revision) == (Rung.REVISION, 4)


async def test_thousands_of_lost_events_are_noted_at_once(store: Store, hand: asyncpg.Connection) -> None:
    tenant = rows.tenant()
    flow_id = await store.begun(tenant)
    await hand.execute("UPDATE flows SET revision = 12000, head_hash = sha256('x') WHERE flow_id = $1", flow_id)
    key = FlowKey(tenant, flow_id)
    done = await recover(store, key)
    assert (done.plan.rung, done.revision) == (Rung.REPAIR, 12000)
    assert await hand.fetchval("SELECT count(*) FROM events WHERE flow_id = $1", flow_id) == 12001
    page = await store.events.page(tenant, flow_id, 2, 10)
    assert [one.event.revision for one in page.events] == list(range(3, 13))
    assert {fact for one in page.events for fact in one.event.facts} == {EventLost()}
    assert await left(store, key) == {LOST}


async def test_an_origin_comes_back_with_the_row(store: Store, hand: asyncpg.Connection) -> None:
    tenant = rows.tenant()
    source = await store.begun(tenant)
    record = await store.record(tenant, source)
    flow_id, occasion = uuid4(), store.occasion()
    change = replacement(content_of(record.head.flow, {DATA: b"{}"}), {}, Cause.FORK, "", source_revision=2, source_flow_id=source)
    birth = Birth("discovery", "Fork", {}, Origin(source, 2))
    await store.commit(AskedCommit(tenant, flow_id, (change,), occasion, birth=birth))
    key = FlowKey(tenant, flow_id)
    assert await left(store, key) == set()
    before = await store.record(tenant, flow_id)
    await hand.execute("DELETE FROM flows WHERE flow_id = $1", flow_id)
    await recover(store, key)
    after = await store.record(tenant, flow_id)
    assert (after.head.flow.origin, after.head.flow.children, after.documents) == (
        Origin(source, 2),
        before.head.flow.children,
        {DATA: b"{}"},
    )


async def test_a_commit_that_comes_between_is_not_lost(store: Store, hand: asyncpg.Connection) -> None:
    """The plan was made for what is not there any more: it is made anew."""
    tenant = rows.tenant()
    flow_id = await store.begun(tenant)
    key = FlowKey(tenant, flow_id)
    await hand.execute(WAYS["progress 150"].sql, flow_id)
    looks: list[int | None] = []

    class Hurried(Rescue):
        async def _examined(self, key: FlowKey) -> Any:
            found = await super()._examined(key)
            if not looks:
                # Built on what the process remembers, which is right.
                await store.commit(store.asked(tenant, flow_id, report(7)))
                await hand.execute(WAYS["progress 150"].sql, flow_id)
            looks.append(found.evidence.stored.revision)
            return found

    whole = Whole(store.database, store.flows, store.events, History(store.database), store.commits)
    done = await Hurried(whole, NoCheckpoints(), Bell()).recover(asked(store, key), None, lambda _: b"")
    assert isinstance(done, Done)
    assert looks == [2, 3]
    after = (await store.head(tenant, flow_id)).flow
    assert (after.revision, after.children[0].phases[0].fraction) == (4, 0.007)
    looks.clear()
    await hand.execute(WAYS["progress 150"].sql, flow_id)
    with pytest.raises(ConcurrentModification):
        await Hurried(whole, NoCheckpoints(), Bell()).recover(asked(store, key, expected=4), None, lambda _: b"")


async def test_many_recoveries_at_once_are_one(store: Store, hand: asyncpg.Connection) -> None:
    tenant = rows.tenant()
    flow_id = await grown(store, tenant)
    key = FlowKey(tenant, flow_id)
    await hand.execute(WAYS["row gone"].sql, flow_id)
    bell = Bell()
    done = await asyncio.gather(*(rescue(store, bell).recover(asked(store, key), None, lambda _: b"") for _ in range(6)))
    rungs = sorted(one.plan.rung.name for one in done if isinstance(one, Done) and one.plan.rung is not None)
    assert rungs == ["NONE"] * 5 + ["REPAIR"]
    assert [one.kind for _, one in bell.rung] == [AlertKind.FLOW_RECOVERED]
    assert await hand.fetchval("SELECT count(*) FROM quarantine WHERE flow_id = $1", flow_id) == 1
    await goes_on(store, key)


async def test_a_repeated_request_is_answered_as_the_first_time(store: Store, hand: asyncpg.Connection) -> None:
    tenant = rows.tenant()
    flow_id = await store.begun(tenant)
    key = FlowKey(tenant, flow_id)
    asking: Request = request()
    nothing = await rescue(store).recover(asked(store, key), asking, lambda _: b"first")
    assert isinstance(nothing, Done)  # nothing was to be done, and nothing was written
    assert nothing.plan.rung is Rung.NONE
    await hand.execute(WAYS["progress 150"].sql, flow_id)
    assert isinstance(await rescue(store).recover(asked(store, key), asking, lambda _: b"second"), Done)
    for _ in range(2):
        await hand.execute(WAYS["progress 150"].sql, flow_id)
        again = await rescue(store).recover(asked(store, key), asking, lambda _: b"third")
        assert isinstance(again, Answered)
        assert again.answer == b"second"
    assert (await store.head(tenant, flow_id)).flow.revision == 3


async def test_what_cannot_be_stored_leaves_everything_as_it_was(store: Store, hand: asyncpg.Connection) -> None:
    tenant = rows.tenant()
    flow_id = await grown(store, tenant)
    key = FlowKey(tenant, flow_id)
    await hand.execute(WAYS["progress 150"].sql, flow_id)
    before = await everything(hand, tenant)
    await hand.execute("ALTER TABLE bases ADD CONSTRAINT no CHECK (revision < 111) NOT VALID")
    bell = Bell()
    try:
        with pytest.raises(asyncpg.CheckViolationError):
            await rescue(store, bell).recover(asked(store, key), None, lambda _: b"")
    finally:
        await hand.execute("ALTER TABLE bases DROP CONSTRAINT no")
    assert await everything(hand, tenant) == before
    assert bell.rung == []


async def test_another_tenant_finds_nothing_to_recover(store: Store, hand: asyncpg.Connection) -> None:
    tenant = rows.tenant()
    flow_id = await grown(store, tenant)
    await hand.execute(WAYS["progress 150"].sql, flow_id)
    before = await everything(hand, tenant)
    for stranger in outsiders(tenant).values():
        key = FlowKey(stranger, flow_id)
        for doing in (rescue(store).examine(key), rescue(store).options(key, store.occasion()), recover(store, key)):
            with pytest.raises(FlowNotFound):
                await doing
    assert await everything(hand, tenant) == before


async def test_options_tell_what_each_would_lead_to(store: Store, hand: asyncpg.Connection) -> None:
    tenant = rows.tenant()
    flow_id = await store.begun(tenant)
    key = FlowKey(tenant, flow_id)
    await _complete_first(store, key)
    copy = await copy_of(store, key)
    await lived(store, tenant, flow_id, [(TransitionPhase("field_mapping", S.IN_PROGRESS),)])
    revision, found = await rescue(store, None, One(copy)).options(key, store.occasion())
    assert revision == 4
    effects = {option.remedy: option.effect for option in found}
    assert {Remedy.REPORT, Remedy.REDO, Remedy.ROLL_BACK, Remedy.CANCEL, Remedy.REVERT, Remedy.RESTORE} <= effects.keys()
    assert effects[Remedy.REPORT] is None
    redo = effects[Remedy.REDO]
    assert redo is not None
    assert (redo.status.name, redo.phases) == (
        "RETRY_PENDING",
        ("data_import: COMPLETED -> RETRY_NEEDED", "field_mapping: IN_PROGRESS -> RETRY_NEEDED"),
    )
    reverts = [(option.revision, option.effect and option.effect.phases) for option in found if option.remedy is Remedy.REVERT]
    assert reverts == [
        (3, ("field_mapping: IN_PROGRESS -> NOT_STARTED",)),
        (2, ("data_import: COMPLETED -> IN_PROGRESS", "field_mapping: IN_PROGRESS -> NOT_STARTED")),
        (1, ("data_import: COMPLETED -> NOT_STARTED", "field_mapping: IN_PROGRESS -> NOT_STARTED")),
    ]
    restore = effects[Remedy.RESTORE]
    assert restore is not None
    assert restore.phases == ("field_mapping: IN_PROGRESS -> NOT_STARTED",)
    # A revert that is offered works.
    whole = Whole(store.database, store.flows, store.events, History(store.database), store.commits)
    old = await History(store.database).record(key, 2)
    await replace_content(
        whole, key, store.occasion(), 4, lambda now: replacement(content_of(old.head.flow, old.documents), now.documents, Cause.REVERT, "")
    )
    await hand.execute(WAYS["phases missing"].sql, flow_id)
    _, found = await rescue(store, None, One(copy)).options(key, store.occasion())
    (option,) = found
    assert option.remedy is Remedy.RECOVER
    assert option.why.startswith("phases is missing; REPAIR: the flow stays as it is at revision 5")
    assert option.effect is not None
    assert "data_import: not there -> IN_PROGRESS" in option.effect.phases
    await hand.execute(WAYS["all events missing"].sql, flow_id)
    await hand.execute(WAYS["base missing"].sql, flow_id)
    _, (option,) = await rescue(store).options(key, store.occasion())
    assert "RESET (when asked for by name): the flow becomes what it was when it was created" in option.why
    await hand.execute(WAYS["type missing"].sql, flow_id)
    _, (option,) = await rescue(store).options(key, store.occasion())
    assert option.effect is None


async def _complete_first(store: Store, key: FlowKey) -> None:
    await store.commit(store.asked(key.tenant, key.flow_id, TransitionPhase("data_import", S.COMPLETED)))


async def test_recoveries_are_told_of_once_each(store: Store, hand: asyncpg.Connection) -> None:
    tenant, bell = rows.tenant(), Bell()
    flow_id = await grown(store, tenant)
    key = FlowKey(tenant, flow_id)
    await hand.execute(WAYS["progress 150"].sql, flow_id)
    await rescue(store, bell).recover(asked(store, key), None, lambda _: b"")
    await hand.execute(WAYS["last event missing"].sql, flow_id)
    await rescue(store, bell).recover(asked(store, key), None, lambda _: b"")
    assert [(one.kind, one.severity) for _, one in bell.rung] == [
        (AlertKind.FLOW_RECOVERED, AlertSeverity.WARNING),
        (AlertKind.FLOW_RECOVERED, AlertSeverity.CRITICAL),
    ]
    assert len({one.subject for _, one in bell.rung}) == 2
    assert {who for who, _ in bell.rung} == {tenant}
    assert "quarantine" in bell.rung[0][1].message
    assert "revision 111" in bell.rung[1][1].message


async def first_format(hand: asyncpg.Connection, key: FlowKey) -> None:
    """Store the flow's history as the first release wrote it: another hash, no bases, no earlier documents."""
    link = event_codec.NO_HASH
    for row in await hand.fetch("SELECT revision, time, actor, body FROM events WHERE flow_id = $1 ORDER BY revision", key.flow_id):
        link = event_codec.chained_1(link, key, event_codec.content_of_1(*row))
        await hand.execute("UPDATE events SET hash = $3, format = 1 WHERE flow_id = $1 AND revision = $2", key.flow_id, row[0], link)
    await hand.execute("UPDATE flows SET head_hash = $2 WHERE flow_id = $1", key.flow_id, link)
    for table in ("bases", "document_versions"):
        await hand.execute(f"DELETE FROM {table} WHERE flow_id = $1", key.flow_id)


async def test_a_flow_of_the_first_release_is_right_and_can_be_mended(store: Store, hand: asyncpg.Connection) -> None:
    tenant = rows.tenant()
    flow_id = await grown(store, tenant)
    key = FlowKey(tenant, flow_id)
    await first_format(hand, key)
    before = await store.record(tenant, flow_id)
    assert await left(store, key) == set()
    for name in ("progress 150", "child missing"):
        await hand.execute(WAYS[name].sql, flow_id)
    done = await recover(store, key)
    after = await store.record(tenant, flow_id)
    assert done.plan.rung is Rung.REPAIR
    assert (after.head.flow.children, after.documents) == (before.head.flow.children, before.documents)
    assert await left(store, key) == set()
    await hand.execute("UPDATE events SET actor = 'mallory' WHERE flow_id = $1 AND revision = 55", flow_id)
    assert await left(store, key) == {CHANGED}
    await goes_on(store, key)
