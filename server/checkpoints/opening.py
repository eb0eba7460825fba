"""Opening checkpoints: nothing of one is told before it is known to be what was sealed."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from dataclasses import field
from functools import partial
from hashlib import sha256
from uuid import UUID

from server import vault
from server.checkpoints import places, snapshot
from server.checkpoints.chunks import CHUNK_BYTES, Outflow, unreadable
from server.checkpoints.keyring import Keyring
from server.repository.checkpoints import Checkpoints, SealedCheckpoint
from server.repository.contents import Contents
from server.repository.document_store import offloaded
from server.repository.id_pages import LAST_ID
from server.statemachine.checkpoint import FLOW, PAYLOAD, Checkpoint, Header, Part, Unreadable
from server.statemachine.errors import CheckpointUnreadable, KeyUnavailable
from server.statemachine.replacement import content_of
from server.statemachine.value import dataclass
from server.statemachine.values import Content, DocumentPlace, Flow, FlowKey, Tenant
from server.vault import Unopened

PAGE = 10


@dataclass(frozen=True, slots=True)
class Opened:
    """A checkpoint whose header was opened."""

    tenant: Tenant
    checkpoint: Checkpoint
    header: Header


@dataclass(frozen=True, slots=True)
class Copy:
    """A flow and its documents as a checkpoint has them."""

    flow: Flow
    documents: Mapping[DocumentPlace, bytes] = field(hash=False)

    @property
    def content(self) -> Content:
        """What can be brought back of it."""
        return content_of(self.flow, self.documents)


class Opening:
    """Opens checkpoints. What does not open raises CheckpointUnreadable; KeyUnavailable when its key is not here."""

    def __init__(self, checkpoints: Checkpoints, contents: Contents, keyring: Keyring) -> None:
        self._checkpoints, self._contents, self._keyring = checkpoints, contents, keyring
        self._outflow = Outflow(contents, keyring)

    async def header(self, tenant: Tenant, checkpoint_id: UUID) -> Opened:
        """The checkpoint with what it consists of. Raises CheckpointNotFound."""
        return await self._header(tenant, await self._checkpoints.sealed(tenant, checkpoint_id))

    async def copy(self, opened: Opened) -> Copy:
        """The flow and its documents."""
        parts = [part for part in opened.header.parts if part.name not in (FLOW, PAYLOAD)]
        texts = await self._outflow.texts(opened.tenant, opened.checkpoint, parts)
        documents = {DocumentPlace(part.name, part.child_type): text for part, text in zip(parts, texts, strict=True)}
        return Copy(await self._flow(opened), documents)

    async def snapshot(self, opened: Opened, offset: int) -> AsyncGenerator[bytes, None]:
        """The snapshot's text from ``offset`` on, in pieces of at most a chunk.

        From its beginning on, the last piece comes only once the whole is known to be what was sealed.
        """
        header = opened.header
        async for text in _checked(opened.checkpoint, self._pieces(opened, offset), None if offset else header.snapshot_sha256):
            yield text

    async def part(self, opened: Opened, part: Part, offset: int) -> AsyncGenerator[bytes, None]:
        """The part's text from ``offset`` on, as ``snapshot``."""
        async for text in _checked(opened.checkpoint, self._chunks(opened, part, offset), None if offset else part.sha256):
            yield text

    async def _pieces(self, opened: Opened, offset: int) -> AsyncGenerator[bytes, None]:
        for piece in snapshot.layout(opened.header.parts):
            size = len(piece) if isinstance(piece, bytes) else piece.size
            if offset >= size:
                offset -= size
                continue
            if isinstance(piece, bytes):
                yield piece[offset:]
            else:
                async for text in self._chunks(opened, piece, offset):
                    yield text
            offset = 0

    async def _chunks(self, opened: Opened, part: Part, offset: int) -> AsyncGenerator[bytes, None]:
        start, skipped = divmod(offset, CHUNK_BYTES)
        async for text in self._outflow.chunks(opened.tenant, opened.checkpoint, part, start):
            yield text[skipped:]
            skipped = 0

    async def newest_readable(self, key: FlowKey) -> tuple[Checkpoint, Copy] | None:
        """The flow's newest checkpoint that opens, and what it holds; None when none does. Raises KeyUnavailable when that is for a key."""
        before, unavailable = LAST_ID, None
        while page := await self._checkpoints.of_flow(key, before, PAGE):
            for sealed in page:
                try:
                    opened = await self._header(key.tenant, sealed)
                    return sealed.checkpoint, await self.copy(opened)
                except KeyUnavailable as error:
                    unavailable = unavailable or error
                except CheckpointUnreadable:
                    continue
            before = page[-1].checkpoint.checkpoint_id
        if unavailable is not None:
            raise unavailable
        return None

    async def unreadable(self, key: FlowKey) -> list[tuple[Checkpoint, Unreadable]]:
        """Those of the flow's checkpoints that do not open, payloads included, and why; the newest first."""
        found: list[tuple[Checkpoint, Unreadable]] = []
        sound: set[tuple[UUID, bytes]] = set()
        before = LAST_ID
        while page := await self._checkpoints.of_flow(key, before, PAGE):
            for sealed in page:
                try:
                    await self._verify(key.tenant, sealed, sound)
                except CheckpointUnreadable as error:
                    found.append((sealed.checkpoint, error.cause))
                except KeyUnavailable:
                    found.append((sealed.checkpoint, Unreadable.KEY_UNAVAILABLE))
            before = page[-1].checkpoint.checkpoint_id
        return found

    async def _header(self, tenant: Tenant, sealed: SealedCheckpoint) -> Opened:
        checkpoint = sealed.checkpoint
        if sealed.key is None:
            raise unreadable(checkpoint, Unreadable.KEY_MISSING)
        try:
            key = await self._keyring.opened(tenant, sealed.key)
        except Unopened:
            raise unreadable(checkpoint, Unreadable.KEY_MISSING) from None
        try:
            text = vault.unseal(key, sealed.key.version, places.of_header(tenant, checkpoint), sealed.header)
        except Unopened:
            raise unreadable(checkpoint, Unreadable.SEAL) from None
        try:
            return Opened(tenant, checkpoint, snapshot.header_from_bytes(text))
        except (ValueError, KeyError, TypeError):
            raise unreadable(checkpoint, Unreadable.CONTENT) from None

    async def _flow(self, opened: Opened) -> Flow:
        checkpoint, part = opened.checkpoint, opened.header.part(FLOW)
        if part is None:
            raise unreadable(checkpoint, Unreadable.CONTENT)
        (text,) = await self._outflow.texts(opened.tenant, checkpoint, [part])
        try:
            flow = snapshot.flow_of(text, opened.tenant, checkpoint.flow_id)
        except (ValueError, KeyError, TypeError):
            raise unreadable(checkpoint, Unreadable.CONTENT) from None
        if flow.revision != checkpoint.revision:
            raise unreadable(checkpoint, Unreadable.CONTENT)
        return flow

    async def _verify(self, tenant: Tenant, sealed: SealedCheckpoint, sound: set[tuple[UUID, bytes]]) -> None:
        """Open all of it; of contents that were ``sound`` in another checkpoint it is enough that they are referred to."""
        opened = await self._header(tenant, sealed)
        held = await self._contents.held(tenant, opened.checkpoint.checkpoint_id)
        for part in opened.header.parts:
            if part.content_id not in held:
                raise unreadable(opened.checkpoint, Unreadable.PART_MISSING)
            if part.name != FLOW and (part.content_id, part.sha256) not in sound:
                async for _ in self.part(opened, part, 0):
                    pass
                sound.add((part.content_id, part.sha256))
        await self._flow(opened)


async def _checked(checkpoint: Checkpoint, texts: AsyncIterator[bytes], expected: bytes | None) -> AsyncGenerator[bytes, None]:
    """The texts, the last one once all of them together have the expected hash."""
    digest, held = sha256(), b""
    async for text in texts:
        if held:
            yield held
        held = text
        if expected is not None:
            await offloaded(len(text), partial(digest.update, text))
    if expected is not None and digest.digest() != expected:
        raise unreadable(checkpoint, Unreadable.CONTENT)
    if held:
        yield held
