"""Erasing a tenant: one transaction that leaves the hashes of its events, a receipt, and nothing that the tenant said."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import asyncpg
from sqlalchemy import (
    ARRAY,
    BigInteger,
    ColumnElement,
    LargeBinary,
    Table,
    bindparam,
    case,
    cast,
    delete,
    exists,
    func,
    insert,
    literal_column,
    select,
    update,
)
from sqlalchemy import UUID as UUIDType

from server.repository.admin_tables import erasures
from server.repository.checkpoint_tables import checkpoints, tenant_keys
from server.repository.database import Database, Transaction, undisturbed
from server.repository.history_tables import bases
from server.repository.requests import Reply, put_reply, reply_values
from server.repository.statement import Statement, gate, gated, mine, of_tenant, opened, same_flow
from server.repository.table_parts import TENANT_KEY, metadata
from server.repository.tables import TENANT_TABLES, documents, events, flows, requests
from server.statemachine.erasure import Erased, Receipt, digest
from server.statemachine.values import FlowKey, Tenant

# A large tenant takes a while: a million events about half a minute.
SECONDS = 600.0

# All tables of tenants but what is to be left.
_ERASED = frozenset(TENANT_TABLES) - {events, erasures}

_IDS: Any = bindparam("flow_ids", type_=ARRAY(UUIDType()))
_KEYS = select(tenant_keys.c.version, tenant_keys.c.kek_id).where(*mine(tenant_keys)).order_by(tenant_keys.c.version)
_FLOWS = select(flows.c.flow_id, flows.c.revision, flows.c.head_hash).where(*mine(flows)).order_by(flows.c.flow_id)
# The keys first: nothing can be sealed any more, and what was being sealed is there to be seen. Then the flows: nothing can be committed.
_READ_KEYS, _LOCK_KEYS = Statement(gated(_KEYS)), Statement(gated(_KEYS.with_for_update()))
_READ_FLOWS, _LOCK_FLOWS = Statement(gated(_FLOWS)), Statement(gated(_FLOWS.with_for_update()))


def _gone(table: Any) -> ColumnElement[bool]:
    """The condition that a row's flow is not there: it was erased a moment ago, or had been lost before."""
    return ~exists().where(*mine(flows), *same_flow(flows, table))


def _number_of(table: Table, *conditions: Any) -> Statement:
    """How many rows there are."""
    return Statement(gated(select(func.count()).select_from(table).where(*mine(table), *conditions)))


def _of_flows(table: Table) -> bool:
    """Whether the table is flows, or refers to it and so has to go first."""
    return table is flows or any(key.referred_table is flows for key in table.foreign_key_constraints)


def _deletion(table: Table) -> Statement:
    """How many rows were deleted.

    Of flows and what refers to them those that were locked: others may be made meanwhile. Of what else belongs to flows, that of flows
    that are gone by then. Of the rest, everything.
    """
    theirs: list[Any] = []
    if _of_flows(table):
        theirs = [table.c.flow_id == func.any(_IDS)]
    elif "flow_id" in table.c:
        theirs = [_gone(table)]
    if table is bases:  # what compaction left stands for the hashes of events that went before: it is emptied as they are
        theirs.append(bases.c.signature.is_(None))
    if table is requests:  # what asked for an erasure is known for ever: repeated, it must not erase what has come since
        theirs.append(~exists().where(*mine(erasures), erasures.c.receipt_id == requests.c.flow_id))
    opener = gate()
    done = delete(table).where(opened(opener), *mine(table), *theirs).returning(literal_column("1").label("one")).cte("done")
    return Statement(select(func.count()).select_from(done))


def _framed(text: Any) -> ColumnElement[bytes]:
    """A part of an event's content behind its length, as event_codec.content_of has it."""
    encoded = func.convert_to(text, literal_column("'UTF8'"))
    return func.int8send(cast(func.octet_length(encoded), BigInteger)).op("||", return_type=LargeBinary())(encoded)


def _iso(time: Any) -> Any:
    """The time as Python writes it: without a fraction where there is none."""
    utc = func.timezone(literal_column("'UTC'"), time)
    fraction = func.to_char(utc, literal_column("'.US'"))
    whole = func.to_char(utc, literal_column("""'YYYY-MM-DD"T"HH24:MI:SS'"""))
    return func.concat(
        whole, case((fraction == literal_column("'.000000'"), literal_column("''")), else_=fraction), literal_column("'+00:00'")
    )


def _content(table: Any) -> Any:
    joined = _framed(_iso(table.c.time)).op("||", return_type=LargeBinary())(_framed(table.c.actor))
    return func.sha256(joined.op("||", return_type=LargeBinary())(_framed(table.c.body)))


def _emptied() -> Statement:
    opener = gate()
    done = (
        update(events)
        .values(content_sha256=_content(events), body=literal_column("''"), actor=literal_column("''"))
        .where(opened(opener), *mine(events), events.c.content_sha256.is_(None), _gone(events))
        .returning(literal_column("1").label("one"))
        .cte("done")
    )
    return Statement(select(func.count()).select_from(done))


