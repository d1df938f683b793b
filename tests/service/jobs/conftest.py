import io
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from service.monitoring import logs
from service.state.directory import DirectoryStateStore
from service.state.protocol import StateStore
from tests.support.job_parts import Replica
from tests.support.state_stores import KINDS, state_stores


@pytest.fixture(params=KINDS)
async def make_state(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Callable[[], StateStore]]:
    """Return a factory of stores of one kind on the same content, as replicas have them."""
    async with state_stores(request.param, tmp_path) as make:
        yield make


@pytest.fixture
def state(make_state: Callable[[], StateStore]) -> StateStore:
    """One store."""
    return make_state()


@pytest.fixture
def replica(state: StateStore) -> Replica:
    """A replica whose runner is not started."""
    return Replica(state)


@pytest.fixture
def log(restored_logging: None) -> io.StringIO:
    """Configure logging as `anyclass serve` does, and return its output."""
    stream = io.StringIO()
    logs.configure("info", "json", stream)
    return stream


@pytest.fixture
async def make_directory_state(tmp_path: Path) -> AsyncIterator[Callable[[], StateStore]]:
    """Return a factory of stores in one directory, as processes of one machine have them."""
    stores: list[StateStore] = []

    def make() -> StateStore:
        stores.append(DirectoryStateStore(tmp_path / "state"))
        return stores[-1]

    yield make
    for store in stores:
        await store.close()


@pytest.fixture
async def worker(make_directory_state: Callable[[], StateStore]) -> AsyncIterator[Replica]:
    """A replica on a directory, whose runner is not started."""
    worker = Replica(make_directory_state())
    yield worker
    worker.words.gate.set()
    await worker.runner.close()
