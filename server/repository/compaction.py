"""Taking away history that a policy does not keep: one flow at a time, in steps, each of which happens as a whole or not at all.

What stays of the time before the horizon are single revisions: bases with whole versions of their documents, signed. The one at the
horizon stands for all events that went, so that the audit chain can be followed from there. Nothing goes of a flow whose chain does not
hold: what somebody tampered with must not get our signature, and is evidence.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import field
from datetime import datetime
from itertools import pairwise
from uuid import UUID

from server.repository import codec
from server.repository import compaction_statements as sql
from server.repository.audit import Audit
from server.repository.chain import Anchor, Signs
from server.repository.database import Database, Transaction
from server.repository.document_store import packed
from server.repository.history import History
from server.repository.history_tables import VersionKind
from server.repository.id_pages import ids
from server.repository.statement import given_values, of_tenant
from server.statemachine.audit import AuditBreak, BreakKind
from server.statemachine.derivation import flow_status
from server.statemachine.document import sha256
from server.statemachine.errors import FlowError, FlowNotFound, HistoryDamaged, RevisionCompacted, StoreUnavailable
from server.statemachine.history import Base
from server.statemachine.policy import Policy
from server.statemachine.retention import UNWELL, Lived, Retention, retention
from server.statemachine.value import dataclass
from server.statemachine.values import DocumentPlace, FlowKey, Tenant

# So many events go in one step, and so many single revisions before the horizon are made in one: a step is one transaction.
STEP_EVENTS, STEP_SINGLE = 5000, 8
PAGE = 500
_ATTEMPTS = 10

_VersionRow = tuple[str, str, int, int]


@dataclass(frozen=True, slots=True)
class Removed:
    """What went of a flow; ``broken`` says why nothing more of it may go."""

    events: int = 0
    versions: int = 0
    bytes: int = 0
    broken: AuditBreak | None = None

    def __add__(self, other: Removed) -> Removed:
        return Removed(self.events + other.events, self.versions + other.versions, self.bytes + other.bytes, other.broken or self.broken)


@dataclass(frozen=True, slots=True)
class _Survey:
    """A flow's history as it was when it was looked at."""

    retention: Retention | None
    oldest: int
    bases: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Step:
    """What one transaction does: what it relies on, what it makes, and what it takes away."""

    oldest: int
    horizon: int
    bases: tuple[tuple[int, bytes, bytes, bytes], ...]
    bases_gone: tuple[int, ...]
    versions: tuple[_VersionRow, ...]
    versions_gone: tuple[_VersionRow, ...]
    whole: tuple[tuple[str, str, int, bytes], ...] = field(repr=False)


class _Undone(Exception):
    """Carries what would have gone out of a transaction that is rolled back."""

    def __init__(self, removed: Removed) -> None:
        super().__init__()
        self.removed = removed


def lock_of(key: FlowKey) -> int:
    """The number of the lock that whoever takes away from a flow's history, or stores it in another form, must have."""
    return int.from_bytes(hashlib.sha256(b"history" + key).digest()[:8], "big", signed=True)


