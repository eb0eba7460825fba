"""A line between a client and a server that can be cut, or fall silent while the connection stays: what networks do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress


class Line:
    """Carries bytes between whoever connects to ``address`` and the server."""

    def __init__(self, server: str) -> None:
        self.address = ""
        self.connections = 0
        self.listening: asyncio.Server | None = None
        self._host, _, port = server.rpartition(":")
        self._port = int(port)
        self._open: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._answers = asyncio.Event()
        self._answers.set()
        self._loop = asyncio.get_running_loop()

    def mute(self) -> None:
        """From now on no answer arrives; what is sent still does."""
        self._answers.clear()

    def mute_soon(self) -> None:
        """As ``mute``, from any thread: nothing that is sent after this is answered."""
        self._loop.call_soon_threadsafe(self._answers.clear)

    def unmute(self) -> None:
        """Answers arrive again, those held back first."""
        self._answers.set()

    def close(self) -> None:
        """Nobody is there any more."""
        assert self.listening is not None
        self.listening.close()
        self.cut()

    def cut(self) -> None:
        """End every connection; what was held back is lost."""
        for writer in list(self._open):
            writer.transport.abort()

    async def met(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Somebody connected."""
        self.connections += 1
        try:
            there, back = await asyncio.open_connection(self._host, self._port)
        except OSError:
            writer.transport.abort()
            return
        self._open |= {writer, back}
        ways = [asyncio.create_task(self._carry(reader, back)), asyncio.create_task(self._carry(there, writer, self._answers))]
        self._tasks |= {*ways}
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        for way in ways:
            way.cancel()
        for end in (writer, back):
            end.transport.abort()
            self._open.discard(end)
        self._tasks -= {*ways}

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, gate: asyncio.Event | None = None) -> None:
        with suppress(OSError):
            while data := await reader.read(64 * 1024):
                if gate is not None:
                    await gate.wait()
                writer.write(data)
                await writer.drain()


@asynccontextmanager
async def line(server: str) -> AsyncIterator[Line]:
    """A line to that server while the block lasts."""
    carried = Line(server)
    carried.listening = await asyncio.start_server(carried.met, "127.0.0.1", 0)
    host, port = carried.listening.sockets[0].getsockname()
    carried.address = f"{host}:{port}"
    try:
        yield carried
    finally:
        carried.close()
        await asyncio.sleep(0)  # so that what carried hears of it
