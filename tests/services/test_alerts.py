"""Alerts over the wire: lists, and streams that tell each once, whatever server raised it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import grpc
import pytest
from flowledger.v1 import admin_service_pb2 as pb
from flowledger.v1 import alert_pb2
from flowledger.v1.admin_service_pb2_grpc import AdminServiceStub

from server import app
from server.alarm import Alarm
from server.repository.alerts import Alerts
from server.statemachine.alert import Alert, AlertKind, AlertSeverity
from server.statemachine.values import Tenant
from tests.conftest import Urls, settings
from tests.repository.store import Store, opened
from tests.tenancy import PATIENCE, Refusal, Tenancy

Raise = Callable[..., Awaitable[str]]


def alert(subject: str, **more: Any) -> Alert:
    """A new alert about that subject, raised now."""
    given = {"kind": AlertKind.FLOW_STUCK, "severity": AlertSeverity.WARNING, "create_time": datetime.now(UTC), "message": "look"}
    return Alert(**{**given, "alert_id": app.new_id(), "subject": subject, **more})


def owner(tenancy: Tenancy) -> Tenant:
    """The tenant that calls."""
    return Tenant(tenancy.account, tenancy.engagement)


@pytest.fixture
async def elsewhere(shared_urls: Urls) -> AsyncIterator[Store]:
    """Another process on the shared server's database."""
    async with opened(shared_urls.service) as store:
        yield store


@pytest.fixture
def told(elsewhere: Store) -> Raise:
    """Raises an alert elsewhere; its id."""

    async def told(tenancy: Tenancy, subject: str, **more: Any) -> str:
        one = alert(subject, **more)
        await Alerts(elsewhere.database).put(owner(tenancy), one)
        return str(one.alert_id)

    return told


async def call(tenancy: Tenancy, name: str, **fields: Any) -> Any:
    stub: Any = AdminServiceStub(tenancy.channel)  # type: ignore[no-untyped-call, unused-ignore]
    return await getattr(stub, name)(getattr(pb, f"{name}Request")(**fields), metadata=tenancy.metadata, timeout=PATIENCE)


async def refusal(tenancy: Tenancy, name: str, **fields: Any) -> Refusal:
    asked = Watching(tenancy, **fields).alert() if name == "WatchAlerts" else call(tenancy, name, **fields)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await asked
    return Refusal.of(caught.value)


class Watching:
    """An open stream of alerts."""

    def __init__(self, tenancy: Tenancy, **fields: Any) -> None:
        stub: Any = AdminServiceStub(tenancy.channel)  # type: ignore[no-untyped-call, unused-ignore]
        self.call = stub.WatchAlerts(pb.WatchAlertsRequest(**fields), metadata=tenancy.metadata)
        self._messages = aiter(self.call)

    async def next(self) -> pb.WatchAlertsResponse:
        """The next message."""
        async with asyncio.timeout(PATIENCE):
            found: pb.WatchAlertsResponse = await anext(self._messages)
            return found

    async def alert(self) -> alert_pb2.Alert:
        """The next alert."""
        while not (found := await self.next()).HasField("alert"):
            assert found.HasField("time")
        return found.alert

    async def rest(self) -> list[pb.WatchAlertsResponse]:
        """Everything until the stream ends."""
        async with asyncio.timeout(PATIENCE):
            return [message async for message in self._messages]


async def test_alerts_are_listed_the_newest_first_page_by_page(tenancy: Tenancy, told: Raise) -> None:
    flow_id = uuid4()
    ids = [await told(tenancy, f"{at}", flow_id=flow_id if at % 2 else None) for at in range(7)]
    found, token = [], ""
    while True:
        page = await call(tenancy, "ListAlerts", page_size=3, page_token=token)
        found += [one.alert_id for one in page.alerts]
        if not (token := page.next_page_token):
            break
    assert found == ids[::-1]
    of_flow = await call(tenancy, "ListAlerts", flow_id=str(flow_id))
    assert [one.alert_id for one in of_flow.alerts] == ids[5::-2]
    assert {(one.flow_id, one.message) for one in of_flow.alerts} == {(str(flow_id), "look")}


async def test_lists_are_narrowed_by_kind_and_severity(tenancy: Tenancy, told: Raise) -> None:
    stuck = await told(tenancy, "a")
    lost = await told(tenancy, "b", kind=AlertKind.RECOVERY_FAILED, severity=AlertSeverity.CRITICAL, child_type="discovery", phase="p")
    (one,) = (await call(tenancy, "ListAlerts", kind="ALERT_KIND_FLOW_STUCK")).alerts
    assert (one.alert_id, one.severity) == (stuck, alert_pb2.ALERT_SEVERITY_WARNING)
    (one,) = (await call(tenancy, "ListAlerts", severity="ALERT_SEVERITY_CRITICAL")).alerts
    assert (one.alert_id, one.kind, one.child_type, one.phase) == (lost, alert_pb2.ALERT_KIND_RECOVERY_FAILED, "discovery", "p")


async def test_another_tenant_sees_no_alert(tenancy: Tenancy, told: Raise) -> None:
    known = await told(tenancy, "a")
    await told(tenancy, "b")
    token = (await call(tenancy, "ListAlerts", page_size=1)).next_page_token
    strangers = (tenancy.other_engagement(), replace(tenancy, account=uuid4()), replace(tenancy, account=tenancy.engagement))
    for stranger in strangers:
        assert not (await call(stranger, "ListAlerts")).alerts
        assert list((await refusal(stranger, "ListAlerts", page_size=1, page_token=token)).violations) == ["page_token"]
        assert list((await refusal(stranger, "WatchAlerts", after_alert_id=known)).violations) == ["after_alert_id"]
        watching = Watching(stranger, since={"seconds": 3600})
        assert not (await watching.next()).HasField("alert")
        mine = await told(stranger, "a")
        assert (await watching.alert()).alert_id == mine
        watching.call.cancel()


