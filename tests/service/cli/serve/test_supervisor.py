"""Worker processes on one port, started and stopped as by an operator."""

import asyncio
import contextlib
import io
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import Pipe
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import httpx
import pytest
from PIL import Image
from prometheus_client import Gauge
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from service.api.services import Services
from service.app import create_app
from service.cli.serve.server import EXIT_CUT_SHORT, EXIT_OK, EXIT_REFUSED, bind
from service.cli.serve.supervisor import Supervisor, _WorkerProcess, check_workers, share_of
from service.cli.serve.worker import STOP, Worker
from service.errors import ConfigurationError
from service.inference.registry import ModelRegistry
from service.monitoring.metrics import Metrics
from service.settings import Settings
from tests.support.http_server import HttpServer, http_server
from tests.support.tiny_bundle import write_tiny_bundle
from tests.support.waiting import wait_until

TIMEOUT_S = 60.0
TWO = {"ANYCLASS_WORKERS": "2"}


def _red() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(buffer, "PNG")
    return buffer.getvalue()


RED = _red()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that loads quickly."""
    return write_tiny_bundle(tmp_path_factory.mktemp("workers") / "bundle")


@pytest.fixture(scope="module")
def server(bundle: Path) -> Iterator[HttpServer]:
    """Two processes, both ready."""
    with http_server(bundle, bundle.parent, env=TWO) as running:
        wait_until(lambda: len(pids(running)) == 2)
        yield running


def pids(server: HttpServer) -> list[tuple[int, int]]:
    """Return number and process id of each ready worker, in the order of readiness."""
    return [(line["worker"], line["pid"]) for line in server.logs() if line["event"] == "worker ready"]


def classify(server: HttpServer) -> int:
    """Send a request on a new connection, and return the status."""
    form: dict[str, Any] = {"files": {"image": ("red.png", RED)}, "data": {"labels": ["red", "blue"]}}
    return httpx.post(f"{server.url}/v1/classify", **form, timeout=TIMEOUT_S).status_code


def answering_workers(server: HttpServer) -> set[int]:
    """Return the numbers of the workers that have answered a request."""
    return {line["worker"] for line in server.logs() if line["event"] == "request"}


def of_each_process(server: HttpServer, name: str) -> dict[str, float]:
    """Return a `process_…` figure by worker; each worker must be present once."""
    families = text_string_to_metric_families(httpx.get(f"{server.url}/metrics").text)
    samples = [sample for family in families for sample in family.samples if sample.name == name]
    assert [{"worker"}] * len(samples) == [set(sample.labels) for sample in samples]
    assert len({sample.labels["worker"] for sample in samples}) == len(samples)
    return {sample.labels["worker"]: sample.value for sample in samples}


def alive(pid: int) -> bool:
    """Return whether the process is running."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def metrics_of(server: HttpServer) -> dict[str, Metric]:
    """Return the metrics by name."""
    return {family.name: family for family in text_string_to_metric_families(httpx.get(f"{server.url}/metrics").text)}


def metrics_files(folder: Path) -> list[str]:
    """Return the names of the files in which the workers count."""
    return [path.name for path in folder.glob("anyclass-metrics-*/*") if path.suffix != ".lock"]


def requests_counted(families: dict[str, Metric]) -> list[float]:
    """Return the number of classify requests in each series."""
    samples = families["anyclass_http_requests"].samples
    return [sample.value for sample in samples if sample.labels["route"] == "/v1/classify"]


def test_every_process_answers_and_metrics_cover_all(server: HttpServer) -> None:
    """Connections reach each worker; the counts are one sum, whichever answers."""
    sent = 0

    def both_have_answered() -> bool:
        nonlocal sent
        with ThreadPoolExecutor(4) as pool:
            assert {200} == {answer.result() for answer in [pool.submit(classify, server) for _ in range(4)]}
        sent += 4
        return answering_workers(server) == {0, 1}

    wait_until(both_have_answered)
    wait_until(lambda: [sent] == requests_counted(metrics_of(server)))  # a request is counted after its answer
    for _ in range(4):
        families = metrics_of(server)
        assert [sent] == requests_counted(families)
        assert [1] == [sample.value for sample in families["anyclass_ready"].samples]
        assert [1] == [sample.value for sample in families["anyclass_model_info"].samples]
        assert not any("pid" in sample.labels for family in families.values() for sample in family.samples)


