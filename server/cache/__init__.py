"""What is kept besides the database, fenced by revision: an older value never takes the place of a newer one."""

from server.cache.heads import HEAD_BYTES, Heads
from server.cache.redis_views import RedisViews
from server.cache.texts import DELTA_LEAST, Texts
from server.cache.views import CachedView, SharedViews, ViewName, Views

__all__ = ["DELTA_LEAST", "HEAD_BYTES", "CachedView", "Heads", "RedisViews", "SharedViews", "Texts", "ViewName", "Views"]
