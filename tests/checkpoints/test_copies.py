"""Checkpoints: copies that come back exactly, each content stored once."""

from __future__ import annotations

from server.statemachine.checkpoint import CheckpointKind
from server.statemachine.replacement import content_of
from server.statemachine.values import FlowKey
from tests.checkpoints.bench import Bench


async def test_a_checkpoint_opens_as_what_was_copied(here: Bench, elsewhere: Bench, key: FlowKey) -> None:
    record = await here.store.record(key.tenant, key.flow_id)
    taken = await here.take(key)
    assert (taken.flow_id, taken.revision, taken.kind, taken.key_version) == (key.flow_id, 3, CheckpointKind.MANUAL, 1)
    for where in (here, elsewhere):
        opened = await where.archive.opening.header(key.tenant, taken.checkpoint_id)
        copy = await where.archive.opening.copy(opened)
        assert copy.flow == record.head.flow
        assert copy.content == content_of(record.head.flow, record.documents)
    newest = await elsewhere.archive.opening.newest_readable(key)
    assert newest is not None
    assert newest[0] == taken
    assert await elsewhere.archive.opening.unreadable(key) == []
