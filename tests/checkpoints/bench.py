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
from server.checkpoints.keyring import Keyring
from server.checkpoints.opening import Opening
from server.checkpoints.taking import Taking, Wanted
from server.repository.checkpoint_removal import Removal
from server.repository.checkpoints import Checkpoints
from server.repository.contents import Contents
from server.repository.history import History
from server.repository.keys import Keys
from server.repository.store import Store as Whole
from server.statemachine.change import ReplaceDocument, UpdateFlow
from server.statemachine.checkpoint import Checkpoint, CheckpointKind
from server.statemachine.values import DocumentPlace, FlowKey, Tenant
from server.vault import EnvironmentKeys, KeyProvider, written
from tests.repository.store import NOON, Store, opened

KEK = written("test", bytes(range(32)))
STATE, CONTEXT = DocumentPlace("state"), DocumentPlace("cross_phase_context")


@dataclass(slots=True)
class Bench:
    """The repositories, and what seals and opens above them; ``monotonic`` can be moved."""

    store: Store
    provider: KeyProvider
    monotonic: float = field(default_factory=time.monotonic)
    keys: Keys = field(init=False)
    contents: Contents = field(init=False)
    checkpoints: Checkpoints = field(init=False)
    removal: Removal = field(init=False)
    keyring: Keyring = field(init=False)
    taking: Taking = field(init=False)
    opening: Opening = field(init=False)
    whole: Whole = field(init=False)

    def __post_init__(self) -> None:
        store, database = self.store, self.store.database
        self.whole = Whole(database, store.flows, store.events, History(database), store.commits)
        self.keys, self.contents, self.checkpoints, self.removal = Keys(database), Contents(database), Checkpoints(database), Removal(database)
        minutes = count()

        def now() -> datetime:
            return NOON + timedelta(minutes=next(minutes))

        self.keyring = Keyring(self.keys, self.provider, now, lambda: self.monotonic)
        self.taking = Taking(self.whole, self.checkpoints, self.contents, self.keyring, now, new_id)
        self.opening = Opening(self.checkpoints, self.contents, self.keyring)

    async def write(self, tenant: Tenant, flow_id: UUID, text: bytes, place: DocumentPlace = STATE) -> None:
        """Put a document in its place."""
        await self.store.commit(self.store.asked(tenant, flow_id, UpdateFlow(documents=(ReplaceDocument(place, text),))))

    async def take(self, key: FlowKey, kind: CheckpointKind = CheckpointKind.MANUAL) -> Checkpoint:
        """A checkpoint of the flow as it is."""
        found = await self.taking.take(await self.store.record(key.tenant, key.flow_id), Wanted(kind, "ann"))
        assert isinstance(found, Checkpoint)
        return found


@asynccontextmanager
async def bench(url: str, provider: KeyProvider | None = None) -> AsyncIterator[Bench]:
    """A bench on connections of its own."""
    async with opened(url) as store:
        yield Bench(store, provider or EnvironmentKeys(KEK))
