"""State in a Redis that persists and never evicts. Compare-and-set is a script, so the server runs it atomically.

All keys share one hash tag, so a value and its index are always on the same server of a cluster.
"""

import asyncio
import logging
from collections.abc import Awaitable
from typing import Final, TypeVar, cast

from redis.exceptions import RedisError, ResponseError

from service.concurrency import run_off_loop
from service.errors import ConfigurationError, StateUnavailable
from service.redis_client import redis_client
from service.state.framing import SEAL_BYTES, corrupt, new_version, seal, unseal
from service.state.protocol import VersionedValue, check_key, check_prefix

T = TypeVar("T")

_LOG: Final = logging.getLogger(__name__)

_NAMESPACE: Final = "{anyclass-state}:v1:"
_VALUES: Final = _NAMESPACE + "value:"
_BLOBS: Final = _NAMESPACE + "blob:"
_VALUE_INDEX: Final = _NAMESPACE + "values"
_BLOB_INDEX: Final = _NAMESPACE + "blobs"

_PROBE: Final = _NAMESPACE + "probe"
_PROBE_S: Final = 60

_CONNECTIONS: Final = 8
_CHUNK: Final = 500
_SLOWEST_BYTES_S: Final = 5_000_000
"""A blob's timeout is `timeout_s` plus its transfer time at this many bytes per second."""
_LARGEST_BLOB_S: Final = 30.0
_MANY_BYTES: Final = 65_536
"""Number of bytes from which a digest is computed in a thread."""

_PUT: Final = """
local version = redis.call('HGET', KEYS[1], 'version')
if (version or '') ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], 'version', ARGV[2], 'value', ARGV[3])
redis.call('ZADD', KEYS[2], 0, ARGV[4])
return 1
"""
_DELETE: Final = """
if redis.call('HGET', KEYS[1], 'version') ~= ARGV[1] then return 0 end
redis.call('DEL', KEYS[1])
redis.call('ZREM', KEYS[2], ARGV[2])
return 1
"""


