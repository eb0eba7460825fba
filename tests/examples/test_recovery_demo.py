"""`python -m examples.discovery.recovery` as a newcomer runs it: a bad day, its end, and nothing left."""

from __future__ import annotations

import asyncio
import re
import signal
from pathlib import Path

from tests.examples.test_discovery_demo import PATIENCE, end, left_in, room, start

__all__ = ["room"]  # the fixture
MODULE = "examples.discovery.recovery"


async def test_the_demo_recovers_a_damaged_flow_and_finishes_its_discovery(room: Path) -> None:
    demo = await start(room, "--as-of", "2026-11-22", module=MODULE)
    out, err = await end(demo)
    assert (demo.returncode, err) == (0, "")
    begun, *chapters = re.split(r"^\d\. .*$", out, flags=re.MULTILINE)
    assert begun.startswith("Starting a service")
    approving, failing, damaging, validating, planning, recovering, finishing = chapters
    assert "field_mapping waits for approval" in approving
    assert "Taken: " in approving
    assert "kill -9" in failing
    assert damaging.count("UPDATE ") == 2
    assert "PHASE_STATE" in validating
    assert "DOCUMENT_DAMAGED" in validating
    assert "CHECKPOINT: a checkpoint comes back" in planning
    assert "Recovered. " in recovering
    assert "flow-recovered" in recovering
    assert "180 of 371 servers (49%) run a system past its end of life on 2026-11-22" in finishing
    assert "nothing was left running" in finishing
    assert not re.search(r"[\x00-\x09\x0b-\x1f]", out)
    assert left_in(room) == []


async def test_a_demo_that_is_interrupted_while_the_service_is_away_leaves_nothing_behind(room: Path) -> None:
    demo = await start(room, module=MODULE)
    assert demo.stdout
    async with asyncio.timeout(PATIENCE):
        while b"kill -9" not in (line := await demo.stdout.readline()):
            assert line, "the demo ended before it was interrupted"
    demo.send_signal(signal.SIGINT)
    _, err = await end(demo)
    assert demo.returncode == 130
    assert "nothing was left running" in err
    assert left_in(room) == []
