"""Several processes on one store, with a real disk and a real redis-server."""

import asyncio
import hashlib
import multiprocessing
import os
import random
import signal
from collections.abc import Callable
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import pytest

from service.state.directory import DirectoryStateStore
from service.state.protocol import StateStore
from service.state.redis_store import RedisStateStore
from tests.support.redis_server import running_redis

SPAWN = multiprocessing.get_context("spawn")


PATIENCE_S = 60.0


RACERS = 3


TURNS = 20


def _count(make: Callable[[], StateStore], start: Event) -> None:
    """Add one, `TURNS` times, using compare-and-set."""

    async def main() -> None:
        store = make()
        start.wait(PATIENCE_S)
        for _ in range(TURNS):
            while True:
                found = await store.get("counter")
                count = int(found.value) if found else 0
                if await store.put("counter", b"%d" % (count + 1), expected=found.version if found else None):
                    break
        await store.close()

    asyncio.run(main())


def _directory_counter(path: Path, start: Event) -> None:
    _count(lambda: DirectoryStateStore(path), start)


def _redis_counter(url: str, start: Event) -> None:
    _count(lambda: RedisStateStore(url), start)


@pytest.mark.parametrize("kind", ["directory", "redis"])
async def test_racing_processes_lose_nothing(tmp_path: Path, kind: str) -> None:
    """Several processes count with compare-and-set, and no count is lost."""
    with running_redis(tmp_path) as redis:
        path = tmp_path / "state"
        start = SPAWN.Event()
        target: Any = _directory_counter if kind == "directory" else _redis_counter
        where: Any = path if kind == "directory" else redis.url
        racers = [SPAWN.Process(target=target, args=(where, start)) for _ in range(RACERS)]
        for racer in racers:
            racer.start()
        start.set()
        for racer in racers:
            await asyncio.to_thread(racer.join, PATIENCE_S)
        assert [0] * RACERS == [racer.exitcode for racer in racers]
        store: StateStore = DirectoryStateStore(path) if kind == "directory" else RedisStateStore(redis.url)
        found = await store.get("counter")
        await store.close()
    assert found is not None
    assert RACERS * TURNS == int(found.value)


def _write_for_ever(path: Path, started: Event) -> None:
    async def main() -> None:
        store = DirectoryStateStore(path)
        version: str | None = None
        for number in range(1_000_000):
            content = hashlib.sha256(b"%d" % number).digest() * 20_000
            version = await store.put("value", content, expected=version)
            await store.put_blob("blob", content)
            if number == 1:
                started.set()

    asyncio.run(main())


async def test_a_killed_writer_leaves_a_whole_value(tmp_path: Path) -> None:
    """After a kill -9 at any moment, the value is old or new, and the next writer is not locked out."""
    path = tmp_path / "state"
    for _ in range(4):
        started = SPAWN.Event()
        writer = SPAWN.Process(target=_write_for_ever, args=(path, started))
        writer.start()
        assert await asyncio.to_thread(started.wait, PATIENCE_S)
        await asyncio.sleep(random.uniform(0, 0.05))
        assert writer.pid is not None
        os.kill(writer.pid, signal.SIGKILL)
        await asyncio.to_thread(writer.join, PATIENCE_S)
        store = DirectoryStateStore(path)
        found = await store.get("value")
        blob = await store.get_blob("blob")
        assert found is not None
        assert blob is not None
        for content in (found.value, blob):
            assert content[:32] * 20_000 == content
        assert await store.delete("value", expected=found.version)
        await store.close()
