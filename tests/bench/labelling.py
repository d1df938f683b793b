"""Measure the cost of labels over HTTP: many cached ones, new ones, and those in Redis for a fresh process."""

import shutil
import socket
import time
from typing import Any, Final

from tests.bench import pictures, wire, words
from tests.bench.environments import Unavailable
from tests.bench.load import Plan
from tests.bench.server import Server
from tests.bench.serving import Effort
from tests.bench.subjects import Subject, load
from tests.bench.summary import median
from tests.support.ports import free_port

MANY: Final = 1_000
FEW: Final = 2
_TOP: Final = 5
_PATIENCE_S: Final = 60.0


def labelling(subject: Subject, light: Subject, effort: Effort) -> dict[str, Any]:
    """Measure all three. The model `light` is so fast that a millisecond for labels exceeds its noise."""
    return {
        "cached": {light.name: cached(light, effort), subject.name: cached(subject, effort)},
        "cold": cold(subject, effort),
        "redis": from_redis(subject, effort),
    }


def cached(subject: Subject, effort: Effort) -> dict[str, Any]:
    """Return the seconds of a request with a thousand cached labels and with two, in turns, one client."""
    picture = pictures.tiny()
    files = {count: wire.write(f"labels-{count}", [_request(picture, count)]) for count in (FEW, MANY)}
    found: dict[int, list[float]] = {count: [] for count in files}
    with subject.start() as server:
        for count in files:
            _stages(server, _request(picture, count))
        for _ in range(effort.rounds):
            for count, paths in files.items():
                run = load(server, Plan("closed", 0, tuple(paths), effort.seconds, connections=1))
                found[count].append(run["latency_s"]["p50"])
    few, many = median(found[FEW]), median(found[MANY])
    assert few is not None
    assert many is not None
    return {"few_s": found[FEW], "many_s": found[MANY], "extra_s": many - few}


def cold(subject: Subject, effort: Effort) -> dict[str, Any]:
    """Return the seconds for the class vectors of a thousand new labels, by the service's own timing."""
    picture = pictures.tiny()
    with subject.start() as server:
        _stages(server, _request(picture, FEW))
        sets = range(min(effort.rounds, len(words.LABELS) // MANY - 1))
        found = [_stages(server, _request(picture, MANY, start=MANY * (1 + number)))["text"] for number in sets]
    # As other servers do: every prompt padded to the whole context, in fp32.
    padded = subject.bare(effort.seconds, "texts", provider="cpu") if subject.precision != "fp16" else None
    return {
        "text_s": found,
        "labels_ps": MANY / (median(found) or 1.0),
        "padded_fp32_tps": padded["texts"]["padded_tps"] if padded else None,
        "bare": subject.bare(effort.seconds, "texts")["texts"],
    }


def from_redis(subject: Subject, effort: Effort) -> dict[str, Any]:
    """Return the seconds for a thousand labels out of Redis, in the first request of a fresh process."""
    binary = shutil.which("redis-server")
    if binary is None:
        raise Unavailable("redis-server is not installed")
    port = free_port()
    store = Server("redis", [binary, "--port", str(port), "--bind", "127.0.0.1", "--save", ""], port)
    env = {"ANYCLASS_REDIS_URL": f"redis://127.0.0.1:{port}/0"}
    request = _request(pictures.tiny(), MANY)
    found = []
    try:
        _until(lambda: _redis(port, b"PING") == b"+PONG\r\n")
        with subject.start(env) as server:
            _stages(server, request)
            _until(lambda: _redis(port, b"DBSIZE") == f":{MANY}\r\n".encode())
        for _ in range(effort.rounds):
            with subject.start(env) as server:
                found.append(_stages(server, request)["text"])
    finally:
        store.stop()
    return {"text_s": found, "median_s": median(found)}


def _request(picture: bytes, count: int, *, start: int = 0) -> bytes:
    return wire.classify_json(picture, words.labels(count, start), top_k=min(_TOP, count))


def _stages(server: Server, request: bytes) -> dict[str, float]:
    """Send one request; return the seconds of each stage in its answer's Server-Timing."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=_PATIENCE_S) as connection:
        connection.sendall(request)
        answer = b""
        while b"\r\n\r\n" not in answer:
            part = connection.recv(65_536)
            if not part:
                break
            answer += part
    if not answer.startswith(b"HTTP/1.1 200"):
        raise Unavailable(f"{server.name} answered {answer[:300]!r}")
    head = answer.partition(b"\r\n\r\n")[0]
    timing = next(line for line in head.split(b"\r\n") if line.lower().startswith(b"server-timing:"))
    return wire.stages(timing.decode())


def _redis(port: int, command: bytes) -> bytes:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=2) as connection:
            connection.sendall(command + b"\r\n")
            return connection.recv(256)
    except OSError:
        return b""


def _until(condition: Any) -> None:
    end = time.monotonic() + _PATIENCE_S
    while not condition():
        if time.monotonic() > end:
            raise Unavailable("Redis does not get to where it should be")
        time.sleep(0.02)
