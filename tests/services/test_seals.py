"""Whatever is done to what is stored of a checkpoint: it is refused, an alert is raised once, and nothing of it is told."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import asyncpg
import grpc
import pytest
from flowledger.v1 import checkpoint_service_pb2 as pb

from server.checkpoints.places import of_key
from server.statemachine.values import Tenant
from server.vault import EnvironmentKeys
from tests.conftest import KEYS
from tests.services.checkpoints import MIB, Sealing, state
from tests.tenancy import PATIENCE, Refusal, Tenancy

SECRET = '{"secret":"open sesame 4711"}'
PAYLOAD = b"the payload " * 200_000  # three chunks


@dataclass(frozen=True, slots=True)
class Scene:
    """A flow with a checkpoint and a second one beside it, both with a payload, and the way behind the service's back."""

    sealing: Sealing
    sql: asyncpg.Connection
    flow_id: str
    checkpoint_id: UUID
    other_id: UUID

    async def parts(self, checkpoint_id: UUID | None = None) -> dict[str, UUID]:
        """The contents that the checkpoint holds, by the names of the parts."""
        rows = await self.sql.fetch(
            "SELECT name, content_id FROM checkpoint_parts WHERE checkpoint_id = $1", checkpoint_id or self.checkpoint_id
        )
        return dict(rows)  # type: ignore[arg-type]

    async def header(self, change: str, *values: object) -> None:
        """Set the header to what the expression makes of it."""
        await self.sql.execute(f"UPDATE checkpoints SET header = {change} WHERE checkpoint_id = $1", self.checkpoint_id, *values)

    async def chunk(self, change: str, *values: object, part: str = "state", number: int = 0) -> None:
        """Set a part's chunk to what the expression makes of it."""
        content_id = (await self.parts())[part]
        await self.sql.execute(
            f"UPDATE sealed_chunks SET sealed = {change} WHERE content_id = $1 AND number = $2", content_id, number, *values
        )

    async def unchecked(self, statement: str, *values: object) -> None:
        """Run a statement as a superuser can: without foreign keys."""
        async with self.sql.transaction():
            await self.sql.execute("SET LOCAL session_replication_role = replica")
            await self.sql.execute(statement, *values)


Damage = Callable[[Scene], Awaitable[object]]
FLIPPED = "set_byte({0}, {1}, get_byte({0}, {1}) # 1)"
# A seal's bytes: version, key version, flags, nonce, text, tag.
PLACES = {"version": "0", "key version": "4", "flags": "5", "nonce": "11", "text": "18", "tag": "octet_length({0}) - 1"}


def flipped(column: str, place: str) -> str:
    """The column with one bit of that byte changed."""
    return FLIPPED.format(column, PLACES[place].format(column))


async def another_flow(scene: Scene) -> None:
    """The header, moved to a checkpoint of another flow of the same tenant."""
    flow_id = (await scene.sealing.tenancy.create()).flow_id
    await scene.sql.execute("UPDATE checkpoints SET flow_id = $2 WHERE checkpoint_id = $1", scene.checkpoint_id, UUID(flow_id))


async def another_checkpoint(scene: Scene) -> None:
    await scene.header("(SELECT header FROM checkpoints WHERE checkpoint_id = $2)", scene.other_id)


async def another_tenant(scene: Scene) -> None:
    """Another tenant's checkpoint with the same ids, revision and key version: copied row by row, even its key."""
    tenancy = scene.sealing.tenancy
    stranger = tenancy.other_engagement()
    tables = ("tenant_keys", "sealed_contents", "sealed_chunks", "checkpoints", "checkpoint_parts")
    for table in tables:
        names = [
            row[0]
            for row in await scene.sql.fetch("SELECT attname FROM pg_attribute WHERE attrelid = $1::text::regclass AND attnum > 0", table)
        ]
        columns = ", ".join("$3" if name == "engagement_id" else name for name in names)
        query = (
            f"INSERT INTO {table} ({', '.join(names)}) SELECT {columns} FROM {table} WHERE client_account_id = $1 AND engagement_id = $2"
        )
        await scene.sql.execute(query, tenancy.account, tenancy.engagement, stranger.engagement)
    for table in (*reversed(tables[3:]), *reversed(tables[:3])):
        await scene.sql.execute(
            f"DELETE FROM {table} WHERE client_account_id = $1 AND engagement_id = $2", tenancy.account, tenancy.engagement
        )
    for table in tables:  # the tenant is handed the stranger's rows as its own: its own key is another one
        await scene.unchecked(
            f"UPDATE {table} SET engagement_id = $3 WHERE client_account_id = $1 AND engagement_id = $2",
            tenancy.account, stranger.engagement, tenancy.engagement,
        )  # fmt: skip
    fresh = await EnvironmentKeys(KEYS).wrap(bytes(32), of_key(Tenant(tenancy.account, tenancy.engagement), 1))
    await scene.sql.execute(
        "UPDATE tenant_keys SET wrapped = $3 WHERE client_account_id = $1 AND engagement_id = $2 AND version = 1",
        tenancy.account, tenancy.engagement, fresh.sealed,
    )  # fmt: skip


