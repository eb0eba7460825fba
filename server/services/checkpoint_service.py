"""CheckpointService, but for its streams: each method is a paragraph. What it does, writes and fails with stands in the contract."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from uuid import UUID

from flowledger.v1 import checkpoint_service_pb2 as pb

from server.checkpoints.archive import Archive
from server.checkpoints.opening import Copy, Opened
from server.checkpoints.restoring import Rehearsed, Restored, Restoring
from server.checkpoints.taking import Wanted
from server.operations import compared, side
from server.repository.checkpoint_removal import Release
from server.repository.checkpoint_statements import Narrowed
from server.repository.id_pages import LAST_ID
from server.repository.requests import Answered, Committed, Request
from server.repository.store import Store
from server.services import flow_diff, flow_messages, page_token
from server.services.answers import event_of
from server.services.caller import Caller
from server.services.checkpoint_alarm import CheckpointAlarm
from server.services.checkpoint_messages import check_expiry, expiry, message
from server.services.fields import Fields
from server.services.flow_service import Sources
from server.services.replies import first_answer, payload_hash, reply_of
from server.statemachine import document
from server.statemachine.checkpoint import Checkpoint, CheckpointKind, expiry_time
from server.statemachine.diff import Side
from server.statemachine.errors import CheckpointNotFound, CheckpointPinned, ConcurrentModification, EtagChanged, StoreUnavailable
from server.statemachine.flow import Occasion
from server.statemachine.values import Tenant

PAGE, PAGE_MOST = 50, 500
PRUNED = 1000
KEPT_NEWEST = 10_000
ATTEMPTS = 10


class CheckpointService:
    """Takes encrypted copies of flows and brings them back."""

    def __init__(
        self, store: Store, archive: Archive, alarm: CheckpointAlarm, sources: Sources, limits: document.Limits, token_key: bytes
    ) -> None:
        self._store, self._archive, self._alarm = store, archive, alarm
        self._sources, self._limits, self._token_key = sources, limits, token_key

    async def CreateCheckpoint(self, request: pb.CreateCheckpointRequest, caller: Caller) -> pb.CreateCheckpointResponse | bytes:
        """The new checkpoint."""
        fields, now = Fields(self._limits), self._sources.now()
        flow_id = fields.uuid("flow_id", request.flow_id)
        expected = fields.revision("expected_revision", request.expected_revision)
        fields.optional_uuid("request_id", request.request_id)
        wanted = Wanted(
            CheckpointKind.MANUAL,
            caller.user,
            fields.text("reason", request.reason),
            fields.labels("labels", request.labels),
            request.pinned,
            expiry(fields, "", request),
        )
        fields.check()
        if (found := await first_answer(self._store.database, caller.tenant, request)) is not None:
            return found
        check_expiry("", wanted.expires, now)
        record = (await self._store.flows.records(caller.tenant, [flow_id]))[0]
        if expected and expected != record.head.flow.revision:
            raise ConcurrentModification(expected, record.head.flow.revision)

        def answer(checkpoint: Checkpoint) -> pb.CreateCheckpointResponse:
            return pb.CreateCheckpointResponse(checkpoint=message(checkpoint))

        taken = await self._archive.taking.take(record, wanted, reply=lambda one: reply_of(request, answer(one)))
        return taken.answer if isinstance(taken, Answered) else answer(taken)

    async def GetCheckpoint(self, request: pb.GetCheckpointRequest, caller: Caller) -> pb.GetCheckpointResponse:
        """What is told of the checkpoint."""
        fields = Fields(self._limits)
        checkpoint_id = fields.uuid("checkpoint_id", request.checkpoint_id)
        fields.check()
        return pb.GetCheckpointResponse(checkpoint=message(await self._archive.checkpoints.get(caller.tenant, checkpoint_id)))

    async def ListCheckpoints(self, request: pb.ListCheckpointsRequest, caller: Caller) -> pb.ListCheckpointsResponse:
        """One page of checkpoints."""
        fields = Fields(self._limits)
        narrowed = Narrowed(
            fields.optional_uuid("flow_id", request.flow_id),
            _kind(fields, request.kind),
            fields.labels("labels", request.labels),
            request.pinned_only,
        )
        size = fields.page_size(request.page_size, PAGE, PAGE_MOST)
        fields.check()
        asked = pb.ListCheckpointsRequest()
        asked.CopyFrom(request)
        asked.ClearField("page_size")
        asked.ClearField("page_token")
        query, purpose, owner = asked.SerializeToString(deterministic=True), "ListCheckpoints", page_token.owner(caller.tenant)
        before = LAST_ID
        if request.page_token:
            before = UUID(bytes=page_token.open(self._token_key, purpose, owner, query, request.page_token))
        found = await self._archive.checkpoints.page(caller.tenant, narrowed, before, size + 1)
        page = found[:size]
        token = page_token.seal(self._token_key, purpose, owner, query, page[-1].checkpoint_id.bytes) if len(found) > size else ""
        return pb.ListCheckpointsResponse(checkpoints=[message(one) for one in page], next_page_token=token)

    async def RestoreCheckpoint(self, request: pb.RestoreCheckpointRequest, caller: Caller) -> pb.RestoreCheckpointResponse | bytes:
        """The flow, brought back."""
        fields = Fields(self._limits)
        checkpoint_id = fields.uuid("checkpoint_id", request.checkpoint_id)
        reason = fields.text("reason", request.reason)
        expected = fields.revision("expected_revision", request.expected_revision)
        fields.optional_uuid("request_id", request.request_id)
        fields.check()
        answers, request_id = self._archive.answers, UUID(request.request_id) if request.request_id else None
        if not request.validate_only and (found := await first_answer(self._store.database, caller.tenant, request)) is not None:
            assert request_id is not None  # that is what was answered
            return await answers.opened(caller.tenant, request_id, found)
        opened, copy = await self._opened(caller.tenant, checkpoint_id)
        occasion = Occasion(caller.user, self._sources.now(), self._sources.new_id, self._limits)
        restoring = Restoring(self._store, self._archive, opened, copy, occasion, reason, expected)
        if request.validate_only:
            return _restored(await restoring.rehearse())

        seal = None if request_id is None else await answers.sealing(caller.tenant, request_id)

        def remembered(restored: Callable[[Committed], Restored]) -> Request | None:
            if request_id is None or seal is None:
                return None
            return Request(request_id, payload_hash(request), lambda results: seal(_restored(restored(results[0])).SerializeToString()))

        done = await restoring.run(remembered)
        if isinstance(done, Answered):
            assert request_id is not None
            return await answers.opened(caller.tenant, request_id, done.answer)
        return _restored(done)

    async def DiffCheckpoints(self, request: pb.DiffCheckpointsRequest, caller: Caller) -> pb.DiffCheckpointsResponse:
        """What differs."""
        fields = Fields(self._limits)
        one = fields.uuid("from_checkpoint_id", request.from_checkpoint_id)
        other = fields.optional_uuid("to_checkpoint_id", request.to_checkpoint_id)
        fields.check()
        opened, before = await self._opened(caller.tenant, one)
        if other is None:
            after = side((await self._store.flows.records(caller.tenant, [opened.checkpoint.flow_id]))[0])
        else:
            _, copy = await self._opened(caller.tenant, other)
            after = Side(copy.flow, copy.documents)
        return pb.DiffCheckpointsResponse(diff=flow_diff.message(await compared(Side(before.flow, before.documents), after)))

    async def UpdateCheckpoint(self, request: pb.UpdateCheckpointRequest, caller: Caller) -> pb.UpdateCheckpointResponse | bytes:
        """The checkpoint with what its owner changed."""
        fields, now = Fields(self._limits), self._sources.now()
        checkpoint_id = fields.uuid("checkpoint_id", request.checkpoint_id)
        fields.optional_uuid("request_id", request.request_id)
        etag = fields.revision("etag", request.etag)
        labels = fields.labels("labels", request.labels)
        if labels and not request.replace_labels:
            fields.wrong("labels", "need replace_labels: they are replaced as a whole")
        expires = expiry(fields, "", request)
        if request.never_expires and (request.HasField("expire_time") or request.HasField("ttl")):
            fields.wrong("never_expires", "does not go with expire_time or ttl")
        fields.check()
        if (found := await first_answer(self._store.database, caller.tenant, request)) is not None:
            return found
        check_expiry("", expires, now)
        for _ in range(ATTEMPTS):
            known = await self._archive.checkpoints.get(caller.tenant, checkpoint_id)
            if etag and etag != known.etag:
                raise EtagChanged(f"checkpoint {checkpoint_id}", etag, known.etag)
            changed = replace(
                known,
                etag=known.etag + 1,
                pinned=request.pinned if request.HasField("pinned") else known.pinned,
                expire_time=None if request.never_expires else expiry_time(expires, now) or known.expire_time,
                labels=labels if request.replace_labels else known.labels,
            )
            response = pb.UpdateCheckpointResponse(checkpoint=message(changed))
            if await self._archive.checkpoints.change(caller.tenant, known, changed, now, reply_of(request, response)):
                return response
            if (found := await first_answer(self._store.database, caller.tenant, request)) is not None:
                return found
        raise StoreUnavailable(f"others changed this checkpoint in each of {ATTEMPTS} attempts: retry in a moment")

    async def DeleteCheckpoint(self, request: pb.DeleteCheckpointRequest, caller: Caller) -> pb.DeleteCheckpointResponse | bytes:
        """How much is free without the checkpoint."""
        fields = Fields(self._limits)
        checkpoint_id = fields.uuid("checkpoint_id", request.checkpoint_id)
        fields.optional_uuid("request_id", request.request_id)
        fields.check()
        if (found := await first_answer(self._store.database, caller.tenant, request)) is not None:
            return found

        def answer(released: Release) -> pb.DeleteCheckpointResponse:
            return pb.DeleteCheckpointResponse(freed_bytes=released.stored)

        done = await self._archive.remove(
            caller.tenant,
            [checkpoint_id],
            self._sources.now(),
            reply=lambda count, released: reply_of(request, answer(released)) if count else None,
        )
        if done is not None and done[0]:
            return answer(done[1])
        if (found := await first_answer(self._store.database, caller.tenant, request)) is not None:
            return found
        if (await self._archive.checkpoints.get(caller.tenant, checkpoint_id)).pinned:
            raise CheckpointPinned(checkpoint_id)
        raise CheckpointNotFound(checkpoint_id)  # somebody else removed it, or unpinned it, at this moment

    async def PruneCheckpoints(self, request: pb.PruneCheckpointsRequest, caller: Caller) -> pb.PruneCheckpointsResponse | bytes:
        """How many checkpoints were removed."""
        fields, now = Fields(self._limits), self._sources.now()
        narrowed = Narrowed(
            fields.optional_uuid("flow_id", request.flow_id),
            _kind(fields, request.kind),
            created_before=fields.time("create_time_before", request.create_time_before)
            if request.HasField("create_time_before")
            else None,
            expired_at=now if request.expired_only else None,
        )
        fields.optional_uuid("request_id", request.request_id)
        if not 0 <= request.keep_newest <= KEPT_NEWEST:
            fields.wrong("keep_newest", f"is {request.keep_newest}, it must be from 0 to {KEPT_NEWEST}")
        elif not any(narrowed.given) and not request.keep_newest:
            fields.wrong("flow_id", "is required, or a condition: kind, create_time_before, keep_newest or expired_only")
        fields.check()
        if not request.validate_only and (found := await first_answer(self._store.database, caller.tenant, request)) is not None:
            return found
        meant = await self._archive.removal.prunable(caller.tenant, narrowed, request.keep_newest, PRUNED + 1)
        removed, more = meant[:PRUNED], len(meant) > PRUNED

        def answer(count: int, released: Release) -> pb.PruneCheckpointsResponse:
            return pb.PruneCheckpointsResponse(pruned_count=count, freed_bytes=released.stored, more=more)

        if request.validate_only:
            return answer(len(removed), await self._archive.removal.release(caller.tenant, removed))
        done = await self._archive.remove(
            caller.tenant, removed, now, narrowed, lambda count, released: reply_of(request, answer(count, released))
        )
        if done is None:
            found = await first_answer(self._store.database, caller.tenant, request)
            assert found is not None  # that is what was in the way
            return found
        return answer(*done)

    async def _opened(self, tenant: Tenant, checkpoint_id: UUID) -> tuple[Opened, Copy]:
        async with self._alarm.watching(tenant):
            opened = await self._archive.opening.header(tenant, checkpoint_id)
            return opened, await self._archive.opening.copy(opened)


def _restored(done: Restored | Rehearsed) -> pb.RestoreCheckpointResponse:
    committed = done.committed
    return pb.RestoreCheckpointResponse(
        flow=flow_messages.basic(committed.flow),
        event=event_of(committed),
        diff=flow_diff.message(done.diff),
        pre_recovery=message(done.before) if isinstance(done, Restored) else None,
    )


def _kind(fields: Fields, number: int) -> CheckpointKind | None:
    return None if number == 0 else fields.member("kind", number, CheckpointKind)