def _emptied_bases() -> Statement:
    opener = gate()
    done = (
        update(bases)
        .values(body=literal_column("''"))
        .where(opened(opener), *mine(bases), bases.c.signature.is_not(None), _gone(bases))
        .returning(literal_column("1").label("one"))
        .cte("done")
    )
    return Statement(select(func.count()).select_from(done))


_EMPTY_EVENTS, _EMPTY_BASES = _emptied(), _emptied_bases()
# Whatever tables there are: flows first, since the others' rows are known by their absence, and what refers before what is referred to.
_ORDERED = sorted(reversed([table for table in metadata.sorted_tables if table in _ERASED]), key=lambda table: not _of_flows(table))
_DELETIONS = {table.name: _deletion(table) for table in _ORDERED}
_COUNTS = {table.name: _number_of(table) for table in (documents, checkpoints)}
_COUNT_EVENTS = _number_of(events, events.c.content_sha256.is_(None))

_ANSWERED = Statement(
    gated(select(requests.c.request_id).where(*mine(requests), requests.c.request_id == bindparam("request_id", type_=UUIDType())))
)

_RECEIPT = ("receipt_id", "create_time", "flows", "events", "documents", "checkpoints", "keys", "actor", "reason", "digest", "kek_ids")


@cache
def _receipt(replied: bool) -> Statement:
    opener = gate()
    values = [bindparam(name, type_=erasures.c[name].type) for name in (*TENANT_KEY, *_RECEIPT)]
    put = (
        insert(erasures)
        .from_select([*TENANT_KEY, *_RECEIPT], select(*values).where(opened(opener)))
        .returning(erasures.c.receipt_id)
        .cte("put_receipt")
    )
    query: Any = select(put.c.receipt_id)
    return Statement(query.add_cte(put_reply(opener, put)) if replied else query)


class Erasure:
    """Erases tenants."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def count(self, tenant: Tenant) -> Erased:
        """What would be erased."""
        read = self._database.read
        mine = of_tenant(tenant)
        keys, heads = await read([tenant], _READ_KEYS, mine), await read([tenant], _READ_FLOWS, mine)
        counts = {name: (await read([tenant], statement, mine))[0][0] for name, statement in _COUNTS.items()}
        return _erased(keys, heads, (await read([tenant], _COUNT_EVENTS, mine))[0][0], counts)

    async def erase(
        self,
        tenant: Tenant,
        asking: Reply | None,
        receipt: Callable[[Erased], Receipt],
        reply: Callable[[Receipt], Reply | None],
    ) -> tuple[Receipt, list[FlowKey]] | None:
        """Erase everything of the tenant: the receipt, and the flows that are gone. None when the request ``asking`` was answered before.

        Raises StoreUnavailable.
        """

        async def once() -> tuple[Receipt, list[FlowKey]] | None:
            async with self._database.begin([tenant], SECONDS) as transaction:
                return await _erase(transaction, tenant, asking, receipt, reply)

        try:
            return await undisturbed(once, asyncpg.ForeignKeyViolationError)
        except asyncpg.UniqueViolationError:
            return None


async def _erase(
    transaction: Transaction,
    tenant: Tenant,
    asking: Reply | None,
    receipt: Callable[[Erased], Receipt],
    reply: Callable[[Receipt], Reply | None],
) -> tuple[Receipt, list[FlowKey]] | None:
    mine = of_tenant(tenant)
    keys = await transaction.rows(_LOCK_KEYS, mine)
    heads = await transaction.rows(_LOCK_FLOWS, mine)
    flow_ids = [row[0] for row in heads]
    if asking is not None and await transaction.rows(_ANSWERED, {**mine, "request_id": asking.request_id}):
        return None
    counts = {name: (await transaction.rows(statement, {**mine, "flow_ids": flow_ids}))[0][0] for name, statement in _DELETIONS.items()}
    emptied = (await transaction.rows(_EMPTY_EVENTS, mine))[0][0]
    await transaction.rows(_EMPTY_BASES, mine)
    made = receipt(_erased(keys, heads, emptied, counts))
    told, erased = reply(made), made.erased
    values = {
        "receipt_id": made.receipt_id,
        "create_time": made.time,
        "flows": erased.flows,
        "events": erased.events,
        "documents": erased.documents,
        "checkpoints": erased.checkpoints,
        "keys": erased.keys,
        "actor": made.actor,
        "reason": made.reason,
        "digest": erased.digest,
        "kek_ids": list(erased.kek_ids),
    }
    await transaction.rows(_receipt(told is not None), {**mine, **values, **reply_values(told, made.receipt_id, made.time)})
    return made, [FlowKey(tenant, flow_id) for flow_id in flow_ids]


def _erased(keys: Sequence[Any], heads: Sequence[Any], emptied: int, counts: Mapping[str, int]) -> Erased:
    kek_ids = tuple(sorted({kek_id for _, kek_id in keys}))
    return Erased(len(heads), emptied, counts[documents.name], counts[checkpoints.name], len(keys), kek_ids, digest(heads))
