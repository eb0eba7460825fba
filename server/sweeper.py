"""Goes through all tenants again and again and does what is to be done without anybody asking: one task, one job after another.

Each job is done by one process of all at a time. A job that fails is logged and tried again next time; it stops neither the others nor
the server. What a job does in one go is small, and done as a whole or not at all, so that it can be ended at any moment.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog

from server.statemachine.errors import StoreUnavailable
from server.statemachine.values import Tenant

_log = structlog.get_logger("sweeper")

# Does one tenant's part of a job. Told when this process last began a round of it that came to its end; None before the first.
Work = Callable[[Tenant, datetime | None], Awaitable[object]]


@dataclass(frozen=True, slots=True)
class Job:
    """Something to be done for every tenant; not more often than ``pause`` apart."""

    name: str
    work: Work
    pause: timedelta = timedelta()


def _uncounted(_: str, __: str) -> None:
    """Nobody counts."""


class Sweeper:
    """Does jobs in the background."""

    def __init__(
        self,
        jobs: Sequence[Job],
        tenants: Callable[[], AsyncIterator[Tenant]],
        alone: Callable[[str], AbstractAsyncContextManager[bool]],
        now: Callable[[], datetime],
        rest: Callable[[], float],
        count: Callable[[str, str], None] = _uncounted,
    ) -> None:
        """``alone`` says whether no other process does a job of that name; ``rest`` is how many seconds to wait before the next round.

        ``count`` is told of each run: the job, and whether it was done, left to another process, or failed.
        """
        self._jobs, self._tenants, self._alone, self._now, self._rest, self._count = jobs, tenants, alone, now, rest, count
        self._began: dict[str, datetime] = {}

    async def run(self) -> None:
        """Round after round, until it is cancelled."""
        while True:
            await asyncio.sleep(self._rest())
            await self.sweep()

    async def sweep(self) -> None:
        """One round of every job that is due."""
        for job in self._jobs:
            before, began = self._began.get(job.name), self._now()
            if before is not None and began - before < job.pause:
                continue
            try:
                async with self._alone(job.name) as mine:
                    if mine:
                        await self._round(job, before)
                        self._began[job.name] = began
                self._count(job.name, "done" if mine else "elsewhere")
            except Exception as error:  # noqa: BLE001 - a supervised loop: the next job has nothing to do with this one's trouble
                self._count(job.name, "failed")
                _log.warning("sweep_failed", job=job.name, error=repr(error))

    async def _round(self, job: Job, before: datetime | None) -> None:
        """The job for every tenant. Raises StoreUnavailable."""
        async for tenant in self._tenants():
            try:
                await job.work(tenant, before)
            except StoreUnavailable:
                raise  # it would be no other for the next tenant
            except Exception as error:  # noqa: BLE001 - a supervised loop: one tenant's trouble is not the others'
                named = {"account": str(tenant.client_account_id), "engagement": str(tenant.engagement_id)}
                _log.error("sweep_failed", job=job.name, exc_info=error, **named)