@pytest.mark.parametrize(
    "name",
    [
        "process_resident_memory_bytes",
        "process_cpu_seconds_total",
        "process_start_time_seconds",
        "process_open_fds",
        "process_max_fds",
    ],
)
def test_metrics_show_the_resources_of_each_process(server: HttpServer, name: str) -> None:
    """Memory, CPU time, start and open files of every worker are present, whichever answers."""
    for _ in range(4):
        figures = of_each_process(server, name)
        assert {"0", "1"} == set(figures)
        assert min(figures.values()) > 0


def test_resources_belong_to_the_numbered_process(server: HttpServer) -> None:
    """The start time of a worker number is that of the process with this number in the log."""
    boot = next(line for line in Path("/proc/stat").read_text().splitlines() if line.startswith("btime "))
    began = {
        str(number): int(boot.split()[1])
        + int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
        for number, pid in pids(server)
    }
    assert began == of_each_process(server, "process_start_time_seconds")


def test_a_process_that_dies_is_replaced_while_the_others_answer(bundle: Path, tmp_path: Path) -> None:
    """Its number returns with a later start in the metrics; no request on a new connection fails meanwhile.

    Its counts stay, and the folder of the metrics does not grow.
    """
    with http_server(bundle, tmp_path, env={**TWO, "TMPDIR": str(tmp_path)}) as server:
        wait_until(lambda: len(pids(server)) == 2)
        files = metrics_files(tmp_path)
        assert 200 == classify(server)
        wait_until(lambda: requests_counted(metrics_of(server)) != [])
        (counted,) = requests_counted(metrics_of(server))
        before = of_each_process(server, "process_start_time_seconds")
        (number, pid), _ = pids(server)
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not alive(pid))

        def replaced() -> bool:
            assert 200 == classify(server)
            return len(pids(server)) == 3

        wait_until(replaced)
        assert number == pids(server)[-1][0]
        (line,) = [line for line in server.logs() if line["level"] == "error"]
        assert ("a worker ended; it is restarted", number, -9) == (line["event"], line["worker"], line["exit_code"])
        after = of_each_process(server, "process_start_time_seconds")
        assert set(before) == set(after)
        assert {str(number)} == {worker for worker, start in after.items() if start > before[worker]}
        (later,) = requests_counted(metrics_of(server))
        assert later > counted
        assert len(files) + 2 == len(metrics_files(tmp_path))
        assert {"counter_ended.db", "histogram_ended.db"} <= set(metrics_files(tmp_path))
        assert 0 == server.stop()


def test_no_process_outlives_the_first(bundle: Path, tmp_path: Path) -> None:
    """The workers end even if the supervisor is killed, and the last of them deletes the metrics folder."""
    with http_server(bundle, tmp_path, env={**TWO, "TMPDIR": str(tmp_path)}) as server:
        wait_until(lambda: len(pids(server)) == 2)
        server.process.kill()
        wait_until(lambda: not any(alive(pid) for _, pid in pids(server)))
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{server.url}/livez")
        assert [] == list(tmp_path.glob("anyclass-metrics-*"))


def test_a_signal_to_all_of_them_stops_them_in_order(bundle: Path, tmp_path: Path) -> None:
    """As terminals and some service managers do; the metrics folder is deleted."""
    with http_server(bundle, tmp_path, env={**TWO, "TMPDIR": str(tmp_path)}) as server:
        wait_until(lambda: len(pids(server)) == 2)
        assert 1 == len(list(tmp_path.glob("anyclass-metrics-*")))
        for pid in (*(pid for _, pid in pids(server)), server.process.pid):
            os.kill(pid, signal.SIGTERM)
        assert 0 == server.wait()
        assert [] == list(tmp_path.glob("anyclass-metrics-*"))


