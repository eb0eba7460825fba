"""The way in: commits that arrive while others are on their way to disk are collected and sent together.

One statement carries the commits of many flows, each flow guarded by itself. Several commits of one flow are applied in the order in
which they came. No timer holds a commit back: a batch is whatever arrived while the last one was out and over the few turns of the
event loop after it (gathering.py).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from typing import Any

import asyncpg

from server.cache import Heads, Texts
from server.repository import requests
from server.repository.batch import batch_of, document_bytes
from server.repository.commit_statement import Stored, creating, outcome, updating
from server.repository.database import COLLISIONS, Database, Line, Row
from server.repository.flows import Flows, Head
from server.repository.gathered import tenants_of
from server.repository.gathering import Crowd
from server.repository.plan import (
    Asked,
    Plan,
    Waiting,
    Withheld,
    applied,
    batch_of_plans,
    birth_plan,
    born,
    keys_of,
    lockable,
    merges,
    request_row,
    unknown,
)
from server.repository.requests import Answered, Committed, Request
from server.statemachine.errors import Draining, FlowError, FlowExists, FlowNotFound, StoreUnavailable
from server.statemachine.values import DocumentPlace, FlowKey, Tenant

ATTEMPTS = 10
# After so many turns of the event loop a statement is out: uvloop writes at the end of the turn in which it was told to.
TURNS_TO_SEND = 2
# One batch holds at most this many commits, and documents of about this size: a large one would make the small ones wait.
BATCH_COMMITS = 128
BATCH_BYTES = 1024 * 1024
# A batch that has been out for so long does not hold up what has come since.
SLOW_SECONDS = 0.02
# From this attempt on a flow's row is locked before it is read, so that nobody can be first again.
LOCKED_ATTEMPT = 3
# Later than every revision: whoever keeps anything of an erased flow takes it for behind. Hints have 64 bits for a revision, with a sign.
ERASED_REVISION = 2**63 - 1
# Beyond this many waiting commits the caller is told to come back rather than left to wait for its deadline.
WAITING_COMMITS = 20_000


class Commits:
    """Collects commits and stores them."""

    def __init__(
        self, database: Database, flows: Flows, heads: Heads, texts: Texts, ring: Callable[[FlowKey, int], None], lanes: int
    ) -> None:
        """``ring`` is told of every flow that moved; ``lanes`` transactions at most are out at a time."""
        self._database, self._flows, self._heads, self._texts, self._ring = database, flows, heads, texts, ring
        self._waiting: deque[Waiting] = deque()
        self._busy: set[object] = set()  # flows and request ids that are on their way to disk
        self._idle = [database.line() for _ in range(lanes)]
        self._out: dict[Line, float] = {}  # since when each busy lane's batch has been out
        self._spare: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()  # the loop itself holds tasks only weakly
        self._crowd = Crowd()
        self._closed = False
        # How many commits were stored, and how many statements carried them.
        self.stored = self.batches = 0

    async def commit(self, asked: Asked) -> Committed | Answered:
        """The flow once the changes are on disk, or the answer that the same request was given before.

        Raises whatever the changes' rules raise; FlowNotFound, FlowExists, ConcurrentModification, RequestIdReused, StoreUnavailable.
        """
        if self._closed:
            raise Draining("the server is stopping: send this to another, or again in a moment")
        if len(self._waiting) >= WAITING_COMMITS:
            raise StoreUnavailable(f"{WAITING_COMMITS} commits are waiting already: retry in a moment")
        waiting = Waiting(asked, document_bytes(asked.changes), asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        if not self._out:
            self._open_lane()
        elif self._spare is None and self._idle:
            self._spare = asyncio.get_running_loop().call_later(SLOW_SECONDS, self._relieve)
        self._crowd.come()
        try:
            return await waiting.done
        finally:
            self._crowd.go()

    def _open_lane(self) -> None:
        line = self._idle.pop()
        self._out[line] = asyncio.get_running_loop().time()
        lane = asyncio.create_task(self._lane(line), name="commits")
        self._tasks.add(lane)
        lane.add_done_callback(self._tasks.discard)

    def _relieve(self) -> None:
        """Open another lane when every batch that is out is slow: it may wait for a lock that the others do not need.

        One lane is the rule, since two halve the batches and so nearly double the cost of a commit.
        """
        self._spare = None
        now = asyncio.get_running_loop().time()
        if self._waiting and self._idle:
            if self._out and now - max(self._out.values()) >= SLOW_SECONDS:
                self._open_lane()
            if self._idle:
                self._spare = asyncio.get_running_loop().call_later(SLOW_SECONDS, self._relieve)

    async def rehearse(self, asked: Asked) -> Committed:
        """What ``commit`` would come to, with nothing written. Raises as ``commit`` does."""
        known = await self._flows.heads([asked.key])
        if asked.birth is not None:
            if asked.key in known:
                raise FlowExists(asked.flow_id)
            return born(asked).committed
        if asked.key not in known:
            raise FlowNotFound(asked.flow_id)
        plan = await self._plan(known[asked.key], [Waiting(asked, 0, asyncio.get_running_loop().create_future())])
        if plan.refused:
            raise plan.refused[0][1]
        return plan.steps[0].committed

    async def commit_together(self, asked: Sequence[Asked], request: Request | None) -> list[Committed] | Answered:
        """All of the commits, of different flows of one tenant, in one transaction, or none of them.

        Raises as ``commit`` does; the error's metadata name the flow and its place in the request.
        """
        tenant = asked[0].tenant
        for _ in range(ATTEMPTS):
            try:
                plans = await self._plan_together(asked)
            except FlowError:
                if found := await self._replayed(tenant, request):
                    return found
                raise
            results = [plan.steps[0].committed for plan in plans]
            await self._complete({one.key: plan for one, plan in zip(asked, plans, strict=True)})
            batch = await batch_of({one.key: plan.moves for one, plan in zip(asked, plans, strict=True)})
            if request is not None:
                batch.requests.append(request_row(0, request, results, asked[0].occasion.now))
            try:
                async with self._database.begin([tenant]) as transaction:
                    statement, values = updating(batch)
                    stored = outcome(batch, await transaction.rows(statement, values))
                    if len(stored.moved) != len(asked):
                        raise _Overtaken
            except (_Overtaken, asyncpg.UniqueViolationError, *COLLISIONS):
                if found := await self._replayed(tenant, request):
                    return found
                continue
            finally:
                # Moved, overtaken or unknown: what was remembered is behind or doubtful in each case.
                for one in asked:
                    self._heads.drop(one.key)
                    self._texts.drop(one.key)
            self.stored, self.batches = self.stored + len(results), self.batches + 1
            for one, done in zip(asked, results, strict=True):
                self._ring(one.key, done.flow.revision)
            return results
        raise StoreUnavailable(f"others changed these flows in each of {ATTEMPTS} attempts: retry in a moment")

    def moved(self, key: FlowKey, revision: int) -> None:
        """The flow was stored at ``revision`` by other means: forget what it was, and tell whoever watches it."""
        self._heads.drop(key)
        self._texts.drop(key)
        self._ring(key, revision)

    def forget(self, keys: Iterable[FlowKey]) -> None:
        """Keep nothing in memory of flows that were erased, and let nobody else."""
        for key in keys:
            self.moved(key, ERASED_REVISION)

    async def close(self, patience: float) -> None:
        """Take no more commits and wait for those under way, at most ``patience`` seconds."""
        self._closed = True
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=patience)
            for lane in late:
                lane.cancel()
        for waiting in self._waiting:
            waiting.fail(Draining("the server is stopping: send this to another, or again in a moment"))

    async def _lane(self, line: Line) -> None:
        try:
            await self._run(line)
        finally:
            # In the same step as the last look at what waits, so that no commit falls in between.
            self._idle.append(line)
            del self._out[line]

    async def _run(self, line: Line) -> None:
        while self._waiting:
            await self._crowd.gathered(self._waiting, BATCH_COMMITS)
            if not (taken := self._take()):
                return
            self._out[line] = asyncio.get_running_loop().time()
            keys = {key for waiting in taken for key in keys_of(waiting)}
            self._busy |= keys
            try:
                await self._store(taken, line)
            except Exception as error:  # noqa: BLE001 - a supervised loop: one faulty batch must not stop the lane
                self._failed(taken, error)  # the boundary of each call logs it
            finally:
                self._busy -= keys
                for waiting in taken:  # a lane that is cancelled leaves nobody waiting
                    waiting.fail(StoreUnavailable("the server stopped before this was known to be stored: retry with the same request_id"))

    def _failed(self, taken: Sequence[Waiting], error: Exception) -> None:
        for waiting in taken:
            self._heads.drop(waiting.asked.key)  # nobody knows whether its commit happened
            waiting.fail(error)

    def _take(self) -> list[Waiting]:
        """What can go out now: no flow and no request id that is out already, and of one flow only in order."""
        taken: list[Waiting] = []
        left: deque[Waiting] = deque()
        blocked: set[object] = set()
        carried: set[object] = set()
        size = 0
        while self._waiting:
            waiting = self._waiting.popleft()
            if waiting.done.done():
                continue
            keys = keys_of(waiting)
            full = len(taken) >= BATCH_COMMITS or (taken and size + waiting.size > BATCH_BYTES)
            alone = waiting.asked.replaces
            if full or not blocked.isdisjoint(keys) or not self._busy.isdisjoint(keys) or (alone and keys[0] in carried):
                left.append(waiting)
                blocked.update(keys)
                continue
            if waiting.asked.request is not None or waiting.asked.birth is not None or alone:
                # The next one must find this one stored.
                blocked.update(keys if alone or waiting.asked.birth is not None else keys[1:])
            carried.add(keys[0])
            taken.append(waiting)
            size += waiting.size
        self._waiting = left
        return taken

    async def _store(self, taken: Sequence[Waiting], line: Line) -> None:
        for attempt in range(ATTEMPTS):
            groups: dict[FlowKey, list[Waiting]] = {}
            for waiting in taken:
                if not waiting.done.done():
                    groups.setdefault(waiting.asked.key, []).append(waiting)
            if not groups:
                return
            locked = {key: group for key, group in groups.items() if attempt >= LOCKED_ATTEMPT and lockable(group)}
            plans = await self._plans({key: group for key, group in groups.items() if key not in locked})
            await self._write({key: plan for key, plan in plans.items() if plan.steps}, line)
            for key, group in locked.items():
                await self._store_locked(key, group)
        for waiting in taken:
            waiting.fail(StoreUnavailable(f"others changed this flow in each of {ATTEMPTS} attempts: retry in a moment"))

    async def _store_locked(self, key: FlowKey, group: list[Waiting]) -> None:
        """Read the flow under its lock and write it in the same transaction: slower, and sure to come through."""
        self._heads.drop(key)
        stored: Stored | None = None
        async with self._database.begin([key.tenant]) as transaction:
            head = await self._flows.lock(transaction, key)
            plan = applied(head, group, {}) if head is not None else unknown(key, group)
            if plan.steps:
                if plan.wants_kept:
                    plan.kept = await self._flows.kept_within(transaction, key)
                batch = await batch_of_plans({key: plan})  # without documents nothing of it waits
                statement, values = updating(batch)
                stored = outcome(batch, await transaction.rows(statement, values))
        if stored is None:
            await self._refuse(plan.refused)
        else:
            await self._settle({key: plan}, stored)

    async def _plans(self, groups: Mapping[FlowKey, list[Waiting]]) -> dict[FlowKey, Plan]:
        """A plan for each flow. What a remembered head refuses is tried again on the database's own before anybody is told so."""
        plans: dict[FlowKey, Plan] = {}
        doubtful: list[FlowKey] = []
        for key, group in groups.items():
            if group[0].asked.birth is not None:
                plans[key] = birth_plan(group[0])
                continue
            head = self._heads.get(key)
            # One that merges documents is read anyway, and then rather as a whole.
            plan = None if head is None or merges(group) else applied(head, group, self._texts.get(key))
            if plan is None or plan.refused:
                doubtful.append(key)
            else:
                plans[key] = plan
        if doubtful:
            read = await asyncio.gather(*(self._flows.head(key) for key in doubtful), return_exceptions=True)
            for key, found in zip(doubtful, read, strict=True):
                try:
                    if isinstance(found, BaseException):
                        raise found
                    plans[key] = await self._plan_certain(key, found, groups[key])
                except Exception as error:  # noqa: BLE001 - one flow that cannot be read, or has no rule for its state, fails alone
                    self._failed(groups[key], error)
        for plan in plans.values():
            if not plan.steps:
                await self._refuse(plan.refused)
        return plans

    async def _plan_certain(self, key: FlowKey, head: Head | None, group: list[Waiting]) -> Plan:
        self._heads.drop(key)  # what was remembered may be of another revision than this one, older or newer
        if head is None:
            return unknown(key, group)
        self._heads.put(key, head)
        return await self._plan(head, group)

    async def _plan(self, head: Head, group: Sequence[Waiting]) -> Plan:
        places = merges(group)
        texts: dict[DocumentPlace, tuple[int, bytes]] = {}
        for place in places:
            text = await self._flows.document(head.flow.tenant, head.flow.flow_id, place)
            if text is not None:
                texts[place] = text
        if places:  # merging parses and writes whole documents
            return await asyncio.to_thread(applied, head, group, texts)
        return applied(head, group, self._texts.get(FlowKey(head.flow.tenant, head.flow.flow_id)))

    async def _plan_together(self, asked: Sequence[Asked]) -> list[Plan]:
        known = await self._flows.heads([one.key for one in asked])
        plans = []
        for at, one in enumerate(asked):
            try:
                if one.key not in known:
                    raise FlowNotFound(one.flow_id)
                plan = await self._plan(known[one.key], [Waiting(one, 0, asyncio.get_running_loop().create_future())])
                if plan.refused:
                    raise plan.refused[0][1]
            except FlowError as error:
                error.metadata.update(flow_id=str(one.flow_id), commit_index=str(at))
                raise
            plans.append(plan)
        return plans

    async def rehearse_together(self, asked: Sequence[Asked]) -> list[Committed]:
        """What ``commit_together`` would come to, with nothing written."""
        return [plan.steps[0].committed for plan in await self._plan_together(asked)]

    async def _write(self, plans: Mapping[FlowKey, Plan], line: Line) -> None:
        born = {key: plan for key, plan in plans.items() if plan.head is None}
        moved = {key: plan for key, plan in plans.items() if plan.head is not None}
        for part in (born, moved):
            if part:
                await self._write_part(part, line)

    async def _complete(self, plans: Mapping[FlowKey, Plan]) -> None:
        """Read what some plans need besides their heads: a base holds the activity that is kept."""
        for key, plan in plans.items():
            if plan.wants_kept:
                # Whatever is read is of the head or newer, and if it is newer, the guard refuses what is built on it.
                plan.kept = await self._flows.kept(key)

    async def _write_part(self, plans: Mapping[FlowKey, Plan], line: Line) -> None:
        await self._complete(plans)
        batch = await batch_of_plans(plans)
        new = next(iter(plans.values())).head is None
        statement, values = creating(batch) if new else updating(batch)
        try:
            stored = outcome(batch, await _sent(line.send(tenants_of(plans), statement, values), plans.values()))
        except COLLISIONS:
            return
        except asyncpg.PostgresError as error:
            await self._write_apart(plans, line, error)
            return
        await self._settle(plans, stored)

    async def _settle(self, plans: Mapping[FlowKey, Plan], stored: Stored) -> None:
        """Tell everybody what became of it. Who is told nothing is tried again."""
        self.batches += 1
        for key, plan in plans.items():
            if key in stored.moved:
                self._arrived(key, plan)
                if plan.refused:
                    await self._refuse(plan.refused)  # only now: what they were refused for has happened
            elif key in stored.answered:
                await self._answer(plan)
            elif plan.head is None:
                await self._refuse([(waiting, FlowExists(key.flow_id)) for waiting in plan.carried])
            else:
                self._heads.drop(key)

    async def _write_apart(self, plans: Mapping[FlowKey, Plan], line: Line, error: asyncpg.PostgresError) -> None:
        """One flow's fault must not be another's: send each by itself; what fails alone is told so."""
        if len(plans) > 1:
            for key, plan in plans.items():
                await self._write_part({key: plan}, line)
            return
        for key, plan in plans.items():
            self._heads.drop(key)
            if plan.head is None and getattr(error, "constraint_name", None) == "events_pkey":  # of a flow that was erased, hashes are left
                await self._refuse([(waiting, FlowExists(key.flow_id)) for waiting in plan.carried])
            elif not isinstance(error, asyncpg.UniqueViolationError):  # that is a twin elsewhere: the next attempt finds its answer
                for waiting in plan.carried:
                    waiting.fail(error)

    def _arrived(self, key: FlowKey, plan: Plan) -> None:
        last = plan.steps[-1]
        self._heads.put(key, Head(last.outcome.flow, last.hash))
        for step in plan.steps:
            for place, text in step.outcome.documents.items():
                self._texts.put(key, place, step.outcome.event.revision, text)
        for at, (waiting, step) in enumerate(zip(plan.carried, plan.steps, strict=True)):
            waiting.succeed(step.told(plan.answers.get(at, b"")))
        self.stored += len(plan.steps)
        self._ring(key, last.outcome.flow.revision)

    async def _answer(self, plan: Plan) -> None:
        for waiting in plan.carried:
            try:
                found = await self._replayed(waiting.asked.tenant, waiting.asked.request)
            except FlowError as reused:  # this caller's fault alone: the batch carries others, of other tenants too
                waiting.fail(reused)
                continue
            if found:
                waiting.succeed(found)

    async def _refuse(self, refused: Iterable[tuple[Waiting, FlowError | Withheld]]) -> None:
        """Tell callers no, unless the same request was told yes before."""
        for waiting, error in refused:
            try:
                found = await self._replayed(waiting.asked.tenant, waiting.asked.request)
            except FlowError as reused:
                waiting.fail(reused)
                continue
            if found:
                waiting.succeed(found)
            else:
                waiting.fail(error)

    async def _replayed(self, tenant: Tenant, request: Request | None) -> Answered | None:
        return None if request is None else await requests.answered(self._database, tenant, request)


async def _sent(send: Coroutine[Any, Any, Sequence[Row]], plans: Iterable[Plan]) -> Sequence[Row]:
    """What the statement returns; while PostgreSQL works, what the callers are told is made."""
    sending = asyncio.create_task(send, name="commit")
    try:
        for _ in range(TURNS_TO_SEND):
            await asyncio.sleep(0)
        for plan in plans:
            _tell(plan)
        return await sending
    except BaseException:
        sending.cancel()
        raise


def _tell(plan: Plan) -> None:
    """Make what callers are told of what the plan comes to, where that is wanted."""
    for at, (waiting, step) in enumerate(zip(plan.carried, plan.steps, strict=True)):
        if at in plan.answers or waiting.asked.answer is None:
            continue
        try:
            plan.answers[at] = waiting.asked.answer([step.committed])
        except Exception:  # noqa: BLE001 - a supervised loop: the call itself makes it once more, and it alone fails
            continue


class _Overtaken(Exception):
    """A flow of a common commit moved meanwhile: roll all of it back."""
