"""HTTP/2 with gRPC's framing for a load generator: the least Python that speaks it.

A grpc.aio client costs about as much processor time a call as the server under test, and h2load sends one body only; this costs a tenth
and sends any. It is no client for anything else: requests are small enough for one frame, headers are the same for all calls of a
connection, and no response is parsed beyond its status (RFC 9113, RFC 7541, gRPC over HTTP/2).
"""

from __future__ import annotations

import asyncio
import struct
from collections import deque
from collections.abc import Callable, Sequence

Metadata = Sequence[tuple[str, str]]

_HEAD = struct.Struct(">BHBBI")  # length (8 + 16 bits), type, flags, stream
_SETTING = struct.Struct(">HI")
_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PING, _GOAWAY, _WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
_END_STREAM, _ACK, _END_HEADERS = 1, 1, 4
_MAX_WINDOW = 2**31 - 1
_REFILL = 2**24
_FRAME = 16_384  # what any peer must accept

OK = "0"


def message(body: bytes) -> bytes:
    """``body`` as one gRPC message: not compressed, with its length."""
    return struct.pack(">BI", 0, len(body)) + body


class Call:
    """One call on its way; what arrives is handed to the functions it was opened with."""

    __slots__ = ("ended", "received", "rest", "unsent", "window")

    def __init__(self, ended: Callable[[str, str], None], received: Callable[[bytes], None] | None, window: int) -> None:
        self.ended = ended
        self.received = received
        self.rest = b""
        self.window = window
        self.unsent: deque[bytes] = deque()  # whole frames, only for streams that send many


