"""Connections to a Redis, as the text cache, the rate limits and the state use them."""

from redis.asyncio import BlockingConnectionPool
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff


def connection_pool(url: str, *, password: str | None, most: int) -> BlockingConnectionPool:
    """Return a pool that connects with its first use, and tries nothing twice: who uses it has its own time limit.

    Args:
        url: `redis://`, `rediss://` or `unix://`.
        password: used where the URL has none.
        most: connections at the same time; who finds none free waits.
    """
    return BlockingConnectionPool.from_url(
        url,
        max_connections=most,
        timeout=None,  # the time limit around each command counts the wait for a connection too
        protocol=2,
        decode_responses=False,
        driver_info=None,  # else every new connection reads the package's metadata from disk, on the event loop
        retry=Retry(NoBackoff(), 0),
        **({} if password is None else {"password": password}),
    )
