"""Generate load from a process of its own, in one of two modes.

    python -m tests.bench.load PLAN.json

*closed*: each of a number of clients sends its next request after the last answer. This measures capacity but not
latency, because a slow service simply gets fewer requests. *open*: requests follow a schedule (Poisson, seeded), even
if the service cannot keep up. A latency counts from the scheduled time, so a service that stalls cannot hide the
requests it delays. The generator also reports its own lateness and its share of a core. Prints one JSON object.
"""

import asyncio
import gc
import itertools
import json
import random
import resource
import sys
import time
from collections import Counter, deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import httptools

from tests.bench.summary import percentiles

_LOST = 0
"""Status of a request whose connection ended before its answer."""
_OK = 200


@dataclass(frozen=True)
class Plan:
    """The load to generate.

    Attributes:
        mode: `closed` or `open`.
        port: on 127.0.0.1.
        requests: files of whole HTTP/1.1 requests, sent in turn.
        seconds: time of sending; answers may take `patience_s` longer.
        connections: clients of the closed loop; most connections of the open one.
        rate: requests a second of the open loop.
        seed: seed of its schedule.
    """

    mode: Literal["closed", "open"]
    port: int
    requests: tuple[str, ...]
    seconds: float
    connections: int = 1
    rate: float = 0.0
    seed: int = 0
    patience_s: float = 30.0


@dataclass(slots=True)
class Sample:
    """One request. Times in seconds of `time.perf_counter`; `answered` is None before the answer."""

    intended: float
    sent: float
    answered: float | None = None
    status: int = _LOST


class _Clients:
    """State that the connections of one run share."""

    def __init__(self, plan: Plan, payloads: Sequence[bytes]) -> None:
        self.samples: list[Sample] = []
        self.waiting: deque[float] = deque()
        """Return the scheduled times of requests that wait for a connection."""
        self.ends_at = 0.0
        self.settled = asyncio.Event()
        self._port, self._closed_loop = plan.port, plan.mode == "closed"
        self._payloads = itertools.cycle(payloads)
        self._idle: deque[_Client] = deque()
        self._open: set[_Client] = set()
        self._in_flight = 0
        self._opening: set[asyncio.Task[None]] = set()
        self._over = False

    async def connect(self) -> None:
        """Open one more connection."""
        loop = asyncio.get_running_loop()
        _, client = await loop.create_connection(lambda: _Client(self), "127.0.0.1", self._port)
        self._open.add(client)
        self._available(client)

    def begin(self, ends_at: float) -> None:
        """Allow requests until `ends_at`; send the closed loop's first ones now."""
        self.ends_at = ends_at
        while self._closed_loop and self._idle:
            self._send(self._idle.popleft(), time.perf_counter())

    def send(self, intended: float) -> None:
        """Send a request scheduled for this moment, or queue it until a connection is free."""
        if self._idle:
            self._send(self._idle.popleft(), intended)
        else:
            self.waiting.append(intended)

    def answered(self, client: "_Client", *, stays_open: bool) -> None:
        """Record an answer; the connection is then free again, or ends."""
        self._in_flight -= 1
        if stays_open:
            self._available(client)
        else:
            client.close()
        self.settle()

    def lost(self, client: "_Client", *, in_flight: bool) -> None:
        """Record the end of a connection, and open another in its place."""
        self._in_flight -= in_flight
        self._open.discard(client)
        if client in self._idle:
            self._idle.remove(client)
        if not self._over:
            task = asyncio.get_running_loop().create_task(self._reopen())
            self._opening.add(task)
            task.add_done_callback(self._opening.discard)
        self.settle()

    def settle(self) -> None:
        """Set `settled` if no more answers can come: all requests are answered, or no connection is left."""
        done = not self._in_flight and not self.waiting
        if time.perf_counter() >= self.ends_at and (done or not (self._open or self._opening)):
            self.settled.set()

    def close(self) -> None:
        """Close all connections."""
        self._over = True
        for client in tuple(self._open):
            client.close()

    async def _reopen(self) -> None:
        with suppress(OSError):  # the server is gone: waiting requests stay unanswered
            await self.connect()

    def _available(self, client: "_Client") -> None:
        now = time.perf_counter()
        if self.waiting:
            self._send(client, self.waiting.popleft())
        elif self._closed_loop and now < self.ends_at:
            self._send(client, now)
        else:
            self._idle.append(client)

    def _send(self, client: "_Client", intended: float) -> None:
        sample = Sample(intended, time.perf_counter())
        self.samples.append(sample)
        self._in_flight += 1
        client.send(sample, next(self._payloads))


