"""Going through the events of a flow, or of all of a tenant's, link by link: in pages, whatever their number."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any
from uuid import UUID

from sqlalchemy import UUID as UUIDType
from sqlalchemy import BigInteger, Integer, bindparam, func, literal_column, or_, select

from server.repository.admin_tables import erasures
from server.repository.chain import Anchor, Link, Verifies, Walk
from server.repository.database import Database
from server.repository.document_store import offloaded
from server.repository.event_codec import NO_HASH
from server.repository.history_tables import bases
from server.repository.id_pages import FIRST_ID, following
from server.repository.statement import Statement, gate, gated, mine, of_tenant, opened
from server.repository.tables import events, flows
from server.statemachine.audit import AuditBreak, BreakKind
from server.statemachine.errors import FlowNotFound, RevisionCompacted, StoreUnavailable
from server.statemachine.value import dataclass
from server.statemachine.values import FlowKey, Tenant

# A page ends with so many events, or bytes of them, but holds one at least.
PAGE, PAGE_BYTES = 500, 1024 * 1024
FLOWS = 500
# Where the event that belongs into a place is looked for when another one stands there.
_LOOKED_AT = 2000
_ATTEMPTS = 5

_FLOW: Any = bindparam("flow_id", type_=UUIDType())
_LINK = ("revision", "time", "actor", "body", "hash", "format", "content_sha256")
_opener = gate()


def _of_flow(table: Any) -> list[Any]:
    """Behind the gate, by values and not by a join: so the index gives the least, the most and the next ones without what lies between."""
    return [opened(_opener), *mine(table), table.c.flow_id == _FLOW]


# As many revisions as a page may have, from the next one that is there: a range, for which the index is gone into whatever the planner
# thinks that row level security leaves of the flow. Counted is what was picked: counting beside it would go through all that comes after.
_next: Any = (
    select(func.min(events.c.revision)).where(*_of_flow(events), events.c.revision > bindparam("after", type_=BigInteger)).scalar_subquery()
)
_picked = (
    select(*(events.c[name] for name in _LINK))
    .where(*_of_flow(events), events.c.revision >= _next, events.c.revision < _next + bindparam("size", type_=BigInteger))
    .subquery("picked")
)
_later = select(
    *_picked.c,
    func.sum(func.octet_length(_picked.c.body)).over(order_by=_picked.c.revision).label("total"),
    func.row_number().over(order_by=_picked.c.revision).label("place"),
).subquery("later")
_links: Any = (
    select(func.row(*(_later.c[name] for name in _LINK)))
    .where(or_(_later.c.total <= literal_column(str(PAGE_BYTES)), _later.c.place == literal_column("1")))
    .order_by(_later.c.revision)
)
_oldest: Any = select(func.min(events.c.revision)).where(*_of_flow(events)).scalar_subquery()
_newest: Any = select(func.max(events.c.revision)).where(*_of_flow(events)).scalar_subquery()
_anchors: Any = (
    select(func.row(bases.c.revision, bases.c.hash, bases.c.signature, func.sha256(bases.c.body)))
    .where(*_of_flow(bases), bases.c.revision < _oldest)
    .order_by(bases.c.revision)
)
_row: Any = select(func.row(flows.c.revision, flows.c.head_hash)).where(*_of_flow(flows))
_erased: Any = select(literal_column("1")).where(opened(_opener), *mine(erasures))
# One snapshot for all of it.
_PAGE = Statement(
    select(_row.scalar_subquery(), _erased.exists(), _newest, func.array(_anchors.scalar_subquery()), func.array(_links.scalar_subquery()))
)

_FROM: Any = bindparam("first", type_=UUIDType())
_SIZE = bindparam("size", type_=Integer)
_OF_FLOWS = Statement(gated(select(flows.c.flow_id).where(*mine(flows), flows.c.flow_id >= _FROM).order_by(flows.c.flow_id).limit(_SIZE)))


def _of_events() -> Statement:
    """The ids of flows that have events, each found by one look at the index from the one before it."""
    opener = gate()
    later = events.alias("later")
    found = select(events.c.flow_id).where(opened(opener), *mine(events), events.c.flow_id >= _FROM).order_by(events.c.flow_id).limit(1)
    ids = found.cte("ids", recursive=True)
    following: Any = select(later.c.flow_id).where(opened(opener), *mine(later), later.c.flow_id > ids.c.flow_id)
    following = following.order_by(later.c.flow_id).limit(1).correlate(ids).scalar_subquery()
    ids = ids.union_all(select(following).where(ids.c.flow_id.is_not(None)))
    return Statement(select(ids.c.flow_id).where(ids.c.flow_id.is_not(None)).limit(_SIZE))


_OF_EVENTS = _of_events()


@dataclass(frozen=True, slots=True)
class Page:
    """Some events of a flow, and what is of the same moment: the flow's row, its newest event, what compaction left."""

    head: tuple[int, bytes] | None
    erased: bool
    newest: int | None
    anchors: tuple[Anchor, ...]
    links: tuple[Link, ...]

    @property
    def erasable(self) -> bool:
        """Whether what the events say may have been erased: of a flow that stands it must not."""
        return self.head is None and self.erased

    @property
    def size(self) -> int:
        """The bytes of what the events say."""
        return sum(len(link.body) for link in self.links)


