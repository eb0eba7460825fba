"""Everything about one database's checkpoints, in one value; and taking them away."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Self
from uuid import UUID

from server.checkpoints.answers import SealedAnswers
from server.checkpoints.keyring import Keyring
from server.checkpoints.opening import Opening
from server.checkpoints.rotating import Rotating
from server.checkpoints.taking import Taking
from server.repository.checkpoint_removal import Release, Removal
from server.repository.checkpoint_statements import Narrowed
from server.repository.checkpoints import Checkpoints
from server.repository.contents import Contents
from server.repository.keys import Keys
from server.repository.requests import Reply
from server.repository.resealing import Resealing
from server.repository.store import Store
from server.statemachine.value import dataclass
from server.statemachine.values import Tenant
from server.vault import KeyProvider

# A content that no checkpoint holds may belong to an upload that is still under way: so long an upload may take, and twice that it is left.
UPLOAD_SECONDS = 3600.0
_LEFT_ALONE = timedelta(seconds=2 * UPLOAD_SECONDS)


_ANY = Narrowed()


def _no_reply(_: int, __: Release) -> Reply | None:
    return None


@dataclass(frozen=True, slots=True)
class Archive:
    """Takes, opens and removes checkpoints."""

    keys: Keys
    contents: Contents
    checkpoints: Checkpoints
    removal: Removal
    keyring: Keyring
    taking: Taking
    opening: Opening
    rotating: Rotating
    answers: SealedAnswers

    @classmethod
    def of(
        cls, store: Store, provider: KeyProvider, now: Callable[[], datetime], new_id: Callable[[], UUID], monotonic: Callable[[], float]
    ) -> Self:
        """The archive of the store's database."""
        keys, contents, checkpoints = Keys(store.database), Contents(store.database), Checkpoints(store.database)
        keyring = Keyring(keys, provider, now, monotonic)
        taking = Taking(store, checkpoints, contents, keyring, now, new_id)
        opening, rotating = Opening(checkpoints, contents, keyring), Rotating(keys, Resealing(store.database), keyring)
        removal = Removal(store.database)
        return cls(keys, contents, checkpoints, removal, keyring, taking, opening, rotating, SealedAnswers(keyring))

    async def remove(
        self,
        tenant: Tenant,
        checkpoint_ids: Sequence[UUID],
        now: datetime,
        narrowed: Narrowed = _ANY,
        reply: Callable[[int, Release], Reply | None] = _no_reply,
    ) -> tuple[int, Release] | None:
        """Remove those of the checkpoints that are meant and not pinned, with what only they held: how many, and what is free.

        None when the request of the reply was answered before.
        """
        done = await self.removal.delete(tenant, checkpoint_ids, narrowed, now, reply)
        if done is not None:
            await self.contents.remove(tenant, done[1].contents)
        return done

    async def remove_expired(self, tenant: Tenant, now: datetime, limit: int) -> int:
        """Remove at most ``limit`` checkpoints whose time has come; how many they were."""
        expired = Narrowed(expired_at=now)
        found = await self.removal.prunable(tenant, expired, 0, limit)
        done = await self.remove(tenant, found, now, expired) if found else None
        return 0 if done is None else done[0]

    async def remove_unreferenced(self, tenant: Tenant, now: datetime, limit: int) -> int:
        """Remove at most ``limit`` contents that no checkpoint holds and no upload can still be about to; how many they were."""
        found = await self.contents.unreferenced(tenant, now - _LEFT_ALONE, limit)
        return await self.contents.remove(tenant, found)