async def another_revision(scene: Scene) -> None:
    await scene.sql.execute("UPDATE checkpoints SET revision = revision + 1 WHERE checkpoint_id = $1", scene.checkpoint_id)


async def plain_header(scene: Scene) -> None:
    parts = [[name, "", str(content_id), 2, hashlib.sha256(b"{}").hexdigest()] for name, content_id in (await scene.parts()).items()]
    await scene.header("convert_to($2, 'UTF8')", f'{{"parts": {parts}, "snapshot": [2, ""]}}'.replace("'", '"'))


async def plain_chunk(scene: Scene) -> None:
    await scene.chunk("$3", SECRET.encode())


async def plain_chunk_behind_a_head(scene: Scene) -> None:
    await scene.chunk("substr(sealed, 1, 18) || $3", SECRET.encode().ljust(64))


async def chunk_of_another_content(scene: Scene) -> None:
    await scene.chunk("(SELECT sealed FROM sealed_chunks WHERE content_id = $3)", (await scene.parts())["metadata"])


async def parts_exchanged(scene: Scene) -> None:
    """Both contents are genuine and of this checkpoint."""
    parts = await scene.parts()
    exchange = "CASE name WHEN 'state' THEN $2::uuid ELSE $3::uuid END"
    query = f"UPDATE checkpoint_parts SET content_id = {exchange} WHERE checkpoint_id = $1 AND name IN ('state', 'metadata')"
    await scene.sql.execute(query, scene.checkpoint_id, parts["metadata"], parts["state"])
    for name in ("state", "metadata"):
        await scene.unchecked("UPDATE sealed_chunks SET content_id = $2 WHERE content_id = $1", parts[name], UUID(int=parts[name].int ^ 1))
    for name, other in (("state", "metadata"), ("metadata", "state")):
        await scene.unchecked("UPDATE sealed_chunks SET content_id = $2 WHERE content_id = $1", UUID(int=parts[name].int ^ 1), parts[other])


async def part_of_another_checkpoint(scene: Scene) -> None:
    query = "UPDATE checkpoint_parts SET content_id = $2 WHERE checkpoint_id = $1 AND name = 'state'"
    await scene.sql.execute(query, scene.checkpoint_id, (await scene.parts(scene.other_id))["state"])


async def part_missing(scene: Scene) -> None:
    await scene.sql.execute("DELETE FROM checkpoint_parts WHERE checkpoint_id = $1 AND name = 'state'", scene.checkpoint_id)


async def chunk_missing(scene: Scene) -> None:
    await scene.sql.execute("DELETE FROM sealed_chunks WHERE content_id = $1", (await scene.parts())["state"])


async def content_missing(scene: Scene) -> None:
    await scene.unchecked("DELETE FROM sealed_contents WHERE content_id = $1", (await scene.parts())["flow"])
    await scene.unchecked("DELETE FROM sealed_chunks WHERE content_id = $1", (await scene.parts())["flow"])


async def another_key(scene: Scene) -> None:
    """The tenant's key is exchanged for a sound one that is not the right one."""
    tenancy = scene.sealing.tenancy
    wrapped = await EnvironmentKeys(KEYS).wrap(bytes(32), of_key(Tenant(tenancy.account, tenancy.engagement), 1))
    await scene.sql.execute(
        "UPDATE tenant_keys SET wrapped = $3 WHERE client_account_id = $1 AND engagement_id = $2 AND version = 1",
        tenancy.account, tenancy.engagement, wrapped.sealed,
    )  # fmt: skip


async def key_damaged(scene: Scene) -> None:
    await scene.sql.execute(
        "UPDATE tenant_keys SET wrapped = set_byte(wrapped, 30, get_byte(wrapped, 30) # 1) WHERE client_account_id = $1 AND version = 1",
        scene.sealing.tenancy.account,
    )


