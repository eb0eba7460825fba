"""AdminService's alerts: lists of them, and a stream that misses none."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Callable
from datetime import datetime, timedelta
from uuid import UUID

from flowledger.v1 import admin_service_pb2 as pb
from flowledger.v1 import alert_pb2

from server.repository.alerts import Alerts, Numbered
from server.services import page_token, times
from server.services.caller import Caller
from server.services.fields import Fields
from server.services.watch import WatchSettings
from server.statemachine import document
from server.statemachine.alert import Alert, AlertKind, AlertSeverity
from server.statemachine.errors import invalid
from server.statemachine.values import FlowKey, Tenant
from server.wakeups import LocalWakeups

PAGE, PAGE_MOST = 50, 500
WATCH_PAGE = 100
LONGEST_AGO = timedelta(days=10_000)
_LIMITS = document.Limits()


def alerts_key(tenant: Tenant) -> FlowKey:
    """What stands for the tenant's alerts among the wake-ups."""
    return FlowKey(tenant, UUID(int=0))


class AlertAdmin:
    """Tells of alerts."""

    def __init__(
        self, alerts: Alerts, wakeups: LocalWakeups, now: Callable[[], datetime], settings: WatchSettings, token_key: bytes
    ) -> None:
        self._alerts, self._wakeups, self._now, self._settings, self._token_key = alerts, wakeups, now, settings, token_key
        self._draining = False
        self.open = 0  # streams

    def drain(self) -> None:
        """End every stream, resumably."""
        self._draining = True
        self._wakeups.ring_all()

    async def ListAlerts(self, request: pb.ListAlertsRequest, caller: Caller) -> pb.ListAlertsResponse:
        """One page of alerts."""
        fields = Fields(_LIMITS)
        flow_id = fields.optional_uuid("flow_id", request.flow_id)
        kind = fields.member("kind", request.kind, AlertKind) if request.kind else None
        severity = fields.member("severity", request.severity, AlertSeverity) if request.severity else None
        size = fields.page_size(request.page_size, PAGE, PAGE_MOST)
        fields.check()
        owner = page_token.owner(caller.tenant)
        query = "\0".join((request.flow_id, str(request.kind), str(request.severity))).encode()
        before = None
        if request.page_token:
            (before,) = struct.unpack(">q", page_token.open(self._token_key, "ListAlerts", owner, query, request.page_token))
        found = await self._alerts.page(caller.tenant, flow_id, kind, severity, before, size + 1)
        page = found[:size]
        token = ""
        if len(found) > size:
            token = page_token.seal(self._token_key, "ListAlerts", owner, query, struct.pack(">q", page[-1].number))
        return pb.ListAlertsResponse(alerts=[alert_message(one.alert) for one in page], next_page_token=token)

    async def WatchAlerts(self, request: pb.WatchAlertsRequest, caller: Caller) -> AsyncIterator[pb.WatchAlertsResponse]:
        """The tenant's alerts until the stream is old."""
        fields = Fields(_LIMITS)
        after = fields.optional_uuid("after_alert_id", request.after_alert_id)
        since = timedelta()
        if request.HasField("since"):
            since = fields.span("since", request.since, timedelta(), LONGEST_AGO)
        fields.check()
        self.open += 1
        try:
            with self._wakeups.hear(alerts_key(caller.tenant)) as more:
                position = await self._begin(caller.tenant, after, since)
                async for response in self._responses(caller.tenant, position, more):
                    yield response
        finally:
            self.open -= 1

    async def _begin(self, tenant: Tenant, after: UUID | None, since: timedelta) -> int:
        if after is None:
            return await self._alerts.before(tenant, self._now() - since)
        found = await self._alerts.number_of(tenant, after)
        if found is None:
            raise invalid("after_alert_id", f"there is no alert {after}: begin with `since`")
        return found

    async def _responses(self, tenant: Tenant, position: int, more: asyncio.Event) -> AsyncIterator[pb.WatchAlertsResponse]:
        loop, settings = asyncio.get_running_loop(), self._settings
        ending = loop.time() + settings.max_age * (1.0 - 0.2 * settings.jitter())
        yield self._message(None)
        spoken = loop.time()
        while True:
            more.clear()  # before the read: a hint that comes during it must not be lost
            found = await self._alerts.after(tenant, position, WATCH_PAGE)
            for one in found:
                position, spoken = one.number, loop.time()
                yield self._message(one)
            if len(found) == WATCH_PAGE:
                continue
            if self._draining or loop.time() >= ending:
                return
            if loop.time() - spoken >= settings.heartbeat:
                yield self._message(None)
                spoken = loop.time()
            due = min(settings.poll, spoken + settings.heartbeat - loop.time(), ending - loop.time())
            try:
                async with asyncio.timeout(max(due, 0.001)):
                    await more.wait()
            except TimeoutError:
                pass  # the floor under lost hints, and under alerts that other processes raise: look anyway

    def _message(self, one: Numbered | None) -> pb.WatchAlertsResponse:
        return pb.WatchAlertsResponse(alert=None if one is None else alert_message(one.alert), time=times.timestamp(self._now()))


def alert_message(alert: Alert) -> alert_pb2.Alert:
    """The alert as it is sent."""
    return alert_pb2.Alert(
        alert_id=str(alert.alert_id),
        kind=alert.kind.value,  # type: ignore[arg-type]
        severity=alert.severity.value,  # type: ignore[arg-type]
        flow_id="" if alert.flow_id is None else str(alert.flow_id),
        child_type=alert.child_type,
        phase=alert.phase,
        checkpoint_id="" if alert.checkpoint_id is None else str(alert.checkpoint_id),
        create_time=times.timestamp(alert.create_time),
        message=alert.message,
    )
