"""Opens the caches that the settings name."""

from typing import NamedTuple

from service.monitoring.metrics import Metrics
from service.settings import Settings
from service.vector_cache.caches import LayeredVectorCache, MemoryVectorCache, VectorCache
from service.vector_cache.redis_cache import ImagesInRedis, RedisVectorCache


class Caches(NamedTuple):
    """The caches of a process; those of texts and images may share one Redis, which `texts` checks and closes."""

    texts: VectorCache
    images: VectorCache | None = None


def open_caches(settings: Settings, metrics: Metrics) -> Caches:
    """Create the caches of the settings: memory, with Redis behind it if `redis_url` is set; no images by default.

    Does not connect. An unreachable Redis does not prevent the start: `VectorCache.check` only reports it.
    """
    texts = MemoryVectorCache(settings.cache_max_entries, metrics)
    redis = _redis(settings, metrics)
    images: VectorCache | None = None
    if settings.image_cache != "off":
        images = MemoryVectorCache(settings.image_cache_max_entries, metrics, "image")
    if images is not None and settings.image_cache == "redis" and redis is not None:
        images = LayeredVectorCache(images, ImagesInRedis(redis))
    return Caches(texts if redis is None else LayeredVectorCache(texts, redis), images)


def _redis(settings: Settings, metrics: Metrics) -> RedisVectorCache | None:
    if settings.redis_url is None:
        return None
    password = settings.redis_password
    return RedisVectorCache(
        settings.redis_url.get_secret_value(),
        metrics,
        password=None if password is None else password.get_secret_value(),
        timeout_s=settings.redis_timeout_ms / 1_000,
        retry_s=settings.redis_retry_s,
        ttl_s=settings.cache_ttl_s,
        max_connections=settings.redis_max_connections,
    )