async def key_gone(scene: Scene) -> None:
    await scene.unchecked("DELETE FROM tenant_keys WHERE client_account_id = $1 AND version = 1", scene.sealing.tenancy.account)


async def old_seal_under_a_new_key(scene: Scene) -> None:
    """After a rotation what the old key sealed is passed off as sealed with the new one."""
    await scene.sealing.admin("RotateTenantKey")
    await scene.sql.execute("UPDATE checkpoints SET key_version = 2 WHERE checkpoint_id = $1", scene.checkpoint_id)


async def old_seal_with_a_new_version_in_its_head(scene: Scene) -> None:
    await old_seal_under_a_new_key(scene)
    await scene.header("set_byte(header, 4, 2)")


HEADER = {f"header: one bit of its {place}": lambda scene, place=place: scene.header(flipped("header", place)) for place in PLACES}
CHUNK = {f"chunk: one bit of its {place}": lambda scene, place=place: scene.chunk(flipped("sealed", place)) for place in PLACES}
DAMAGES: dict[str, Damage] = {
    **HEADER,
    **CHUNK,
    "header: cut by a byte": lambda scene: scene.header("substr(header, 1, octet_length(header) - 1)"),
    "header: cut to its head": lambda scene: scene.header("substr(header, 1, 18)"),
    "header: empty": lambda scene: scene.header("''"),
    "header: a byte more": lambda scene: scene.header("header || '\\x00'"),
    "chunk: cut by a byte": lambda scene: scene.chunk("substr(sealed, 1, octet_length(sealed) - 1)"),
    "chunk: empty": lambda scene: scene.chunk("''"),
    "moved to another flow": another_flow,
    "another checkpoint's header": another_checkpoint,
    "moved to another tenant": another_tenant,
    "moved to another revision": another_revision,
    "plaintext for the header": plain_header,
    "plaintext for a chunk": plain_chunk,
    "plaintext behind a head": plain_chunk_behind_a_head,
    "another content's chunk": chunk_of_another_content,
    "two parts exchanged": parts_exchanged,
    "a part of another checkpoint": part_of_another_checkpoint,
    "a part missing": part_missing,
    "a chunk missing": chunk_missing,
    "a content missing": content_missing,
    "another key": another_key,
    "the key damaged": key_damaged,
    "the key gone": key_gone,
    "an old seal under a new key": old_seal_under_a_new_key,
    "an old seal with a new version": old_seal_with_a_new_version_in_its_head,
}


@pytest.fixture
async def scene(tenancy: Tenancy, superuser: asyncpg.Connection) -> Scene:
    """A fresh scene."""
    sealing = Sealing(tenancy)
    flow = await tenancy.create(state={"json": SECRET}, metadata={"json": '{"a":1}'})
    one = (await sealing.upload(PAYLOAD, flow_id=flow.flow_id)).checkpoint
    await tenancy.call("UpdateFlow", flow_id=flow.flow_id, **state('{"secret":"gone"}'))
    other = (await sealing.upload(b"other", flow_id=flow.flow_id)).checkpoint
    return Scene(sealing, superuser, flow.flow_id, UUID(one.checkpoint_id), UUID(other.checkpoint_id))


async def refused_everywhere(scene: Scene) -> list[Refusal]:
    """What every RPC that opens says."""
    checkpoint_id = str(scene.checkpoint_id)
    calls: list[tuple[str, dict[str, Any]]] = [
        ("RestoreCheckpoint", {"checkpoint_id": checkpoint_id}),
        ("RestoreCheckpoint", {"checkpoint_id": checkpoint_id, "validate_only": True}),
        ("DiffCheckpoints", {"from_checkpoint_id": checkpoint_id}),
        ("DiffCheckpoints", {"from_checkpoint_id": str(scene.other_id), "to_checkpoint_id": checkpoint_id}),
        ("DownloadCheckpoint", {"checkpoint_id": checkpoint_id, "part": "CHECKPOINT_PART_SNAPSHOT"}),
    ]
    return [await scene.sealing.refusal(name, **fields) for name, fields in calls]


