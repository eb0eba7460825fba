"""What was sealed with an older data key, a batch at a time; each batch is stored by one statement, and so wholly or not at all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import UUID as UUIDType
from sqlalchemy import Integer, LargeBinary, bindparam, func, select, tuple_, update

from server.repository.checkpoint_statements import LIMIT, WITH_KEY
from server.repository.checkpoint_tables import checkpoints, sealed_chunks, tenant_keys
from server.repository.checkpoints import SealedCheckpoint, sealed_of
from server.repository.contents import SEALED_CHUNK, Chunk, ChunkPlace
from server.repository.database import Database
from server.repository.keys import IDENTITY, KeyRow, held, held_values
from server.repository.statement import Columns, Statement, gate, gated, given, given_values, mine, mine_of, of_tenant, opened
from server.statemachine.value import dataclass
from server.statemachine.values import Tenant

NO_ID = UUID(int=0)


@dataclass(frozen=True, slots=True)
class StaleChunk:
    """A chunk that an older key sealed, and where it belongs."""

    place: ChunkPlace
    chunk: Chunk


_NEWEST = bindparam("newest", type_=Integer)
_SINCE = bindparam("since_version", type_=Integer)
_AFTER = bindparam("after_id", type_=UUIDType())
_HEADERS = Statement(
    gated(
        WITH_KEY.where(
            *mine(checkpoints),
            checkpoints.c.key_version < _NEWEST,
            tuple_(checkpoints.c.key_version, checkpoints.c.checkpoint_id) > tuple_(_SINCE, _AFTER),
        )
        .order_by(checkpoints.c.key_version, checkpoints.c.checkpoint_id)
        .limit(LIMIT)
    )
)
_CHUNKS = Statement(
    gated(
        select(*SEALED_CHUNK)
        .where(
            *mine(sealed_chunks),
            *mine(tenant_keys),
            *mine_of(tenant_keys, sealed_chunks),
            tenant_keys.c.version == sealed_chunks.c.key_version,
            sealed_chunks.c.key_version < _NEWEST,
            tuple_(sealed_chunks.c.key_version, sealed_chunks.c.content_id, sealed_chunks.c.number)
            > tuple_(_SINCE, _AFTER, bindparam("after_number", type_=Integer)),
        )
        .order_by(sealed_chunks.c.key_version, sealed_chunks.c.content_id, sealed_chunks.c.number)
        .limit(LIMIT)
    )
)
_HEADER: Columns = {"checkpoint_id": UUIDType(), "header": LargeBinary()}
_opener = gate()
_key, _header = held(_opener), given("header", _HEADER)
_PUT_HEADERS = Statement(
    update(checkpoints)
    .values(header=_header.c.header, key_version=_key.c.version)
    .where(
        opened(_opener),
        *mine(checkpoints),
        checkpoints.c.checkpoint_id == _header.c.checkpoint_id,
        checkpoints.c.key_version < _key.c.version,
    )
    .returning(checkpoints.c.checkpoint_id)
)
_CHUNK: Columns = {"content_id": UUIDType(), "number": Integer(), "sealed": LargeBinary()}
_chunk_opener = gate()
_chunk_key, _chunk = held(_chunk_opener), given("chunk", _CHUNK)
_PUT_CHUNKS = Statement(
    update(sealed_chunks)
    .values(sealed=_chunk.c.sealed, key_version=_chunk_key.c.version)
    .where(
        opened(_chunk_opener),
        *mine(sealed_chunks),
        sealed_chunks.c.content_id == _chunk.c.content_id,
        sealed_chunks.c.number == _chunk.c.number,
        sealed_chunks.c.key_version < _chunk_key.c.version,
    )
    .returning(sealed_chunks.c.number)
)


def _count(table: Any) -> Any:
    found = select(func.count()).select_from(table).where(*mine(table), table.c.key_version == tenant_keys.c.version)
    return found.correlate(tenant_keys).scalar_subquery()


_COUNTS = Statement(
    gated(
        select(tenant_keys.c.version, _count(checkpoints) + _count(sealed_chunks))
        .where(*mine(tenant_keys), tenant_keys.c.version > IDENTITY)
        .order_by(tenant_keys.c.version)
    )
)


class Resealing:
    """Finds what older keys sealed, and puts what was sealed anew in its place."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def seals(self, tenant: Tenant) -> dict[int, int]:
        """How many headers and chunks each version of the tenant's key seals, the oldest first."""
        return {version: count for version, count in await self._database.read([tenant], _COUNTS, of_tenant(tenant))}

    async def headers(self, tenant: Tenant, newest: int, after: SealedCheckpoint | None, limit: int) -> list[SealedCheckpoint]:
        """Checkpoints whose headers a key older than ``newest`` sealed, from the one after ``after`` on."""
        since, last = (0, NO_ID) if after is None else (after.checkpoint.key_version, after.checkpoint.checkpoint_id)
        values = {**of_tenant(tenant), "newest": newest, "since_version": since, "after_id": last, "limit": limit}
        return [sealed_of(row) for row in await self._database.read([tenant], _HEADERS, values)]

    async def chunks(self, tenant: Tenant, newest: int, after: StaleChunk | None, limit: int) -> list[StaleChunk]:
        """Chunks that a key older than ``newest`` sealed, from the one after ``after`` on."""
        since, (last, number) = (0, (NO_ID, 0)) if after is None else (after.chunk.key_version, after.place)
        values = {**of_tenant(tenant), "newest": newest, "since_version": since, "after_id": last, "after_number": number, "limit": limit}
        return [
            StaleChunk((content_id, at), Chunk(sealed, version, KeyRow(version, kek_id, wrapped)))
            for content_id, at, sealed, version, kek_id, wrapped in await self._database.read([tenant], _CHUNKS, values)
        ]

    async def put_headers(self, tenant: Tenant, headers: Sequence[tuple[UUID, bytes]], key: KeyRow) -> int:
        """Put the headers, sealed with ``key``, in the places of older ones; how many those were, 0 when the key may seal no longer."""
        values = {**of_tenant(tenant), **held_values(key), **given_values("header", _HEADER, headers)}
        return len(await self._database.write([tenant], _PUT_HEADERS, values))

    async def put_chunks(self, tenant: Tenant, chunks: Sequence[tuple[UUID, int, bytes]], key: KeyRow) -> int:
        """Put the chunks in the places of older ones, as ``put_headers``."""
        values = {**of_tenant(tenant), **held_values(key), **given_values("chunk", _CHUNK, chunks)}
        return len(await self._database.write([tenant], _PUT_CHUNKS, values))
