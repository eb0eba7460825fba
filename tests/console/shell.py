"""How tests give commands: as somebody in a shell whose environment says whom to call."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from server.console import commands
from tests.tenancy import Tenancy

ROOT = Path(__file__).parents[2]
PATIENCE = 60.0


@dataclass(frozen=True, slots=True)
class Result:
    """What a command answered."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        """What it printed."""
        return self.out.splitlines()

    @property
    def document(self) -> Any:
        """The one JSON document that it printed."""
        return json.loads(self.out)

    @property
    def documents(self) -> list[Any]:
        """The JSON documents that it printed, one a line."""
        return [json.loads(line) for line in self.lines]


@dataclass(frozen=True, slots=True)
class Shell:
    """A shell."""

    tenancy: Tenancy
    environment: Mapping[str, str]

    @classmethod
    def at(cls, address: str, tenancy: Tenancy) -> Shell:
        """One whose environment names the tenant at that address."""
        variables = {"ADDRESS": address, "ACCOUNT": str(tenancy.account), "ENGAGEMENT": str(tenancy.engagement), "USER": tenancy.user}
        return cls(tenancy, {f"FLOWLEDGER_CLIENT_{name}": value for name, value in variables.items()})

    async def run(self, *arguments: str, **variables: str) -> Result:
        """What the command answers, its output in a pipe and nobody at its input. It runs in this process, in a thread."""
        runner = CliRunner()
        result = await asyncio.to_thread(runner.invoke, commands.app, arguments, env={**self.environment, **variables})
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Result(result.exit_code, result.stdout, result.stderr)

    async def ok(self, *arguments: str) -> Result:
        """What the command answers, which must have worked."""
        result = await self.run(*arguments)
        assert (result.code, result.err) == (0, ""), result
        return result

    async def followed(self, *arguments: str, until: str) -> list[str]:
        """The lines of a command that goes on until Ctrl-C, which comes after the line that holds ``until``. A process of its own."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "server",
            *arguments,
            cwd=ROOT,
            env={**os.environ, **self.environment},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
        )
        assert process.stdout
        lines: list[str] = []
        try:
            async with asyncio.timeout(PATIENCE):
                while not lines or until not in lines[-1]:
                    lines.append((await process.stdout.readline()).decode())
                    assert lines[-1], f"it ended after {lines}"
                process.send_signal(signal.SIGINT)
                assert await process.wait() == 130
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        return lines

    async def typed(self, *arguments: str, keys: bytes = b"", columns: int = 80, **variables: str) -> Result:
        """What stands on a terminal after somebody gave the command and pressed those keys. A process of its own."""
        ours, theirs = pty.openpty()
        given = {name: value for name, value in os.environ.items() if name not in {"NO_COLOR", "FORCE_COLOR", "COLUMNS"}}
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "server",
            *arguments,
            cwd=ROOT,
            env={**given, **self.environment, "TERM": "xterm-256color", "COLUMNS": str(columns), **variables},
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
        )
        os.close(theirs)
        reading = asyncio.create_task(asyncio.to_thread(_read, ours))
        os.write(ours, keys)
        async with asyncio.timeout(PATIENCE):
            code = await process.wait()
            shown = await reading
        os.close(ours)
        return Result(code, shown.replace("\r\n", "\n"), "")


def _read(terminal: int) -> str:
    read = b""
    while True:
        try:
            more = os.read(terminal, 65536)
        except OSError:  # the other end is closed
            more = b""
        if not more:
            return read.decode()
        read += more
