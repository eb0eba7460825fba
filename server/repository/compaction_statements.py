"""What compaction reads and writes of one flow."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ARRAY, BigInteger, Integer, LargeBinary, Text, bindparam, func, literal_column, select, update
from sqlalchemy import UUID as UUIDType
from sqlalchemy import delete as deletion
from sqlalchemy.dialects.postgresql import insert as upsert

from server.repository.checkpoint_tables import checkpoints
from server.repository.history_tables import VersionKind, bases, document_versions
from server.repository.statement import Columns, Statement, gate, gated, given, mine, opened, same_flow
from server.repository.table_parts import FLOW_KEY, TENANT_KEY, TIME
from server.repository.tables import events, flows
from server.statemachine.retention import UNWELL
from server.statemachine.states import TERMINAL

# Commits of one batch can have the same time: the one at which a flow ended is looked for among so many of that time.
_SAME_TIME = 200

_FLOW = bindparam("flow_id", type_=UUIDType())


def _of_flow(table: Any) -> list[Any]:
    return [*mine(table), table.c.flow_id == _FLOW]


def _revision_of(which: Any, *conditions: Any) -> Any:
    """One revision of the flow's events."""
    return select(which(events.c.revision)).where(*same_flow(events, flows), *conditions).correlate(flows).scalar_subquery()


# An event's body begins with its status: `{"status":"ACTIVE",`.
_status: Any = func.split_part(func.left(events.c.body, literal_column("60")), literal_column("'\"'"), literal_column("4"))
_unwell: list[Any] = [literal_column(f"'{status.name}'") for status in sorted(UNWELL, key=lambda status: status.name)]
_terminal: list[Any] = [literal_column(f"'{status.name}'") for status in sorted(TERMINAL, key=lambda status: status.name)]
_last_then: Any = _revision_of(func.max, events.c.time <= flows.c.end_time)
_ended: Any = _revision_of(
    func.min,
    events.c.time == flows.c.end_time,
    events.c.revision > _last_then - literal_column(str(_SAME_TIME)),
    _status.in_(_terminal),
)
_pinned: Any = select(checkpoints.c.revision).where(*same_flow(checkpoints, flows), checkpoints.c.pinned).distinct().correlate(flows)
_bases: Any = select(func.row(bases.c.revision, bases.c.signature.is_not(None))).where(*same_flow(bases, flows)).correlate(flows)
# Everything that decides what may go, of one moment.
SURVEY = Statement(
    gated(
        select(
            flows.c.revision,
            _revision_of(func.min),
            _revision_of(func.min, events.c.time >= bindparam("limit", type_=TIME)),
            _revision_of(func.max, _status.not_in(_unwell)),
            _ended,
            flows.c.end_time,
            func.array(_pinned.scalar_subquery()),
            func.array(_bases.scalar_subquery()),
        ).where(*_of_flow(flows))
    )
)

# Which of a tenant's flows have more revisions than shall stay.
_surplus: Any = flows.c.revision - bindparam("keep", type_=BigInteger) - _revision_of(func.min) + literal_column("1")
CANDIDATES = Statement(
    gated(
        select(flows.c.flow_id)
        .where(*mine(flows), flows.c.flow_id >= bindparam("first", type_=UUIDType()), _surplus >= bindparam("least", type_=BigInteger))
        .order_by(flows.c.flow_id)
        .limit(bindparam("size", type_=Integer))
    )
)

_HORIZON: Any = bindparam("horizon", type_=BigInteger)
# Every version up to the horizon, and whether it is whole.
VERSIONS = Statement(
    gated(
        select(*(document_versions.c[name] for name in ("name", "child_type", "revision", "kind")))
        .where(*_of_flow(document_versions), document_versions.c.revision <= _HORIZON)
        .order_by(*(document_versions.c[name] for name in ("name", "child_type", "revision")))
    )
)

# The row stays, whatever becomes of its columns; so commits go on beside it. The lock is for those who would take away from the history.
LOCK = Statement(gated(select(func.pg_advisory_xact_lock(bindparam("lock", type_=BigInteger)))))
STANDS = Statement(gated(select(flows.c.revision).where(*_of_flow(flows)).with_for_update(key_share=True, read=True)))
OLDEST = Statement(gated(select(func.min(events.c.revision)).where(*_of_flow(events))))


# What travels for each part.
BASES: Columns = {"revision": BigInteger(), "hash": LargeBinary(), "body": LargeBinary(), "signature": LargeBinary()}
NAMED: Columns = {"name": Text(), "child_type": Text(), "revision": BigInteger()}
WHOLE: Columns = {**NAMED, "body": LargeBinary()}


def _key() -> list[Any]:
    return [*(bindparam(key, type_=UUIDType()) for key in TENANT_KEY), _FLOW]


def _put_bases() -> Statement:
    opener = gate()
    put = given("put", BASES)
    putting = upsert(bases).from_select([*FLOW_KEY, *BASES], select(*_key(), *put.c).where(opened(opener)))
    changed = {name: putting.excluded[name] for name in ("hash", "body", "signature")}
    stored = putting.on_conflict_do_update(index_elements=[*FLOW_KEY, "revision"], set_=changed).returning(bases.c.body).cte("stored")
    return Statement(select(func.coalesce(func.sum(func.octet_length(stored.c.body)), literal_column("0"))))


PUT_BASES = _put_bases()


def _make_whole() -> Statement:
    opener = gate()
    put = given("put", WHOLE)
    table = document_versions
    same = [table.c[name] == put.c[name] for name in ("name", "child_type", "revision")]
    done = (
        update(table)
        .values(kind=literal_column(str(VersionKind.WHOLE.value)), body=put.c.body)
        .where(opened(opener), *_of_flow(table), *same)
        .returning(table.c.body)
        .cte("done")
    )
    return Statement(select(func.coalesce(func.sum(func.octet_length(done.c.body)), literal_column("0"))))


MAKE_WHOLE = _make_whole()


def _removing(table: Any, conditions: list[Any]) -> Statement:
    """Takes rows away and says how many there were, and how many bytes."""
    gone = deletion(table).where(opened(gate()), *_of_flow(table), *conditions).returning(table.c.body).cte("gone")
    return Statement(select(func.count(), func.coalesce(func.sum(func.octet_length(gone.c.body)), literal_column("0"))).select_from(gone))


_gone = given("gone", NAMED)
REMOVE_VERSIONS = _removing(document_versions, [document_versions.c[name] == _gone.c[name] for name in NAMED])
REMOVE_BASES = _removing(bases, [bases.c.revision == func.any(bindparam("revisions", type_=ARRAY(BigInteger)))])
REMOVE_EVENTS = _removing(events, [events.c.revision <= _HORIZON])
