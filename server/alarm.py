"""The way an alert is raised: a row, a line in the log, a number in the metrics."""

from __future__ import annotations

from collections.abc import Callable

import structlog

from server.repository.alerts import Alerts
from server.statemachine.alert import Alert, AlertSeverity
from server.statemachine.values import Tenant

_log = structlog.get_logger("alert")


class Alarm:
    """Raises alerts, each once, and never fails: whoever raises one has something else to do."""

    def __init__(self, alerts: Alerts, count: Callable[[str, str], None], ring: Callable[[Tenant], None]) -> None:
        """``count`` is told the metric and the alert's kind, ``ring`` whose alerts there are more of."""
        self._alerts, self._count, self._ring = alerts, count, ring

    async def __call__(self, tenant: Tenant, alert: Alert) -> None:
        """Tell of ``alert``, unless the same thing was told before. When it cannot be stored, the log and the metrics tell of it still."""
        trouble: Exception | None = None
        try:
            if not await self._alerts.put(tenant, alert):
                return
        except Exception as error:  # noqa: BLE001 - what raised the alert must not fail for it
            trouble = error
            self._count("alerts_not_stored", alert.kind.name)
        self._count("alerts", alert.kind.name)
        _tell(tenant, alert, trouble)
        self._ring(tenant)


def _tell(tenant: Tenant, alert: Alert, error: Exception | None) -> None:
    line = {
        "alert": alert.kind.name,
        "alert_id": str(alert.alert_id),
        "account": str(tenant.client_account_id),
        "engagement": str(tenant.engagement_id),
        "message": alert.message,
        **({"flow": str(alert.flow_id)} if alert.flow_id else {}),
        **({"child": alert.child_type} if alert.child_type else {}),
        **({"phase": alert.phase} if alert.phase else {}),
        **({"checkpoint": str(alert.checkpoint_id)} if alert.checkpoint_id else {}),
        **({} if error is None else {"not_stored": repr(error)}),
    }
    (_log.error if alert.severity is AlertSeverity.CRITICAL else _log.warning)("alert", **line)
