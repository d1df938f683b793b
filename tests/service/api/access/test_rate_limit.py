import asyncio
import math
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from pydantic import SecretStr

from service.api.access.rate_limit import Limiter, LocalLimiter, RateLimit, RedisLimiter, open_limiter
from service.monitoring.metrics import Metrics
from service.redis_client import redis_timed_out
from service.settings import Settings
from service.vector_cache.redis_cache import RedisVectorCache
from tests.support.classifying import until
from tests.support.http_server import http_server
from tests.support.redis_server import RedisServer, running_redis
from tests.support.tiny_bundle import write_tiny_bundle


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        """Seconds."""
        return self.now


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    """A server for one test."""
    with running_redis(tmp_path) as server:
        yield server


@asynccontextmanager
async def shared(redis: RedisServer, limit: RateLimit, *, timeout_s: float = 2.0) -> AsyncIterator[RedisLimiter]:
    """A limiter over Redis, patient unless said otherwise: the machine may be busy."""
    limiter = RedisLimiter(redis.url, limit, Metrics(), timeout_s=timeout_s, retry_s=0.2)
    try:
        yield limiter
    finally:
        await limiter.close()


async def passed(limiter: Limiter, client: str, attempts: int) -> int:
    """How many of so many requests at once may pass."""
    verdicts = [await limiter.ask(client) for _ in range(attempts)]
    return sum(verdict.allowed for verdict in verdicts)


@pytest.mark.parametrize(("rate", "burst"), [(1, 1), (10, 3), (0.1, 5), (333, 7), (1e5, 1000)])
async def test_a_burst_passes_and_then_the_rate(rate: float, burst: int) -> None:
    """Never more than the burst and what the time has earned, and never less."""
    clock = Clock()
    limiter = LocalLimiter(RateLimit(rate, burst), clock)
    assert burst == await passed(limiter, "a", burst + 5)
    for _ in range(20):
        clock.now += 1 / rate
        assert 1 == await passed(limiter, "a", 3)
    clock.now += 10 * burst / rate
    assert burst == await passed(limiter, "a", burst + 5)


async def test_what_a_client_is_told() -> None:
    """What remains, when the whole burst is back, and when to try again: to the point."""
    clock = Clock()
    limiter = LocalLimiter(RateLimit(2, 4), clock)
    assert [3, 2, 1, 0] == [(await limiter.ask("a")).remaining for _ in range(4)]
    refused = await limiter.ask("a")
    assert (False, 0, 0.5, 2.0) == (refused.allowed, refused.remaining, refused.retry_after_s, refused.full_s)
    clock.now += refused.retry_after_s
    assert (await limiter.ask("a")).allowed


async def test_clients_do_not_share_a_limit() -> None:
    """One that asks too often takes nothing from another."""
    limiter = LocalLimiter(RateLimit(1, 2), Clock())
    assert (2, 2) == (await passed(limiter, "a", 9), await passed(limiter, "b", 9))


async def test_memory_does_not_grow_with_the_number_of_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those unheard of for longest are forgotten."""
    monkeypatch.setattr("service.api.access.rate_limit._MAX_CLIENTS", 100)
    limiter = LocalLimiter(RateLimit(1, 1), Clock())
    for number in range(1_000):
        await limiter.ask(str(number))
    assert 100 == len(limiter._full_at)
    assert (0, 1) == (await passed(limiter, "999", 1), await passed(limiter, "0", 1))


async def test_processes_share_a_limit_over_redis(redis: RedisServer) -> None:
    """However many ask at the same time, in however many processes, the burst passes once."""
    limit = RateLimit(0.01, 10)
    async with shared(redis, limit) as one, shared(redis, limit) as two:
        verdicts = await asyncio.gather(*[each.ask("a") for _ in range(10) for each in (one, two)])
        assert 10 == sum(verdict.allowed for verdict in verdicts)
        refused = await one.ask("a")
        assert 90 < refused.retry_after_s <= 100
        assert 990 < refused.full_s <= 1000
        assert (await two.ask("b")).allowed


async def test_redis_counts_as_this_process_does(redis: RedisServer) -> None:
    """The script and the code in Python tell the same."""
    limit = RateLimit(0.001, 3)
    local = LocalLimiter(limit, Clock())
    async with shared(redis, limit) as over_redis:
        for _ in range(5):
            expected, actual = await local.ask("a"), await over_redis.ask("a")
            assert (expected.allowed, expected.remaining) == (actual.allowed, actual.remaining)
            assert math.isclose(expected.full_s, actual.full_s, abs_tol=20)


async def test_nothing_stays_in_redis_and_no_name_is_there(redis: RedisServer) -> None:
    """A key lives until its client's burst is full again; addresses are hashed."""
    async with shared(redis, RateLimit(20, 2)) as limiter:
        await limiter.ask("address:192.0.2.7")
        assert b"192.0.2.7" not in redis.command("KEYS", "*")
        await until(lambda: b":0\r\n" == redis.command("DBSIZE"))


