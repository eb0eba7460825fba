"""Storing earlier versions of documents as what differs from the next one, afterwards.

A commit does so by itself where its process knows the version before. Where it does not (another process wrote that, or the document is
small, or the process is new) the version stays whole, until this comes by. The bytes that a version is unpacked to stay the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from datetime import datetime
from itertools import groupby
from typing import Any
from uuid import UUID

from sqlalchemy import UUID as UUIDType
from sqlalchemy import (
    BigInteger,
    Integer,
    LargeBinary,
    Text,
    and_,
    bindparam,
    exists,
    func,
    literal_column,
    or_,
    select,
    update,
)
from zstandard import ZstdError

from server.repository.commit_statement import WHOLE_EVERY
from server.repository.compaction import lock_of
from server.repository.compaction_statements import LOCK
from server.repository.database import Database
from server.repository.document_store import packed_delta, unpack_delta, unpacked
from server.repository.history import History
from server.repository.history_tables import VersionKind, document_versions
from server.repository.id_pages import ids
from server.repository.statement import Columns, Statement, gate, gated, given, given_values, mine, of_tenant, opened, same_flow
from server.repository.table_parts import TIME
from server.repository.tables import documents, flows
from server.statemachine.document import sha256
from server.statemachine.errors import HistoryDamaged, RevisionCompacted
from server.statemachine.history import Version
from server.statemachine.value import dataclass
from server.statemachine.values import DocumentPlace, FlowKey, Tenant

# What is smaller when packed by itself is left as it is.
LEAST_BYTES = 512
# A version becomes a delta only if that takes no more than this share of what it takes whole.
WORTH = 0.8
# So many versions are stored anew in one transaction.
STEP = 16
FLOWS = 200
_WHOLE, _DELTA, _ABSENT = (kind.value for kind in (VersionKind.WHOLE, VersionKind.DELTA, VersionKind.ABSENT))

_FLOW = bindparam("flow_id", type_=UUIDType())
_worth: Any = (
    select(literal_column("1"))
    .where(
        *same_flow(document_versions, flows),
        document_versions.c.kind == literal_column(str(_WHOLE)),
        func.octet_length(document_versions.c.body) >= literal_column(str(LEAST_BYTES)),
    )
    .correlate(flows)
)
# Flows that were changed since then and have versions that may be stored smaller.
_CANDIDATES = Statement(
    gated(
        select(flows.c.flow_id)
        .where(
            *mine(flows),
            flows.c.flow_id >= bindparam("first", type_=UUIDType()),
            flows.c.update_time >= bindparam("since", type_=TIME),
            _worth.exists(),
        )
        .order_by(flows.c.flow_id)
        .limit(bindparam("size", type_=Integer))
    )
)


def _of_flow(table: Any) -> list[Any]:
    return [*mine(table), table.c.flow_id == _FLOW]


def _versions() -> Statement:
    """Every version of the flow's documents, the present ones as whole and with no bytes to win."""
    opener = gate()
    names = ("name", "child_type", "revision")
    earlier = select(
        *(document_versions.c[name] for name in names),
        document_versions.c.kind,
        document_versions.c.size,
        document_versions.c.sha256,
        func.octet_length(document_versions.c.body),
    ).where(opened(opener), *_of_flow(document_versions))
    present = select(
        *(documents.c[name] for name in names), literal_column(str(_WHOLE)), documents.c.size, documents.c.sha256, literal_column("0")
    ).where(opened(opener), *_of_flow(documents))
    return Statement(earlier.union_all(present))


_VERSIONS = _versions()
_BODY = Statement(
    gated(
        select(document_versions.c.body).where(
            *_of_flow(document_versions),
            document_versions.c.name == bindparam("name", type_=Text),
            document_versions.c.child_type == bindparam("child_type", type_=Text),
            document_versions.c.revision == bindparam("revision", type_=BigInteger),
            document_versions.c.kind == literal_column(str(_WHOLE)),
        )
    )
)


_GIVEN: Columns = {
    "name": Text(), "child_type": Text(), "revision": BigInteger(), "sha256": LargeBinary(),
    "following": BigInteger(), "following_sha256": LargeBinary(), "body": LargeBinary(),
}  # fmt: skip


def _store() -> Statement:
    """Makes whole versions into deltas, each if it and the next version are still what the delta was made of."""
    opener = gate()
    put = given("put", _GIVEN)
    table: Any = document_versions
    later, between = document_versions.alias("later"), document_versions.alias("between")

    def of_place(found: Any) -> list[Any]:
        return [*_of_flow(found), found.c.name == put.c.name, found.c.child_type == put.c.child_type]

    def follows(found: Any) -> list[Any]:
        return [*of_place(found), found.c.revision == put.c.following, found.c.sha256 == put.c.following_sha256]

    stands: Any = or_(
        exists().where(*follows(later), later.c.kind != literal_column(str(_ABSENT))).correlate(put),
        exists().where(*follows(documents)).correlate(put),
    )
    alone: Any = ~exists().where(*of_place(between), between.c.revision > put.c.revision, between.c.revision < put.c.following).correlate(
        put
    )
    done = (
        update(table)
        .values(kind=literal_column(str(_DELTA)), body=put.c.body)
        .where(
            opened(opener),
            *of_place(table),
            table.c.revision == put.c.revision,
            table.c.kind == literal_column(str(_WHOLE)),
            table.c.sha256 == put.c.sha256,
            and_(stands, alone),
        )
        .returning(table.c.revision)
        .cte("done")
    )
    return Statement(select(func.count()).select_from(done))


