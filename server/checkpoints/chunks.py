"""Contents in chunks: sealed on their way in, opened on their way out, never more than a few of them in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from hashlib import sha256
from typing import TypeVar
from uuid import UUID

from server import vault
from server.checkpoints import places
from server.checkpoints.keyring import Keyring
from server.repository.contents import Chunk, Contents
from server.repository.document_store import offloaded
from server.statemachine.checkpoint import Checkpoint, Part, Unreadable
from server.statemachine.errors import CheckpointUnreadable, StoreUnavailable
from server.statemachine.values import Tenant
from server.vault import Unopened

CHUNK_BYTES = 1024 * 1024
ATTEMPTS = 5
# Of small parts so many chunks are read at once.
_TOGETHER = 8

_Made = TypeVar("_Made")


def chunk_count(size: int) -> int:
    """How many chunks a content of that size has; one even when it is empty, so that its absence shows."""
    return max(1, -(-size // CHUNK_BYTES))


class Inflow:
    """A content on its way in; ``size``, ``stored`` and ``sha256`` are of what has come so far."""

    def __init__(self, contents: Contents, keyring: Keyring, tenant: Tenant, content_id: UUID) -> None:
        self._contents, self._keyring, self._tenant = contents, keyring, tenant
        self.content_id, self.size, self.stored = content_id, 0, 0
        self._digest = sha256()
        self._held = bytearray()
        self._number = 0

    @property
    def sha256(self) -> bytes:
        """Of everything, once it has ended."""
        return self._digest.digest()

    async def write(self, data: bytes) -> None:
        """Take in more of it. Raises KeyUnavailable, StoreUnavailable."""
        self.size += len(data)
        self._held += data
        while len(self._held) > CHUNK_BYTES:  # the last one is known only at the end
            text = bytes(memoryview(self._held)[:CHUNK_BYTES])
            del self._held[:CHUNK_BYTES]
            await self._put(text, last=False)

    async def end(self) -> None:
        """Store what is left. Raises as ``write`` does."""
        text = bytes(self._held)
        self._held.clear()
        await self._put(text, last=True)

    async def _put(self, text: bytes, *, last: bool) -> None:
        await offloaded(len(text), lambda: self._digest.update(text))
        place = places.of_chunk(self._tenant, self.content_id, self._number, last=last)
        for _ in range(ATTEMPTS):
            keys = await self._keyring.sealing(self._tenant)
            sealed = await offloaded(len(text), lambda: vault.seal(keys.key, keys.row.version, place, text))  # noqa: B023 - awaited at once
            if await self._contents.put(self._tenant, self.content_id, self._number, sealed, keys.row):
                self.stored += len(sealed)
                self._number += 1
                return
            self._keyring.forget(self._tenant)  # rotated, or erased
        raise StoreUnavailable("what was sent so far is no longer there, the tenant may have been erased: begin again")


class Outflow:
    """Opens what a checkpoint holds. What does not open raises CheckpointUnreadable; KeyUnavailable when the key is not here."""

    def __init__(self, contents: Contents, keyring: Keyring) -> None:
        self._contents, self._keyring = contents, keyring

    async def chunks(self, tenant: Tenant, checkpoint: Checkpoint, part: Part, start: int = 0) -> AsyncIterator[bytes]:
        """The part's text from chunk number ``start`` on, chunk by chunk, each known to be what was sealed."""
        for number in range(start, chunk_count(part.size)):
            found = await self._contents.chunks(tenant, checkpoint.checkpoint_id, [(part.content_id, number)])
            yield await self._opened(tenant, checkpoint, part, number, found.get((part.content_id, number)))

    async def texts(self, tenant: Tenant, checkpoint: Checkpoint, parts: Sequence[Part]) -> list[bytes]:
        """The parts' whole texts, each known to be what was sealed."""
        small = {(part.content_id, 0): part for part in parts if chunk_count(part.size) == 1}
        first: dict[tuple[UUID, int], Chunk] = {}
        for some in _batches(list(small), _TOGETHER):
            first |= await self._contents.chunks(tenant, checkpoint.checkpoint_id, some)
        found = []
        for part in parts:
            if chunk_count(part.size) == 1:
                text = await self._opened(tenant, checkpoint, part, 0, first.get((part.content_id, 0)))
            else:
                text = b"".join([chunk async for chunk in self.chunks(tenant, checkpoint, part)])
            if await offloaded(len(text), lambda: sha256(text).digest()) != part.sha256:  # noqa: B023 - awaited at once
                raise unreadable(checkpoint, Unreadable.CONTENT)
            found.append(text)
        return found

    async def _opened(self, tenant: Tenant, checkpoint: Checkpoint, part: Part, number: int, chunk: Chunk | None) -> bytes:
        if chunk is None:
            raise unreadable(checkpoint, Unreadable.PART_MISSING)
        if chunk.key is None:
            raise unreadable(checkpoint, Unreadable.KEY_MISSING)
        try:
            key = await self._keyring.opened(tenant, chunk.key)
        except Unopened:
            raise unreadable(checkpoint, Unreadable.KEY_MISSING) from None
        size = min(CHUNK_BYTES, part.size - number * CHUNK_BYTES)
        place = places.of_chunk(tenant, part.content_id, number, last=number == chunk_count(part.size) - 1)
        try:
            text = await offloaded(size, lambda: vault.unseal(key, chunk.key_version, place, chunk.sealed))
        except Unopened:
            raise unreadable(checkpoint, Unreadable.SEAL) from None
        if len(text) != size:
            raise unreadable(checkpoint, Unreadable.CONTENT)
        return text


def unreadable(checkpoint: Checkpoint, cause: Unreadable) -> CheckpointUnreadable:
    """The error for a checkpoint that does not open."""
    return CheckpointUnreadable(checkpoint.checkpoint_id, checkpoint.flow_id, cause)


def _batches(found: Sequence[_Made], size: int) -> Iterator[Sequence[_Made]]:
    for at in range(0, len(found), size):
        yield found[at : at + size]
