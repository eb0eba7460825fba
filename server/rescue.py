"""Looking at damaged flows and bringing them back: what services, and the command line through them, set going."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Protocol
from uuid import UUID

from server.operations import compared
from server.repository.document_store import offloaded
from server.repository.examiner import Examined, Examiner
from server.repository.recoveries import Overtaken, Recoveries, Recovery
from server.repository.requests import Answered, Reply, Request, answered
from server.repository.store import Store
from server.statemachine import rungs
from server.statemachine.alert import Alert, AlertKind, AlertSeverity
from server.statemachine.diff import FlowDiff, Side
from server.statemachine.document import sha256
from server.statemachine.effects import effect, options
from server.statemachine.errors import ConcurrentModification, HistoryDamaged, NoRecoveryPoint, RevisionCompacted, StoreUnavailable
from server.statemachine.evidence import Evidence, as_stored
from server.statemachine.finding import Finding
from server.statemachine.flow import Occasion
from server.statemachine.history import Version
from server.statemachine.recovered import Recovered, recovered
from server.statemachine.recovery import RecoveryOption, Remedy, Whom
from server.statemachine.rungs import Copy, Ground, Plan, Rung, last_revision
from server.statemachine.value import dataclass
from server.statemachine.values import DocumentPlace, Flow, FlowKey, Tenant

# How often a recovery is planned anew because the flow moved meanwhile.
ATTEMPTS = 5
MESSAGE_MOST = 2000
# So many losses an alert names.
LOSSES_TOLD = 3
RaiseAlert = Callable[[Tenant, Alert], Awaitable[None]]


class Checkpoints(Protocol):
    """What is wanted of checkpoints."""

    async def newest_readable(self, key: FlowKey) -> Copy | str:
        """The flow's newest checkpoint that opens, or why there is none."""

    async def unreadable(self, key: FlowKey) -> Sequence[Finding]:
        """What is wrong with those of the flow's checkpoints that do not open."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A recovery as a caller asks for it; ``expected`` 0 means whatever revision is current."""

    key: FlowKey
    lowest: Rung
    reason: str
    occasion: Occasion
    expected: int = 0
    rehearse: bool = False


@dataclass(frozen=True, slots=True)
class Done:
    """What was done, or would be: the plan, the flow's revision before it, and what it comes to where it changes anything.

    ``flow`` is the flow as it then is, as far as it can be read; ``hash`` is that of the event that tells of the recovery.
    """

    plan: Plan
    revision: int
    flow: Flow | None
    recovered: Recovered | None = None
    hash: bytes = b""
    diff: FlowDiff | None = None
    quarantine_id: UUID | None = None


