"""Run a real Prometheus on a free loopback port, and query its HTTP API."""

import contextlib
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml

from tests.support.ports import free_port

_PATIENCE_S = 60.0
_POLL_S = 0.1


def why_no_prometheus() -> str | None:
    """Return the reason why Prometheus cannot run here, or None."""
    missing = [name for name in ("prometheus", "promtool") if shutil.which(name) is None]
    return f"{' and '.join(missing)} not installed (Debian's package prometheus)" if missing else None


@dataclass(frozen=True)
class Series:
    """One series of an answer: its labels and its value now."""

    labels: Mapping[str, str]
    value: float


class Prometheus:
    """A running server."""

    def __init__(self, url: str) -> None:
        self._client = httpx.Client(base_url=f"{url}/api/v1", timeout=_PATIENCE_S)

    def get(self, path: str, **parameters: Any) -> Any:
        """Return the data of an answer. Raises AssertionError with Prometheus' message for a refused query."""
        answer = self._client.get(path, params=parameters).json()
        assert "success" == answer["status"], answer["error"]
        return answer["data"]

    def query(self, expression: str) -> list[Series]:
        """Evaluate an instant expression."""
        result = self.get("/query", query=expression)
        assert "vector" == result["resultType"]
        return [Series(each["metric"], float(each["value"][1])) for each in result["result"]]

    def wait(self, condition: Callable[[], bool]) -> None:
        """Wait until a condition holds."""
        until = time.monotonic() + _PATIENCE_S
        while not condition():
            assert time.monotonic() < until, "Prometheus keeps us waiting"
            time.sleep(_POLL_S)

    def is_up(self) -> bool:
        """Return whether it answers yet."""
        with contextlib.suppress(httpx.TransportError, AssertionError, ValueError):
            self.get("/status/buildinfo")
            return True
        return False

    def close(self) -> None:
        """Close the connections to it."""
        self._client.close()


@contextlib.contextmanager
def running_prometheus(folder: Path, configuration: Mapping[str, Any]) -> Iterator[Prometheus]:
    """Run a server with this configuration; its data and log are in `folder`."""
    file = folder / "prometheus.yaml"
    file.write_text(yaml.safe_dump(dict(configuration)), "utf-8")
    port = free_port()
    command = ["prometheus", f"--config.file={file}", f"--storage.tsdb.path={folder / 'tsdb'}", "--log.level=warn"]
    command += [f"--web.listen-address=127.0.0.1:{port}", "--query.lookback-delta=1m"]
    log = folder / "prometheus.log"
    with log.open("wb") as stream:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream)
    server = Prometheus(f"http://127.0.0.1:{port}")

    def is_up() -> bool:
        assert process.poll() is None, log.read_text("utf-8")
        return server.is_up()

    try:
        server.wait(is_up)
        yield server
    finally:
        server.close()
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
