"""The statements about checkpoints: each is made once for each shape that comes along."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from datetime import datetime
from functools import cache
from typing import Any
from uuid import UUID

import orjson
from sqlalchemy import UUID as UUIDType
from sqlalchemy import BigInteger, Boolean, LargeBinary, Text, and_, bindparam, cast, exists, insert, literal_column, select, update
from sqlalchemy.dialects.postgresql import JSONB

from server.repository.checkpoint_tables import checkpoint_parts, checkpoints, sealed_chunks, sealed_contents, tenant_keys
from server.repository.keys import held
from server.repository.requests import put_reply
from server.repository.statement import Columns, Statement, gate, gated, given, mine, mine_of, of_tenant, opened
from server.repository.table_parts import TENANT_KEY, TIME
from server.repository.tables import flows
from server.statemachine.checkpoint import CheckpointKind
from server.statemachine.value import dataclass
from server.statemachine.values import Tenant

TOLD = (
    "checkpoint_id",
    "flow_id",
    "revision",
    "kind",
    "status",
    "progress",
    "create_time",
    "created_by",
    "expire_time",
    "pinned",
    "labels",
    "reason",
    "size",
    "key_version",
    "etag",
    "payload_size",
)
_TOLD_COLUMNS = [checkpoints.c[name] for name in TOLD]
CONTENT: Columns = {
    "content_id": UUIDType(),
    "size": BigInteger(),
    "stored": BigInteger(),
    "digest": LargeBinary(),
    "sealed": LargeBinary(),
}
PART: Columns = {"content_id": UUIDType(), "name": Text(), "child_type": Text()}
ID = bindparam("checkpoint_id", type_=UUIDType())
LIMIT = bindparam("limit", type_=BigInteger)
_FLOW = bindparam("flow_id", type_=UUIDType())
_BEFORE = bindparam("before_id", type_=UUIDType())


@cache
def store(replied: bool) -> Statement:
    """Everything in one statement, and so wholly or not at all; nothing at all unless key and flow are still what they were."""
    opener = gate()
    key, owner = held(opener), [bindparam(name, type_=UUIDType()) for name in TENANT_KEY]
    made = bindparam("flow_create_time", type_=TIME)
    home = exists().where(opened(opener), *mine(flows), flows.c.flow_id == _FLOW, flows.c.create_time == made)
    plain = [name for name in TOLD if name not in ("key_version", "labels")]
    columns = [bindparam(name, type_=checkpoints.c[name].type) for name in plain]
    row = select(*owner, *columns, labels_given("labels"), bindparam("header", type_=LargeBinary), key.c.version)
    put = (
        insert(checkpoints)
        .from_select([*TENANT_KEY, *plain, "labels", "header", "key_version"], row.where(opened(opener), home))
        .returning(checkpoints.c.checkpoint_id)
        .cte("put_checkpoint")
    )
    content, part = given("content", CONTENT), given("part", PART)
    stored = (content.c.content_id, content.c.size, content.c.stored, bindparam("create_time", type_=TIME), content.c.digest)
    contents = select(*owner, *stored).where(opened(opener), exists(put))
    chunks = select(*owner, content.c.content_id, literal_column("0"), key.c.version, content.c.sealed).where(opened(opener), exists(put))
    parts = select(*owner, put.c.checkpoint_id, part.c.content_id, part.c.name, part.c.child_type).where(opened(opener))
    query: Any = select(put.c.checkpoint_id).add_cte(
        insert(sealed_contents)
        .from_select([*TENANT_KEY, "content_id", "size", "stored", "create_time", "digest"], contents)
        .returning(sealed_contents.c.content_id)
        .cte("put_content"),
        insert(sealed_chunks)
        .from_select([*TENANT_KEY, "content_id", "number", "key_version", "sealed"], chunks)
        .returning(sealed_chunks.c.number)
        .cte("put_chunk"),
        insert(checkpoint_parts)
        .from_select([*TENANT_KEY, "checkpoint_id", "content_id", "name", "child_type"], parts)
        .returning(checkpoint_parts.c.name)
        .cte("put_part"),
    )
    return Statement(query.add_cte(put_reply(opener, put)) if replied else query)


def labels_given(name: str) -> Any:
    """The labels in that parameter, which travel as text."""
    return cast(bindparam(name, type_=Text), JSONB)


def labels_text(labels: Mapping[str, str]) -> str:
    """Labels as they travel."""
    return orjson.dumps(dict(labels)).decode()


# A key that was destroyed does not make its checkpoints invisible.
WITH_KEY = select(*_TOLD_COLUMNS, checkpoints.c.header, tenant_keys.c.kek_id, tenant_keys.c.wrapped).select_from(
    checkpoints.outerjoin(
        tenant_keys, and_(*mine_of(tenant_keys, checkpoints), *mine(tenant_keys), tenant_keys.c.version == checkpoints.c.key_version)
    )
)
SEALED = Statement(gated(WITH_KEY.where(*mine(checkpoints), checkpoints.c.checkpoint_id == ID)))
GET = Statement(gated(select(*_TOLD_COLUMNS).where(*mine(checkpoints), checkpoints.c.checkpoint_id == ID)))
OF_FLOW = Statement(
    gated(
        WITH_KEY.where(*mine(checkpoints), checkpoints.c.flow_id == _FLOW, checkpoints.c.checkpoint_id < _BEFORE)
        .order_by(checkpoints.c.checkpoint_id.desc())
        .limit(LIMIT)
    )
)


@dataclass(frozen=True, slots=True)
class Narrowed:
    """Which checkpoints are meant: those to which all applies that is given."""

    flow_id: UUID | None = None
    kind: CheckpointKind | None = None
    labels: Mapping[str, str] = field(default_factory=dict, hash=False)
    pinned_only: bool = False
    created_before: datetime | None = None
    expired_at: datetime | None = None

    @property
    def given(self) -> tuple[bool, ...]:
        """Which conditions there are: what ``conditions`` wants to know."""
        flow, kind, created, expired = self.flow_id, self.kind, self.created_before, self.expired_at
        return flow is not None, kind is not None, bool(self.labels), self.pinned_only, created is not None, expired is not None

    def values(self, tenant: Tenant) -> dict[str, object]:
        """The values of ``conditions``."""
        return {
            **of_tenant(tenant),
            "flow_id": self.flow_id,
            "kind": None if self.kind is None else self.kind.name,
            "labels": labels_text(self.labels),
            "created_before": self.created_before,
            "expired_at": self.expired_at,
        }


def conditions(given: tuple[bool, ...]) -> list[Any]:
    """The tenant's checkpoints that are meant."""
    flow, kind, labels, pinned, created, expired = given
    found: list[Any] = mine(checkpoints)
    if flow:
        found.append(checkpoints.c.flow_id == _FLOW)
    if kind:
        found.append(checkpoints.c.kind == bindparam("kind", type_=Text))
    if labels:
        found.append(checkpoints.c.labels.op("@>", is_comparison=True)(labels_given("labels")))
    if pinned:
        found.append(checkpoints.c.pinned)
    if created:
        found.append(checkpoints.c.create_time < bindparam("created_before", type_=TIME))
    if expired:
        found += [checkpoints.c.expire_time.is_not(None), checkpoints.c.expire_time <= bindparam("expired_at", type_=TIME)]
    return found


@cache
def page(given: tuple[bool, ...]) -> Statement:
    """Those that are meant, the newest first."""
    query = select(*_TOLD_COLUMNS).where(*conditions(given), checkpoints.c.checkpoint_id < _BEFORE)
    return Statement(gated(query.order_by(checkpoints.c.checkpoint_id.desc()).limit(LIMIT)))


@cache
def change(replied: bool) -> Statement:
    """What an owner may change, of a checkpoint that is as it was read."""
    opener = gate()
    changed = (
        update(checkpoints)
        .values(
            pinned=bindparam("new_pinned", type_=Boolean),
            expire_time=bindparam("new_expire_time", type_=TIME),
            labels=labels_given("new_labels"),
            etag=checkpoints.c.etag + literal_column("1"),
        )
        .where(
            opened(opener),
            *mine(checkpoints),
            checkpoints.c.checkpoint_id == ID,
            checkpoints.c.etag == bindparam("at_etag", type_=BigInteger),
        )
        .returning(checkpoints.c.checkpoint_id)
        .cte("changed")
    )
    query: Any = select(changed.c.checkpoint_id)
    return Statement(query.add_cte(put_reply(opener, changed)) if replied else query)
