"""Measure the service's own share of a request: its processor time less decoding and encoding.

The bundle's encoders compute almost nothing and the picture is small, so the rest is HTTP, forms, the label cache,
queues, scores, the answer and the log. Uses one client on one connection.
"""

import base64
import json
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, TypeAlias

import httpx

from tests.bench import pictures, wire, words
from tests.bench.server import Server, cpu_s, group, running
from tests.bench.serving import Effort
from tests.bench.subjects import LABELS, READY
from tests.bench.summary import median
from tests.support.ports import free_port
from tests.support.tiny_bundle import write_tiny_bundle

_SIZE: Final = (64, 48)
_AT_LEAST: Final = 50
"""Requests of a measurement: enough for the kernel's clock of processor time, which ticks in hundredths of a second."""

Send: TypeAlias = Callable[[httpx.Client], httpx.Response]


def overhead(effort: Effort) -> dict[str, Any]:
    """Return the seconds of a request in each form, in turns.

    Lists `cpu_s`, `decode_s`, `encode_s` and `rest_s`, and the median of `rest_s`.
    """
    found: dict[str, dict[str, list[float]]] = {}
    with TemporaryDirectory() as folder:
        bundle = Path(folder) / "tiny"
        write_tiny_bundle(bundle)
        port = free_port()
        command = [sys.executable, "-m", "service", "serve", "--port", str(port), "--no-welcome"]
        with (
            running("overhead", [*command, "--model", str(bundle), "--provider", "cpu"], port, ready=READY) as server,
            httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client,
        ):
            for _ in range(effort.rounds):
                for form, send in _forms().items():
                    _measure(server, client, send, effort.seconds / 4)  # warm
                    for name, seconds in _measure(server, client, send, effort.seconds).items():
                        found.setdefault(form, {}).setdefault(name, []).append(seconds)
    return {form: {**runs, "median_s": median(runs["rest_s"])} for form, runs in found.items()}


def _measure(server: Server, client: httpx.Client, send: Send, seconds: float) -> dict[str, float]:
    before, count, took_s = _cpu_s(server), 0, 0.0
    # A stage's time includes waiting for a processor; its shortest does so least, and stands for processor time.
    decode_s = encode_s = float("inf")
    while took_s < seconds or count < _AT_LEAST:
        answer = send(client).raise_for_status()
        stages = wire.stages(answer.headers["server-timing"])
        decode_s, encode_s = min(decode_s, stages["decode"]), min(encode_s, stages["image"])
        took_s, count = took_s + answer.elapsed.total_seconds(), count + 1
    cpu = (_cpu_s(server) - before) / count
    return {"cpu_s": cpu, "decode_s": decode_s, "encode_s": encode_s, "rest_s": cpu - decode_s - encode_s}


def _cpu_s(server: Server) -> float:
    return sum(map(cpu_s, group(server.pid)))


def _forms() -> dict[str, Send]:
    picture, labels = pictures.jpegs(1, _SIZE)[0], words.labels(LABELS)
    content = json.dumps({"image": base64.b64encode(picture).decode(), "labels": labels}).encode()
    return {
        "picture as the body": lambda client: client.post(
            "/v1/classify", params={"labels": labels}, content=picture, headers={"content-type": "image/jpeg"}
        ),
        "JSON": lambda client: client.post(
            "/v1/classify", content=content, headers={"content-type": "application/json"}
        ),
        "form": lambda client: client.post("/v1/classify", data={"labels": labels}, files={"image": picture}),
    }
