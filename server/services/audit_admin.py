"""AdminService's audit: following the chain of events, and handing it out signed, for others to follow."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from uuid import UUID

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flowledger.v1 import admin_service_pb2 as pb
from flowledger.v1 import audit_pb2

from server.repository.audit import Audit
from server.repository.chain import Link
from server.services.caller import Caller
from server.services.fields import Fields
from server.statemachine import document
from server.statemachine.audit import AuditBreak
from server.statemachine.document import sha256
from server.statemachine.errors import FlowNotFound
from server.statemachine.values import FlowKey, Tenant

BREAKS = 100  # that are named in all
TOLD_SECONDS = 1.0
PAGE, PAGE_BYTES = 500, 1024 * 1024
_LIMITS = document.Limits()
_EXPORT, _PAGE, _HEAD = b"flowledger audit 1\0", b"flowledger audit page\0", b"flowledger audit head\0"
_ALL = UUID(int=0)


@dataclass(slots=True)
class _Count:
    """What was gone through so far."""

    flows: int = 0
    events: int = 0
    erased: int = 0
    broken: int = 0
    heads: hashlib._Hash = field(default_factory=hashlib.sha256)

    def head(self, flow_id: UUID, head: tuple[int, bytes]) -> None:
        """One more flow, and where it ends."""
        self.flows += 1
        self.heads.update(flow_id.bytes + head[0].to_bytes(8, "big") + head[1])

    def message(self) -> audit_pb2.AuditSummary:
        """As it is sent."""
        return audit_pb2.AuditSummary(
            flows=self.flows,
            events=self.events,
            erased_events=self.erased,
            broken_flows=self.broken,
            digest=self.heads.digest(),
        )


class AuditAdmin:
    """Proves what can be proved of a tenant's events."""

    def __init__(self, audit: Audit, audit_key: Callable[[], bytes], broken: Callable[[Tenant, AuditBreak], Awaitable[None]]) -> None:
        """``audit_key`` gives the seed of the key that exports are signed with; ``broken`` is told of chains that do not hold."""
        self._audit, self._audit_key, self._broken = audit, audit_key, broken

    async def VerifyAudit(self, request: pb.VerifyAuditRequest, caller: Caller) -> AsyncIterator[pb.VerifyAuditResponse]:
        """How far the audit has come, and what it found."""
        flow_id = _flow_id(request.flow_id)
        count, breaks, named = _Count(), list[AuditBreak](), 0
        loop = asyncio.get_running_loop()
        due = loop.time() + TOLD_SECONDS
        async for one in self._flow_ids(caller.tenant, flow_id):
            before = count.events

            def heard(events: int, before: int = before) -> None:
                count.events = before + events

            following = asyncio.create_task(self._audit.follow(FlowKey(caller.tenant, one), heard=heard), name="audit")
            try:
                while not following.done():
                    await asyncio.wait({following}, timeout=max(0.0, due - loop.time()))
                    if loop.time() >= due:
                        yield pb.VerifyAuditResponse(summary=count.message(), breaks=map(_break, breaks))
                        breaks.clear()
                        due = loop.time() + TOLD_SECONDS
                found = following.result()
            except FlowNotFound:
                if flow_id is not None:
                    raise
                continue  # erased in the moment since it was listed
            finally:
                following.cancel()
            count.events, count.erased = before + found.events, count.erased + found.erased
            count.head(one, found.head)
            if found.broken is not None:
                count.broken += 1
                await self._broken(caller.tenant, found.broken)
                if named < BREAKS:
                    named += 1
                    breaks.append(found.broken)
        yield pb.VerifyAuditResponse(summary=count.message(), breaks=map(_break, breaks), done=True)

    async def ExportAudit(self, request: pb.ExportAuditRequest, caller: Caller) -> AsyncIterator[pb.ExportAuditResponse]:
        """The events, in signed pages."""
        flow_id, tenant = _flow_id(request.flow_id), caller.tenant
        pages = _Pages(Ed25519PrivateKey.from_private_bytes(self._audit_key()), tenant, flow_id)
        count = _Count()
        begun = False
        async for one in self._flow_ids(tenant, flow_id):
            head: tuple[int, bytes] | None = None
            async for exported in self._audit.exported(FlowKey(tenant, one)):
                if not begun:  # not before it is known that there is such a flow
                    begun = True
                    yield pages.opening()
                head, before = exported.head, exported.before
                count.events += len(exported.links)
                count.erased += sum(link.erased for link in exported.links)
                for link in exported.links:
                    if (full := pages.add(one, link, before, without_content=request.without_content)) is not None:
                        yield full
                    before = None
            if head is not None:
                count.head(one, head)
        if not begun:
            yield pages.opening()
        if (rest := pages.page()) is not None:
            yield rest
        yield pages.closing(count.message())

    async def _flow_ids(self, tenant: Tenant, flow_id: UUID | None) -> AsyncIterator[UUID]:
        if flow_id is not None:
            yield flow_id
            return
        async for one in self._audit.flow_ids(tenant):
            yield one


