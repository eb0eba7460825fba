"""What checkpoints hold: sealed contents in chunks, each stored once for its tenant and removed when nobody refers to it any more."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

import asyncpg
from sqlalchemy import ARRAY, BigInteger, Integer, LargeBinary, and_, bindparam, delete, exists, func, insert, select, update
from sqlalchemy import UUID as UUIDType

from server.repository.checkpoint_tables import checkpoint_parts, sealed_chunks, sealed_contents, tenant_keys
from server.repository.database import COLLISIONS, Database, undisturbed
from server.repository.keys import KeyRow, held, held_values
from server.repository.statement import Columns, Statement, gate, gated, given, given_values, mine, mine_of, of_tenant, opened
from server.repository.table_parts import TENANT_KEY, TIME
from server.statemachine.value import dataclass
from server.statemachine.values import Tenant

# Removing takes about a millisecond for each MiB: so many bytes at most in one transaction.
REMOVED_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Chunk:
    """One sealed chunk, and its key as it is stored now; None for one that was destroyed."""

    sealed: bytes
    key_version: int
    key: KeyRow | None


ChunkPlace = tuple[UUID, int]

_ID = bindparam("content_id", type_=UUIDType())
_IDS: Any = bindparam("content_ids", type_=ARRAY(UUIDType()))


def unreferenced() -> Any:
    """The condition that no checkpoint holds a content."""
    return ~exists().where(*mine(checkpoint_parts), checkpoint_parts.c.content_id == sealed_contents.c.content_id)


_KNOWN = Statement(
    gated(
        select(sealed_contents.c.digest, sealed_contents.c.content_id).where(
            *mine(sealed_contents),
            sealed_contents.c.digest.is_not(None),
            sealed_contents.c.digest == func.any(bindparam("digests", type_=ARRAY(LargeBinary()))),
        )
    )
)
_begin_opener = gate()
_nothing = bindparam("nothing", type_=BigInteger)
_BEGIN = Statement(
    insert(sealed_contents).from_select(
        [*TENANT_KEY, "content_id", "size", "stored", "create_time"],
        select(
            *(bindparam(key, type_=UUIDType()) for key in TENANT_KEY), _ID, _nothing, _nothing, bindparam("create_time", type_=TIME)
        ).where(opened(_begin_opener)),
    )
)
_put_opener = gate()
_put_held = held(_put_opener)
_PUT = Statement(
    insert(sealed_chunks)
    .from_select(
        [*TENANT_KEY, "content_id", "number", "key_version", "sealed"],
        select(
            *(bindparam(key, type_=UUIDType()) for key in TENANT_KEY),
            _ID,
            bindparam("number", type_=Integer),
            _put_held.c.version,
            bindparam("sealed", type_=LargeBinary),
        ).where(opened(_put_opener)),
    )
    .returning(sealed_chunks.c.number)
)
_complete_opener = gate()
_COMPLETE = Statement(
    update(sealed_contents)
    .values({name: bindparam(f"new_{name}", type_=sealed_contents.c[name].type) for name in ("size", "stored", "digest")})
    .where(opened(_complete_opener), *mine(sealed_contents), sealed_contents.c.content_id == _ID)
    .returning(sealed_contents.c.content_id)
)
# A chunk as it is sealed, with what its key is wrapped in.
SEALED_CHUNK = (
    *(sealed_chunks.c[name] for name in ("content_id", "number", "sealed", "key_version")),
    *(tenant_keys.c[name] for name in ("kek_id", "wrapped")),
)
_WANTED: Columns = {"content_id": UUIDType(), "number": Integer()}
_wanted = given("wanted", _WANTED)
_CHUNKS = Statement(
    gated(
        select(*SEALED_CHUNK)
        .select_from(_wanted)
        .join(sealed_chunks, and_(sealed_chunks.c.content_id == _wanted.c.content_id, sealed_chunks.c.number == _wanted.c.number))
        .outerjoin(tenant_keys, and_(*mine_of(tenant_keys, sealed_chunks), tenant_keys.c.version == sealed_chunks.c.key_version))
        .where(
            *mine(sealed_chunks),
            # What the checkpoint is not known to hold is not read for it.
            exists().where(
                *mine(checkpoint_parts),
                checkpoint_parts.c.checkpoint_id == bindparam("checkpoint_id", type_=UUIDType()),
                checkpoint_parts.c.content_id == sealed_chunks.c.content_id,
            ),
        )
    )
)
_HELD = Statement(
    gated(
        select(checkpoint_parts.c.content_id)
        .distinct()
        .where(*mine(checkpoint_parts), checkpoint_parts.c.checkpoint_id == bindparam("checkpoint_id", type_=UUIDType()))
    )
)
_UNREFERENCED = Statement(
    gated(
        select(sealed_contents.c.content_id)
        .where(*mine(sealed_contents), sealed_contents.c.create_time < bindparam("before", type_=TIME), unreferenced())
        .limit(bindparam("limit", type_=BigInteger))
    )
)
# Locked first and looked at again after that, so that one which a checkpoint has come to hold meanwhile is left alone.
_LOCK = Statement(
    gated(
        select(sealed_contents.c.content_id, sealed_contents.c.size)
        .where(*mine(sealed_contents), sealed_contents.c.content_id == func.any(_IDS))
        .order_by(sealed_contents.c.content_id)
        .with_for_update()
    )
)
_remove_opener = gate()
_REMOVE = Statement(
    delete(sealed_contents)
    .where(opened(_remove_opener), *mine(sealed_contents), sealed_contents.c.content_id == func.any(_IDS), unreferenced())
    .returning(sealed_contents.c.content_id)
)


class Contents:
    """What is stored of sealed contents."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def known(self, tenant: Tenant, digests: Sequence[bytes]) -> dict[bytes, UUID]:
        """The contents that are stored already, by their digests."""
        return dict(await self._database.read([tenant], _KNOWN, {**of_tenant(tenant), "digests": digests}))

    async def begin(self, tenant: Tenant, content_id: UUID, now: datetime) -> None:
        """Store a content that has no chunk yet, and that nobody finds."""
        await self._database.write([tenant], _BEGIN, {**of_tenant(tenant), "content_id": content_id, "nothing": 0, "create_time": now})

    async def put(self, tenant: Tenant, content_id: UUID, number: int, sealed: bytes, key: KeyRow) -> bool:
        """Store a chunk of it; False when the key may seal no longer, or the content was removed."""
        values = {**of_tenant(tenant), **held_values(key), "content_id": content_id, "number": number, "sealed": sealed}
        try:
            return bool(await self._database.write([tenant], _PUT, values))
        except (asyncpg.ForeignKeyViolationError, *COLLISIONS):
            return False

    async def complete(self, tenant: Tenant, content_id: UUID, size: int, stored: int, digest: bytes | None) -> bool:
        """Say how large the content is, and by which digest it is found; False when an equal one is found by it already."""
        values = {**of_tenant(tenant), "content_id": content_id, "new_size": size, "new_stored": stored, "new_digest": digest}
        try:
            return bool(await self._database.write([tenant], _COMPLETE, values))
        except (asyncpg.UniqueViolationError, *COLLISIONS):
            return False

    async def chunks(self, tenant: Tenant, checkpoint_id: UUID, places: Iterable[ChunkPlace]) -> dict[ChunkPlace, Chunk]:
        """Those chunks of contents that the checkpoint holds; one that is not there is left out."""
        values = {**of_tenant(tenant), **given_values("wanted", _WANTED, places), "checkpoint_id": checkpoint_id}
        rows = await self._database.read([tenant], _CHUNKS, values)
        return {
            (content_id, number): Chunk(sealed, version, None if wrapped is None else KeyRow(version, kek_id, wrapped))
            for content_id, number, sealed, version, kek_id, wrapped in rows
        }

    async def held(self, tenant: Tenant, checkpoint_id: UUID) -> set[UUID]:
        """The contents that the checkpoint is known to hold."""
        return {row[0] for row in await self._database.read([tenant], _HELD, {**of_tenant(tenant), "checkpoint_id": checkpoint_id})}

    async def unreferenced(self, tenant: Tenant, before: datetime, limit: int) -> list[UUID]:
        """Contents from before that time which no checkpoint holds."""
        rows = await self._database.read([tenant], _UNREFERENCED, {**of_tenant(tenant), "before": before, "limit": limit})
        return [row[0] for row in rows]

    async def remove(self, tenant: Tenant, content_ids: Iterable[UUID]) -> int:
        """Remove those of the contents that no checkpoint holds, some at a time; how many they were."""
        left, removed = sorted(set(content_ids)), 0

        async def rest() -> int:
            nonlocal left, removed
            while left:
                taken: list[UUID] = []
                size = 0
                async with self._database.begin([tenant]) as transaction:
                    for content_id, content_size in await transaction.rows(_LOCK, {**of_tenant(tenant), "content_ids": left}):
                        if taken and size + content_size > REMOVED_BYTES:
                            break
                        taken.append(content_id)
                        size += content_size
                    done = await transaction.rows(_REMOVE, {**of_tenant(tenant), "content_ids": taken}) if taken else []
                removed += len(done)
                left = [content_id for content_id in left if content_id > taken[-1]] if taken else []
            return removed

        return await undisturbed(rest)
