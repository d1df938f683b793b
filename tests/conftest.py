"""What every test gets: no settings from the caller's environment, and an event loop that must not be blocked."""

import os
from collections.abc import Iterator
from functools import cache
from typing import Any

import httpx
import pytest
from blockbuster import blockbuster_ctx
from hypothesis import settings

# The machine's speed is not what property tests are about.
settings.register_profile("anyclass", deadline=None)
# The same examples on every run: what fails there fails here.
settings.register_profile("ci", parent=settings.get_profile("anyclass"), derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "anyclass")


# A service of a test does not time providers first. Set for all processes: servers also start in fixtures of a module.
os.environ["ANYCLASS_TUNE"] = "false"


@pytest.hookimpl(optionalhook=True)  # without pytest-xdist, all tests run in one process
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give the tests of a file to one process, in the files' order, so that a server or an export is made once."""
    from tests.support.scheduling import FileByFile

    if config.getvalue("dist") != "load":  # another order was asked for
        return None
    config.option.loadscopereorder = False
    return FileByFile(config, log)


@pytest.fixture(autouse=True, scope="session")
def _authorities_read_once() -> Iterator[None]:
    """The clients of tests share the certificates that httpx reads for each: 50 ms of processor time for every one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("httpx._transports.default.create_ssl_context", cache(httpx.create_ssl_context))
        yield


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable ANYCLASS_… of the developer's shell changes no test."""
    for name in list(os.environ):
        if name.startswith("ANYCLASS_") and name != "ANYCLASS_TUNE":
            monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def _event_loop_never_blocked() -> Iterator[None]:
    """Code of the service that blocks the event loop (a file, a socket, a sleep) raises `BlockingError`."""
    with blockbuster_ctx("service") as blockers:
        # The coverage measurement itself takes a lock when a thread meets a file for the first time.
        blockers.functions["threading.Lock.acquire"].can_block_in("coverage/collector.py", "lock_data")
        # A semaphore of an earlier test that is collected here takes itself off a list, by a pipe.
        blockers.functions["os.write"].can_block_in("multiprocessing/resource_tracker.py", {"_check_alive", "_send"})
        yield