class Compaction:
    """Takes away what a policy does not keep."""

    def __init__(self, database: Database, history: History, audit: Audit, sign: Signs) -> None:
        self._database, self._history, self._audit, self._sign = database, history, audit, sign

    async def candidates(self, tenant: Tenant, policy: Policy, least: int) -> AsyncIterator[UUID]:
        """The tenant's flows of which ``least`` revisions at least are beyond the number that stays in any case."""
        if not policy.keep_revisions:
            return
        async for flow_id in ids(self._database, tenant, sql.CANDIDATES, {"keep": policy.keep_revisions, "least": least}, PAGE):
            yield flow_id

    async def compacted(
        self, tenant: Tenant, policy: Policy, least: int, now: Callable[[], datetime], *, rehearse: bool = False
    ) -> AsyncIterator[Removed]:
        """What went, or would go, of each of the tenant's ``candidates``."""
        async for flow_id in self.candidates(tenant, policy, least):
            try:
                removed = await self.compact(FlowKey(tenant, flow_id), policy, now(), rehearse=rehearse)
            except FlowNotFound:
                continue  # erased in the moment since it was listed
            yield removed

    async def compact(self, key: FlowKey, policy: Policy, now: datetime, *, rehearse: bool = False) -> Removed:
        """What went of the flow, or with ``rehearse`` what would go. Raises FlowNotFound."""
        removed = Removed()
        while True:
            done = await self._compact(key, policy, now, rehearse)
            removed += done or Removed()
            if done is None or done.broken is not None or rehearse:
                return removed

    async def _compact(self, key: FlowKey, policy: Policy, now: datetime, rehearse: bool) -> Removed | None:
        """What went in one step; None when nothing is to go any more."""
        before = 0
        for _ in range(_ATTEMPTS):
            try:
                survey = await self._survey(key, policy, now)
                wanted = survey.retention
                if wanted is None or wanted.horizon < 1 or (wanted.horizon < survey.oldest and not _superfluous(survey, wanted)):
                    return None
                first = wanted if rehearse else _next(survey, wanted)
                audited = await self._audit.follow(key, first.horizon, first.kept | {first.horizon})
                if audited.broken is not None:
                    return Removed(broken=audited.broken)
                step = await self._step(key, survey, first, audited.noted)
            except HistoryDamaged as damaged:
                return Removed(broken=_damage(key, damaged))
            except RevisionCompacted as gone:
                if before == survey.oldest:  # nobody took it away meanwhile
                    return Removed(broken=_damage(key, gone))
                before = survey.oldest
                continue
            removed = await self._carry_out(key, step, rehearse)
            if removed is not None:
                return removed
        raise StoreUnavailable(f"others changed this flow's history in each of {_ATTEMPTS} attempts: retry in a moment")

    async def _survey(self, key: FlowKey, policy: Policy, now: datetime) -> _Survey:
        values = {**_of_flow(key), "limit": now - policy.keep_duration}
        rows = await self._database.read([key.tenant], sql.SURVEY, values)
        if not rows:
            raise FlowNotFound(key.flow_id)
        head, oldest, young, good, ended, end_time, pinned, stored = rows[0]
        if oldest is None:  # what has lost all its events is not to lose more
            return _Survey(None, head + 1, ())
        bases = tuple(sorted(revision for revision, _ in stored))
        for revision in sorted((revision for revision in bases if revision < oldest), reverse=True):
            if good is not None and (ended is not None or end_time is None):
                break
            flow = (await self._history.base(key, revision)).flow
            good = revision if good is None and flow_status(flow) not in UNWELL else good
            ended = revision if ended is None and flow.end_time == end_time == flow.update_time else ended
        lived = Lived(head, oldest, young if policy.keep_duration else None, good, ended, frozenset(pinned))
        return _Survey(retention(policy, lived), oldest, bases)

    async def _step(self, key: FlowKey, survey: _Survey, wanted: Retention, hashes: Mapping[int, bytes]) -> _Step:
        """What to do. Raises HistoryDamaged and RevisionCompacted."""
        staying: dict[int, Base] = {}
        for revision in sorted({*wanted.kept, wanted.horizon}):
            if revision in survey.bases or revision >= survey.oldest:  # a pin that came too late keeps nothing
                base = staying[revision] = await self._history.base(key, revision)
                if base.hash != hashes.get(revision, base.hash):
                    raise HistoryDamaged(revision)
        values = {**_of_flow(key), "horizon": wanted.horizon}
        versions: tuple[_VersionRow, ...] = tuple(
            (name, child_type, revision, kind)
            for name, child_type, revision, kind in await self._database.read([key.tenant], sql.VERSIONS, values)
        )
        needed = {(place, version.revision): version for base in staying.values() for place, version in base.kept.versions.items()}
        gone = {row for row in versions if (DocumentPlace(row[0], row[1]), row[2]) not in needed}
        whole = []
        for name, child_type, revision, _ in _orphaned(versions, gone):
            place = DocumentPlace(name, child_type)
            text = (await self._history.documents(key, {place: needed[place, revision]}))[place]
            whole.append((name, child_type, revision, await packed(text)))
        made = [(revision, base) for revision, base in staying.items() if revision >= survey.oldest or revision == wanted.horizon]
        for _, base in made:
            await self._history.documents(key, base.kept.versions)  # what is said to stay can be rebuilt, or nothing goes
        return _Step(
            survey.oldest,
            wanted.horizon,
            tuple([await self._signed(key, revision, base) for revision, base in made]),
            tuple(revision for revision in survey.bases if revision < wanted.horizon and revision not in staying),
            versions,
            tuple(sorted(gone)),
            tuple(whole),
        )

    async def _signed(self, key: FlowKey, revision: int, base: Base) -> tuple[int, bytes, bytes, bytes]:
        body = await packed(codec.base_to_bytes(base))
        anchor = Anchor(revision, base.hash, None, await asyncio.to_thread(sha256, body))
        return revision, base.hash, body, anchor.signed(key, self._sign)

    async def _carry_out(self, key: FlowKey, step: _Step, rehearse: bool) -> Removed | None:
        """What went; None when the history is not any more what the step relies on."""
        try:
            async with self._database.begin([key.tenant]) as transaction:
                await transaction.rows(sql.LOCK, {"lock": lock_of(key)})
                removed = await self._write(transaction, key, step)
                if rehearse and removed is not None:
                    raise _Undone(removed)
        except _Undone as undone:
            return undone.removed
        return removed

    async def _write(self, transaction: Transaction, key: FlowKey, step: _Step) -> Removed | None:
        flow = _of_flow(key)
        # Asked one after the other: what others did while the lock was waited for is seen by what is sent after it.
        stands = await transaction.rows(sql.STANDS, flow)
        oldest = (await transaction.rows(sql.OLDEST, flow))[0][0]
        versions = await transaction.rows(sql.VERSIONS, {**flow, "horizon": step.horizon})
        if not stands or oldest != step.oldest or tuple(map(tuple, versions)) != step.versions:
            return None
        added = 0
        if step.bases:
            added += (await transaction.rows(sql.PUT_BASES, {**flow, **given_values("put", sql.BASES, step.bases)}))[0][0]
        if step.whole:
            added += (await transaction.rows(sql.MAKE_WHOLE, {**flow, **given_values("put", sql.WHOLE, step.whole)}))[0][0]
        gone = (0, 0)
        if step.versions_gone:
            values = given_values("gone", sql.NAMED, [row[:3] for row in step.versions_gone])
            gone = (await transaction.rows(sql.REMOVE_VERSIONS, {**flow, **values}))[0]
        freed = (await transaction.rows(sql.REMOVE_BASES, {**flow, "revisions": list(step.bases_gone)}))[0][1]
        events = (await transaction.rows(sql.REMOVE_EVENTS, {**flow, "horizon": step.horizon}))[0]
        return Removed(events[0], gone[0], max(0, events[1] + gone[1] + freed - added))


