"""How tests bring flows back: without a server, with checkpoints that are told."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from uuid import uuid4

from server.repository.history import History
from server.repository.store import Store as Whole
from server.rescue import Asked, Done, Rescue
from server.statemachine.alert import Alert
from server.statemachine.finding import Finding, FindingKind
from server.statemachine.rungs import Copy, Rung, mendable
from server.statemachine.values import FlowKey, Tenant
from tests.repository.store import Store


class Bell:
    """Hears alerts."""

    def __init__(self) -> None:
        self.rung: list[tuple[Tenant, Alert]] = []

    async def __call__(self, tenant: Tenant, alert: Alert) -> None:
        self.rung.append((tenant, alert))


class NoCheckpoints:
    """A flow without checkpoints."""

    async def newest_readable(self, key: FlowKey) -> Copy | str:
        return "the flow has no checkpoint that opens"

    async def unreadable(self, key: FlowKey) -> list[Finding]:
        return []


class One(NoCheckpoints):
    """One checkpoint that opens."""

    def __init__(self, copy: Copy) -> None:
        self.copy = copy

    async def newest_readable(self, key: FlowKey) -> Copy | str:
        return self.copy


def rescue(store: Store, bell: Bell | None = None, checkpoints: NoCheckpoints | None = None) -> Rescue:
    """What brings flows of that store back."""
    whole = Whole(store.database, store.flows, store.events, History(store.database), store.commits)
    return Rescue(whole, checkpoints or NoCheckpoints(), bell or Bell())


def asked(store: Store, key: FlowKey, lowest: Rung = Rung.CHECKPOINT, **more: Any) -> Asked:
    """A recovery by eve."""
    return Asked(key, lowest, "because", store.occasion("eve"), **more)


async def recover(store: Store, key: FlowKey, lowest: Rung = Rung.CHECKPOINT, copy: Copy | None = None, **more: Any) -> Done:
    """What a recovery comes to."""
    done = await rescue(store, None, None if copy is None else One(copy)).recover(asked(store, key, lowest, **more), None, lambda _: b"")
    assert isinstance(done, Done)
    return done


async def left(store: Store, key: FlowKey) -> set[tuple[FindingKind, bool]]:
    """What is still found, and whether it concerns ways back only."""
    evidence = await rescue(store).examine(key)
    assert not mendable(evidence), evidence.findings()
    return {(finding.kind, finding.recovery_only) for finding in evidence.findings()}


async def copy_of(store: Store, key: FlowKey, **more: object) -> Copy:
    """The flow as a checkpoint would have it."""
    record = await store.record(key.tenant, key.flow_id)
    return Copy(uuid4(), replace(record.head.flow, **more), record.documents)  # type: ignore[arg-type]