@pytest.mark.parametrize(
    ("name", "fields", "faulty"),
    [
        ("ListAlerts", {"flow_id": "x", "kind": 99, "severity": -1, "page_size": -1}, {"flow_id", "kind", "severity", "page_size"}),
        ("ListAlerts", {"page_token": "é"}, {"page_token"}),
        ("WatchAlerts", {"after_alert_id": "\0" * 36}, {"after_alert_id"}),
        ("WatchAlerts", {"after_alert_id": str(uuid4())}, {"after_alert_id"}),
        ("WatchAlerts", {"since": {"seconds": -1}}, {"since"}),
        ("WatchAlerts", {"since": {"seconds": 2**62}}, {"since"}),
    ],
)
async def test_faulty_requests_are_refused(tenancy: Tenancy, name: str, fields: dict[str, Any], faulty: set[str]) -> None:
    found = await refusal(tenancy, name, **fields)
    assert (found.code, found.reason, set(found.violations)) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST", faulty)


async def test_a_stream_tells_what_is_raised_from_now_on_in_its_order(tenancy: Tenancy, told: Raise) -> None:
    await told(tenancy, "before")
    watching = Watching(tenancy)
    assert not (await watching.next()).HasField("alert")  # from here on it listens
    ids = [await told(tenancy, f"{at}") for at in range(250)]
    assert not await _twice(told, tenancy)
    assert [(await watching.alert()).alert_id for _ in ids] == ids
    watching.call.cancel()


async def _twice(told: Raise, tenancy: Tenancy) -> bool:
    """Whether what was told before is told again."""
    again = await told(tenancy, "7")
    return again in [one.alert_id for one in (await call(tenancy, "ListAlerts", page_size=500)).alerts]


async def test_a_stream_begins_where_it_is_told_to(tenancy: Tenancy, told: Raise) -> None:
    now = datetime.now(UTC)
    ids = [await told(tenancy, f"{at}", create_time=now - timedelta(hours=5 - at)) for at in range(5)]
    for fields, first in (({"since": {"seconds": 9000}}, 3), ({"after_alert_id": ids[0]}, 1), ({"since": {"seconds": 10**6}}, 0)):
        watching = Watching(tenancy, **fields)
        assert [(await watching.alert()).alert_id for _ in ids[first:]] == ids[first:]
        watching.call.cancel()


async def test_an_alert_of_this_process_is_told_before_the_next_poll(urls: Urls) -> None:
    async with app.running(settings(urls, watch_poll_seconds=60.0)) as server, grpc.aio.insecure_channel(server.address) as channel:
        tenancy = Tenancy.fresh(channel)
        watching = Watching(tenancy)
        await watching.next()
        one = alert("a")
        await server.raise_alert(owner(tenancy), one)
        assert (await watching.alert()).alert_id == str(one.alert_id)


async def test_an_idle_stream_has_a_heartbeat(urls: Urls) -> None:
    more = {"watch_poll_seconds": 0.05, "watch_heartbeat_seconds": 0.1}
    async with app.running(settings(urls, **more)) as server, grpc.aio.insecure_channel(server.address) as channel:
        watching = Watching(Tenancy.fresh(channel))
        beats = [await watching.next() for _ in range(3)]
        assert not any(beat.HasField("alert") for beat in beats)
        assert beats[0].time.ToDatetime() < beats[1].time.ToDatetime() < beats[2].time.ToDatetime()


@pytest.mark.parametrize("why", ["the server stops", "it is old"])
async def test_a_stream_ends_with_everything_told_and_goes_on_after_the_last(urls: Urls, why: str) -> None:
    more = {"watch_max_age_seconds": 1.0 if why == "it is old" else 600.0, "watch_poll_seconds": 0.05}
    async with app.running(settings(urls, **more)) as server, grpc.aio.insecure_channel(server.address) as channel:
        tenancy = Tenancy.fresh(channel)
        watching = Watching(tenancy)
        await watching.next()
        first = alert("a")
        await server.raise_alert(owner(tenancy), first)
        if why == "the server stops":
            server.drain()
        told = [message.alert.alert_id for message in await watching.rest() if message.HasField("alert")]
        assert told == [str(first.alert_id)]
        assert await watching.call.code() is grpc.StatusCode.OK
        if why == "it is old":
            second = alert("b")
            await server.raise_alert(owner(tenancy), second)
            again = Watching(tenancy, after_alert_id=str(first.alert_id))
            assert (await again.alert()).alert_id == str(second.alert_id)


async def test_what_raises_an_alert_does_not_fail_for_it() -> None:
    class Away(Alerts):
        def __init__(self) -> None: ...

        async def put(self, tenant: Tenant, alert: Alert) -> bool:
            raise OSError("no route")

    counted: list[tuple[str, str]] = []
    rung: list[Tenant] = []
    tenant = Tenant(uuid4(), uuid4())
    await Alarm(Away(), lambda name, kind: counted.append((name, kind)), rung.append)(tenant, alert("a"))
    assert counted == [("alerts_not_stored", "FLOW_STUCK"), ("alerts", "FLOW_STUCK")]
    assert rung == [tenant]
