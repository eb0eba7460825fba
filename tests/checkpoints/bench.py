"""One process's way to checkpoints, as ``app`` builds it."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import count
from uuid import UUID

from server.app import new_id
from server.checkpoints.archive import Archive
from server.checkpoints.taking import Wanted
from server.repository.history import History
from server.repository.store import Store as Whole
from server.statemachine.change import ReplaceDocument, UpdateFlow
from server.statemachine.checkpoint import Checkpoint, CheckpointKind
from server.statemachine.values import DocumentPlace, FlowKey, Tenant
from server.vault import EnvironmentKeys, KeyProvider
from tests.conftest import KEYS
from tests.repository.store import NOON, Store, opened

STATE, CONTEXT = DocumentPlace("state"), DocumentPlace("cross_phase_context")


@dataclass(slots=True)
class Bench:
    """The repositories, and the archive above them; ``monotonic`` can be moved."""

    store: Store
    provider: KeyProvider
    monotonic: float = field(default_factory=time.monotonic)
    archive: Archive = field(init=False)
    whole: Whole = field(init=False)

    def __post_init__(self) -> None:
        store, database, minutes = self.store, self.store.database, count()

        def now() -> datetime:
            return NOON + timedelta(minutes=next(minutes))

        self.whole = Whole(database, store.flows, store.events, History(database), store.commits)
        self.archive = Archive.of(self.whole, self.provider, now, new_id, lambda: self.monotonic)

    async def write(self, tenant: Tenant, flow_id: UUID, text: bytes, place: DocumentPlace = STATE) -> None:
        """Put a document in its place."""
        await self.store.commit(self.store.asked(tenant, flow_id, UpdateFlow(documents=(ReplaceDocument(place, text),))))

    async def take(self, key: FlowKey, kind: CheckpointKind = CheckpointKind.MANUAL) -> Checkpoint:
        """A checkpoint of the flow as it is."""
        found = await self.archive.taking.take(await self.store.record(key.tenant, key.flow_id), Wanted(kind, "ann"))
        assert isinstance(found, Checkpoint)
        return found


@asynccontextmanager
async def bench(url: str, provider: KeyProvider | None = None) -> AsyncIterator[Bench]:
    """A bench on connections of its own."""
    async with opened(url) as store:
        yield Bench(store, provider or EnvironmentKeys(KEYS))