@dataclass(frozen=True, slots=True)
class Audited:
    """What became of following a flow's chain, and where it says that it ends: by its row, or by its last event if it has none."""

    events: int
    erased: int
    broken: AuditBreak | None
    head: tuple[int, bytes]
    noted: dict[int, bytes]


@dataclass(frozen=True, slots=True)
class Exported:
    """Some events of a flow; ``before`` is the hash that the first one follows where its predecessor was compacted."""

    links: tuple[Link, ...]
    before: bytes | None
    head: tuple[int, bytes]


class Audit:
    """Follows chains of events."""

    def __init__(self, database: Database, verifies: Verifies) -> None:
        """``verifies`` says whether a signature is ours."""
        self._database, self._verifies = database, verifies

    async def flow_ids(self, tenant: Tenant) -> AsyncIterator[UUID]:
        """The ids of all flows of the tenant, in order, with those of which nothing but events is left."""
        first: UUID | None = FIRST_ID
        while first is not None:
            values = {**of_tenant(tenant), "first": first, "size": FLOWS}
            pages = [[row[0] for row in await self._database.read([tenant], statement, values)] for statement in (_OF_FLOWS, _OF_EVENTS)]
            # Beyond the end of a full page there may be others that the page did not come to.
            end = min((page[-1] for page in pages if len(page) == FLOWS), default=None)
            for flow_id in sorted({flow_id for page in pages for flow_id in page if end is None or flow_id <= end}):
                yield flow_id
            first = None if end is None else following(end)

    async def page(self, key: FlowKey, after: int, size: int = PAGE) -> Page:
        """The flow's events after that revision."""
        values = {**of_tenant(key.tenant), "flow_id": key.flow_id, "after": after, "size": size}
        head, erased, newest, anchors, links = (await self._database.read([key.tenant], _PAGE, values))[0]
        return Page(
            None if head is None else (head[0], head[1]),
            erased,
            newest,
            tuple(Anchor(*row) for row in anchors),
            tuple(Link(*row) for row in links),
        )

    async def exported(self, key: FlowKey) -> AsyncIterator[Exported]:
        """The flow's events in order, page by page, up to where it was in the beginning. Raises FlowNotFound."""
        page = await self.page(key, 0)
        head = page.head
        if head is None and page.newest is None:
            raise FlowNotFound(key.flow_id)
        last, position = head[0] if head is not None else page.newest or 0, 0
        while page.links:
            if page.links[0].revision > last:
                if page.head is None or position == last:
                    break
                head, last = page.head, page.head[0]  # compaction went past what was the end
            links = tuple(link for link in page.links if link.revision <= last)
            before = None
            if links[0].revision != position + 1:
                before = next((anchor.hash for anchor in page.anchors if anchor.revision == links[0].revision - 1), None)
            position = links[-1].revision
            yield Exported(links, before, head or (position, links[-1].hash))
            page = await self.page(key, position)
        if position == 0:
            yield Exported((), None, head or (0, NO_HASH))

    async def follow(
        self,
        key: FlowKey,
        until: int | None = None,
        asked: frozenset[int] = frozenset(),
        heard: Callable[[int], None] = lambda _: None,
    ) -> Audited:
        """What is found along the flow's chain, up to its end or to ``until``; the hashes of revisions ``asked`` for are noted.

        ``heard`` is told how many events have been gone through by then.
        Raises FlowNotFound when there is neither a flow nor events, and RevisionCompacted when events beyond ``until`` were compacted.
        """
        for _ in range(_ATTEMPTS):
            found = await self._follow(key, until, asked, heard)
            if found is not None:
                return found
        raise StoreUnavailable("the flow was compacted again and again while its chain was followed: retry in a moment")

    async def _follow(self, key: FlowKey, until: int | None, asked: frozenset[int], heard: Callable[[int], None]) -> Audited | None:
        """As above; None when compaction went past the flow's end as it was in the beginning."""
        page = await self.page(key, 0)
        head, newest = page.head, page.newest
        if head is None and newest is None:
            raise FlowNotFound(key.flow_id)
        walk = Walk(key, page.erasable, asked=asked)
        for false in self._false(page, key):
            walk.breaks(false.revision, BreakKind.BASE, "what compaction left of the history up to here does not carry our signature")
        last = until or (newest if head is None else head[0]) or 0
        while walk.broken is None and walk.revision < last:
            links = [link for link in page.links if link.revision <= last]
            anchor = self._anchor(page, walk)
            if anchor is not None and (not links or links[0].revision != walk.revision + 1):
                if anchor.revision > last:
                    if until is not None:
                        raise RevisionCompacted(until, anchor.revision, 0 if head is None else head[0])
                    return None
                walk.begin(anchor)
            if not links:
                break
            await offloaded(page.size, walk.follow, links)
            heard(walk.events)
            if walk.broken is None:
                page = await self.page(key, walk.revision)
        await self._conclude(walk, head, newest, last, until)
        return Audited(walk.events, walk.erased, walk.broken, head or (walk.revision, walk.hash), walk.noted)

    def _false(self, page: Page, key: FlowKey) -> list[Anchor]:
        """What is there in the place of events and was not left by compaction. Without anything that was, events are simply missing."""
        holding = {anchor.revision for anchor in page.anchors if anchor.holds(key, self._verifies, emptied=page.erasable)}
        least = page.links[0].revision - 1 if page.links else 0
        return [
            anchor
            for anchor in page.anchors
            if anchor.revision not in holding and (holding or anchor.signature is not None or anchor.revision == least)
        ]

    def _anchor(self, page: Page, walk: Walk) -> Anchor | None:
        """The newest that stands for what was compacted after where the walk is."""
        found = [
            anchor
            for anchor in page.anchors
            if anchor.revision > walk.revision and anchor.holds(walk.key, self._verifies, emptied=page.erasable)
        ]
        return found[-1] if found else None

    async def _conclude(self, walk: Walk, head: tuple[int, bytes] | None, newest: int | None, last: int, until: int | None) -> None:
        if walk.broken is not None:
            if walk.broken.kind is BreakKind.CHANGED and (place := await self._place(walk)):
                described = f"the event that belongs here stands at revision {place}"
                walk.broken = replace(walk.broken, kind=BreakKind.REORDERED, description=described)
        elif walk.revision < last:
            missing = walk.revision + 1
            walk.breaks(missing, BreakKind.MISSING, f"the event of revision {missing} is missing, the flow is at revision {last}")
        elif until is None and head is None and walk.erased < walk.events:
            walk.breaks(last, BreakKind.HEAD, "there are events, and the flow that they are of is not there")
        elif until is None and head is not None and (newest or 0) > head[0]:
            walk.breaks(head[0], BreakKind.HEAD, f"the flow is at revision {head[0]}, and there are events up to revision {newest}")
        elif until is None and head is not None and walk.hash != head[1]:
            walk.breaks(head[0], BreakKind.HEAD, "the flow's row does not carry the hash of its last event")

    async def _place(self, walk: Walk) -> int | None:
        """The revision at which the event stands that belongs to where the walk ended."""
        at = walk.revision + 1
        seen, after = 0, walk.revision
        while seen < _LOOKED_AT and (links := (await self.page(walk.key, after)).links):
            for link in links:
                if link.revision != at and not link.erased and replace(link, revision=at).follows(walk.hash, walk.key, at):
                    return link.revision
            seen, after = seen + len(links), links[-1].revision
        return None
