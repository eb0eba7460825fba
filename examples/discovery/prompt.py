"""Questions on the command line that an event loop can wait for, and give up on."""

from __future__ import annotations

import asyncio
import os
import sys


class Prompt:
    """Asks on standard output and reads the answer from standard input.

    `input` in a thread would hold the process after Ctrl-C until somebody presses Enter.
    """

    def __init__(self) -> None:
        self._read = b""
        self._ended = False

    async def line(self, question: str) -> str:
        """The next line, without its end; EOFError when there is none."""
        print(question, end="", flush=True)
        while b"\n" not in self._read and not self._ended:
            await self._readable()
            more = os.read(sys.stdin.fileno(), 4096)
            self._read += more
            self._ended = not more
        line, _, self._read = self._read.partition(b"\n")
        if self._ended and not line:
            raise EOFError
        return line.decode(errors="replace").rstrip("\r")

    async def _readable(self) -> None:
        loop, fd = asyncio.get_running_loop(), sys.stdin.fileno()
        ready = asyncio.Event()
        try:
            loop.add_reader(fd, ready.set)
        except PermissionError:  # a file or /dev/null, which are always readable and which epoll refuses
            return
        try:
            await ready.wait()
        finally:
            loop.remove_reader(fd)