_STORE = _store()


@dataclass(frozen=True, slots=True)
class Stored:
    """A version as it is stored; ``stored`` is how many bytes it takes."""

    place: DocumentPlace
    revision: int
    kind: int
    size: int
    sha256: bytes
    stored: int

    @property
    def named(self) -> tuple[str, str, int]:
        """How the database names it within its flow."""
        return self.place.name, self.place.child_type, self.revision

    @property
    def version(self) -> Version:
        """Which version it is."""
        return Version(self.revision, self.size, self.sha256)


@dataclass(frozen=True, slots=True)
class _Delta:
    """A version in its new form, and how many bytes that saves."""

    version: Stored
    following: Stored
    body: bytes
    saved: int


def convertible(versions: Sequence[Stored]) -> Iterator[tuple[Stored, Stored]]:
    """Which versions of one document, in their order and the present one last, may be made of the next one: the newest first.

    Rebuilding any version must not take more steps than when a commit itself had stored them all.
    """
    below = [0] * len(versions)  # how many versions right before are made, one of the other, of this one
    for at in range(1, len(versions)):
        below[at] = below[at - 1] + 1 if versions[at - 1].kind == _DELTA else 0
    depth = 0  # how many steps it takes to the next version that is whole
    for at in range(len(versions) - 2, -1, -1):
        one, following = versions[at], versions[at + 1]
        if one.kind == _DELTA:
            depth += 1
        elif one.kind == _WHOLE and following.kind != _ABSENT and one.stored >= LEAST_BYTES and depth + 1 + below[at] < WHOLE_EVERY:
            depth += 1
            yield one, following
        else:
            depth = 0


class Packing:
    """Stores versions smaller."""

    def __init__(self, database: Database, history: History) -> None:
        self._database, self._history = database, history

    async def candidates(self, tenant: Tenant, since: datetime) -> AsyncIterator[UUID]:
        """The tenant's flows that were changed since then and may have something to store smaller."""
        async for flow_id in ids(self._database, tenant, _CANDIDATES, {"since": since}, FLOWS):
            yield flow_id

    async def pack(self, key: FlowKey) -> int:
        """How many bytes were saved. What is damaged, or was changed meanwhile, stays as it is."""
        values = {**of_tenant(key.tenant), "flow_id": key.flow_id}
        rows = await self._database.read([key.tenant], _VERSIONS, values)
        versions = [Stored(DocumentPlace(name, child_type), *rest) for name, child_type, *rest in rows]
        versions.sort(key=lambda one: (one.place, one.revision))
        saved = 0
        for _, group in groupby(versions, key=lambda one: one.place):
            deltas: list[_Delta] = []
            known: tuple[Stored, bytes] | None = None
            for one, following in convertible(list(group)):
                if known is None or known[0] is not following:
                    known = await self._text(key, following)
                text = None if known is None else await self._whole(key, one)
                if text is None or known is None:
                    known = None
                    continue
                body = await packed_delta(text, known[1])
                if len(body) <= one.stored * WORTH and await _unpacks(body, known[1], text):
                    deltas.append(_Delta(one, following, body, one.stored - len(body)))
                known = one, text
                if len(deltas) == STEP:
                    saved += await self._store(key, deltas)
                    deltas = []
            saved += await self._store(key, deltas)
        return saved

    async def _text(self, key: FlowKey, stored: Stored) -> tuple[Stored, bytes] | None:
        try:
            return stored, (await self._history.documents(key, {stored.place: stored.version}))[stored.place]
        except (HistoryDamaged, RevisionCompacted):
            return None

    async def _whole(self, key: FlowKey, one: Stored) -> bytes | None:
        values = {"flow_id": key.flow_id, "name": one.place.name, "child_type": one.place.child_type, "revision": one.revision}
        rows = await self._database.read([key.tenant], _BODY, {**of_tenant(key.tenant), **values})
        try:
            text = (await unpacked([rows[0][0]]))[0] if rows else None
        except ZstdError:
            return None
        return text if text is not None and sha256(text) == one.sha256 else None

    async def _store(self, key: FlowKey, deltas: Sequence[_Delta]) -> int:
        if not deltas:
            return 0
        rows = [(*one.version.named, one.version.sha256, one.following.revision, one.following.sha256, one.body) for one in deltas]
        values = given_values("put", _GIVEN, rows)
        async with self._database.begin([key.tenant]) as transaction:
            await transaction.rows(LOCK, {"lock": lock_of(key)})
            done = await transaction.rows(_STORE, {**of_tenant(key.tenant), "flow_id": key.flow_id, **values})
        return sum(one.saved for one in deltas) if done[0][0] == len(deltas) else 0


async def _unpacks(body: bytes, following: bytes, text: bytes) -> bool:
    """Whether the delta is what it should be: it takes the place of the only copy."""
    return await asyncio.to_thread(unpack_delta, body, following) == text