async def test_a_lost_script_is_loaded_again(redis: RedisServer) -> None:
    """A restarted Redis has lost the script; the limiter loads it again."""
    async with shared(redis, RateLimit(0.01, 2)) as limiter:
        await limiter.ask("a")
        redis.command("SCRIPT", "FLUSH")
        assert [True, False] == [(await limiter.ask("a")).allowed for _ in range(2)]
        assert 0 == limiter._metrics.rate_limit_fallbacks._value.get()


async def test_without_redis_each_process_limits_by_itself(
    redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    """No request fails, the limit still holds, and a client that used up its burst gets no second one."""
    async with shared(redis, RateLimit(0.01, 3)) as limiter:
        assert 2 == await passed(limiter, "a", 2)
        redis.kill()
        assert 1 == await passed(limiter, "a", 5)
        assert 3 == await passed(limiter, "b", 5)
        assert ["Redis cannot be reached; each process limits the rate on its own until it answers"] == caplog.messages
        redis.start()
        await until(lambda: _asked_redis(limiter))


async def _asked_redis(limiter: RedisLimiter) -> bool:
    """Whether a request was counted by Redis."""
    before = limiter._metrics.rate_limit_fallbacks._value.get()
    await limiter.ask("c")
    return bool(before == limiter._metrics.rate_limit_fallbacks._value.get())


async def test_a_frozen_redis_costs_a_request_one_time_limit(redis: RedisServer) -> None:
    """The text cache does not wait again for the Redis that the rate limit has waited for."""
    metrics = Metrics()
    cache = RedisVectorCache(redis.url, metrics, timeout_s=30)
    async with shared(redis, RateLimit(1, 5), timeout_s=0.02) as limiter:
        redis.freeze()
        try:
            assert (await limiter.ask("a")).allowed
            assert redis_timed_out.get()
            assert [None] == await cache.get_many(["k"], dim=4)
        finally:
            redis.thaw()
            await cache.close()
    skipped = {"operation": "read", "reason": "skipped"}
    assert 1 == metrics.registry.get_sample_value("anyclass_text_cache_failures_total", skipped)


def test_the_limiter_that_the_settings_ask_for() -> None:
    """No limiter without a rate; the default burst is one second's requests; Redis is used if it is set."""
    metrics = Metrics()
    assert open_limiter(Settings(), metrics) is None
    local = open_limiter(Settings(rate_limit_per_s=2.5), metrics)
    assert isinstance(local, LocalLimiter)
    assert RateLimit(2.5, 3) == local.limit
    over_redis = open_limiter(
        Settings(rate_limit_per_s=0.5, rate_limit_burst=9, redis_url=SecretStr("redis://127.0.0.1:1")), metrics
    )
    assert isinstance(over_redis, RedisLimiter)
    assert RateLimit(0.5, 9) == over_redis.limit


def test_over_http(tmp_path: Path) -> None:
    """Each key has its own limit: 429 with the headers of the draft, in each form of errors; probes have no limit."""
    bundle = write_tiny_bundle(tmp_path / "bundle")
    env = {
        "ANYCLASS_API_KEYS": "a:key-of-client-a-----,b:key-of-client-b-----",
        "ANYCLASS_RATE_LIMIT_PER_S": "0.01",
        "ANYCLASS_RATE_LIMIT_BURST": "2",
    }
    with (
        http_server(bundle, tmp_path, env=env) as server,
        httpx.Client(base_url=server.url, timeout=30, headers={"x-api-key": "key-of-client-a-----"}) as client,
    ):
        answer = client.get("/v1/models")
        assert '"default";q=2;w=200' == answer.headers["ratelimit-policy"]
        assert answer.headers["ratelimit"] in ('"default";r=1;t=100', '"default";r=1;t=99')
        # A request that is refused for another reason counts too, and carries the headers.
        assert '"default";r=0' == client.get("/nothing").headers["ratelimit"].rpartition(";")[0]
        refused = client.get("/v1/models")
        assert (429, "urn:anyclass:problem:rate-limited") == (refused.status_code, refused.json()["type"])
        assert 90 <= int(refused.headers["retry-after"]) <= 100
        assert ["error"] == list(client.post("/v1/embeddings", json={}).json())
        assert 200 == client.get("/livez").status_code
        assert "ratelimit" not in client.get("/livez").headers
        assert 200 == client.get("/v1/models", headers={"x-api-key": "key-of-client-b-----"}).status_code
        assert 'anyclass_access_refused_total{reason="rate"} 2.0' in client.get("/metrics").text


def test_addresses_have_the_limit_where_no_key_is_needed(tmp_path: Path) -> None:
    """A service that is open can still be limited."""
    bundle = write_tiny_bundle(tmp_path / "bundle")
    env = {"ANYCLASS_RATE_LIMIT_PER_S": "0.01", "ANYCLASS_RATE_LIMIT_BURST": "1"}
    with http_server(bundle, tmp_path, env=env) as server:
        assert [200, 429] == [httpx.get(f"{server.url}/v1/models", timeout=30).status_code for _ in range(2)]
