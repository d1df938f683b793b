"""Tests of the driver on a cluster of three processes of Ray on this machine; it is started once."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from model_export.curation.run import Curation, curate
from model_export.drivers.driver import Driver
from model_export.drivers.local import LocalDriver
from model_export.drivers.ray_actor import Setting, versions
from model_export.drivers.ray_data import RayDriver
from model_export.errors import DataError, DriverError
from service.model.manifest import DEMO_BUNDLE
from tests.model_export.test_cli import error_of, in_this_process
from tests.support.curating import SMALL, Without, content_of, quiet, write_texts
from tests.support.places import ROOT
from tests.support.ray_cluster import RayCluster, ray_cluster
from tests.support.waiting import wait_until
from tests.support.whole_recipe import encoded, write_whole_recipe

pytestmark = [pytest.mark.timeout(600), pytest.mark.filterwarnings(r"ignore:::ray(\.|$)")]

ROWS = {"b.parquet": 130, "a.parquet": 45, "c.parquet": 300}
STAGES = (Without("IMG"), Without("sky", name="without sky"))
Curating = Callable[[Path, Path], "subprocess.Popen[str]"]
KILLS = int(os.environ.get("KILLS", "3"))
RUN = "import sys; from tests.support.curating import main; main(*sys.argv[1:])"
"""Other processes do not find what the main module defines."""
PATIENCE_S = 240.0
"""Processes of Ray start one after another, which takes long on a busy machine."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    """Start a cluster of two nodes."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("PYTHONPATH", str(ROOT))
        with ray_cluster() as started:
            yield started


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Write three files."""
    write_texts(tmp_path / "data", ROWS)
    return tmp_path / "data"


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a recipe with every stage, its data in two files, and a query list."""
    folder = tmp_path_factory.mktemp("raw")
    write_whole_recipe(folder, files=2)
    (folder / "words.txt").write_text("my dog\nmy\nmy cat\nhouse\nthe boat\nin the\n")
    return folder


def curated(data: Path, out: Path, driver: Driver) -> dict[str, bytes]:
    """Curate, and return the data set."""
    with quiet() as progress:
        curate(Curation([str(data)], STAGES, out, sizes=SMALL, driver=driver), progress)
    return content_of(out)


