"""Measure memory and stop of the service beside clients that ask and never read their answers.

    python -m tests.bench.nonreaders

Prints the resident memory that such clients take and keep, the number of good batches answered beside clients that do
not read their lines, and the seconds from SIGTERM to the end with unread answers.
"""

import argparse
import base64
import contextlib
import io
import json
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Final

import httpx
from PIL import Image
from rich.console import Console
from rich.table import Table

from tests.bench.server import MemoryWatch, Server, group, running
from tests.support.ports import free_port

_MIB: Final = 2**20
_TEXTS: Final = 2_048
_FILE_BYTES: Final = 12_000_000
_IMAGES: Final = 64
_LABELS: Final = 2_000
_RECEIVE_BYTES: Final = 2_304
"""Receive buffer of a client, so that the answer waits in the service."""
_PATIENCE_S: Final = 300.0
_LONG_S: Final = 300.0
"""Time limit with which no stream is given up while others are asked for."""
_QUIET_S: Final = 2.0
_MARGIN_S: Final = 5.0
_SLACK_BYTES: Final = 40 * _MIB
_OK: Final = 200


def main() -> int:
    """Print a table; return 1 if memory is held beyond the time limit, or a good batch is refused."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--timeout-s", type=float, default=30.0, help="ANYCLASS_REQUEST_TIMEOUT_S")
    parser.add_argument("--answers", type=int, default=40, help="clients of /v1/embeddings")
    parser.add_argument("--downloads", type=int, default=30, help="clients of the content of a file")
    parser.add_argument("--streams", type=int, default=16, help="clients of the lines of /v1/classify/batch")
    parser.add_argument("--batches", type=int, default=11, help="good batches beside them")
    options = parser.parse_args()
    table = Table("measurement", "value", box=None)
    held = False
    embeddings = _post("/v1/embeddings", {"input": [f"text {number}" for number in range(_TEXTS)]})
    with _service(options.timeout_s) as server:
        download = f"GET /v1/files/{_upload(server)}/content HTTP/1.1\r\nHost: x\r\n\r\n".encode()
        for name, count, request in (
            ("answers of 7 MB", options.answers, embeddings),
            ("downloads of 12 MB", options.downloads, download),
        ):
            most, left = _memory(server, count, request, options.timeout_s)
            table.add_row(f"{count} unread {name}: memory", f"{most / _MIB:.0f} MiB")
            table.add_row(f"the same {options.timeout_s + _MARGIN_S:g} s later", f"{left / _MIB:.0f} MiB")
            held = held or left > most / 4 + _SLACK_BYTES
    lines = _post("/v1/classify/batch", _batch(_IMAGES), "application/x-ndjson")
    with _service(_LONG_S) as server, _asking(server, options.streams, lines):
        _wait_quiet(server)
        good = [_classify(server) for _ in range(options.batches)].count(_OK)
    table.add_row(f"good batches beside {options.streams} unread ones", f"{good} of {options.batches}")
    for count in (0, options.answers):
        with _service(options.timeout_s) as server, _asking(server, count, embeddings):
            _wait_quiet(server)
            seconds = _stop(server)
        table.add_row(f"SIGTERM to the end, {count} unread answers", f"{seconds:.1f} s")
    Console().print(table)
    return int(held or good < options.batches)


@contextmanager
def _service(timeout_s: float) -> Iterator[Server]:
    port = free_port()
    command = [sys.executable, "-m", "service", "serve", "--port", str(port)]
    with tempfile.TemporaryDirectory() as folder:
        limits = {"ANYCLASS_REQUEST_TIMEOUT_S": str(timeout_s), "ANYCLASS_KEEP_ALIVE_S": "5"}
        with running("nonreaders", command, port, ready="/readyz", env={**limits, "XDG_DATA_HOME": folder}) as server:
            yield server


@contextmanager
def _asking(server: Server, count: int, request: bytes) -> Iterator[None]:
    """Connect `count` clients that send `request` and read nothing."""
    with ExitStack() as clients:
        for _ in range(count):
            client = clients.enter_context(contextlib.closing(socket.socket()))
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BYTES)
            client.connect(("127.0.0.1", server.port))
            client.sendall(request)
        yield


def _memory(server: Server, count: int, request: bytes, timeout_s: float) -> tuple[int, int]:
    """Return the most that `count` clients add to the resident bytes, and the rest after the time limit."""
    with _asking(server, 1, request):
        _wait_quiet(server)
    before = server.memory_bytes()
    with MemoryWatch(server, 0.1) as watch, _asking(server, count, request):
        _wait_quiet(server)
        time.sleep(timeout_s + _MARGIN_S)
        left = server.memory_bytes()
    return max(size for _, size in watch.samples) - before, left - before


def _wait_quiet(server: Server) -> None:
    """Wait until the counters stay the same for a while. Asking for `/metrics` itself does not count."""
    until = time.monotonic() + _PATIENCE_S
    seen, since = -1.0, time.monotonic()
    while time.monotonic() - since < _QUIET_S:
        if time.monotonic() > until:
            raise TimeoutError("the service is never quiet")
        time.sleep(0.1)
        lines = httpx.get(f"http://127.0.0.1:{server.port}/metrics", timeout=_PATIENCE_S).text.splitlines()
        counted = ("anyclass_http_requests_total", "anyclass_images_total", "anyclass_inference_seconds_count")
        now = sum(float(line.split()[-1]) for line in lines if line.startswith(counted) and "/metrics" not in line)
        if now != seen:
            seen, since = now, time.monotonic()


def _stop(server: Server) -> float:
    """Send SIGTERM; return the seconds until the end."""
    began = time.monotonic()
    os.kill(server.pid, signal.SIGTERM)
    while group(server.pid):
        time.sleep(0.02)
    return time.monotonic() - began


def _post(path: str, body: Any, accept: str = "application/json") -> bytes:
    content = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nAccept: {accept}\r\nContent-Type: application/json\r\n"
    return head.encode() + b"Content-Length: %d\r\n\r\n" % len(content) + content


def _batch(images: int) -> dict[str, Any]:
    picture = io.BytesIO()
    Image.new("RGB", (32, 32), "red").save(picture, "PNG")
    image = base64.b64encode(picture.getvalue()).decode()
    return {"images": [image] * images, "labels": [f"label {number}" for number in range(_LABELS)], "top_k": _LABELS}


def _classify(server: Server) -> int:
    url = f"http://127.0.0.1:{server.port}/v1/classify/batch"
    return httpx.post(url, json=_batch(2), timeout=_PATIENCE_S).status_code


def _upload(server: Server) -> str:
    form: dict[str, Any] = {"files": {"file": ("lines.jsonl", bytes(_FILE_BYTES))}, "data": {"purpose": "batch"}}
    answer = httpx.post(f"http://127.0.0.1:{server.port}/v1/files", timeout=_PATIENCE_S, **form)
    return str(answer.raise_for_status().json()["id"])


if __name__ == "__main__":
    sys.exit(main())
