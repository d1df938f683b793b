"""Tests of the load generator against real servers that stall, refuse and hang up."""

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from tests.bench.load import Plan, Sample, report, run, schedule
from tests.bench.summary import percentiles
from tests.bench.wire import post

PAYLOAD = post("/v1/classify", "image/jpeg", b"a picture")

Answer = Callable[[int], int | None]
"""Maps the number of a request to its status, or to None to hang up; may block."""


@contextmanager
def server(answer: Answer) -> Iterator[int]:
    """Serve one request at a time on a free port; yield the port. Connections stay open."""
    one_at_a_time = threading.Lock()
    numbers = itertools.count()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            assert b"a picture" == self.rfile.read(int(self.headers["Content-Length"]))
            with one_at_a_time:
                status = answer(next(numbers))
            if status is None:
                self.close_connection = True
                return
            self.send_response(status)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"ok")

        def log_message(self, *_: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 64

        def handle_error(self, *_: Any) -> None:
            """Ignore that the generator has gone."""

    with Server(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield http.server_address[1]
        finally:
            http.shutdown()
            thread.join()


async def test_a_stall_shows_in_the_latency_of_all_that_was_meant_to_be_sent_meanwhile() -> None:
    """A server that stops for half a second delays every request scheduled in that time, not only one."""

    def stalls_once(number: int) -> int:
        if number == 3:
            time.sleep(0.5)
        return 200

    plan = Plan("open", 0, (), seconds=0.6, connections=4, rate=100, seed=1)
    with server(stalls_once) as port:
        plan = Plan(**{**vars(plan), "port": port})
        found = await run(plan, [PAYLOAD])
    assert len(schedule(plan, 0.0)) == found["answered"]
    assert 0 == found["unanswered"]
    # The stall takes most of the 0.6 s, and half of the requests waited for much of it.
    assert found["latency_s"]["max"] >= 0.5
    assert found["latency_s"]["p50"] >= 0.1


async def test_being_late_is_reported_and_part_of_the_latency() -> None:
    """With too few connections requests are sent late: the report says so, and latency counts from the schedule."""

    def slow(_: int) -> int:
        time.sleep(0.02)
        return 200

    with server(slow) as port:
        found = await run(Plan("open", port, (), seconds=0.2, connections=1, rate=200, seed=2), [PAYLOAD])
    # About 40 requests of 20 ms each, scheduled in the first 200 ms.
    assert found["lateness_s"]["max"] >= 0.2
    assert found["latency_s"]["max"] >= found["lateness_s"]["max"]
    assert found["service_s"]["p50"] < found["latency_s"]["p50"]


async def test_the_closed_loop_has_so_many_requests_under_way_and_no_more() -> None:
    """Each client waits for its answer before the next request; the rate is answers over their time."""
    under_way, most = 0, 0
    lock = threading.Lock()

    def counts(_: int) -> int:
        nonlocal under_way, most
        with lock:
            under_way += 1
            most = max(most, under_way)
        time.sleep(0.01)
        with lock:
            under_way -= 1
        return 200

    with server(counts) as port:
        found = await run(Plan("closed", port, (), seconds=0.3, connections=3), [PAYLOAD])
    assert 1 == most  # the server takes one at a time
    assert found["answered"] >= 3
    assert found["rate_rps"] <= 100  # 10 ms each
    # Two others are always ahead in the queue.
    assert found["latency_s"]["p50"] >= 0.025
    assert 0 <= found["cpu_share"] <= 1.5


async def test_refusals_are_counted_and_have_no_latency() -> None:
    """An answer with a status other than 200 counts under that status only."""
    with server(lambda number: 429 if number % 2 else 200) as port:
        found = await run(Plan("open", port, (), seconds=0.3, connections=8, rate=100, seed=3), [PAYLOAD])
    sent = len(schedule(Plan("open", 0, (), 0.3, rate=100, seed=3), 0.0))
    assert (sent - sent // 2, {"429": sent // 2}) == (found["answered"], found["failed"])


async def test_a_server_that_hangs_up_costs_its_request_only() -> None:
    """A lost connection is opened again; its request is reported as unanswered."""
    with server(lambda number: None if number % 5 == 4 else 200) as port:
        found = await run(Plan("open", port, (), seconds=0.4, connections=2, rate=100, seed=4), [PAYLOAD])
    sent = len(schedule(Plan("open", 0, (), 0.4, rate=100, seed=4), 0.0))
    assert (sent - sent // 5, sent // 5) == (found["answered"], found["unanswered"])


async def test_what_is_not_answered_in_time_is_unanswered() -> None:
    """Waiting ends, for an answer and for a free connection."""
    over = threading.Event()
    with server(lambda _: 200 if over.wait(10) else 500) as port:
        try:
            plan = Plan("open", port, (), seconds=0.1, connections=2, rate=100, seed=5, patience_s=0.1)
            found = await run(plan, [PAYLOAD])
        finally:
            over.set()
    assert (0, len(schedule(plan, 0.0)), {}) == (found["answered"], found["unanswered"], found["latency_s"])


def test_figures_of_known_samples() -> None:
    """Latency counts from the scheduled time, service from the sending; the rate ends with the last answer."""
    samples = [
        Sample(intended=10.0, sent=10.0, answered=10.5, status=200),
        Sample(intended=10.2, sent=10.5, answered=11.0, status=200),
        Sample(intended=10.4, sent=10.4, answered=10.41, status=503),
        Sample(intended=10.6, sent=10.6),
    ]
    found = report(Plan("open", 0, (), seconds=2.0, rate=2.0), samples, started=10.0, unsent=1)
    assert pytest.approx(2.5) == found["offered_rps"]
    assert pytest.approx(2.0) == found["rate_rps"]
    assert ({"503": 1}, 2) == (found["failed"], found["unanswered"])
    assert pytest.approx((0.5, 0.8)) == (found["latency_s"]["p50"], found["latency_s"]["max"])
    assert pytest.approx(0.5) == found["service_s"]["max"]
    assert pytest.approx(0.3) == found["lateness_s"]["max"]


def test_a_schedule_is_the_same_for_a_seed_and_keeps_the_rate() -> None:
    """Arrivals are ordered, within the time, of the given average rate, and not evenly spaced."""
    plan = Plan("open", 0, (), seconds=100.0, rate=50.0, seed=7)
    moments = schedule(plan, 1_000.0)
    assert moments == schedule(plan, 1_000.0) == sorted(moments)
    assert 1_000.0 < moments[0] <= moments[-1] < 1_100.0
    assert 0.95 < len(moments) / 5_000 < 1.05
    gaps = [after - before for before, after in itertools.pairwise(moments)]
    assert max(gaps) > 3 / 50 > 1 / 150 > min(gaps)


def test_percentiles_are_values_that_occurred() -> None:
    """Percentiles use the nearest rank: the 99th of a hundred values is p99; one value is every percentile."""
    found = percentiles([float(value) for value in range(100, 0, -1)])
    assert {"mean": 50.5, "max": 100, "p50": 50, "p90": 90, "p95": 95, "p99": 99} == found
    assert {1.5} == set(percentiles([1.5]).values())
    assert {} == percentiles([])
