"""Programs that tests start, and what they print."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 60.0  # seconds that a program may take before the test fails instead of hanging


@dataclass(frozen=True, slots=True)
class Ran:
    """How a program ended."""

    code: int
    out: str
    err: str


async def run(*command: object, cwd: Path = ROOT, stdin: str = "") -> Ran:
    """What the program printed, once it has ended."""
    process = await asyncio.create_subprocess_exec(
        *map(str, command), cwd=cwd, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(PATIENCE):
            out, err = await process.communicate(stdin.encode())
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode is not None
    return Ran(process.returncode, out.decode(), err.decode())


class Program:
    """A running program whose lines, of both its outputs, can be waited for."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.lines: list[str] = []
        self._process = process
        self._told = asyncio.Condition()

    async def read(self) -> None:
        """Take in lines until the program closes its output."""
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            async with self._told:
                self.lines.append(line.decode().rstrip("\n"))
                self._told.notify_all()
        async with self._told:
            self._told.notify_all()

    async def line(self, fits: Callable[[str], bool], after: int = 0) -> str:
        """The first line from number ``after`` on that fits. Fails when the program ends without it or takes too long."""

        def found() -> str | None:
            return next((line for line in self.lines[after:] if fits(line)), None)

        try:
            async with asyncio.timeout(PATIENCE), self._told:
                await self._told.wait_for(lambda: found() is not None or self._at_end())
        except TimeoutError:
            pass
        line = found()
        assert line is not None, "\n".join(["the program did not print what was waited for, only:", *self.lines])
        return line

    async def ended(self) -> int:
        """The exit code."""
        async with asyncio.timeout(PATIENCE):
            return await self._process.wait()

    async def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """The exit code after that signal."""
        self._process.send_signal(number)
        return await self.ended()

    def _at_end(self) -> bool:
        return self._process.stdout is not None and self._process.stdout.at_eof()


@asynccontextmanager
async def started(*command: object, cwd: Path = ROOT, environment: dict[str, str] | None = None) -> AsyncIterator[Program]:
    """The program while the block lasts."""
    process = await asyncio.create_subprocess_exec(
        *map(str, command),
        cwd=cwd,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={**os.environ, **(environment or {})},
    )
    program = Program(process)
    reading = asyncio.create_task(program.read())
    try:
        yield program
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        await reading
