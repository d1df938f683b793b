"""Connect to a Ray cluster, and keep Ray off the terminal."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from model_export.errors import DriverError, first_line

_ENVIRONMENT: Final = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_DEDUP_LOGS_SKIP_REGEX": "^",  # shows no line of other processes
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
_LOOPBACK: Final = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""Set to 0, it keeps a cluster that is started here to the loopback interface, on Linux too; Ray has no passwords."""


_CURRENT: Final = Path(os.environ.get("RAY_TMPDIR", "/tmp"), "ray", "ray_current_cluster")  # noqa: S108 - Ray's own
"""Names the cluster that runs on this machine, if one does."""


@contextlib.contextmanager
def connection(address: str | None, workers: int | None) -> Iterator[Any]:
    """Connect, yield the module ``ray``, and disconnect; a connection that this process has already is kept.

    Args:
        address: of the cluster; see `RayDriver`.
        workers: CPUs of a cluster that is started.

    Raises:
        DriverError: no cluster can be used.
    """
    address = address or os.environ.get("RAY_ADDRESS") or ("auto" if _CURRENT.exists() else "local")
    os.environ.update({name: os.environ.get(name, value) for name, value in _ENVIRONMENT.items()})
    if address == "local":
        os.environ.setdefault(_LOOPBACK, "0")
    ignore_warnings()
    import ray
    import ray.data

    with contextlib.ExitStack() as held:
        if not ray.is_initialized():
            held.enter_context(_sigterm_restored())
            held.callback(ray.shutdown)
            with _no_stderr():
                _connect(ray, address, workers)
            _exit_on_sigterm()
        for logger in (logging.getLogger("ray"), logging.getLogger("ray.data")):
            logger.handlers = [each for each in logger.handlers if "File" in type(each).__name__]
            logger.propagate = False
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        yield ray


def ignore_warnings() -> None:
    """Ignore Ray's warnings of settings that are its own."""
    warnings.filterwarnings("ignore", module=r"ray(\.|$)")


def on_node(identity: str) -> Any:  # noqa: ANN401 - Ray has no types here
    """Return a scheduling strategy for one node."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(identity, soft=False)


def reason(error: Exception) -> str:
    """Return the last line of a message of Ray, which names the cause, without its traceback."""
    return next((line.strip() for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__)


def _connect(ray: Any, address: str, workers: int | None) -> None:  # noqa: ANN401 - the module
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL}
    if address == "local":
        quiet |= {"include_dashboard": False, "_node_ip_address": "127.0.0.1", "num_cpus": workers}
    try:
        ray.init(address, **quiet)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise DriverError(
            f"Ray cluster {address}: cannot be used ({first_line(error)}); start one with 'ray start --head', with "
            "the versions of Python and Ray that are here, or name another by --ray-address (local: this machine)"
        ) from error


@contextlib.contextmanager
def _no_stderr() -> Iterator[None]:
    """Drop what Ray's own libraries write to stderr; their failures are exceptions too."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with Path(os.devnull).open("wb") as nothing:
            os.dup2(nothing.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


@contextlib.contextmanager
def _sigterm_restored() -> Iterator[None]:
    """Put the handler of SIGTERM back in the end, in place of Ray's."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, before)


def _exit_on_sigterm() -> None:
    """End the program by an exception on SIGTERM, so that the connection is closed and what it started ends."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
