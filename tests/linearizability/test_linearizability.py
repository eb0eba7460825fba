"""What clients of several servers see of a flow is what one register would have told, whatever is killed, cut off and not heard of."""

from __future__ import annotations

import asyncio
import logging
import random
from collections import Counter
from pathlib import Path

import pytest

from tests.cluster import Cluster
from tests.conftest import Urls
from tests.linearizability.checker import faults
from tests.linearizability.fleet import fleet
from tests.linearizability.progress import Progress
from tests.linearizability.recorder import Recorder, record
from tests.tenancy import Tenancy

_log = logging.getLogger(__name__)  # pytest --log-cli-level info shows the figures
FLOWS = 2
STALE_SECONDS = 0.5
SLACK_SECONDS = 0.05  # between a clock that is read here and one that is read there


def cut_connections(postgres: Cluster, urls: Urls) -> None:
    """End every connection that PostgreSQL has with a server."""
    postgres.run(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{urls.name}' AND usename = 'flowledger'")


@pytest.mark.timeout(900)
async def test_three_servers_that_are_killed_and_cut_off_are_one_register(
    postgres: Cluster, urls: Urls, tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    rounds, progress = pytestconfig.getoption("--rounds"), Progress()
    hints: dict[str, object] = {"cache_seconds": STALE_SECONDS, "watch_poll_seconds": 0.2}
    deaf = {**hints, "wakeups": "local"}  # tells the others nothing and hears nothing of them
    async with fleet(urls, tmp_path, hints, deaf, hints) as servers:
        tenancies = [Tenancy.fresh(servers.channels[0])]
        tenancies += [tenancies[0].on(channel) for channel in servers.channels[1:]]
        recorders = [Recorder(tenancies, random.Random(seed), progress) for seed in range(FLOWS)]

        async def harm() -> None:
            for at in range(2 * rounds):
                await progress.more(20)
                await servers.kill(at % 3)
                await progress.more(20)
                await asyncio.to_thread(cut_connections, postgres, urls)
                await progress.more(20)
                await servers.start(at % 3)
            await progress.more(20)

        histories = await record(recorders, harm, STALE_SECONDS + SLACK_SECONDS)
    assert [faults(history) for history in histories] == [[]] * FLOWS
    assert [recorder.internal for recorder in recorders] == [[]] * FLOWS
    calls = Counter(f"{call.kind.value} {'unknown' if call.revision is None else 'told'}" for one in histories for call in one.calls)
    heard = sum(len(watch.heard) for one in histories for watch in one.watches)
    _log.info("%d revisions, %d events heard, calls: %s", sum(len(one.ledger) for one in histories), heard, dict(calls))


FOUND = {
    "guard": "was acknowledged to 2 writers",
    "fence": "began after this had returned",
    "skip": "came next",
}


@pytest.mark.parametrize("fault", FOUND)
async def test_a_fault_that_is_seeded_into_the_servers_is_found(urls: Urls, tmp_path: Path, fault: str) -> None:
    quiet: dict[str, object] = {"wakeups": "local", "cache_seconds": STALE_SECONDS}
    async with fleet(urls, tmp_path, quiet, quiet, program=("tests.linearizability.faulty", fault)) as servers:
        tenancy, progress, found = Tenancy.fresh(servers.channels[0]), Progress(), list[str]()

        async def some() -> None:
            await progress.more(30)

        for seed in range(10):  # what must not happen need not happen at once
            recorder = Recorder([tenancy, tenancy.on(servers.channels[1])], random.Random(seed), progress)
            found = faults((await record([recorder], some, STALE_SECONDS + SLACK_SECONDS, patience=5.0))[0])
            if any(FOUND[fault] in one for one in found):
                return
    pytest.fail(f"the checker says {found or 'nothing'}")