class _Pages:
    """The pages of one export, each signed, each over the one before."""

    def __init__(self, key: Ed25519PrivateKey, tenant: Tenant, flow_id: UUID | None) -> None:
        self._key, self._tenant, self._flow_id = key, tenant, flow_id
        self._hash = sha256(_EXPORT + FlowKey(tenant, flow_id or _ALL))
        self._number = 0
        self._events: list[audit_pb2.AuditedEvent] = []
        self._links: list[bytes] = []
        self._size = 0

    def opening(self) -> pb.ExportAuditResponse:
        """What comes first."""
        return pb.ExportAuditResponse(
            public_key=self._key.public_key().public_bytes_raw(),
            client_account_id=str(self._tenant.client_account_id),
            engagement_id=str(self._tenant.engagement_id),
            flow_id="" if self._flow_id is None else str(self._flow_id),
        )

    def add(self, flow_id: UUID, link: Link, before: bytes | None, *, without_content: bool) -> pb.ExportAuditResponse | None:
        """Put one event on the page; the page, when it is full."""
        content = link.content()
        event = audit_pb2.AuditedEvent(
            flow_id=str(flow_id),
            revision=link.revision,
            content=b"" if content is None or without_content else content,
            content_sha256=(link.content_sha256 or b"") if content is None else sha256(content),
            hash=link.hash,
            format=link.format,
            previous_hash=before or b"",
        )
        self._events.append(event)
        self._links.append(flow_id.bytes + link.revision.to_bytes(8, "big") + link.hash)
        self._size += len(event.content)
        return self.page() if len(self._events) >= PAGE or self._size >= PAGE_BYTES else None

    def page(self) -> pb.ExportAuditResponse | None:
        """What is on the page; None when nothing is."""
        if not self._events:
            return None
        self._number += 1
        self._hash = sha256(self._hash + b"".join(self._links))
        page = audit_pb2.AuditPage(
            number=self._number,
            events=self._events,
            page_hash=self._hash,
            signature=self._key.sign(_PAGE + self._number.to_bytes(8, "big") + self._hash),
        )
        self._events, self._links, self._size = [], [], 0
        return pb.ExportAuditResponse(page=page)

    def closing(self, summary: audit_pb2.AuditSummary) -> pb.ExportAuditResponse:
        """What comes last."""
        counts = (self._number, summary.flows, summary.events, summary.erased_events)
        signed = _HEAD + self._hash + summary.digest + b"".join(count.to_bytes(8, "big") for count in counts)
        return pb.ExportAuditResponse(summary=summary, head_hash=self._hash, head_signature=self._key.sign(signed))


def _flow_id(text: str) -> UUID | None:
    fields = Fields(_LIMITS)
    found = fields.optional_uuid("flow_id", text)
    fields.check()
    return found


def _break(found: AuditBreak) -> audit_pb2.AuditBreak:
    return audit_pb2.AuditBreak(
        flow_id=str(found.flow_id),
        revision=found.revision,
        kind=found.kind.value,  # type: ignore[arg-type]
        description=found.description,
    )
