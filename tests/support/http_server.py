"""Run `anyclass serve` in a process of its own, on a free loopback port."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

_PATIENCE_S = 60.0  # for a busy machine
_POLL_S = 0.02


class HttpServer:
    """A running `anyclass serve`.

    Attributes:
        url: its address, such as ``http://127.0.0.1:40123``.
        process: the process, to send it signals.
    """

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process = process
        self._log = log
        self.url = self._listening_url()

    def logs(self) -> list[dict[str, Any]]:
        """Return the lines logged so far; each must be JSON."""
        return [json.loads(line) for line in self._log.read_text("utf-8").splitlines() if line.endswith("}")]

    def raw_log(self) -> str:
        """Return its standard error so far."""
        return self._log.read_text("utf-8")

    def settle_log(self) -> None:
        """Wait until the log has the lines of all answered requests, if the service is a single process.

        A line is written after its answer, so the line of one more request comes after those of all before it.
        """
        request_id = f"settle-{time.monotonic_ns()}"
        httpx.get(f"{self.url}/settle-log", headers={"x-request-id": request_id}, timeout=_PATIENCE_S)
        _until(lambda: any(line.get("request_id") == request_id for line in self.logs()), self)

    def wait_ready(self) -> None:
        """Wait until it is ready."""
        with httpx.Client(base_url=self.url, timeout=_PATIENCE_S) as client:

            def is_ready() -> bool:
                # A lost connection is tried again; `_until` sees the end of the process.
                with contextlib.suppress(httpx.TransportError):
                    return client.get("/readyz").status_code == 200
                return False

            _until(is_ready, self)

    def stop(self) -> int:
        """Ask it to stop, and return its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.wait()

    def wait(self) -> int:
        """Wait for its end, and return its exit code."""
        return self.process.wait(_PATIENCE_S)

    def _listening_url(self) -> str:
        _until(lambda: any(line["event"] == "listening" for line in self.logs()), self)
        return str(next(line["url"] for line in self.logs() if line["event"] == "listening"))


@contextmanager
def http_server(
    bundle: Path, folder: Path, *, env: Mapping[str, str] | None = None, ready: bool = True, provider: str = "cpu"
) -> Iterator[HttpServer]:
    """Serve `bundle` until the end of the block; log to a file in `folder`; `env` adds settings."""
    log = folder / f"serve-{time.monotonic_ns()}.log"
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "service", "serve", "--port", "0", "--model", str(bundle), "--provider", provider],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            # Keep tests away from the state of the developer's own service.
            env={**os.environ, "XDG_DATA_HOME": str(folder / "data"), **(env or {})},
        )
    try:
        server = HttpServer(process, log)
        if ready:
            server.wait_ready()
        yield server
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
        process.wait()


def _until(condition: Any, server: HttpServer) -> None:
    end = time.monotonic() + _PATIENCE_S
    while not condition():
        if server.process.poll() is not None:
            raise AssertionError(f"the service has ended with {server.process.returncode}:\n{server.raw_log()}")
        if time.monotonic() > end:
            raise AssertionError(f"the service keeps us waiting:\n{server.raw_log()}")
        time.sleep(_POLL_S)
