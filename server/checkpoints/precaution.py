"""Checkpoints that are taken without being asked for: before a phase is rolled back, and before what a tenant's policy lists."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from server.checkpoints.archive import Archive
from server.checkpoints.taking import Wanted
from server.repository.batch import merged_places
from server.repository.document_store import offloaded
from server.repository.flows import Head
from server.repository.plan import Asked, Withheld
from server.repository.requests import Answered, Committed, Request, answered
from server.repository.store import Store
from server.statemachine import flow as machine
from server.statemachine.checkpoint import Checkpoint, CheckpointKind, may_want_copy, moves_phase, wanted_copy
from server.statemachine.errors import ConcurrentModification, FlowError, FlowNotFound, KeyUnavailable, StoreUnavailable
from server.statemachine.policy import Policy
from server.statemachine.values import DocumentPlace, Tenant

# So often a copy of the very revision is tried that the commit follows; after that, one of a moment before has to do.
EXACT_ATTEMPTS = 5


class Precaution:
    """Commits, with a checkpoint first where one is wanted. Without a policy that costs a look-up and a look at the changes' types."""

    def __init__(self, store: Store, archive: Archive, policy_of: Callable[[Tenant], Awaitable[Policy]]) -> None:
        self._store, self._archive, self._policy_of = store, archive, policy_of

    async def commit(self, asked: Asked) -> Committed | Answered:
        """What ``Commits.commit`` comes to. Raises as that does; KeyUnavailable, with nothing done, when the checkpoint cannot be taken."""
        if asked.birth is not None or not moves_phase(asked.changes):
            return await self._store.commits.commit(asked)
        policy = await self._policy_of(asked.tenant)
        if not may_want_copy(policy, asked.changes):
            return await self._store.commits.commit(asked)
        try:  # mostly it turns out that none is wanted: only a phase that is complete takes its dependants back
            return await self._store.commits.commit(replace(asked, withheld=lambda event: wanted_copy(policy, event) is not None))
        except Withheld:
            pass
        if asked.request is not None and (found := await answered(self._store.database, asked.tenant, asked.request)):
            return found
        for attempt in range(EXACT_ATTEMPTS + 1):
            last = attempt == EXACT_ATTEMPTS
            exact, taken = await self._secured(policy, asked)
            try:
                done = await self._store.commits.commit(asked if last else exact)
            except StoreUnavailable:
                raise  # nobody knows whether it happened: the copy stays
            except FlowError as error:
                await self._discard(asked, taken)
                if isinstance(error, ConcurrentModification) and not asked.expected and not last:
                    continue
                raise
            if isinstance(done, Answered):
                await self._discard(asked, taken)
            return done
        raise AssertionError("the last attempt returned or raised")

    async def commit_together(self, asked: Sequence[Asked], request: Request | None) -> list[Committed] | Answered:
        """What ``Commits.commit_together`` comes to, as ``commit``."""
        commits, tenant = self._store.commits, asked[0].tenant
        if not any(moves_phase(one.changes) for one in asked):
            return await commits.commit_together(asked, request)
        policy = await self._policy_of(tenant)
        if not any(may_want_copy(policy, one.changes) for one in asked):
            return await commits.commit_together(asked, request)
        if request is not None and (found := await answered(self._store.database, tenant, request)):
            return found
        for attempt in range(EXACT_ATTEMPTS + 1):
            last = attempt == EXACT_ATTEMPTS
            exact: list[Asked] = []
            taken: list[Checkpoint] = []
            try:
                for one in asked:
                    guarded, copies = await self._secured(policy, one) if may_want_copy(policy, one.changes) else (one, [])
                    exact.append(guarded)
                    taken += copies
                done = await commits.commit_together(asked if last else exact, request)
            except StoreUnavailable:
                raise
            except FlowError as error:
                await self._discard(asked[0], taken)
                at = int(error.metadata.get("commit_index", 0))
                if isinstance(error, ConcurrentModification) and not asked[at].expected and not last:
                    continue
                raise
            if isinstance(done, Answered):
                await self._discard(asked[0], taken)
            return done
        raise AssertionError("the last attempt returned or raised")

    async def _secured(self, policy: Policy, asked: Asked) -> tuple[Asked, list[Checkpoint]]:
        """The commit, bound to the revision that was looked at, and the checkpoint of that if one is wanted.

        What the rules refuse is left to the commit to refuse.
        """
        if not merged_places(asked.changes):  # then the head alone tells whether the documents have to be read
            head = await self._store.flows.head(asked.key)
            if head is None or await self._wanted(policy, asked, head, {}) is None:
                return _bound(asked, head), []
        try:
            record = (await self._store.flows.records(asked.tenant, [asked.flow_id]))[0]
        except FlowNotFound:
            return asked, []
        wanted = await self._wanted(policy, asked, record.head, record.documents)
        if wanted is None:
            return _bound(asked, record.head), []
        try:
            taken = await self._archive.taking.take(record, wanted)
        except KeyUnavailable as error:
            error.args = (f"nothing was changed, since the checkpoint before it cannot be taken: {error}",)
            raise
        assert isinstance(taken, Checkpoint)  # without a reply there is no answer
        return _bound(asked, record.head), [taken]

    async def _wanted(self, policy: Policy, asked: Asked, head: Head, stored: Mapping[DocumentPlace, bytes]) -> Wanted | None:
        if asked.expected and asked.expected != head.flow.revision:
            return None
        try:
            size = sum(map(len, stored.values()))
            outcome = await offloaded(size, lambda: machine.apply(head.flow, asked.changes, asked.occasion, stored))
        except FlowError:
            return None
        found = wanted_copy(policy, outcome.event)
        if found is None:
            return None
        kind, moved = found
        reason = f"before phase {moved.after.name} went from {moved.before.state.name} to {moved.after.state.name}"
        return Wanted(kind, asked.occasion.actor, reason, expires=policy.auto_checkpoint_ttl if kind is CheckpointKind.AUTO else None)

    async def _discard(self, asked: Asked, taken: Iterable[Checkpoint]) -> None:
        """Remove copies before what did not happen."""
        if found := [one.checkpoint_id for one in taken]:
            await self._archive.remove(asked.tenant, found, asked.occasion.now)


def _bound(asked: Asked, head: Head | None) -> Asked:
    return asked if asked.expected or head is None else replace(asked, expected=head.flow.revision)