@pytest.fixture
def curating(cluster: RayCluster) -> Iterator[Curating]:
    """Return a function that starts a slow curation on the cluster as a process of its own."""
    started: list[subprocess.Popen[str]] = []

    def start(data: Path, out: Path) -> "subprocess.Popen[str]":
        started.append(
            subprocess.Popen(
                [sys.executable, "-c", RUN, data, out, "2", "0.2", cluster.address],
                cwd=ROOT,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()
        if process.stdout:
            process.stdout.close()


def shards(out: Path) -> int:
    """Return the number of finished shards."""
    return len(list(out.glob("records/0*.json")))


def after_a_shard(out: Path, process: "subprocess.Popen[str]") -> None:
    """Wait until a further shard is finished."""
    done = shards(out)
    wait_until(lambda: shards(out) > done or process.poll() is not None, within_s=PATIENCE_S)
    assert process.poll() is None, process.communicate()[0]


def square(number: int) -> int:
    """Return the square of a number; refuse 13, fail at 14."""
    if number == 13:
        raise DataError("13: brings bad luck; name another number")
    if number == 14:
        raise ValueError(number)
    return number * number


def killed(number: int) -> int:
    """End the process, unless the number is odd."""
    if number % 2 == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def test_bytes_are_the_same_on_a_cluster(
    data: Path, tmp_path: Path, cluster: RayCluster, capfd: pytest.CaptureFixture[str]
) -> None:
    """For 1, 2 and 8 workers as in this process; Ray writes nothing on the terminal."""
    wanted = curated(data, tmp_path / "here", LocalDriver())

    assert 10 < len(wanted)
    for workers in (1, 2, 8):
        with RayDriver(workers, cluster.address) as driver:
            assert wanted == curated(data, tmp_path / f"{workers}", driver)
        assert not list((tmp_path / f"{workers}").rglob(".*.partial"))
    assert ("", "") == capfd.readouterr()


@pytest.mark.long
@pytest.mark.timeout(max(600, 180 * KILLS))
def test_nothing_is_lost_or_doubled_by_kills_of_driver_worker_and_node(
    tmp_path: Path, cluster: RayCluster, curating: Curating
) -> None:
    """Killed with -9 in turn, each after a further shard; a killed driver's command is given again."""
    data, out = tmp_path / "data", tmp_path / "out"
    write_texts(data, {"a.parquet": 130, "b.parquet": 600 * KILLS})
    wanted = curated(data, tmp_path / "here", LocalDriver())
    process = curating(data, out)

    for kill in range(KILLS):
        after_a_shard(out, process)
        victim = ("worker", "node", "driver")[kill % 3]
        if victim == "worker":
            wait_until(lambda: len(cluster.workers()) > 0, within_s=PATIENCE_S)
            os.kill(cluster.workers()[0], signal.SIGKILL)
        elif victim == "node":
            cluster.kill_node()
        else:
            process.kill()
            process.communicate()
            process = curating(data, out)
        assert process.poll() is None, "it ended before the kill"
    after_a_shard(out, process)
    assert shards(out) < shards(tmp_path / "here"), "too little was left to do"
    process.kill()
    process.communicate()

    with RayDriver(2, cluster.address) as driver:
        assert wanted == curated(data, out, driver)
    assert not list(out.rglob("*.partial"))


def test_sigterm_ends_it_within_seconds(data: Path, tmp_path: Path, curating: Curating) -> None:
    """Without a traceback."""
    process = curating(data, tmp_path / "out")
    after_a_shard(tmp_path / "out", process)
    began = time.monotonic()
    process.terminate()

    assert "" == process.communicate()[0]
    assert 128 + signal.SIGTERM == process.returncode
    assert time.monotonic() - began < 30


def test_results_and_errors_come_out_as_from_this_machine(cluster: RayCluster) -> None:
    """An error of ours as it is, any other with the place where it was raised."""
    with RayDriver(2, cluster.address) as driver:
        assert {number * number for number in range(5)} == set(driver.run(square, range(5)))
        with pytest.raises(DataError, match=r"^13: brings bad luck; name another number$"):
            list(driver.run(square, [13, 1]))
        with pytest.raises(ValueError, match="14") as caught:
            list(driver.run(square, [1, 14]))
    assert "in square" in caught.value.__notes__[0]
    assert [0, 1] == sorted(RayDriver().run(square, [0, 1], threads=True)), "few tasks for threads need no cluster"


@pytest.mark.long
def test_a_task_that_kills_its_process_again_and_again_ends_the_run(cluster: RayCluster) -> None:
    """The message names it."""
    with (
        RayDriver(2, cluster.address, most_attempts=2) as driver,
        pytest.raises(DriverError, match=r"number 4: the process was killed 2 times; .* fewer --workers"),
    ):
        list(driver.run(killed, [1, 4, 3], name=lambda number: f"number {number}"))


def test_a_node_that_does_not_see_the_folder_is_refused(tmp_path: Path, cluster: RayCluster) -> None:
    """Before any task; the message names node and folder."""
    with RayDriver(1, cluster.address, seen_within_s=0.2) as driver:
        driver.check_folder(tmp_path)
        [(path, _)] = driver._tokens
        Path(path).write_text("of another disk")

        with pytest.raises(DriverError, match=rf"node 127\.0\.0\.1 does not see the folder {tmp_path} of the machine"):
            driver.check_folder(tmp_path)
        with pytest.raises(DriverError, match=r"does not see the folder"):
            list(driver.run(square, [1]))
    assert not list(tmp_path.iterdir())


def test_a_node_with_other_packages_is_refused() -> None:
    """They may write other bytes."""
    setting = Setting("/", (), versions() | {"pyarrow": "1.0"}, 0)

    assert "has pyarrow" in (setting.problem() or "")
    assert Setting("/", (), versions(), 0).problem() is None


def same_files(cluster: RayCluster, *command: object, out: Path, name: str = "") -> set[str]:
    """Run a command on this machine and on the cluster, compare every file of theirs, and return the files' names.

    Args:
        cluster: for the second run.
        command: without ``--out``.
        out: folder for the outputs of both.
        name: of a file, if ``--out`` names one.
    """
    found = []
    for place, driver in (("here", ()), ("ray", ("--driver", "ray", "--ray-address", cluster.address))):
        done = in_this_process(*command, "--out", out / place / name, *driver)
        assert 0 == done.returncode, done.stderr
        found.append({str(file.relative_to(out / place)): file.read_bytes() for file in results(out / place)})
    assert found[0] == found[1]
    return set(found[0])


def results(folder: Path) -> Iterator[Path]:
    """Yield files that are the same wherever they were made: all but those with times and places of the inputs."""
    for path in folder.rglob("*"):
        if path.suffix in {".parquet", ".tsv"} or path.name == "dataset.json" or path.match("records/0*.json"):
            yield path


def test_commands_run_on_a_cluster(raw: Path, tmp_path: Path, cluster: RayCluster) -> None:
    """The data set is that of the command without --driver."""
    made = same_files(cluster, "curate", "filter", raw / "raw", "--images", "--shorter-side", 16, out=tmp_path)

    assert {"00000.parquet", "00001.parquet", "records/00001.json", "dataset.json"} <= made


@pytest.mark.long
def test_a_whole_recipe_runs_on_a_cluster(raw: Path, tmp_path: Path, cluster: RayCluster) -> None:
    """Every stage, their signatures and counts; and it is verified there."""
    made = same_files(cluster, "curate", "run", raw / "recipe.toml", out=tmp_path)

    assert {"00001.parquet", "records/queries.tsv", "records/counts.parquet"} <= made
    assert any(name.startswith("records/signatures/") for name in made)
    stages = json.loads((tmp_path / "ray/dataset.json").read_text())["stages"]
    assert ["read", "match", "filter text", "filter images", "dedup", "balance"] == [each["name"] for each in stages]
    assert all(each["dropped"] for each in stages[-2:]), "copies, and pairs over the cap"
    verify = ("curate", "verify", tmp_path / "ray")
    verified = in_this_process(*verify, "--driver", "ray", "--ray-address", cluster.address)
    assert 0 == verified.returncode, verified.stdout + verified.stderr
    assert "2 shards follow from their inputs" in " ".join(verified.stdout.split())


@pytest.mark.long
def test_a_balance_runs_on_a_cluster(raw: Path, tmp_path: Path, cluster: RayCluster) -> None:
    """Some queries are above the cap, so that every pass runs."""
    queries = ("--queries", raw / "words.txt")
    in_this_process("curate", "match", raw / "raw", *queries, "--out", tmp_path / "matched")
    balance = ("curate", "balance", tmp_path / "matched", *queries, "--most", 3)

    assert {"00001.parquet", "records/counts.parquet"} <= same_files(cluster, *balance, out=tmp_path / "balanced")
    [_, stage] = json.loads((tmp_path / "balanced/ray/dataset.json").read_text())["stages"]
    assert stage["dropped"]["over cap"] > 0


@pytest.mark.long
def test_a_query_list_is_made_on_a_cluster(raw: Path, tmp_path: Path, cluster: RayCluster) -> None:
    """Of texts and titles; its folder is made too."""
    sources = ("--text", raw / "dump.txt", "--text", raw / "raw/0.parquet", "--titles", raw / "views.tsv")
    queries = ("curate", "queries", *sources, "--least", 2, "--least-pmi", 0, "--least-views", 10)

    assert {"queries.tsv"} == same_files(cluster, *queries, out=tmp_path, name="queries.tsv")
    assert ["queries.tsv"] == [path.name for path in (tmp_path / "ray").iterdir()], "the counts are gone"


@pytest.mark.long
def test_folders_of_pictures_are_embedded_on_a_cluster(raw: Path, tmp_path: Path, cluster: RayCluster) -> None:
    """Each folder is a shard; the vectors have the same bits."""
    folders = tmp_path / "a", tmp_path / "b"
    for at, folder in enumerate(folders):
        (folder / "below").mkdir(parents=True)
        for seed in range(3):
            (folder / "below" / f"{seed}.jpg").write_bytes(encoded(3 * at + seed))
    (folders[0] / "broken.png").write_bytes(b"none")
    embed = ("embed", *folders, "--bundle", DEMO_BUNDLE, "--provider", "cpu")

    assert {"00000.parquet", "00001.parquet"} <= same_files(cluster, *embed, out=tmp_path)


def test_an_address_without_ray_is_refused(data: Path, tmp_path: Path) -> None:
    """One line names it."""
    line = error_of(
        in_this_process("curate", "filter", data, "--out", tmp_path / "out", "--ray-address", "127.0.0.1:1")
    )

    assert "error: --ray-address needs --driver ray" == line


def test_without_ray_the_message_says_what_to_install(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It names the extra."""
    monkeypatch.setitem(sys.modules, "ray", None)
    done = in_this_process("curate", "filter", data, "--out", tmp_path / "out", "--driver", "ray")

    assert "ray is not installed; this needs the extra scale:" in error_of(done, 3)