class Rescue:
    """Looks at flows, whatever state they are in, and brings them back."""

    def __init__(self, store: Store, checkpoints: Checkpoints, raise_alert: RaiseAlert) -> None:
        self._store, self._checkpoints, self._raise = store, checkpoints, raise_alert
        self._examiner, self._recoveries = Examiner(store.database), Recoveries(store.database)

    async def examine(self, key: FlowKey) -> Evidence:
        """What is known of the flow, its checkpoints included. Raises FlowNotFound when there is no trace of it."""
        return (await self._examined(key)).evidence

    async def options(self, key: FlowKey, occasion: Occasion) -> tuple[int, tuple[RecoveryOption, ...]]:
        """The flow's revision, and what may be done to bring it on. Raises as ``examine``."""
        examined = await self._examined(key)
        evidence = examined.evidence
        copy = await self._checkpoints.newest_readable(key)
        known = copy if isinstance(copy, Copy) else None
        flow = evidence.stored.flow
        found = () if flow is None else options(flow, evidence.told.turns, known, occasion)
        if rungs.mendable(evidence):
            ground = _ground(evidence, copy, Rung.RESET, occasion)
            found = (_recovery(evidence, await offloaded(_size(examined, ground), rungs.plan, ground)), *found)
        return last_revision(evidence, known), found

    async def recover(self, asked: Asked, request: Request | None, answer: Callable[[Done], bytes]) -> Done | Answered:
        """The flow brought back by the first rung that holds, or the plan for that; or what the request was answered before.

        ``answer`` writes down what ``request`` is remembered with. What is stored before goes to the quarantine. A request that finds
        nothing to do writes nothing, itself included. Raises FlowNotFound; ConcurrentModification; NoRecoveryPoint, which also raises an
        alert, unless it is rehearsed; RequestIdReused; StoreUnavailable.
        """
        key = asked.key
        for _ in range(ATTEMPTS):
            if found := await self._answered(asked, request):
                return found
            examined = await self._examined(key)
            if found := await self._answered(asked, request):  # meanwhile: what was looked at may be what it led to
                return found
            evidence = examined.evidence
            copy = await self._checkpoints.newest_readable(key) if rungs.mendable(evidence) else ""
            ground = _ground(evidence, copy, asked.lowest, asked.occasion)
            last = last_revision(evidence, ground.copy)
            if asked.expected and asked.expected not in (evidence.stored.revision, last):
                raise ConcurrentModification(asked.expected, last)
            plan = await offloaded(_size(examined, ground), rungs.plan, ground)
            if plan.rung is Rung.NONE or (plan.rung is None and asked.rehearse):
                return Done(plan, last, evidence.stored.flow)
            if plan.rung is None:
                await self._failed(asked, evidence, plan)
                raise NoRecoveryPoint(asked.lowest.name, {rung.name: why for rung, why in plan.failures})
            try:
                return await self._carried_out(asked, examined, ground, plan, last, request, answer)
            except (Overtaken, HistoryDamaged, RevisionCompacted):  # somebody else changed it since it was looked at
                continue
        raise StoreUnavailable(f"others changed what is stored of the flow in each of {ATTEMPTS} attempts: retry in a moment")

    async def _answered(self, asked: Asked, request: Request | None) -> Answered | None:
        """What the request was answered before; a rehearsal takes none."""
        if request is None or asked.rehearse:
            return None
        return await answered(self._store.database, asked.key.tenant, request)

    async def _examined(self, key: FlowKey) -> Examined:
        found = await self._examiner.examine(key)
        wrong = tuple(await self._checkpoints.unreadable(key))
        return Examined(replace(found.evidence, checkpoints=wrong), found.snapshot)

    async def _carried_out(
        self,
        asked: Asked,
        examined: Examined,
        ground: Ground,
        plan: Plan,
        last: int,
        request: Request | None,
        answer: Callable[[Done], bytes],
    ) -> Done:
        evidence, key, occasion = examined.evidence, asked.key, asked.occasion
        quarantine_id = occasion.new_id()
        made = recovered(plan, evidence, last, asked.reason, quarantine_id, occasion)
        texts = await self._texts(key, ground, made)
        assert plan.target is not None
        recovery = Recovery(key, examined, made, texts, plan.target.activity, quarantine_id, asked.reason or plan.summary)
        prepared = await self._recoveries.prepared(recovery)
        if asked.rehearse:
            present = {place: found.text for place, found in evidence.texts.present.items() if found.text is not None}
            would = replace(made.flow, revision=0)  # it is none of the flow's revisions
            diff = await compared(Side(as_stored(evidence, made.flow), present), Side(would, texts))
            return Done(plan, last, made.flow, made, prepared.hash, diff)
        done = Done(plan, last, made.flow, made, prepared.hash, quarantine_id=quarantine_id)
        reply = None if request is None else Reply(request.request_id, request.payload_hash, answer(done))
        await self._recoveries.carry_out(prepared, reply)
        self._store.commits.moved(key, made.flow.revision)
        await self._recovered(asked, done)
        return done

    async def _texts(self, key: FlowKey, ground: Ground, made: Recovered) -> dict[DocumentPlace, bytes]:
        """The text of every document that the flow has then."""
        held = {} if ground.copy is None else {sha256(text): text for text in ground.copy.documents.values()}
        texts = ground.evidence.texts
        found = {}
        for place, version in made.versions.items():
            source = texts.source(version.sha256)
            if isinstance(source, tuple):
                wanted = Version(source[1], version.size, version.sha256)
                found[place] = (await self._store.history.documents(key, {source[0]: wanted}))[source[0]]
            else:
                found[place] = held[version.sha256] if source is None else source
        return found

    async def _recovered(self, asked: Asked, done: Done) -> None:
        plan, made = done.plan, done.recovered
        assert plan.rung is not None
        assert made is not None
        severity = AlertSeverity.CRITICAL if plan.losses else AlertSeverity.WARNING
        lost = f"; not brought back: {_summed_up(plan.losses)}" if plan.losses else ""
        text = f"flow recovered by {plan.rung.name}: {plan.summary}{lost}. What was there is in quarantine {done.quarantine_id}"
        await self._alert(asked, AlertKind.FLOW_RECOVERED, severity, text, f"{made.flow.revision}")

    async def _failed(self, asked: Asked, evidence: Evidence, plan: Plan) -> None:
        kinds = sorted({finding.kind.name for finding in evidence.findings()})
        why = "; ".join(f"{rung.name}: {reason}" for rung, reason in plan.failures)
        text = f"the recovery of a flow found nothing to recover from ({', '.join(kinds)}). {why}"
        await self._alert(asked, AlertKind.RECOVERY_FAILED, AlertSeverity.CRITICAL, text, f"{evidence.told.head} {' '.join(kinds)}")

    async def _alert(self, asked: Asked, kind: AlertKind, severity: AlertSeverity, text: str, subject: str) -> None:
        occasion, flow_id = asked.occasion, asked.key.flow_id
        alert = Alert(occasion.new_id(), kind, severity, occasion.now, text[:MESSAGE_MOST], f"{flow_id} {subject}", flow_id)
        await self._raise(asked.key.tenant, alert)


def _summed_up(losses: Sequence[str]) -> str:
    """The first losses; of many their number: the plan and the event have them all."""
    more = len(losses) - LOSSES_TOLD
    return "; ".join(losses[:LOSSES_TOLD]) + (f"; and {more} more" if more > 0 else "")


def _ground(evidence: Evidence, copy: Copy | str, lowest: Rung, occasion: Occasion) -> Ground:
    known, why = (copy, "") if isinstance(copy, Copy) else (None, copy)
    return Ground(evidence, known, why, lowest, occasion.new_id, occasion.now)


def _recovery(evidence: Evidence, plan: Plan) -> RecoveryOption:
    """The option to recover a flow of which something is wrong, with what the plan comes to."""
    why, led = evidence.findings()[0].description, None
    if plan.target is not None and plan.rung is not None:
        led = effect(as_stored(evidence, plan.target.flow), plan.target.flow)
        asked = " (when asked for by name)" if plan.rung is Rung.RESET else ""
        why = f"{why}; {plan.rung.name}{asked}: {plan.summary}"
    return RecoveryOption(Remedy.RECOVER, Whom.OWNER, why, effect=led)


def _size(examined: Examined, ground: Ground) -> int:
    return examined.snapshot.size + (0 if ground.copy is None else sum(map(len, ground.copy.documents.values())))