class RedisStateStore:
    """A `StateStore` in Redis."""

    def __init__(self, url: str, *, password: str | None = None, timeout_s: float = 2.0) -> None:
        """Create a store that connects on first use.

        Args:
            url: `redis://`, `rediss://` or `unix://`.
            password: used if the URL has none.
            timeout_s: for one command, connecting included; blobs get more time according to their size.
        """
        self._timeout_s = timeout_s
        self._trusted = False
        self._client = redis_client(url, password=password, max_connections=_CONNECTIONS)
        self._put_script = self._client.register_script(_PUT)
        self._delete_script = self._client.register_script(_DELETE)

    async def check(self) -> bool:
        """See `StateStore`. An unreachable Redis does not prevent the start; it is checked before the first write."""
        try:
            await self._look_at_policy()
        except StateUnavailable:
            _LOG.warning("the state store does not answer; label sets and batch jobs cannot be used until it does")
        return True

    async def get(self, key: str) -> VersionedValue | None:
        """See `StateStore`."""
        check_key(key)
        reading = cast("Awaitable[list[bytes | None]]", self._client.hmget(_VALUES + key, ["version", "value"]))
        version, value = await self._run(reading)
        if version is None and value is None:
            return None
        if version is None or value is None:
            raise corrupt(key)
        return VersionedValue(unseal(key, value), version.decode("ascii", "replace"))

    async def put(self, key: str, value: bytes, *, expected: str | None) -> str | None:
        """See `StateStore`."""
        check_key(key)
        await self._trust()
        version = new_version()
        arguments: list[bytes | str] = [expected or "", version, seal(value), key]
        done = await self._run(self._put_script(keys=[_VALUES + key, _VALUE_INDEX], args=arguments))
        return version if done else None

    async def delete(self, key: str, *, expected: str) -> bool:
        """See `StateStore`."""
        check_key(key)
        done = await self._run(self._delete_script(keys=[_VALUES + key, _VALUE_INDEX], args=[expected, key]))
        return bool(done)

    async def keys(self, prefix: str, *, after: str = "", limit: int) -> list[str]:
        """See `StateStore`."""
        check_prefix(prefix)
        return await self._range(_VALUE_INDEX, prefix, after=after, limit=limit)

    async def put_blob(self, key: str, blob: bytes) -> None:
        """See `StateStore`."""
        check_key(key)
        await self._trust()
        sealed = await run_off_loop(len(blob), lambda: seal(blob), many=_MANY_BYTES)
        pipeline = self._client.pipeline(transaction=True)
        pipeline.set(_BLOBS + key, sealed)
        pipeline.zadd(_BLOB_INDEX, {key: 0})
        await self._run(pipeline.execute(), extra_s=len(sealed) / _SLOWEST_BYTES_S)

    async def get_blob(self, key: str) -> bytes | None:
        """See `StateStore`."""
        check_key(key)
        sealed = await self._run(
            cast("Awaitable[bytes | None]", self._client.get(_BLOBS + key)), extra_s=_LARGEST_BLOB_S
        )
        if sealed is None:
            return None
        return await run_off_loop(len(sealed), lambda: unseal(key, sealed), many=_MANY_BYTES)

    async def blob_keys(self, prefix: str) -> list[str]:
        """See `StateStore`."""
        check_prefix(prefix)
        found: list[str] = []
        while page := await self._range(_BLOB_INDEX, prefix, after=found[-1] if found else "", limit=_CHUNK):
            found += page
        return found

    async def blob_bytes(self, prefix: str) -> int:
        """See `StateStore`."""
        keys, total = await self.blob_keys(prefix), 0
        for start in range(0, len(keys), _CHUNK):
            pipeline = self._client.pipeline(transaction=False)
            for key in keys[start : start + _CHUNK]:
                pipeline.strlen(_BLOBS + key)
            sizes: list[int] = await self._run(pipeline.execute())
            total += sum(max(0, size - SEAL_BYTES) for size in sizes)
        return total

    async def delete_blobs(self, prefix: str) -> None:
        """See `StateStore`."""
        check_prefix(prefix)
        while page := await self._range(_BLOB_INDEX, prefix, after="", limit=_CHUNK):
            pipeline = self._client.pipeline(transaction=True)
            pipeline.unlink(*(_BLOBS + key for key in page))
            pipeline.zrem(_BLOB_INDEX, *page)
            await self._run(pipeline.execute())

    async def prove_writable(self) -> None:
        """See `StateStore`. The key expires by itself."""
        await self._trust()
        await self._run(self._client.set(_PROBE, b"", ex=_PROBE_S))

    async def close(self) -> None:
        """Close all connections."""
        await self._client.aclose()

    async def _range(self, index: str, prefix: str, *, after: str, limit: int) -> list[str]:
        low = f"({after}" if after > prefix else f"[{prefix}"
        # Keys are ASCII, so this bound follows all keys with the prefix.
        high = b"(" + prefix.encode() + b"\xff"
        reading = cast("Awaitable[list[bytes]]", self._client.zrangebylex(index, low, high, start=0, num=limit))
        found = await self._run(reading)
        return [key.decode() for key in found]

    async def _trust(self) -> None:
        """Repeat the policy check before the first write if the store was unreachable at start-up."""
        if not self._trusted:
            try:
                await self._look_at_policy()
            except ConfigurationError as exc:
                raise StateUnavailable(
                    "The state store cannot be used safely; its operator finds the reason in the service's log."
                ) from exc

    async def _look_at_policy(self) -> None:
        try:
            memory = await self._run(self._client.info("memory"), refused=True)
            persistence = await self._run(self._client.info("persistence"), refused=True)
        except ResponseError:
            memory = persistence = {}
        policy = memory.get("maxmemory_policy")
        if policy is None:
            _LOG.warning("the state store does not say whether it evicts keys; it needs maxmemory-policy noeviction")
        elif policy != "noeviction":
            _LOG.error("the Redis of ANYCLASS_STATE_URL has maxmemory-policy %s", policy)
            raise ConfigurationError(
                f"The Redis of ANYCLASS_STATE_URL may evict keys (maxmemory-policy {policy}); state needs noeviction."
            )
        if persistence and not persistence.get("aof_enabled") and not await self._saves():
            _LOG.warning("the state store has no persistence (appendonly, save): a restart loses the label sets")
        self._trusted = True

    async def _saves(self) -> bool:
        try:
            found = await self._run(cast("Awaitable[dict[str, str]]", self._client.config_get("save")), refused=True)
        except ResponseError:
            return True  # not disclosed; managed services persist by other means
        return bool(found.get("save", "unknown"))

    async def _run(self, command: Awaitable[T], *, extra_s: float = 0.0, refused: bool = False) -> T:
        """Await a command and translate its errors; `refused` passes the server's own errors to the caller."""
        try:
            async with asyncio.timeout(self._timeout_s + extra_s):
                return await command
        except ResponseError as exc:
            if refused:
                raise
            error: Exception = exc
        except (RedisError, OSError, TimeoutError) as exc:
            error = exc
        # Log only the error's type: its message may contain an address with credentials.
        _LOG.warning("the state store failed: %s", type(error).__name__)
        raise StateUnavailable("The state store cannot be used at the moment; try again later.") from error
