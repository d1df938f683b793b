import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pytest
from pydantic import SecretStr, ValidationError

from service.monitoring.metrics import Metrics
from service.redis_client import Breaker
from service.settings import Settings
from service.vector_cache.caches import MemoryVectorCache, VectorCache
from service.vector_cache.opening import open_caches
from service.vector_cache.redis_cache import RedisVectorCache
from tests.support.redis_server import RedisServer, running_redis
from tests.support.vectors import DIM, count, lists, vector

SLACK_S = 0.5
"""What a busy machine may add to a time limit; of several tries the median counts."""


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    """A running server."""
    with running_redis(tmp_path) as server:
        yield server


@asynccontextmanager
async def redis_cache(
    server: RedisServer, metrics: Metrics | None = None, **options: Any
) -> AsyncIterator[RedisVectorCache]:
    """Open a cache on the server, by default with timeouts that suit a busy machine."""
    options = {"timeout_s": 2.0, "retry_s": 0.1, **options}
    cache = RedisVectorCache(server.url, metrics or Metrics(), **options)
    try:
        yield cache
    finally:
        await cache.close()


async def until(condition: Callable[[], Any], *, within_s: float = 60.0) -> None:
    """Wait for an async condition."""
    started = time.monotonic()
    while not await condition():
        assert time.monotonic() - started < within_s, "it did not come true"
        await asyncio.sleep(0.02)


def wind(cache: RedisVectorCache, seconds: float) -> None:
    """Put the clock of the cache's breakers forward."""
    for breaker in (cache._link, cache._writes):
        before = breaker._clock
        breaker._clock = lambda before=before: before() + seconds  # type: ignore[misc]


async def test_redis_gives_back_what_was_stored_in_order_over_many_chunks(redis: RedisServer) -> None:
    """2,500 vectors come back to the bit, in any order of the request, with gaps for missing ones."""
    metrics = Metrics()
    items = {f"k{index}": vector(index) for index in range(2_500)}
    async with redis_cache(redis, metrics) as cache:
        await cache.set_many(items)
        keys = [f"k{index}" for index in range(2_600)][::-1]
        found = await cache.get_many(keys, dim=DIM)
    assert lists(found) == [None] * 100 + lists([vector(index) for index in range(2_500)][::-1])
    assert count(metrics, "anyclass_text_cache_lookups_total", layer="redis", result="hit") == 2_500
    assert count(metrics, "anyclass_text_cache_lookups_total", layer="redis", result="miss") == 100


async def test_values_are_a_mark_and_little_endian_float32_with_a_time_to_live(redis: RedisServer) -> None:
    """The mark is the end of the key. Clients in any language can read the values, and all of them expire."""
    key = "anyclass:v1:0123456789abcdef0123456789abcdef"
    stored = np.array([0.8, -0.6, 0, 0], np.float32)
    async with redis_cache(redis, ttl_s=100) as cache:
        await cache.set_many({key: stored, "k": stored})
        assert [stored.tolist()] * 2 == lists(await cache.get_many([key, "k"], dim=DIM))
    content = np.array([0.8, -0.6, 0, 0], "<f4").tobytes() + b"\r\n"
    assert redis.command("GET", key) == b"$32\r\n0123456789abcdef" + content
    assert redis.command("GET", "k") == b"$32\r\n               k" + content
    assert 0 < int(redis.command("TTL", "k")[1:]) <= 100


@pytest.mark.parametrize("value", ["short", "x" * 31, "x" * 33, ""])
async def test_a_value_of_the_wrong_length_is_a_miss(redis: RedisServer, value: str) -> None:
    """The value is not used, and counted as invalid."""
    metrics = Metrics()
    redis.command("SET", "k", value)
    async with redis_cache(redis, metrics) as cache:
        assert await cache.get_many(["k"], dim=DIM) == [None]
    assert count(metrics, "anyclass_text_cache_lookups_total", layer="redis", result="invalid") == 1


@pytest.mark.parametrize(
    "bad", [[1, np.nan, 1, 1], [1, np.inf, 1, 1], [1, -np.inf, 1, 1], [0] * 4, [1e38] * 4, [1] * 4, [0.502] * 4]
)
async def test_a_value_without_unit_length_is_a_miss(redis: RedisServer, bad: list[float]) -> None:
    """Valid neighbours are still used; a value of another type is a miss too."""
    metrics = Metrics()
    async with redis_cache(redis, metrics) as cache:
        await cache.set_many({"good": vector(1), "bad": np.array(bad, np.float32)})
        redis.command("LPUSH", "list", "x")
        found = await cache.get_many(["good", "bad", "list"], dim=DIM)
    assert count(metrics, "anyclass_text_cache_lookups_total", layer="redis", result="invalid") == 1
    assert lists(found) == lists([vector(1), None, None])


