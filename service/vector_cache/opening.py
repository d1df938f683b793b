"""Opens the caches that the settings name."""

from service.monitoring.metrics import Metrics
from service.settings import Settings
from service.vector_cache.caches import LayeredVectorCache, MemoryVectorCache, VectorCache
from service.vector_cache.redis_cache import RedisVectorCache


def open_text_cache(settings: Settings, metrics: Metrics) -> VectorCache:
    """Create the cache of the settings: memory, with Redis behind it if `redis_url` is set.

    Does not connect. An unreachable Redis does not prevent the start: `VectorCache.check` only reports it.
    """
    memory = MemoryVectorCache(settings.cache_max_entries, metrics)
    if settings.redis_url is None:
        return memory
    password = settings.redis_password
    redis = RedisVectorCache(
        settings.redis_url.get_secret_value(),
        metrics,
        password=None if password is None else password.get_secret_value(),
        timeout_s=settings.redis_timeout_ms / 1_000,
        retry_s=settings.redis_retry_s,
        ttl_s=settings.cache_ttl_s,
        max_connections=settings.redis_max_connections,
    )
    return LayeredVectorCache(memory, redis)
