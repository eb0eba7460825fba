"""Views that several processes share through Redis: sealed, for a time, and never an older one in the place of a newer one."""

from __future__ import annotations

import asyncio
import struct
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import structlog
from redis.exceptions import RedisError

from server.breaker import Breaker
from server.cache.views import CachedView, ViewName
from server.redis_link import RedisLink
from server.statemachine.values import FlowKey, Tenant

_log = structlog.get_logger()

# Seals bytes for a tenant and a place, and opens what was sealed for it; None when it cannot be done now, or does not open.
Seal = Callable[[Tenant, bytes, bytes], Awaitable[bytes | None]]

TTL_SECONDS = 300
# Views that wait to be shared at most, and what one may hold.
WAITING = 256
VIEW_BYTES = 1024 * 1024
# So many callers ask at a time; nobody waits for them. A connection takes milliseconds to make, and many at once would look like a Redis
# that is away.
ASKING = 8
# Of so many flows it is remembered how far they have come: some megabytes.
HEARD = 16_384
_HEAD = struct.Struct(">qd")
_BROKEN = (RedisError, OSError, TimeoutError)

# Revision and time stand in front of the seal and sort as they are: what is there stays if it is newer, unless it is not ours.
_PUT = """
local known = redis.call('GETRANGE', KEYS[1], 0, 15)
if #known == 16 and known > string.sub(ARGV[1], 1, 16) and string.byte(known) == 0 then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])
return 1
"""


class RedisViews:
    """The second level of the cache. Whatever is wrong with Redis, it is a miss, and soon not even asked."""

    def __init__(self, link: RedisLink, topic: str, seal: Seal, open_sealed: Seal, breaker: Breaker) -> None:
        """``topic`` keeps installations apart."""
        self._client, self._topic, self._seal, self._open, self._breaker = link.calls, topic, seal, open_sealed, breaker
        self._waiting: asyncio.Queue[tuple[FlowKey, ViewName, CachedView]] = asyncio.Queue(WAITING)
        self._put: Any = link.calls.register_script(_PUT)
        self._asking = 0
        # How far flows that moved lately have come.
        self._heard: OrderedDict[FlowKey, int] = OrderedDict()
        self.hits = self.misses = self.shared = self.failures = self.dropped = 0

    def counts(self) -> Mapping[tuple[str, ...], float]:
        """What became of views so far, for the metrics."""
        return {
            ("hit",): self.hits,
            ("miss",): self.misses,
            ("shared",): self.shared,
            ("failure",): self.failures,
            ("dropped",): self.dropped,
        }

    def heard(self, key: FlowKey, revision: int) -> None:
        """The flow has come to ``revision``: what is shared of an older one is behind. A hint may lie; then it costs a read."""
        if revision > self._heard.get(key, 0):
            self._heard[key] = revision
            self._heard.move_to_end(key)
            if len(self._heard) > HEARD:
                self._heard.popitem(last=False)

    async def get(self, key: FlowKey, name: ViewName, least: int) -> CachedView | None:
        """The view, if one of revision ``least`` or newer is known."""
        if self._asking >= ASKING or not self._breaker.allows():
            self.misses += 1
            return None
        self._asking += 1
        try:
            found = await self._client.get(self._name(key, name))
        except _BROKEN:
            self._failed()
            return None
        finally:
            self._asking -= 1
        self._breaker.succeeded()
        view = await self._opened(key, name, found) if isinstance(found, bytes) else None
        if view is None or view.revision < max(least, self._heard.get(key, 0)):
            self.misses += 1
            return None
        self.hits += 1
        return view

    def put(self, key: FlowKey, name: ViewName, view: CachedView) -> None:
        """Share the view, some time soon, unless a newer one is shared."""
        if len(view.answer) > VIEW_BYTES or self._breaker.is_open:
            return
        try:
            self._waiting.put_nowait((key, name, view))
        except asyncio.QueueFull:
            self.dropped += 1

    async def sharing(self) -> None:
        """Put what waits, for ever."""
        while True:
            key, name, view = await self._waiting.get()
            try:
                await self._share(key, name, view)
            except Exception as error:  # noqa: BLE001 - a supervised loop: one view that cannot be shared must not stop the others
                self.dropped += 1
                _log.warning("view_not_shared", error=repr(error))

    async def _share(self, key: FlowKey, name: ViewName, view: CachedView) -> None:
        head = _HEAD.pack(view.revision, view.time)
        sealed = await self._seal(key.tenant, self._place(key, name, head), view.answer)
        if sealed is None or not self._breaker.allows():
            self.dropped += 1
            return
        try:
            await self._put(keys=[self._name(key, name)], args=[head + sealed, TTL_SECONDS])
        except _BROKEN:
            self._failed()
        else:
            self._breaker.succeeded()
            self.shared += 1

    async def _opened(self, key: FlowKey, name: ViewName, found: bytes) -> CachedView | None:
        if len(found) <= _HEAD.size:
            return None
        head = found[: _HEAD.size]
        revision, time = _HEAD.unpack(head)
        answer = await self._open(key.tenant, self._place(key, name, head), found[_HEAD.size :])
        return None if answer is None else CachedView(revision, answer, time)

    def _failed(self) -> None:
        self.failures += 1
        self._breaker.failed()

    def _name(self, key: FlowKey, name: ViewName) -> str:
        return f"{self._topic}:view:{key.hex()}:{name[0]}:{name[1]}"

    def _place(self, key: FlowKey, name: ViewName, head: bytes) -> bytes:
        """What the seal is bound to: the flow with its tenant, the view, its revision and time."""
        return b"view" + key + bytes(name) + head
