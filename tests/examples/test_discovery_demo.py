"""`python -m examples.discovery.demo` as a newcomer runs it: from nothing to the report, and nothing left."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.examples.inventories import CLOUD

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 100.0


@pytest.fixture
def room() -> Iterator[Path]:
    """A temporary directory of the demo's own that every user can reach, which pytest's is not."""
    path = Path(tempfile.mkdtemp(prefix="flowledger-test-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path, ignore_errors=True)


async def start(room: Path, *arguments: str, module: str = "examples.discovery.demo") -> asyncio.subprocess.Process:
    environment = {name: value for name, value in os.environ.items() if name not in {"FORCE_COLOR", "COLUMNS"}}
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        module,
        *arguments,
        cwd=ROOT,
        env=environment | {"TMPDIR": str(room)},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def end(demo: asyncio.subprocess.Process) -> tuple[str, str]:
    """What the demo printed, once it has ended."""
    async with asyncio.timeout(PATIENCE):
        out, err = await demo.communicate()
    return out.decode(), err.decode()


def left_in(room: Path) -> list[str]:
    """The processes that still work in ``room`` and the files that still lie there."""
    processes = [f"{process.pid} {' '.join(process.info['cmdline'] or ())}" for process in psutil.process_iter(["cmdline"])]
    return [process for process in processes if str(room) in process] + [str(path) for path in room.iterdir()]


async def test_the_demo_discovers_fedoras_servers_and_leaves_nothing_behind(room: Path) -> None:
    demo = await start(room, "--as-of", "2026-11-22")
    out, err = await end(demo)
    assert (demo.returncode, err) == (0, "")
    assert "asset_creation failed and may be retried, EXTERNAL_SERVICE_ERROR" in out
    assert "asset_creation began again, retry 1" in out
    assert re.search(r"lvm_size_mb +disk +76%", out)
    assert "180 of 371 servers (49%) run a system past its end of life on 2026-11-22" in out
    assert "virthost-os01.fedorainfracloud.org" in out
    assert "nothing was left running" in out
    assert not re.search(r"[\x00-\x09\x0b-\x1f]", out)
    assert left_in(room) == []


async def test_the_demo_takes_another_inventory(room: Path) -> None:
    demo = await start(room, "--csv", str(CLOUD), "--fail", "none", "--map", "Notes=-")
    out, err = await end(demo)
    assert (demo.returncode, err) == (0, "")
    assert "Discovery of cloud_servers.tsv" in out
    assert "7 rows of 11 columns imported" in out
    assert "may be retried" not in out
    assert left_in(room) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
async def test_a_demo_that_is_interrupted_leaves_nothing_behind(room: Path, number: signal.Signals) -> None:
    demo = await start(room, "--pace", "0.5")
    assert demo.stdout
    async with asyncio.timeout(PATIENCE):
        while b"data_import is at" not in (line := await demo.stdout.readline()):
            assert line, "the demo ended before it was interrupted"
    demo.send_signal(number)
    _, err = await end(demo)
    assert demo.returncode == 130
    assert "nothing was left running" in err
    assert left_in(room) == []


async def test_a_demo_without_its_inventory_says_so_before_it_starts_anything(room: Path) -> None:
    demo = await start(room, "--csv", str(room / "missing.csv"))
    out, err = await end(demo)
    assert (demo.returncode, out) == (1, "")
    assert "missing.csv cannot be read" in err
    assert left_in(room) == []