async def test_the_vector_of_another_key_is_a_miss(redis: RedisServer) -> None:
    """It has unit length, so only the mark shows that it is another label's. Storing the right one mends it."""
    metrics = Metrics()
    async with redis_cache(redis, metrics) as cache:
        await cache.set_many({"cat": vector(1), "dog": vector(2)})
        assert redis.command("COPY", "dog", "cat", "REPLACE") == b":1\r\n"
        assert lists(await cache.get_many(["cat", "dog"], dim=DIM)) == lists([None, vector(2)])
        assert count(metrics, "anyclass_text_cache_lookups_total", layer="redis", result="invalid") == 1
        assert await stored(cache, {"cat": vector(1)})


async def test_redis_down_is_a_miss_and_used_again_when_it_returns(redis: RedisServer) -> None:
    """While Redis is down, nothing raises and lookups are quick; after its restart, hits return within five seconds."""
    metrics = Metrics()
    async with redis_cache(redis, metrics, timeout_s=0.02, retry_s=1.0) as cache:
        await cache.set_many({"k": vector()})
        redis.kill()
        took_s = []
        for _ in range(10):
            started = time.monotonic()
            assert await cache.get_many(["k"], dim=DIM) == [None]
            await cache.set_many({"k": vector()})
            took_s.append(time.monotonic() - started)
        assert median(took_s) < 0.02 + SLACK_S
        assert count(metrics, "anyclass_text_cache_up") == 0
        assert count(metrics, "anyclass_text_cache_failures_total", operation="read", reason="connection") >= 1
        assert count(metrics, "anyclass_text_cache_failures_total", operation="read", reason="skipped") >= 1
        await asyncio.to_thread(redis.start)

        async def used() -> bool:
            await cache.set_many({"k": vector()})
            return (await cache.get_many(["k"], dim=DIM))[0] is not None

        await until(used)
        assert count(metrics, "anyclass_text_cache_up") == 1


async def test_redis_that_hangs_costs_only_the_time_limit(redis: RedisServer) -> None:
    """While Redis is frozen, lookups lose 20 ms each and soon none; afterwards the right hits return."""
    metrics = Metrics()
    async with redis_cache(redis, metrics, timeout_s=0.02, retry_s=0.5) as cache:
        await until(lambda: stored(cache, {f"k{index}": vector(index) for index in range(20)}))
        redis.freeze()
        try:
            took_s = []
            for _ in range(10):
                started = time.monotonic()
                assert await cache.get_many(["k1"] * 3_000, dim=DIM) == [None] * 3_000
                took_s.append(time.monotonic() - started)
            assert median(took_s[:3]) < 0.02 + SLACK_S  # the first failures cost the limit each
            assert median(took_s) < 0.02 + SLACK_S
            assert count(metrics, "anyclass_text_cache_failures_total", operation="read", reason="timeout") >= 3
            assert count(metrics, "anyclass_text_cache_failures_total", operation="read", reason="skipped") >= 1
        finally:
            redis.thaw()

        async def used() -> bool:
            # An answer that came too late must never be taken for that of a later question.
            found = await cache.get_many([f"k{index}" for index in range(20)], dim=DIM)
            if found[0] is None:
                return False
            assert lists(found) == lists([vector(index) for index in range(20)])
            return True

        await until(used)


async def stored(cache: VectorCache, items: dict[str, Any]) -> bool:
    """Write items; return whether they can be read."""
    await cache.set_many(items)
    return None not in lists(await cache.get_many(list(items), dim=DIM))


async def test_cancelled_lookups_do_not_mix_up_answers(redis: RedisServer) -> None:
    """A connection whose lookup was cancelled is not used again."""
    async with redis_cache(redis, max_connections=2) as cache:
        await cache.set_many({f"k{index}": vector(index) for index in range(50)})
        for index in range(50):
            lookup = asyncio.create_task(cache.get_many([f"k{index}"], dim=DIM))
            for _ in range(index % 7):
                await asyncio.sleep(0)
            lookup.cancel()
        assert lists(await cache.get_many(["k7", "k8"], dim=DIM)) == lists([vector(7), vector(8)])


@pytest.mark.parametrize(
    "trouble",
    [("CONFIG", "SET", "maxmemory", "1"), ("REPLICAOF", "127.0.0.1", "1")],
    ids=["full", "read-only"],
)
async def test_a_redis_that_refuses_writes_is_still_read(redis: RedisServer, trouble: tuple[str, ...]) -> None:
    """With a full or read-only Redis, failed writes are counted, reads continue, and writes soon stop."""
    metrics = Metrics()
    async with redis_cache(redis, metrics, retry_s=600) as cache:
        await cache.set_many({"old": vector(1)})
        assert redis.command(*trouble).startswith(b"+OK")
        for _ in range(5):
            await cache.set_many({"new": vector(2)})
        assert lists(await cache.get_many(["old", "new"], dim=DIM)) == lists([vector(1), None])
    assert count(metrics, "anyclass_text_cache_failures_total", operation="write", reason="refused") == 3
    assert count(metrics, "anyclass_text_cache_failures_total", operation="write", reason="skipped") == 2
    assert count(metrics, "anyclass_text_cache_up") == 1