class _Client(asyncio.Protocol):
    """One connection, kept alive, with one request on it at a time; httptools calls its `on_…`."""

    def __init__(self, clients: _Clients) -> None:
        self._clients = clients
        self._parser = httptools.HttpResponseParser(self)
        self._sample: Sample | None = None
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's are registered as no such class

    def send(self, sample: Sample, payload: bytes) -> None:
        """Send one request."""
        self._sample = sample
        assert self._transport is not None
        self._transport.write(payload)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_message_complete(self) -> None:
        """Record the answer, and free the connection for the next request."""
        sample, self._sample = self._sample, None
        if sample is None:
            return
        sample.answered, sample.status = time.perf_counter(), self._parser.get_status_code()
        stays_open = self._parser.should_keep_alive()
        self._parser = httptools.HttpResponseParser(self)
        self._clients.answered(self, stays_open=stays_open)

    def connection_lost(self, exc: Exception | None) -> None:
        in_flight, self._sample = self._sample is not None, None
        self._clients.lost(self, in_flight=in_flight)

    def close(self) -> None:
        """Close the connection."""
        if self._transport is not None:
            self._transport.abort()


async def run(plan: Plan, payloads: Sequence[bytes]) -> dict[str, Any]:
    """Send `payloads` in turn by the plan; return the figures of `report`, and the used share of a core."""
    clients = _Clients(plan, payloads)
    for _ in range(plan.connections):
        await clients.connect()
    before, started = _cpu_s(), time.perf_counter()
    clients.begin(started + plan.seconds)
    for intended in schedule(plan, started) if plan.mode == "open" else ():
        if (wait := intended - time.perf_counter()) > 0:
            await asyncio.sleep(wait)
        clients.send(intended)
    await asyncio.sleep(max(0.0, clients.ends_at - time.perf_counter()))
    clients.settle()
    with suppress(TimeoutError):  # later answers are reported as unanswered
        async with asyncio.timeout(plan.patience_s):
            await clients.settled.wait()
    used_s, wall_s = _cpu_s() - before, time.perf_counter() - started
    clients.close()
    figures = report(plan, clients.samples, started=started, unsent=len(clients.waiting))
    return figures | {"cpu_share": used_s / wall_s}


def schedule(plan: Plan, started: float) -> list[float]:
    """Return the scheduled times of an open loop: independent arrivals, `rate` a second on average."""
    generator = random.Random(plan.seed)
    moments, moment = [], started
    while (moment := moment + generator.expovariate(plan.rate)) < started + plan.seconds:
        moments.append(moment)
    return moments


def report(plan: Plan, samples: list[Sample], *, started: float, unsent: int = 0) -> dict[str, Any]:
    """Turn samples into figures, times in seconds.

    The rate is the number of good answers over the time until the last one. It includes the start and the end, with
    fewer requests under way, alike for every service, and bursts of answers do not depend on a window's edge.
    Latencies are those of good answers, from the scheduled time; `lateness_s` is the delay of sending.
    """
    good = [sample for sample in samples if sample.status == _OK and sample.answered is not None]
    last = max((sample.answered or 0.0 for sample in good), default=started)
    statuses = Counter(sample.status for sample in samples)
    return {
        "mode": plan.mode,
        "connections": plan.connections,
        "offered_rps": (len(samples) + unsent) / plan.seconds,
        "rate_rps": len(good) / (last - started) if good else 0.0,
        "answered": len(good),
        "failed": {str(status): count for status, count in sorted(statuses.items()) if status not in {_OK, _LOST}},
        "unanswered": statuses[_LOST] + unsent,
        "latency_s": percentiles([(sample.answered or 0.0) - sample.intended for sample in good]),
        "service_s": percentiles([(sample.answered or 0.0) - sample.sent for sample in good]),
        "lateness_s": percentiles([sample.sent - sample.intended for sample in samples]),
    }


def _cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    """Run the plan in a file, and print the figures."""
    import uvloop

    content = json.loads(Path(sys.argv[1]).read_text())
    plan = Plan(**(content | {"requests": tuple(content["requests"])}))
    gc.disable()  # a garbage collection would delay the generator
    sys.stdout.write(json.dumps(uvloop.run(run(plan, [Path(path).read_bytes() for path in plan.requests]))) + "\n")


if __name__ == "__main__":
    main()