def _superfluous(survey: _Survey, wanted: Retention) -> bool:
    """Whether single revisions are there that need not stay any more."""
    return any(revision < wanted.horizon and revision not in wanted.kept for revision in survey.bases)


def _damage(key: FlowKey, error: FlowError) -> AuditBreak:
    return AuditBreak(key.flow_id, int(error.metadata.get("revision") or error.metadata["asked_revision"]), BreakKind.BASE, f"{error}")


def _orphaned(versions: Sequence[_VersionRow], gone: set[_VersionRow]) -> Iterator[_VersionRow]:
    """Versions that stay and are made of one that goes: they stand by themselves from now on."""
    for row, following in pairwise(versions):
        if row not in gone and row[3] == VersionKind.DELTA.value and following in gone and row[:2] == following[:2]:
            yield row


def _next(survey: _Survey, wanted: Retention) -> Retention:
    """As much of it as one step does."""
    horizon = min(wanted.horizon, survey.oldest - 1 + STEP_EVENTS)
    new = sorted(revision for revision in wanted.kept if survey.oldest <= revision < horizon)
    if len(new) > STEP_SINGLE:
        horizon = new[STEP_SINGLE]
    return Retention(horizon, frozenset(revision for revision in wanted.kept if revision < horizon))


def _of_flow(key: FlowKey) -> dict[str, object]:
    return {**of_tenant(key.tenant), "flow_id": key.flow_id}
