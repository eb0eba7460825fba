"""Taking checkpoints: a flow and its documents, sealed part by part; what the tenant has stored already is not stored again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import field
from datetime import datetime
from uuid import UUID

from server import vault
from server.checkpoints import places, snapshot
from server.checkpoints.chunks import ATTEMPTS, CHUNK_BYTES, Inflow
from server.checkpoints.keyring import Keyring
from server.checkpoints.snapshot import Text
from server.repository.checkpoints import Checkpoints, NewCheckpoint, SealedContent
from server.repository.contents import Contents
from server.repository.document_store import offloaded
from server.repository.flows import Record
from server.repository.requests import Answered, Reply, answered
from server.repository.store import Store
from server.statemachine.checkpoint import EXPIRY, PAYLOAD, Checkpoint, CheckpointKind, Expiry, Part, expiry_time
from server.statemachine.derivation import summary
from server.statemachine.errors import StoreUnavailable
from server.statemachine.value import dataclass
from server.statemachine.values import Flow, Tenant


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a checkpoint is to be besides a copy; without an expiry it has that of its kind."""

    kind: CheckpointKind
    actor: str
    reason: str = ""
    labels: Mapping[str, str] = field(default_factory=dict, hash=False)
    pinned: bool = False
    expires: Expiry = None


def _no_reply(_: Checkpoint) -> Reply | None:
    return None


@dataclass(frozen=False, slots=True)
class _Draft:
    """A checkpoint while it is prepared: its texts, and what of them is stored or about to be, by their SHA-256."""

    flow: Flow
    texts: list[Text]
    payload: Inflow | None
    large: dict[bytes, Inflow] = field(default_factory=dict)
    ids: dict[bytes, UUID] = field(default_factory=dict)
    small: dict[bytes, Text] = field(default_factory=dict)

    @property
    def inflows(self) -> list[Inflow]:
        return [*self.large.values(), *([] if self.payload is None else [self.payload])]

    @property
    def parts(self) -> tuple[Part, ...]:
        parts = [Part(one.name, one.child_type, self.ids[one.sha256], len(one.text), one.sha256) for one in self.texts]
        if self.payload is not None:
            parts.append(Part(PAYLOAD, "", self.ids[self.payload.sha256], self.payload.size, self.payload.sha256))
        return tuple(parts)


class Taking:
    """Takes checkpoints."""

    def __init__(
        self,
        store: Store,
        checkpoints: Checkpoints,
        contents: Contents,
        keyring: Keyring,
        now: Callable[[], datetime],
        new_id: Callable[[], UUID],
    ) -> None:
        self._store, self._checkpoints, self._contents, self._keyring = store, checkpoints, contents, keyring
        self._now, self._new_id = now, new_id

    async def inflow(self, tenant: Tenant) -> Inflow:
        """A content that is about to come in. What becomes part of no checkpoint is the caller's to discard, or the sweeper's."""
        content_id = self._new_id()
        await self._contents.begin(tenant, content_id, self._now())
        return Inflow(self._contents, self._keyring, tenant, content_id)

    async def discard(self, tenant: Tenant, *inflows: Inflow) -> None:
        """Remove what came in, unless it became part of a checkpoint."""
        await self._contents.remove(tenant, [inflow.content_id for inflow in inflows])

    async def take(
        self,
        record: Record,
        wanted: Wanted,
        payload: Inflow | None = None,
        reply: Callable[[Checkpoint], Reply | None] = _no_reply,
    ) -> Checkpoint | Answered:
        """A checkpoint of the record, with the payload that came in; or the answer that the same request was given before.

        Raises FlowNotFound when the flow has gone meanwhile, RequestIdReused, KeyUnavailable, StoreUnavailable.
        """
        flow, size = record.head.flow, sum(len(text) for text in record.documents.values())
        draft = _Draft(flow, await offloaded(size, lambda: snapshot.texts_of(flow, record.documents)), payload)
        tenant = flow.tenant
        try:
            for _ in range(ATTEMPTS):
                new = await self._prepared(draft, wanted, reply)
                if new is not None:
                    if await self._checkpoints.store(new):
                        return new.checkpoint
                    if new.reply is not None and (found := await answered(self._store.database, tenant, new.reply)):
                        return found
                self._keyring.forget(tenant)
                await self._store.flows.summary(tenant, flow.flow_id)
        finally:
            if draft.inflows:
                await self.discard(tenant, *draft.inflows)
        raise StoreUnavailable(f"others were in the way of this checkpoint in each of {ATTEMPTS} attempts: retry in a moment")

    async def _prepared(self, draft: _Draft, wanted: Wanted, reply: Callable[[Checkpoint], Reply | None]) -> NewCheckpoint | None:
        """The checkpoint with everything of it sealed; None when an equal content was stored by somebody else just now."""
        flow = draft.flow
        keys = await self._keyring.sealing(flow.tenant)
        hashes = [text.sha256 for text in draft.texts] + ([] if draft.payload is None else [draft.payload.sha256])
        digests = {sha256: keys.digest(sha256) for sha256 in hashes}
        known = await self._contents.known(flow.tenant, list(digests.values()))
        draft.ids = {sha256: known[digest] for sha256, digest in digests.items() if digest in known}
        draft.small = {}
        for text in draft.texts:
            if text.sha256 not in draft.ids:
                if len(text.text) <= CHUNK_BYTES:
                    draft.small[text.sha256], draft.ids[text.sha256] = text, self._new_id()
                else:
                    draft.large[text.sha256] = inflow = await self._stored(flow.tenant, text)
                    if not await self._complete(draft, inflow, digests):
                        return None
        if draft.payload is not None and draft.payload.sha256 not in draft.ids and not await self._complete(draft, draft.payload, digests):
            return None
        parts, now = draft.parts, self._now()
        said = summary(flow)
        checkpoint = Checkpoint(
            self._new_id(),
            flow.flow_id,
            flow.revision,
            wanted.kind,
            said.status,
            said.progress,
            now,
            wanted.actor,
            expiry_time(wanted.expires or EXPIRY.get(wanted.kind), now),
            wanted.pinned,
            wanted.labels,
            wanted.reason,
            sum(part.size for part in parts),
            keys.row.version,
            payload_size=0 if draft.payload is None else draft.payload.size,
        )

        def sealed() -> tuple[bytes, tuple[SealedContent, ...]]:
            key, version = keys.key, keys.row.version
            contents = []
            for sha256, text in draft.small.items():
                place = places.of_chunk(flow.tenant, draft.ids[sha256], 0, last=True)
                one = vault.seal(key, version, place, text.text)
                contents.append(SealedContent(draft.ids[sha256], len(text.text), digests[sha256], one))
            header = snapshot.header_to_bytes(snapshot.header_of(parts, draft.texts))
            return vault.seal(key, version, places.of_header(flow.tenant, checkpoint), header), tuple(contents)

        header, contents = await offloaded(sum(len(text.text) for text in draft.texts), sealed)
        return NewCheckpoint(flow.tenant, checkpoint, header, keys.row, parts, contents, flow.create_time, reply(checkpoint))

    async def _stored(self, tenant: Tenant, text: Text) -> Inflow:
        inflow = await self.inflow(tenant)
        await inflow.write(text.text)
        await inflow.end()
        return inflow

    async def _complete(self, draft: _Draft, inflow: Inflow, digests: Mapping[bytes, bytes]) -> bool:
        sha256 = inflow.sha256
        draft.ids[sha256] = inflow.content_id
        return await self._contents.complete(draft.flow.tenant, inflow.content_id, inflow.size, inflow.stored, digests[sha256])
