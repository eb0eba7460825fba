"""Processes that do not outlive the block that needs them."""

from __future__ import annotations

import asyncio
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import IO

ROOT = Path(__file__).parents[1]
Output = IO[bytes] | int


@asynccontextmanager
async def child_process(
    command: Sequence[str | Path],
    *,
    cwd: Path = ROOT,
    env: Mapping[str, str] | None = None,
    output: Output = PIPE,
    errors: Output | None = None,
) -> AsyncIterator[Process]:
    """A running ``command``; asked to end, and awaited, when the block ends before it does."""
    process = await asyncio.create_subprocess_exec(*command, cwd=cwd, env=env, stdout=output, stderr=errors)
    try:
        yield process
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):  # it ended by itself just now
                process.terminate()
        await process.wait()


async def output_of(command: Sequence[str | Path], *, cwd: Path = ROOT, env: Mapping[str, str] | None = None) -> str:
    """What ``command`` prints.

    Raises RuntimeError with the end of its complaint when it fails.
    """
    async with child_process(command, cwd=cwd, env=env, errors=PIPE) as process:
        output, complaint = await process.communicate()
    if process.returncode != 0:
        raise RuntimeError(f"{Path(command[0]).name} failed: {complaint.decode(errors='replace')[-2_000:]}")
    return output.decode()


async def succeeds(command: Sequence[str | Path]) -> bool:
    """Whether ``command`` exists and ends well; what it prints is not kept."""
    try:
        async with child_process(command, output=DEVNULL, errors=DEVNULL) as process:
            return await process.wait() == 0
    except FileNotFoundError:
        return False
