"""Bringing a flow back to what a checkpoint holds."""

from __future__ import annotations

from collections.abc import Callable

from server.checkpoints.archive import Archive
from server.checkpoints.opening import Copy, Opened
from server.checkpoints.taking import Wanted
from server.operations import compared, replace_content, side
from server.repository.batch import Step
from server.repository.document_store import offloaded
from server.repository.flows import Record
from server.repository.requests import Answered, Committed, Request
from server.repository.store import Store
from server.statemachine import flow as machine
from server.statemachine.change import ReplaceContent
from server.statemachine.checkpoint import Checkpoint, CheckpointKind
from server.statemachine.diff import FlowDiff, Side
from server.statemachine.errors import ConcurrentModification, FlowError, StoreUnavailable
from server.statemachine.event import Cause
from server.statemachine.flow import Occasion
from server.statemachine.replacement import replacement
from server.statemachine.value import dataclass
from server.statemachine.values import FlowKey


@dataclass(frozen=True, slots=True)
class Restored:
    """A flow that was brought back: the commit, what it changed, and the copy of what was there before."""

    committed: Committed
    diff: FlowDiff
    before: Checkpoint


@dataclass(frozen=True, slots=True)
class Rehearsed:
    """What bringing a flow back would come to."""

    committed: Committed
    diff: FlowDiff


class Restoring:
    """One restore: ``opened`` is what is brought back, ``copy`` what it holds."""

    def __init__(self, store: Store, archive: Archive, opened: Opened, copy: Copy, occasion: Occasion, reason: str, expected: int) -> None:
        """``expected`` 0 means whatever revision is current."""
        self._store, self._archive = store, archive
        self._opened, self._copy, self._occasion, self._reason, self._expected = opened, copy, occasion, reason, expected
        self._key = FlowKey(opened.tenant, opened.checkpoint.flow_id)
        self._diff: FlowDiff | None = None
        self._taken: Checkpoint | None = None

    async def rehearse(self) -> Rehearsed:
        """What it would come to, with nothing written. Raises FlowNotFound, ConcurrentModification and what the rules raise."""
        return await self._compared((await self._store.flows.records(self._key.tenant, [self._key.flow_id]))[0])

    async def run(self, request: Callable[[Callable[[Committed], Restored]], Request | None]) -> Restored | Answered:
        """The flow, brought back; or the answer that the same request was given before.

        ``request`` makes the request to be remembered, of what makes a result of the commit. Raises as ``rehearse``, KeyUnavailable.
        """
        try:
            done = await replace_content(
                self._store,
                self._key,
                self._occasion,
                self._expected,
                self._prepared,
                lambda _: request(self._restored),
                self._secure,
            )
        except StoreUnavailable:
            raise  # nobody knows whether it happened: the copy stays
        except FlowError:
            await self._discard()
            raise
        if isinstance(done, Answered):
            await self._discard()
            return done
        return self._restored(done.committed)

    def _prepared(self, before: Record) -> ReplaceContent:
        checkpoint = self._opened.checkpoint
        return replacement(
            self._copy.content,
            before.documents,
            Cause.RESTORE,
            self._reason,
            source_revision=checkpoint.revision,
            source_checkpoint_id=checkpoint.checkpoint_id,
        )

    async def _secure(self, before: Record) -> None:
        """Copy what is about to be replaced, once it is certain that the rules allow it."""
        await self._discard()  # of an attempt that somebody else was quicker than
        self._diff = (await self._compared(before)).diff
        reason = f"before checkpoint {self._opened.checkpoint.checkpoint_id} was restored"
        taken = await self._archive.taking.take(before, Wanted(CheckpointKind.PRE_RECOVERY, self._occasion.actor, reason))
        assert isinstance(taken, Checkpoint)  # without a reply there is no answer
        self._taken = taken

    async def _compared(self, before: Record) -> Rehearsed:
        flow, change = before.head.flow, self._prepared(before)
        if self._expected and self._expected != flow.revision:
            raise ConcurrentModification(self._expected, flow.revision)
        size = sum(map(len, self._copy.documents.values()))
        outcome = await offloaded(size, lambda: machine.apply(flow, (change,), self._occasion, {}))
        difference = await compared(side(before), Side(outcome.flow, self._copy.documents))
        return Rehearsed(Step.after(self._key, before.head, outcome).committed, difference)

    async def _discard(self) -> None:
        if self._taken is not None:
            await self._archive.remove(self._key.tenant, [self._taken.checkpoint_id], self._occasion.now)
            self._taken = None

    def _restored(self, committed: Committed) -> Restored:
        assert self._diff is not None
        assert self._taken is not None
        return Restored(committed, self._diff, self._taken)