def test_a_start_that_is_refused_is_refused_as_a_whole(tmp_path: Path) -> None:
    """Nothing is restarted; the exit code is that of a single process."""
    command = [sys.executable, "-m", "service", "serve", "--port", "0", "--workers", "2", "--model", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert EXIT_REFUSED == done.returncode
    assert "manifest.json" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_limit_that_several_processes_cannot_keep_is_refused() -> None:
    """Each would count alone; Redis or a single process keeps the limit."""
    with pytest.raises(ConfigurationError, match="ANYCLASS_RATE_LIMIT_PER_S with 2 workers needs ANYCLASS_REDIS_URL"):
        check_workers(Settings(workers=2, rate_limit_per_s=1))
    check_workers(Settings(workers=2, rate_limit_per_s=1, redis_url=cast("Any", "redis://cache")))
    check_workers(Settings(workers=1, rate_limit_per_s=1))
    command = [sys.executable, "-m", "service", "serve", "--port", "0", "--workers", "2"]
    env = {**os.environ, "ANYCLASS_RATE_LIMIT_PER_S": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False, env=env)
    assert (2, True) == (done.returncode, done.stderr.startswith("Error: ANYCLASS_RATE_LIMIT_PER_S"))


@pytest.mark.parametrize(("cpus", "threads"), [(8, 2), (4, 1), (2, 1)])
def test_processes_share_the_cpus(cpus: int, threads: int) -> None:
    """Each thread pool gets its share, at least one; a set size stays."""
    share = share_of(Settings(workers=4), cpus)
    assert (threads, threads) == (share.threads, share.decode_threads)
    assert (7, 5) == (
        share_of(Settings(workers=4, threads=7), cpus).threads,
        share_of(Settings(workers=4, decode_threads=5), cpus).decode_threads,
    )


def test_a_process_whose_device_is_lost_ends() -> None:
    """Other workers answer its `/livez`, so no probe would restart it."""
    _, pipe = Pipe()
    app = create_app(Settings())
    services: Services = app.state.services
    worker = Worker(app, Settings(), pipe)
    services.registry = cast("Any", SimpleNamespace(healthy=True))
    assert not asyncio.run(worker.on_tick(1))
    services.registry = cast("Any", SimpleNamespace(healthy=False))
    assert asyncio.run(worker.on_tick(2))
    assert EXIT_CUT_SHORT == worker.exit_code


def test_a_connection_that_another_process_was_faster_with_is_no_error() -> None:
    """One connection wakes every worker, and one gets it."""
    _, pipe = Pipe()
    worker = Worker(create_app(Settings()), Settings(), pipe)
    with contextlib.closing(bind("127.0.0.1", 0)) as listener:
        worker._accept(listener)
    assert set() == worker._connecting


def test_a_process_that_is_still_loading_leaves_connections_to_the_others(tmp_path: Path) -> None:
    """A worker stopped before its model is warm closes its port; a warm one takes the connection that waits there."""
    settings = Settings(model=write_tiny_bundle(tmp_path / "bundle"), provider="cpu")
    models = SlowToWarm.load(settings, Metrics())
    supervisor, pipe = Pipe()
    app = create_app(settings, models=models)
    worker = Worker(app, settings, pipe)
    with contextlib.closing(bind("127.0.0.1", 0)) as of_another, ThreadPoolExecutor(1) as pool:
        running = pool.submit(worker.run_on, of_another.dup())
        with socket.create_connection(of_another.getsockname()) as client:
            client.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
            supervisor.send(STOP)
            wait_until(lambda: app.state.services.lifecycle.stopping)
            models.gate.set()
            assert EXIT_OK == running.result(TIMEOUT_S)
            accepted, _ = of_another.accept()
            accepted.close()


class SlowToWarm(ModelRegistry):
    """A registry that becomes warm when its gate opens."""

    gate = threading.Event()

    def warm(self) -> None:
        """See `ModelRegistry`."""
        assert self.gate.wait(TIMEOUT_S)
        super().warm()


def test_a_stop_ends_processes_that_are_still_loading() -> None:
    """They cannot read commands yet, and would keep the port open; the others get the command alone."""
    with contextlib.closing(bind("127.0.0.1", 0)) as listener:
        supervisor = Supervisor(Settings(workers=2), listener)
        ends: dict[int, list[Any]] = {0: [], 1: []}
        pipes = []
        for number, told in ends.items():
            ours, theirs = Pipe()
            process = cast("Any", SimpleNamespace(terminate=lambda told=told: told.append("terminated")))
            supervisor._workers[number] = _WorkerProcess(number, process, ours, ready=number == 0)
            pipes.append(theirs)
        supervisor._end(STOP)
        assert [STOP, STOP] == [pipe.recv() for pipe in pipes]
    assert {0: [], 1: ["terminated"]} == ends


def test_every_gauge_says_how_processes_come_together() -> None:
    """A series for each process would grow with every restart, and a sum over ended processes would be wrong."""
    gauges = [metric for metric in vars(Metrics()).values() if isinstance(metric, Gauge)]
    assert gauges
    assert [] == [gauge._name for gauge in gauges if not gauge._multiprocess_mode.startswith("live")]
    assert not {"liveall"} & {gauge._multiprocess_mode for gauge in gauges}
