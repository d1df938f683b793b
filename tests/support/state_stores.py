"""State stores of both kinds, several on the same content."""

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Final

from service.monitoring.metrics import Metrics
from service.state.damage import DamagedEntries
from service.state.directory import DirectoryStateStore
from service.state.protocol import StateStore
from service.state.redis_store import RedisStateStore
from tests.support.redis_server import running_redis

KINDS: Final = ("directory", "redis")


@asynccontextmanager
async def state_stores(kind: str, folder: Path) -> AsyncIterator[Callable[[], StateStore]]:
    """Yield a factory of stores of one kind on the same content, as replicas have; close all at the end."""
    async with AsyncExitStack() as stack:
        redis = stack.enter_context(running_redis(folder)) if kind == "redis" else None

        def make() -> StateStore:
            store: StateStore = RedisStateStore(redis.url) if redis else DirectoryStateStore(folder / "state")
            stack.push_async_callback(store.close)
            return store

        yield make


def unreported() -> DamagedEntries:
    """Return what skips damaged entries, for tests that look at no report."""
    return DamagedEntries(Metrics())


async def damage(state: StateStore, key: str) -> None:
    """Flip a bit of a stored value."""
    if isinstance(state, DirectoryStateStore):
        path = state._values / f"{key},v"
        path.write_bytes(_flipped(path.read_bytes()))
    else:
        assert isinstance(state, RedisStateStore)
        name = f"{{anyclass-state}}:v1:value:{key}"
        value = await state._client.hget(name, "value")
        assert isinstance(value, bytes)
        await state._client.hset(name, "value", _flipped(value))


def _flipped(sealed: bytes) -> bytes:
    return sealed[:-1] + bytes([sealed[-1] ^ 1])
