"""How long `/livez` waits beside clients that send the most costly requests the limits allow.

    python -m tests.bench.stalls [--seconds 3] [--clients 4] [--only WORD]

For each request of `tests.bench.hostile` so many clients, in a process of their own, send it in a loop to a service
with the demo model and the default limits. Meanwhile `/livez` is asked on a new connection each time, as Kubernetes
does.

The clients have the lowest priority, since clients on other machines take no processor from the service. Other work on
the machine does: compare with the row "nothing beside", and repeat a late row with --only.

The exit code is 1 if a 99th percentile is above the wanted one.
"""

import argparse
import multiprocessing
import os
import socket
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Final

from tests.bench.hostile import BODY_BYTES, REQUESTS
from tests.bench.server import running
from tests.bench.summary import percentiles
from tests.support.ports import free_port

WANTED_P99_S: Final = 0.05
_EVERY_S: Final = 0.01
_PATIENCE_S: Final = 60.0
_QUIET: Final = "nothing beside"
_LOWEST_PRIORITY: Final = 19


def main() -> int:
    """Measure, print a table, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3.0, help="for each request")
    parser.add_argument("--clients", type=int, default=4, help="that send it at the same time")
    parser.add_argument("--only", default="", help="requests with this word in their name")
    options = parser.parse_args()
    chosen = [name for name in REQUESTS if options.only in name]
    port = free_port()
    command = [sys.executable, "-m", "service", "serve", "--port", str(port)]
    with tempfile.TemporaryDirectory() as state:
        env = {"XDG_DATA_HOME": state, "ANYCLASS_LOG_LEVEL": "warning"}
        with running("stalls", command, port, ready="/readyz", env=env):
            late = _measure(port, chosen, options.clients, options.seconds)
    if late:
        print(f"\nabove {WANTED_P99_S * 1_000:.0f} ms: {', '.join(late)}")  # noqa: T201
    return 1 if late else 0


def _measure(port: int, chosen: list[str], clients: int, seconds: float) -> list[str]:
    """Print a row for each request; return the names of those that stall the service."""
    print(f"| {clients} clients send | livez p50 ms | p99 ms | max ms | sent a second | answers |")  # noqa: T201
    print("|---|---|---|---|---|---|")  # noqa: T201
    late = []
    for name in [_QUIET, *chosen]:
        waits, sent, answers = _beside(port, name, clients if name != _QUIET else 0, seconds)
        found = percentiles(waits)
        row = " | ".join(f"{found[key] * 1_000:.0f}" for key in ("p50", "p99", "max"))
        said = ", ".join(f"{status}: {count}" for status, count in sorted(answers.items()))
        print(f"| {name} | {row} | {sent / seconds:.1f} | {said} |", flush=True)  # noqa: T201
        if found["p99"] > WANTED_P99_S:
            late.append(name)
    return late


def _beside(port: int, name: str, clients: int, seconds: float) -> tuple[list[float], int, Counter[int]]:
    """Return the waits for `/livez` in seconds, and the number of requests beside them with the answers' statuses."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_attack, args=(port, name, clients, theirs))
    process.start()
    try:
        ours.recv()  # the requests are made
        ours.send("begin")
        waits = []
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            waits.append(_ask(port))
            time.sleep(_EVERY_S)
        ours.send("end")
        answers: Counter[int] = ours.recv()
    finally:
        process.join(_PATIENCE_S)
        process.kill()
    return waits, answers.total(), answers


def _ask(port: int) -> float:
    """Ask `/livez`; return how long the answer took, in seconds."""
    begun = time.perf_counter()
    with socket.create_connection(("127.0.0.1", port), timeout=_PATIENCE_S) as connection:
        connection.sendall(b"GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
        while connection.recv(4_096):
            pass
    return time.perf_counter() - begun


def _attack(port: int, name: str, clients: int, pipe: Connection) -> None:
    """Send a request from several threads until told to end; runs in a process of its own."""
    os.nice(_LOWEST_PRIORITY)
    request = REQUESTS[name](BODY_BYTES).wire() if clients else b""
    over = threading.Event()
    answers: Counter[int] = Counter()
    threads = [threading.Thread(target=_send, args=(port, request, over, answers)) for _ in range(clients)]
    pipe.send("ready")
    pipe.recv()
    for thread in threads:
        thread.start()
    pipe.recv()
    over.set()
    for thread in threads:
        thread.join()
    pipe.send(answers)


def _send(port: int, request: bytes, over: threading.Event, answers: Counter[int]) -> None:
    while not over.is_set():
        status = 0
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=_PATIENCE_S) as connection:
            # A service that refuses a body early closes its side while the rest is sent.
            with suppress(OSError):
                connection.sendall(request)
            status = int(connection.recv(65_536)[9:12] or 0)
        answers[status] += 1


if __name__ == "__main__":
    sys.exit(main())
