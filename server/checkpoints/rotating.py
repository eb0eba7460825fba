"""Giving a tenant a new data key, and sealing anew what older ones sealed: online, a batch at a time, to be broken off at any point."""

from __future__ import annotations

from server import vault
from server.checkpoints import places
from server.checkpoints.chunks import CHUNK_BYTES
from server.checkpoints.keyring import Keyring, SealingKeys
from server.repository.checkpoints import SealedCheckpoint
from server.repository.document_store import offloaded
from server.repository.keys import Keys
from server.repository.resealing import Resealing, StaleChunk
from server.statemachine.errors import KeyUnavailable
from server.statemachine.value import dataclass
from server.statemachine.values import Tenant
from server.vault import Unopened

HEADERS = 64
CHUNKS = 4


@dataclass(frozen=True, slots=True)
class Progress:
    """How far sealing anew has come: the version that seals now (0: none), older ones that still seal, and how many seals each part has."""

    version: int
    older: tuple[int, ...]
    remaining: int
    resealed: int


class Rotating:
    """Seals anew."""

    def __init__(self, keys: Keys, resealing: Resealing, keyring: Keyring) -> None:
        self._keys, self._resealing, self._keyring = keys, resealing, keyring

    async def progress(self, tenant: Tenant) -> Progress:
        """How far it has come."""
        seals = await self._resealing.seals(tenant)
        newest = max(seals, default=0)
        older = {version: count for version, count in seals.items() if version != newest and count}
        return Progress(newest, tuple(older), sum(older.values()), seals.get(newest, 0))

    async def reseal(self, tenant: Tenant, limit: int) -> int:
        """Seal at most ``limit`` headers and chunks anew, and destroy old keys that seal nothing any more; how many were sealed.

        What does not open, or whose key is not here, is left as it is, and keeps its key. Raises KeyUnavailable when nothing can be sealed.
        """
        if len(await self._keys.all(tenant)) <= 2:  # the identity key, and one that seals
            return 0
        self._keyring.forget(tenant)
        keys = await self._keyring.sealing(tenant)
        done = await self._headers(tenant, keys, limit)
        if done < limit:
            done += await self._chunks(tenant, keys, limit - done)
        if done < limit:
            await self._keys.destroy_unused(tenant)
        return done

    async def _headers(self, tenant: Tenant, keys: SealingKeys, limit: int) -> int:
        done, after = 0, None
        while done < limit and (page := await self._resealing.headers(tenant, keys.row.version, after, min(HEADERS, limit - done))):
            anew = []
            for sealed in page:
                place = places.of_header(tenant, sealed.checkpoint)
                if (text := await self._opened(tenant, sealed, place)) is not None:
                    anew.append((sealed.checkpoint.checkpoint_id, vault.seal(keys.key, keys.row.version, place, text)))
            if anew and not await self._resealing.put_headers(tenant, anew, keys.row):
                break  # rotated again, or erased: the next pass begins with that
            done += len(anew)
            after = page[-1]
        return done

    async def _chunks(self, tenant: Tenant, keys: SealingKeys, limit: int) -> int:
        done, after = 0, None
        while done < limit and (page := await self._resealing.chunks(tenant, keys.row.version, after, min(CHUNKS, limit - done))):
            anew = []
            for stale in page:
                if (sealed := await self._resealed(tenant, stale, keys)) is not None:
                    anew.append((*stale.place, sealed))
            if anew and not await self._resealing.put_chunks(tenant, anew, keys.row):
                break
            done += len(anew)
            after = page[-1]
        return done

    async def _opened(self, tenant: Tenant, sealed: SealedCheckpoint, place: bytes) -> bytes | None:
        if sealed.key is None:
            return None
        try:
            key = await self._keyring.opened(tenant, sealed.key)
            return vault.unseal(key, sealed.key.version, place, sealed.header)
        except (Unopened, KeyUnavailable):
            return None

    async def _resealed(self, tenant: Tenant, stale: StaleChunk, keys: SealingKeys) -> bytes | None:
        chunk, (content_id, number) = stale.chunk, stale.place
        assert chunk.key is not None
        try:
            key = await self._keyring.opened(tenant, chunk.key)
        except (Unopened, KeyUnavailable):
            return None

        def anew() -> bytes | None:
            for last in (True, False):  # only the checkpoints that hold it know
                place = places.of_chunk(tenant, content_id, number, last=last)
                try:
                    text = vault.unseal(key, chunk.key_version, place, chunk.sealed)
                except Unopened:
                    continue
                return vault.seal(keys.key, keys.row.version, place, text)
            return None

        return await offloaded(CHUNK_BYTES, anew)
