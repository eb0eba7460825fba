"""Hints over Redis publish/subscribe."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from redis.exceptions import RedisError

from server.breaker import Breaker
from server.redis_link import RedisLink
from server.wakeups.relay import ChannelBroken

# A subscriber that hears nothing asks whether anybody is there.
PROBE_SECONDS = 2.0


class RedisChannel:
    """A channel of one Redis; ``topic`` keeps installations that share it apart."""

    name = "redis"
    room = 64 * 1024

    def __init__(self, link: RedisLink, topic: str, breaker: Breaker) -> None:
        self._client, self._listening, self._topic, self._breaker = link.calls, link.listening, topic, breaker

    async def publish(self, message: bytes) -> None:
        """Send the message. Raises ChannelBroken."""
        if not self._breaker.allows():
            raise ChannelBroken("Redis is left alone for a while")
        try:
            await self._client.publish(self._topic, message)
        except (RedisError, OSError, TimeoutError) as error:
            self._breaker.failed()
            raise ChannelBroken(type(error).__name__) from error
        self._breaker.succeeded()

    async def messages(self) -> AsyncGenerator[bytes, None]:
        """Messages as they come. Raises ChannelBroken."""
        subscription = self._listening.pubsub(ignore_subscribe_messages=True)
        try:
            await subscription.subscribe(self._topic)
            while True:
                found = await subscription.get_message(timeout=PROBE_SECONDS)
                if found is None:
                    await subscription.ping()
                elif found["type"] == "message" and isinstance(found["data"], bytes):
                    yield found["data"]
        except (RedisError, OSError, TimeoutError) as error:
            raise ChannelBroken(type(error).__name__) from error
        finally:
            await subscription.aclose()  # type: ignore[no-untyped-call]
