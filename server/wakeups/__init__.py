"""Hints that a flow moved, within one process and between processes.

They may be lost, late or doubled; they hold a key and a revision and no data, so that nothing can be wrong about them.
"""

from server.wakeups.local import LocalWakeups
from server.wakeups.redis_channel import RedisChannel
from server.wakeups.relay import Channel, ChannelBroken, Relay, relayed

__all__ = ["Channel", "ChannelBroken", "LocalWakeups", "RedisChannel", "Relay", "relayed"]