async def alerts(scene: Scene) -> list[tuple[str, int, str]]:
    """The tenant's alerts: about which checkpoint, of which kind, how bad."""
    found = (await scene.sealing.admin("ListAlerts", severity="ALERT_SEVERITY_CRITICAL")).alerts
    return [(one.checkpoint_id, one.kind, one.message) for one in found]


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
async def test_a_damaged_checkpoint_is_refused_alerted_and_never_returned(scene: Scene, damage: Damage) -> None:
    before = (await scene.sealing.tenancy.call("GetFlow", flow_id=scene.flow_id, view="FLOW_VIEW_FULL")).flow
    await damage(scene)
    count = len(await scene.sealing.listed())
    for refusal in await refused_everywhere(scene):
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.DATA_LOSS, "CHECKPOINT_UNREADABLE"), refusal
        assert "sesame" not in repr(refusal)
    raised = [one for one in await alerts(scene) if one[0] == str(scene.checkpoint_id)]
    assert [(checkpoint_id, kind) for checkpoint_id, kind, _ in raised] == [(str(scene.checkpoint_id), 1)]  # once
    assert (await scene.sealing.tenancy.call("GetFlow", flow_id=scene.flow_id, view="FLOW_VIEW_FULL")).flow == before
    assert len(await scene.sealing.listed()) == count  # no copy before a restore that did not happen


async def test_the_same_scene_without_damage_opens(scene: Scene) -> None:
    """What the cases above would look like if they proved nothing."""
    assert SECRET.encode() in await scene.sealing.download(str(scene.checkpoint_id), part="CHECKPOINT_PART_SNAPSHOT")
    assert (await scene.sealing.call("RestoreCheckpoint", checkpoint_id=str(scene.checkpoint_id), validate_only=True)).diff.documents
    assert await alerts(scene) == []


def downloading(scene: Scene) -> Any:
    """The stream of the payload."""
    request = pb.DownloadCheckpointRequest(checkpoint_id=str(scene.checkpoint_id))
    return scene.sealing.stub.DownloadCheckpoint(request, metadata=scene.sealing.tenancy.metadata, timeout=PATIENCE)


async def received(messages: AsyncIterator[Any]) -> tuple[bytes, Refusal | None]:
    """What came, and the error that the stream ended with."""
    came = b""
    try:
        async for message in messages:
            came += message.chunk
    except grpc.aio.AioRpcError as error:
        return came, Refusal.of(error)
    return came, None


@pytest.mark.parametrize("number", [0, 1, 2])
async def test_of_a_payload_nothing_of_a_damaged_chunk_is_sent(scene: Scene, number: int) -> None:
    await scene.chunk(flipped("sealed", "text"), part="payload", number=number)
    came, refusal = await received(aiter(downloading(scene)))
    assert refusal is not None
    assert refusal.reason == "CHECKPOINT_UNREADABLE"
    # A whole piece is held back until the next one has opened.
    assert came == PAYLOAD[: max(0, number - 1) * MIB]


@pytest.mark.parametrize("order", ["exchanged", "the last for the first", "one missing in the middle", "the end missing"])
async def test_a_payload_whose_chunks_are_not_in_their_places_is_refused(scene: Scene, order: str) -> None:
    content_id = (await scene.parts())["payload"]
    moves = {
        "exchanged": [(0, 90), (1, 0), (90, 1)],
        "the last for the first": [(0, 90), (2, 0), (90, 2)],
        "one missing in the middle": [(1, 90), (2, 1)],
        "the end missing": [(2, 90)],
    }
    for old, new in moves[order]:
        await scene.sql.execute("UPDATE sealed_chunks SET number = $3 WHERE content_id = $1 AND number = $2", content_id, old, new)
    refusal = await scene.sealing.refusal("DownloadCheckpoint", checkpoint_id=str(scene.checkpoint_id))
    assert refusal.reason == "CHECKPOINT_UNREADABLE"


async def test_a_checkpoint_that_is_removed_while_it_is_read_is_not_found_and_no_alert(scene: Scene) -> None:
    messages = aiter(downloading(scene))
    await anext(messages)
    await scene.sealing.call("DeleteCheckpoint", checkpoint_id=str(scene.checkpoint_id))
    _, refusal = await received(messages)
    assert refusal is None or refusal.reason == "CHECKPOINT_NOT_FOUND"  # flow control may have let all of it through
    assert await alerts(scene) == []


async def test_a_key_that_is_not_here_is_no_damage(scene: Scene) -> None:
    """Whoever brings the key can still read it: no alert of data loss."""
    await scene.sql.execute("UPDATE tenant_keys SET kek_id = 'elsewhere/00' WHERE client_account_id = $1", scene.sealing.tenancy.account)
    for refusal in await refused_everywhere(scene):
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "KEY_UNAVAILABLE")
        assert refusal.metadata["kek_id"] == "elsewhere/00"
    assert await alerts(scene) == []
