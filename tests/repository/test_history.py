"""History: every revision comes back exactly as it was, at a bounded cost, and little is stored for it."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from uuid import UUID, uuid4

import asyncpg
import pytest

from server.operations import Replaced, replace_content
from server.repository.flows import Flows, Record
from server.repository.history import History
from server.repository.store import Store as Whole
from server.statemachine.change import (
    Change,
    DeleteFlow,
    MergeDocument,
    PauseFlow,
    RecordActivity,
    ReplaceContent,
    ReplaceDocument,
    ResumeFlow,
    RetryPhase,
    RollbackPhase,
    TransitionPhase,
    UndeleteFlow,
    UpdateFlow,
)
from server.statemachine.errors import ConcurrentModification, FlowNotFound, HistoryDamaged, RevisionInFuture
from server.statemachine.event import Cause
from server.statemachine.history import EVERY
from server.statemachine.replacement import content_of, replacement
from server.statemachine.states import FailureCode, PhaseState
from server.statemachine.values import ActivityEntry, ActivityKind, DocumentPlace, Failure, FlowKey, Tenant
from tests.repository.store import Store, report

STATE, DATA = DocumentPlace("state"), DocumentPlace("data", "discovery")
LARGE = 100 * 1024
_S = PhaseState
FAILURE = Failure(FailureCode.AGENT_TIMEOUT, "no answer")


def written(place: DocumentPlace, text: bytes) -> UpdateFlow:
    return UpdateFlow(documents=(ReplaceDocument(place, text),))


async def record_at(store: Store, key: FlowKey, revision: int) -> Record:
    return await History(store.database).record(key, revision)


async def lived(store: Store, tenant: Tenant, flow_id: object, changes: list[tuple[Change, ...]]) -> dict[int, Record]:
    """The flow as it was read after each commit, by revision."""
    seen = {}
    for one in changes:
        done = await store.commit(store.asked(tenant, flow_id, *one))  # type: ignore[arg-type]
        seen[done.flow.revision] = await store.record(tenant, done.flow.flow_id)
    return seen


STORY: list[tuple[Change, ...]] = [
    (TransitionPhase("data_import", _S.IN_PROGRESS), written(STATE, b'{"a":1}')),
    (report(300), RecordActivity((ActivityEntry(ActivityKind.MEMORY, value=1.5, unit="MiB"),))),
    (TransitionPhase("data_import", _S.FAILED, failure=FAILURE),),
    (RetryPhase("data_import"), UpdateFlow(labels={"wave": "3"}, display_name="Renamed")),
    (TransitionPhase("data_import", _S.RETRY_NEEDED, failure=FAILURE),),  # the same failure again is told again
    (RetryPhase("data_import"),),
    (TransitionPhase("data_import", _S.COMPLETED), written(DATA, b'{"rows":[1,2]}')),
    (PauseFlow("lunch"),),
    (ResumeFlow(),),
    (TransitionPhase("field_mapping", _S.IN_PROGRESS),),
    (UpdateFlow(documents=(MergeDocument(STATE, b'{"b":9007199254740993}'),)),),
    (RollbackPhase("data_import", reason="wrong file"),),
    (DeleteFlow("by mistake"),),
    (UndeleteFlow(),),
    (TransitionPhase("data_import", _S.IN_PROGRESS), written(STATE, b"{}")),
]


async def test_every_revision_comes_back_as_it_was_read(store: Store, tenant: Tenant) -> None:
    flow_id = await store.create(tenant)
    key = FlowKey(tenant, flow_id)
    seen = {1: await store.record(tenant, flow_id), **await lived(store, tenant, flow_id, STORY)}
    assert len(seen) == len(STORY) + 1
    for revision, record in seen.items():
        assert await record_at(store, key, revision) == record, revision


async def test_several_commits_of_one_batch_are_revisions_of_their_own(store: Store, tenant: Tenant) -> None:
    flow_id = await store.begun(tenant)
    texts = [b'{"at":%d,"pad":"%s"}' % (at, b"x" * 40) for at in range(8)]
    done = await store.all_of(*(store.asked(tenant, flow_id, written(STATE, text), report(at)) for at, text in enumerate(texts)))
    assert not [one for one in done if isinstance(one, BaseException)]
    for at, text in enumerate(texts):
        record = await record_at(store, FlowKey(tenant, flow_id), 3 + at)
        assert (record.documents[STATE], record.head.flow.children[0].phases[0].fraction) == (text, at / 1000)


async def test_a_history_that_is_longer_than_a_base_is_rebuilt_from_the_nearest(
    store: Store, elsewhere: Store, tenant: Tenant, truth: asyncpg.Connection
) -> None:
    flow_id = await store.begun(tenant)
    key = FlowKey(tenant, flow_id)
    chance = random.Random(4)
    seen = {}
    for at in range(2 * EVERY + 30):
        entry = RecordActivity((ActivityEntry(ActivityKind.PERFORMANCE, subject=f"agent {at}", value=at / 7),))
        where = chance.choice((store, elsewhere))
        done = await where.commit(where.asked(tenant, flow_id, report(at), entry, written(STATE, b'{"at":%d}' % at)))
        if chance.random() < 0.15 or done.flow.revision % EVERY < 3:
            seen[done.flow.revision] = await store.record(tenant, flow_id)
    for revision, record in seen.items():
        assert await record_at(store, key, revision) == record, revision
    based = await truth.fetch("SELECT revision FROM bases WHERE flow_id = $1 ORDER BY 1", flow_id)
    assert [row[0] for row in based] == [EVERY, 2 * EVERY]


async def test_a_base_within_a_batch_is_of_its_own_revision(store: Store, tenant: Tenant) -> None:
    flow_id = await store.begun(tenant)
    for first in range(0, EVERY + 10, 37):
        await store.all_of(*(store.asked(tenant, flow_id, report(first + at)) for at in range(37)))
    key = FlowKey(tenant, flow_id)
    for revision in (EVERY - 1, EVERY, EVERY + 1):
        record = await record_at(store, key, revision)
        assert (record.head.flow.revision, record.head.flow.children[0].phases[0].fraction) == (revision, (revision - 3) / 1000)


async def test_what_replaces_a_flow_can_be_rebuilt_and_so_can_what_was_before(store: Store, tenant: Tenant) -> None:
    flow_id = await store.create(tenant)
    key = FlowKey(tenant, flow_id)
    seen = await lived(store, tenant, flow_id, STORY[:7])
    for _ in range(3):  # without its child, with a new one, without it again
        done = await store.commit(await store.replacing(tenant, flow_id))
        seen[done.flow.revision] = await store.record(tenant, flow_id)
    old = seen[5]
    change = replacement(content_of(old.head.flow, old.documents), seen[11].documents, Cause.REVERT, "back", source_revision=5)
    done = await store.commit(store.asked(tenant, flow_id, change, expected=11))
    seen[12] = back = await store.record(tenant, flow_id)
    assert back.documents == old.documents
    assert [child.phases for child in back.head.flow.children] == [child.phases for child in old.head.flow.children]
    assert (back.head.flow.display_name, back.head.flow.labels) == ("Renamed", {"wave": "3"})
    for revision, record in seen.items():
        assert await record_at(store, key, revision) == record, revision


async def test_a_replacement_is_prepared_again_when_others_were_first(store: Store, tenant: Tenant, truth: asyncpg.Connection) -> None:
    flow_id = await store.begun(tenant)
    prepared: list[int] = []
    reports = iter(range(10))

    async def first(before: Record) -> None:
        await store.commit(store.asked(tenant, flow_id, report(next(reports))))

    def prepare(before: Record) -> ReplaceContent:
        prepared.append(before.head.flow.revision)
        return replacement(content_of(before.head.flow, {STATE: b'{"new":1}'}), before.documents, Cause.RESTORE, "")

    class Hurried(Flows):
        async def records(self, tenant: Tenant, flow_ids: Sequence[UUID]) -> list[Record]:
            found = await super().records(tenant, flow_ids)
            if len(prepared) < 2:
                await first(found[0])  # somebody is quicker, twice
            return found

    whole = Whole(store.database, Hurried(store.database), store.events, History(store.database), store.commits)
    done = await replace_content(whole, FlowKey(tenant, flow_id), store.occasion(), 0, prepare)
    assert isinstance(done, Replaced)
    assert (prepared, done.before.head.flow.revision, done.committed.flow.revision) == ([2, 3, 4], 4, 5)
    prepared.clear()
    with pytest.raises(ConcurrentModification):
        await replace_content(whole, FlowKey(tenant, flow_id), store.occasion(), 5, prepare)
    assert len(prepared) == 1


async def test_a_replacement_that_was_prepared_for_another_revision_is_refused(store: Store, tenant: Tenant) -> None:
    flow_id = await store.begun(tenant)
    asked = await store.replacing(tenant, flow_id)
    results = await store.all_of(store.asked(tenant, flow_id, report(1)), asked, store.asked(tenant, flow_id, report(2)))
    assert [type(one).__name__ for one in results] == ["Committed", "ConcurrentModification", "Committed"]


def document(chance: random.Random, size: int) -> bytes:
    """JSON that does not compress well."""
    rows = [{"id": chance.getrandbits(64), "name": f"{chance.getrandbits(80):x}"} for _ in range(size // 60)]
    return json.dumps({"rows": rows}).encode()


def changed(chance: random.Random, text: bytes) -> bytes:
    """The document with one of its rows changed."""
    found = json.loads(text)
    found["rows"][chance.randrange(len(found["rows"]))]["name"] = f"{chance.getrandbits(80):x}"
    return json.dumps(found).encode()


def patch(before: bytes, after: bytes) -> bytes:
    """What ``changed`` did, as a JSON Patch."""
    rows = enumerate(zip(json.loads(before)["rows"], json.loads(after)["rows"], strict=True))
    return json.dumps(
        [{"op": "replace", "path": f"/rows/{at}/name", "value": new["name"]} for at, (old, new) in rows if old != new]
    ).encode()


async def stored_bytes(truth: asyncpg.Connection, flow_id: object) -> int:
    tables = {"document_versions": "body", "bases": "body", "events": "body"}
    sizes = [
        await truth.fetchval(f"SELECT sum(octet_length({column})) FROM {table} WHERE flow_id = $1", flow_id)
        for table, column in tables.items()
    ]
    return sum(size or 0 for size in sizes)


async def test_small_updates_of_a_large_document_store_little_more_than_they_change(
    store: Store, tenant: Tenant, truth: asyncpg.Connection
) -> None:
    """1,000 updates of a document of 100 KiB: whole copies would be 100 MB, whole compressed ones still 50.

    What is stored, events and all, is ten times what the changes are as JSON Patches; two thirds of it are the whole copies, one in 64.
    """
    chance = random.Random(5)
    flow_id, text = await store.create(tenant), document(chance, LARGE)
    key = FlowKey(tenant, flow_id)
    texts: Mapping[int, bytes] = {}
    changes = 0
    await store.commit(store.asked(tenant, flow_id, written(STATE, text)))
    for _ in range(1000):
        before, text = text, changed(chance, text)
        changes += len(patch(before, text))
        done = await store.commit(store.asked(tenant, flow_id, written(STATE, text)))
        texts = {**texts, done.flow.revision: text}
    assert await stored_bytes(truth, flow_id) < 15 * changes < 1_500_000
    for revision in chance.sample(sorted(texts), 25):
        assert (await record_at(store, key, revision)).documents[STATE] == texts[revision]


async def test_a_server_that_did_not_write_the_last_version_keeps_it_whole(store: Store, elsewhere: Store, tenant: Tenant) -> None:
    chance = random.Random(6)
    flow_id, text = await store.create(tenant), document(chance, LARGE)
    texts = {}
    for at in range(6):
        text = changed(chance, text)
        where = (store, elsewhere)[at // 2 % 2]
        done = await where.commit(where.asked(tenant, flow_id, written(STATE, text)))
        texts[done.flow.revision] = text
    for revision, known in texts.items():
        assert (await record_at(store, FlowKey(tenant, flow_id), revision)).documents[STATE] == known


async def test_a_revision_that_was_not_reached_and_a_flow_that_is_not_there_are_refused(store: Store, tenant: Tenant) -> None:
    flow_id = await store.create(tenant)
    with pytest.raises(RevisionInFuture):
        await record_at(store, FlowKey(tenant, flow_id), 2)
    with pytest.raises(FlowNotFound):
        await record_at(store, FlowKey(tenant, uuid4()), 1)


@pytest.mark.parametrize(
    "damage",
    [
        "DELETE FROM events WHERE flow_id = $1 AND revision = 3",
        """UPDATE events SET body = replace(body, '"data_import"', '"elsewhere"') WHERE flow_id = $1 AND revision = 3""",
        "UPDATE events SET body = '{' WHERE flow_id = $1 AND revision = 4",
        "UPDATE document_versions SET body = 'x' WHERE flow_id = $1",
        "UPDATE document_versions SET body = substr(body, 1, octet_length(body) - 5) WHERE flow_id = $1",
    ],
)
async def test_history_that_is_damaged_is_said_to_be(store: Store, tenant: Tenant, truth: asyncpg.Connection, damage: str) -> None:
    flow_id = await store.create(tenant)
    await lived(store, tenant, flow_id, [(written(STATE, b'{"a":1}'),), *STORY[:3], (written(STATE, b'{"a":2}'),)])
    await truth.execute(damage, flow_id)
    with pytest.raises(HistoryDamaged, match=r"cannot be rebuilt"):
        await record_at(store, FlowKey(tenant, flow_id), 5)


async def test_no_more_is_read_than_one_base_and_the_events_after_it(store: Store, tenant: Tenant) -> None:
    flow_id = await store.begun(tenant)
    for _ in range(5):
        await store.all_of(*(store.asked(tenant, flow_id, report(at)) for at in range(60)))
    store.sent.clear()
    await record_at(store, FlowKey(tenant, flow_id), 299)
    assert len(store.sent) == 1
    connection = await store.database.connections.lend()
    try:
        told = (await connection.fetch(store.sent[0].text, *store.sent[0].values))[0][3]
    finally:
        await store.database.connections.take_back(connection)
    assert [row[0] for row in told] == [*range(201, 300)]