class Connection(asyncio.Protocol):
    """One HTTP/2 connection that calls one gRPC method, any number of times at once.

    When the connection breaks, every open call ends with the status UNAVAILABLE (14) and the reason.
    """

    def __init__(self, path: str, metadata: Metadata) -> None:
        self._first, self._later = _header_blocks(path, metadata)
        self._calls: dict[int, Call] = {}
        self._next_stream = 1
        self._out: list[bytes] = []
        self._rest = b""
        self._window = 65_535
        self._initial_window = 65_535
        self._waiting: deque[tuple[int, bytes]] = deque()  # unary bodies that wait for the connection's window
        self._received = 0
        self._transport: asyncio.Transport
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.roomier = asyncio.Event()  # set whenever there may be more room to send

    # --- calls

    def unary(self, framed: bytes, ended: Callable[[str, str], None]) -> None:
        """Sends one request; ``ended(status, text)`` is called when its answer is complete. ``flush`` sends it off."""
        stream = self._open(Call(ended, None, self._initial_window))
        if self._waiting or len(framed) > self._window or len(framed) > _FRAME:
            self._waiting.append((stream, framed))
            self._send_waiting()
        else:
            self._window -= len(framed)
            self._out.append(_frame(_DATA, _END_STREAM, stream, framed))

    def server_stream(self, framed: bytes, received: Callable[[bytes], None], ended: Callable[[str, str], None]) -> int:
        """Sends one request whose answer is many messages; each is handed to ``received``. Returns the number to cancel it by."""
        stream = self._open(Call(ended, received, self._initial_window))
        self._window -= len(framed)
        self._out.append(_frame(_DATA, _END_STREAM, stream, framed))
        return stream

    def client_stream(self, received: Callable[[bytes], None], ended: Callable[[str, str], None]) -> int:
        """Opens a call that sends many messages. Returns its number."""
        return self._open(Call(ended, received, self._initial_window))

    def room(self, stream: int) -> int:
        """How many bytes ``send`` may send on the stream now; none once the call has ended."""
        call = self._calls.get(stream)
        return 0 if call is None else min(call.window, self._window, _FRAME)

    def is_open(self, stream: int) -> bool:
        """Whether the call has not ended yet."""
        return stream in self._calls

    def send(self, stream: int, framed: bytes, last: bool = False) -> None:
        """Sends whole framed messages, at most ``room`` bytes; ``last`` closes our side."""
        self._calls[stream].window -= len(framed)
        self._window -= len(framed)
        self._out.append(_frame(_DATA, _END_STREAM if last else 0, stream, framed))

    def cancel(self, stream: int) -> None:
        """Ends a call without an answer."""
        if self._calls.pop(stream, None) is not None:
            self._out.append(_frame(_RST_STREAM, 0, stream, struct.pack(">I", 8)))

    def flush(self) -> None:
        """Hands everything that was queued to the socket."""
        if self._out:
            self._transport.write(b"".join(self._out))
            self._out.clear()

    def close(self) -> None:
        """Closes the connection; open calls are forgotten."""
        self._calls.clear()
        self._transport.close()

    # --- the connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport) or hasattr(transport, "write")
        self._transport = transport  # type: ignore[assignment]  # uvloop's transports are not asyncio's
        # No header table for what the server sends: its trailers then read the same every time and need no state to decode.
        settings = _SETTING.pack(1, 0) + _SETTING.pack(2, 0) + _SETTING.pack(4, _MAX_WINDOW)
        self._out += [
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            _frame(_SETTINGS, 0, 0, settings),
            _frame(_WINDOW_UPDATE, 0, 0, struct.pack(">I", _MAX_WINDOW - 65_535)),
        ]
        self.flush()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.ready.done():
            self.ready.set_exception(ConnectionError("the server closed the connection before its settings came"))
        calls, self._calls = self._calls, {}
        for call in calls.values():
            call.ended("14", f"the connection was lost: {exc}")

    def data_received(self, data: bytes) -> None:
        buffer = self._rest + data if self._rest else data
        position, size = 0, len(buffer)
        while size - position >= 9:
            high, low, kind, flags, stream = _HEAD.unpack_from(buffer, position)
            length = (high << 16) + low
            end = position + 9 + length
            if end > size:
                break
            if kind == _DATA:
                self._received += length
                call = self._calls.get(stream)
                if call is not None and call.received is not None:
                    self._messages(call, call.received, buffer[position + 9 : end])
            elif kind == _HEADERS:
                if flags & _END_STREAM:
                    self._end(stream, *_status(buffer[position + 9 : end]))
            else:
                self._control(kind, flags, stream, buffer[position + 9 : end])
            position = end
        self._rest = buffer[position:]
        if self._received >= _REFILL:
            self._out.append(_frame(_WINDOW_UPDATE, 0, 0, struct.pack(">I", self._received)))
            self._received = 0
        self.flush()

    def _open(self, call: Call) -> int:
        stream = self._next_stream
        self._next_stream += 2
        self._calls[stream] = call
        self._out.append(_frame(_HEADERS, _END_HEADERS, stream, self._first if stream == 1 else self._later))
        return stream

    def _end(self, stream: int, status: str, text: str) -> None:
        call = self._calls.pop(stream, None)
        if call is not None:
            call.ended(status, text)

    def _messages(self, call: Call, received: Callable[[bytes], None], data: bytes) -> None:
        data = call.rest + data
        position = 0
        while len(data) - position >= 5:
            end = position + 5 + int.from_bytes(data[position + 1 : position + 5], "big")
            if end > len(data):
                break
            received(data[position + 5 : end])
            position = end
        call.rest = data[position:]

    def _control(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == _SETTINGS and not flags & _ACK:
            for name, value in _SETTING.iter_unpack(payload):
                if name == 4:
                    for call in self._calls.values():
                        call.window += value - self._initial_window
                    self._initial_window = value
            self._out.append(_frame(_SETTINGS, _ACK, 0, b""))
            if not self.ready.done():
                self.ready.set_result(None)
        elif kind == _PING and not flags & _ACK:
            self._out.append(_frame(_PING, _ACK, 0, payload))
        elif kind == _WINDOW_UPDATE:
            more = int.from_bytes(payload, "big")
            if stream == 0:
                self._window += more
            elif stream in self._calls:
                self._calls[stream].window += more
            self.roomier.set()
            self._send_waiting()
        elif kind == _RST_STREAM:
            self._end(stream, "13", f"the server reset the stream with HTTP/2 error {int.from_bytes(payload, 'big')}")
        elif kind == _GOAWAY:
            self._transport.close()

    def _send_waiting(self) -> None:
        while self._waiting:
            stream, framed = self._waiting[0]
            call = self._calls.get(stream)
            if call is None:
                self._waiting.popleft()
                continue
            part = framed[: max(0, min(self._window, call.window, _FRAME))]
            if not part:
                return
            rest = framed[len(part) :]
            self._window -= len(part)
            call.window -= len(part)
            self._out.append(_frame(_DATA, 0 if rest else _END_STREAM, stream, part))
            if rest:
                self._waiting[0] = (stream, rest)
            else:
                self._waiting.popleft()


async def connect(address: tuple[str, int], path: str, metadata: Metadata) -> Connection:
    """A connection to ``address`` whose settings are exchanged, for calls of the method at ``path``."""
    _, connection = await asyncio.get_running_loop().create_connection(lambda: Connection(path, metadata), *address)
    await asyncio.wait_for(connection.ready, 10)
    return connection


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return _HEAD.pack(len(payload) >> 16, len(payload) & 0xFFFF, kind, flags, stream) + payload


def _header_blocks(path: str, metadata: Metadata) -> tuple[bytes, bytes]:
    """The headers of the first call, which enter the server's header table, and of all later ones, which refer to it (RFC 7541)."""
    fields = [(":path", path), (":authority", "localhost"), ("content-type", "application/grpc"), ("te", "trailers")]
    fields += [("user-agent", "flowledger-bench"), *metadata]
    fixed = b"\x83\x86"  # :method POST, :scheme http
    first = fixed + b"".join(b"\x40" + _text(name) + _text(value) for name, value in fields)
    later = fixed + bytes(0x80 | (62 + len(fields) - 1 - position) for position in range(len(fields)))
    return first, later


def _text(text: str) -> bytes:
    raw = text.encode()
    if len(raw) > 126:
        raise ValueError(f"a header of {len(raw)} bytes is longer than the 126 that this client can send: {text[:40]}...")
    return bytes((len(raw),)) + raw


_SUCCESS = b"\x0bgrpc-status\x010"


def _status(block: bytes) -> tuple[str, str]:
    """The status and the text of a block of trailers."""
    if _SUCCESS in block:
        return OK, ""
    return _field(block, b"\x0bgrpc-status") or "2", _field(block, b"\x0cgrpc-message") or repr(block[:400])


def _field(block: bytes, name: bytes) -> str | None:
    at = block.find(name)
    if at < 0:
        return None
    at += len(name)
    length, at = block[at] & 0x7F, at + 1
    if length == 0x7F:  # a longer integer follows, seven bits at a time
        shift = 0
        while True:
            more, at = block[at], at + 1
            length += (more & 0x7F) << shift
            shift += 7
            if more < 0x80:
                break
    return block[at : at + length].decode(errors="replace")