async def test_a_wrong_password_is_a_miss_and_not_shown(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The password appears in no log and no repr; the right one works, also outside the URL."""
    caplog.set_level(logging.DEBUG)
    with running_redis(tmp_path, password="s3cret/right") as server:
        url = f"redis://127.0.0.1:{server.port}/0"
        wrong = RedisVectorCache(url, Metrics(), password="s3cret-wrong", timeout_s=2)
        for _ in range(4):
            assert await wrong.get_many(["k"], dim=DIM) == [None]
        right = RedisVectorCache(url, Metrics(), password="s3cret/right", timeout_s=2)
        assert await stored(right, {"k": vector()})
        shown = caplog.text + repr(wrong) + repr(right) + str(vars(wrong))
        await wrong.close()
        await right.close()
    assert "Redis refuses the password" in caplog.text
    assert "s3cret" not in shown


@pytest.mark.parametrize(
    ("trouble", "what", "reason"),
    [
        ("frozen", "does not answer in time", "timeout"),
        ("gone", "cannot be reached", "connection"),
        ("password", "refuses the password", "refused"),
    ],
)
async def test_what_is_wrong_with_redis_is_said_at_the_start(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, trouble: str, what: str, reason: str
) -> None:
    """One log line and the metrics report it before any request; Redis is used again once it answers."""
    metrics = Metrics()
    password = "other" if trouble == "password" else None
    with running_redis(tmp_path, password=password) as server:
        url = f"redis://127.0.0.1:{server.port}/0"
        cache = RedisVectorCache(url, metrics, password="mine" if password else None, timeout_s=2.0, retry_s=60)
        if trouble == "frozen":
            server.freeze()
        elif trouble == "gone":
            server.kill()
        await cache.check()
        assert [f"Redis {what}; class vectors are computed without it until it answers"] == caplog.messages
        assert 0 == count(metrics, "anyclass_text_cache_up")
        assert [None] == await cache.get_many(["k"], dim=DIM)
        assert 1 == count(metrics, "anyclass_text_cache_failures_total", operation="read", reason="skipped")
        wind(cache, 60)
        assert [None] == await cache.get_many(["k"], dim=DIM)
        assert 1 == count(metrics, "anyclass_text_cache_failures_total", operation="read", reason=reason)
        if trouble == "frozen":
            server.thaw()
        elif trouble == "gone":
            server.start()
        else:
            server.command("CONFIG", "SET", "requirepass", "mine")
            server.password = "mine"

        async def used() -> bool:
            wind(cache, 60)
            return await stored(cache, {"k": vector()})

        await until(used)
        assert 1 == count(metrics, "anyclass_text_cache_up")
        await cache.close()


async def test_a_redis_that_is_well_says_nothing_at_the_start(
    redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    """A Redis whose user may not PING logs nothing either."""
    caplog.set_level(logging.INFO)
    redis.command("ACL", "SETUSER", "default", "-ping")
    for _ in range(2):
        metrics = Metrics()
        cache = RedisVectorCache(redis.url, metrics, timeout_s=2.0)
        await cache.check()
        assert 1 == count(metrics, "anyclass_text_cache_up")
        assert await stored(cache, {"k": vector()})
        await cache.close()
        redis.command("ACL", "SETUSER", "default", "+ping")
    assert [] == caplog.messages


async def test_redis_is_tried_again_within_five_seconds() -> None:
    """After a failure every `retry_s`, which a setting may make longer, but not longer than that."""
    breaker, moment = Breaker(Settings().redis_retry_s, lambda: moment), 100.0
    breaker.failed(at_once=True)
    assert not breaker.allows()
    moment += 5
    assert breaker.allows()
    with pytest.raises(ValidationError, match="redis_retry_s"):
        Settings(redis_retry_s=5)


async def test_settings_choose_the_cache(redis: RedisServer) -> None:
    """Without a URL the cache is in memory; with one, memory comes before Redis, which need not run at the start."""
    assert isinstance(open_caches(Settings(), Metrics()).texts, MemoryVectorCache)
    cache = open_caches(Settings(redis_url=SecretStr(redis.url), redis_timeout_ms=2_000), Metrics()).texts
    await cache.set_many({"k": vector(3)})
    assert redis.command("EXISTS", "k") == b":1\r\n"
    assert lists(await cache.get_many(["k"], dim=DIM)) == lists([vector(3)])
    await cache.close()
    nowhere = open_caches(Settings(redis_url=SecretStr("redis://127.0.0.1:1/0")), Metrics()).texts
    await nowhere.check()
    assert await nowhere.get_many(["k"], dim=DIM) == [None]
    await nowhere.close()
