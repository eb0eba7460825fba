"""Everything that is stored of a flow, looked at as a whole: nothing that stands there can make this fail."""

from __future__ import annotations

from collections.abc import Mapping

from server.repository.database import Database
from server.repository.document_store import offloaded
from server.repository.remains import LOG_PAGE, Logged, Remains, Snapshot, Span
from server.repository.tables import children
from server.repository.texts import Opener
from server.repository.walk import Walk
from server.statemachine import integrity, stored_activity
from server.statemachine.errors import FlowNotFound
from server.statemachine.evidence import Evidence, Texts, Told
from server.statemachine.history import Base, Kept
from server.statemachine.integrity import NOTHING, Stored
from server.statemachine.loose import Row
from server.statemachine.stored_activity import StoredActivity
from server.statemachine.value import dataclass
from server.statemachine.values import FlowKey

# So often it is looked at anew when history was compacted meanwhile.
ATTEMPTS = 3


@dataclass(frozen=True, slots=True)
class Examined:
    """What is known of a flow, and the rows that it is known from."""

    evidence: Evidence
    snapshot: Snapshot


class Examiner:
    """Examines stored flows."""

    def __init__(self, database: Database) -> None:
        self._remains = Remains(database)

    async def examine(self, key: FlowKey) -> Examined:
        """What is known of the flow, as it is at one moment. Raises FlowNotFound when there is no trace of it, or only of its erasure."""
        for attempt in range(ATTEMPTS):
            snapshot = await self._remains.whole(key)
            if not snapshot.any:
                raise FlowNotFound(key.flow_id)
            found = await self._look(key, snapshot)
            if not found.findings() or attempt == ATTEMPTS - 1 or not _receded(snapshot.spans, await self._remains.spans(key)):
                break
        if found.told.erased and found.told.erased == snapshot.spans["events"].count and not any(snapshot.texts.values()):
            raise FlowNotFound(key.flow_id)
        return Examined(found, snapshot)

    async def _look(self, key: FlowKey, snapshot: Snapshot) -> Evidence:
        stored, activity, opener = await offloaded(snapshot.size, _as_it_is, key, snapshot)
        texts = await self._texts(key, opener)
        told = await self._told(key, snapshot, texts, stored, activity)
        return Evidence(key, stored, activity, texts, told)

    async def _texts(self, key: FlowKey, opener: Opener) -> Texts:
        page = await self._remains.versions(key)
        while page:
            await offloaded(sum(len(text) for _, text in page), opener.take, page)
            page = await self._remains.versions(key, page[-1][0])
        return opener.opened()

    async def _told(self, key: FlowKey, snapshot: Snapshot, texts: Texts, stored: Stored, activity: StoredActivity) -> Told:
        walk = Walk(key, texts, _anchor(stored, texts, activity))
        # What is committed from now on is left out: the row of the snapshot does not know of it.
        after, upto = 0, max(snapshot.spans[name].last for name in ("events", "bases"))
        while after < upto:
            events = await self._remains.events(key, after, upto)
            end = events[-1].revision if len(events) == LOG_PAGE else upto
            bases = await self._bases(key, after, end)
            await offloaded(sum(len(row.text) for row in (*events, *bases)), walk.take, events, bases)
            after = end
        return walk.end(stored.hash)

    async def _bases(self, key: FlowKey, after: int, upto: int) -> list[Logged]:
        found: list[Logged] = []
        while page := await self._remains.bases(key, after, upto):
            found += page
            after = page[-1].revision
        return found


def _as_it_is(key: FlowKey, snapshot: Snapshot) -> tuple[Stored, StoredActivity, Opener]:
    rows = snapshot.rows("flows")
    members: list[tuple[str, Row]] = [(domain, row) for domain, table in children.items() for row in snapshot.rows(table.name)]
    stored = integrity.read(key.tenant, key.flow_id, rows[0], members) if rows else NOTHING
    return stored, stored_activity.read(snapshot.rows("activity")), Opener(snapshot.rows("documents"))


def _anchor(stored: Stored, texts: Texts, activity: StoredActivity) -> Base | None:
    if stored.flow is None or stored.revision is None or stored.hash is None:
        return None
    versions = {place: present.version for place, present in texts.present.items() if present.version is not None}
    return Base(stored.flow, Kept(activity.entries, versions), stored.hash)


def _receded(before: Mapping[str, Span], after: Mapping[str, Span]) -> bool:
    """Whether the beginning of history moved."""
    return any(before[name].first != after[name].first for name in ("events", "bases", "document_versions"))
