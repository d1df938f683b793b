"""Tests of the benchmarks: one short run on the demo model, and the tables of results."""

import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.bench import busy, machine, pictures, words
from tests.bench.environments import Environment, Unavailable, installed
from tests.bench.models import SIZES
from tests.bench.peers import PEERS
from tests.bench.places import PAGE
from tests.bench.report import BEGIN, END, around_results, markdown, write_page
from tests.bench.server import MemoryWatch, Server, group, running
from tests.bench.wanted import rows
from tests.support.places import ROOT
from tests.support.ports import free_port
from tests.support.waiting import wait_until

NAME = "anyclass vit-b-32 fp32 auto"
NUMERICS = {"provider": "openvino", "precision": "bf16"}


def results(**suites: Any) -> dict[str, Any]:
    """Return the results of a run of these parts."""
    return {
        "date": "2026-11-24",
        "machine": {
            "processor": "A Processor",
            "instruction_sets": ["avx2"],
            "cores": 2,
            "cores_usable": 2,
            "memory_gib": 8.0,
            "system": "Linux",
            "python": "3.12",
            "packages": {"numpy": "2"},
        },
        "effort": {"rounds": 3, "seconds": 8.0, "minutes": 2.0},
        "gpu": False,
        "subjects": [NAME],
        "models": ["vit-b-32"],
        "suites": suites,
        "skipped": {},
    }


def load_run(rate_rps: float, p50_s: float = 0.1) -> dict[str, Any]:
    """Return the report of one run of the generator."""
    return {
        "offered_rps": rate_rps,
        "rate_rps": rate_rps,
        "latency_s": {"p50": p50_s, "p99": 2 * p50_s},
        "lateness_s": {"p99": 0.001},
        "failed": {"429": 2},
        "unanswered": 1,
        "cpu_share": 0.015,
        "gpu": None,
    }


def serve() -> dict[str, Any]:
    """Return a serve part: the service is six times as fast as infinity, and reaches 0.8 of the bare loop."""
    own = {"1": [load_run(20, 0.05)], "32": [load_run(120), load_run(60), load_run(600)]}
    return {
        "targets": {
            NAME: {"closed": own, "open": {"0.5": [load_run(60)]}},
            "infinity": {"closed": {"1": [load_run(10)], "32": [load_run(20)]}, "open": {}},
        },
        "bare": {NAME: [{**NUMERICS, "loop": {"rate_ips": 150.0}, "single": {"median_s": 0.04}}]},
        "peers": {"infinity": {"what": "a server", "versions": {"infinity-emb": "0.0.78"}}},
    }


def test_what_is_wanted_is_held_against_medians_of_the_same_run() -> None:
    """Ratios use medians of the rounds and have lower and upper bounds; parts that were not run have no verdict."""
    found = {row.what: row for row in rows(results(serve=serve()))}
    infinity = found["requests/s at 32 clients, over infinity's"]
    assert (6.0, "6×", True) == (infinity.measured, infinity.shown, infinity.met)
    bare = found["requests/s at 32 clients, of the bare loop's"]
    assert (0.8, False) == (bare.measured, bare.met)
    single = found["one request at a time, over decode + engine"]
    assert "≤ 1.25×" == single.wanted
    assert pytest.approx(1.25) == single.measured
    start = found["start to ready, demo"]
    assert (None, "not measured", None) == (start.measured, start.shown, start.met)


def test_every_wanted_figure_is_found_in_a_whole_run() -> None:
    """With all parts, every row has a figure."""
    gib = 2**30
    suites = {
        "serve": serve(),
        "limit": {
            "matrix": {"float32": 500.0, "bfloat16": 2_000.0},
            "encoders": {NAME: {"encoder": {"rate_ips": {"32": 150.0}}, **NUMERICS}},
        },
        "labels": {
            "cached": {"anyclass demo": {"extra_s": 0.0005}},
            "cold": {"labels_ps": 1_200.0, "padded_fp32_tps": 40.0},
            "redis": {"median_s": 0.008},
        },
        "overhead": {"JSON": {"median_s": 0.0009}, "form": {"median_s": 0.001}},
        "decode": {"4032x3024": {"exact": 0.16, "fast": 0.04}},
        "start": {"anyclass demo fp16-stored auto": {"median_s": 1.5}, NAME: {"median_s": 5.0}},
        "memory": {NAME: {"peak_bytes": 1.4 * gib, "late_growth_bytes": 0}},
    }
    found = rows(results(**suites))
    assert [] == [row.what for row in found if row.measured is None]
    assert {"requests/s at 32 clients, of the bare loop's"} == {row.what for row in found if not row.met}


def test_the_page_keeps_its_prose_and_gets_the_results(tmp_path: Path) -> None:
    """Only the text between the marks changes, writing again changes nothing, and skipped parts state the reason."""
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    found = results(serve=serve()) | {"skipped": {"litserve": "pip install litserve failed: no network"}}
    for _ in range(2):
        write_page(page, found, [tmp_path / "images/bench-capacity.png"])
    text = page.read_text()
    assert text.startswith(f"before\n{BEGIN}\n\nMeasured on 2026-11-24: 2 cores of A Processor; with avx2; 8.0 GiB")
    assert text.endswith(f"\n{END}\nafter\n")
    assert "old" not in text
    assert "| infinity | 32 | 20.0 | 100.0 | 200.0 | 3 | 1.5 | – |" in text
    assert "![bench capacity](images/bench-capacity.png)" in text
    assert f"- `{NAME}` computed on openvino, bf16.\n- `infinity`: a server (infinity-emb 0.0.78).\n" in text
    assert "- Left out: litserve, because pip install litserve failed: no network\n" in text


def test_a_page_without_a_place_for_results_is_refused(tmp_path: Path) -> None:
    """The page in docs/ has the marks; a page without them is refused by name."""
    around_results(PAGE)
    (tmp_path / "page.md").write_text("prose")
    with pytest.raises(ValueError, match=r"page\.md has no place for results"):
        around_results(tmp_path / "page.md")


def test_parts_that_were_not_run_have_no_table() -> None:
    """Without any part, only the table of targets remains."""
    assert 1 == markdown(results()).count("###")


def test_the_projects_own_targets_follow_the_comparison() -> None:
    """Readers come for the comparison with other servers; a missed target above it reads like a failure."""
    suites = {"start": {"demo": {"median_s": 1.0, "ready_s": [1.0]}}}
    heads = re.findall(r"^### (.+)$", markdown(results(**suites)), re.MULTILINE)
    assert ["Start to ready", "The project's own targets"] == heads


def test_the_machine_is_described_without_its_name() -> None:
    """Processor, cores, memory and versions are described, the host's name never."""
    found = machine.describe()
    assert found["cores_usable"] >= 1
    assert found["memory_gib"] > 0
    assert "numpy" in found["packages"]
    values = {str(value) for value in found.values()}
    assert platform.node() not in values


def test_busy_figures_of_a_gpu_are_medians() -> None:
    """A line cut off by the end is not a sample; without samples the figures are None."""
    lines = "95, 10240, 300.5\n99, 11000, 310.5\n1, 9000, 100\n[N/A], 1, 2\n97, 11"
    assert {"busy_percent": 95, "memory_mib_peak": 11_000, "power_w": 300.5, "samples": 3} == busy.parse(lines)
    assert busy.parse("") is None


def test_a_machine_without_a_gpu_has_no_busy_figures(tmp_path: Path) -> None:
    """Without nvidia-smi nothing runs; with it, its lines are read."""
    with busy.GpuWatch(program=str(tmp_path / "nvidia-smi")) as absent:
        pass
    assert absent.figures is None
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho '50, 100, 70'\n")
    program.chmod(0o755)
    with busy.GpuWatch(program=str(program)) as watch:
        assert watch._process is not None
        watch._process.wait(10)
    assert {"busy_percent": 50, "memory_mib_peak": 100, "power_w": 70, "samples": 1} == watch.figures


def test_an_environment_that_cannot_be_made_says_why_and_is_tried_again(tmp_path: Path) -> None:
    """The last line of pip is the reason of a failure; an existing environment is reused."""
    missing = Environment("missing", (("--no-index", "anyclass-peer-that-is-not-there"),), tmp_path)
    with pytest.raises(Unavailable, match=r"pip install .* failed: .*anyclass-peer-that-is-not-there"):
        missing.make()
    empty = Environment("missing", (), tmp_path)
    python = empty.make()
    assert {} == installed(python, ["numpy"])
    (tmp_path / "missing/untouched").touch()
    assert python == empty.make()
    assert (tmp_path / "missing/untouched").exists()


def test_versions_are_those_of_the_environment() -> None:
    """A package that is not installed has no version."""
    assert ["numpy"] == list(installed(Path(sys.executable), ["numpy", "anyclass-peer-that-is-not-there"]))


def test_a_server_that_does_not_start_says_why() -> None:
    """The reason is the end of its log."""
    command = [sys.executable, "-c", "raise SystemExit('no such model')"]
    with (
        pytest.raises(Unavailable, match="broken-server ended with 1: no such model"),
        running("broken-server", command, free_port(), ready="/"),
    ):
        pass


def test_a_frozen_server_does_nothing_and_its_whole_group_ends() -> None:
    """Freezing stops all processes, memory counts them all, and stopping ends them all."""
    child = "import time; time.sleep(60)"
    parent = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {child!r}]).wait()"
    server = Server("group", [sys.executable, "-c", parent], free_port())
    try:
        with MemoryWatch(server, every_s=0.01) as watch:
            # Until the child runs its own program, its parent waits for it and stops for no signal.
            wait_until(lambda: any(_command(pid).endswith(child) for pid in group(server.pid)))
        server.freeze()
        wait_until(lambda: {"T"} == {_state(pid) for pid in group(server.pid)})
        server.thaw()
        assert server.memory_bytes() > 2 * 2**20
        assert watch.samples[-1][1] > 0
    finally:
        server.stop()
    assert [] == group(server.pid)


def _command(pid: int) -> str:
    """Return the last argument of a process, or nothing if it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text("utf-8").rstrip("\0").rpartition("\0")[2]
    except OSError:
        return ""


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_peers_differ_in_name_and_environment() -> None:
    """Names are options and folders."""
    assert len(PEERS) == len({peer.name for peer in PEERS}) == len({peer.environment.name for peer in PEERS})


def test_pictures_are_of_their_size_and_all_different() -> None:
    """Pictures are the same each time."""
    found = pictures.jpegs(12)
    assert 12 == len(set(found))
    assert found[:2] == pictures.jpegs(2)


def test_labels_do_not_repeat() -> None:
    """Sets from different starts do not overlap, and the labels end."""
    assert 2_000 == len({*words.labels(1_000), *words.labels(1_000, start=1_000)})
    with pytest.raises(ValueError, match="only 4160 labels"):
        words.labels(1_000, start=4_000)


def test_operations_of_an_image_are_those_of_the_published_towers() -> None:
    """ViT-B/32 takes 4.4 billion multiplications and additions, ViT-L/14 81 (open_clip's table of profiles)."""
    assert pytest.approx(8.8, abs=0.1) == SIZES["vit-b-32"].image_gflop
    assert pytest.approx(162, abs=2) == SIZES["vit-l-14"].image_gflop


def test_a_quick_run_on_the_demo_model(tmp_path: Path) -> None:
    """One command starts the service, loads it, and writes results, page and plots; the options are those of a GPU."""
    page = tmp_path / "docs" / "page.md"
    page.parent.mkdir()
    page.write_text(f"{BEGIN}\n{END}\n")
    command = [sys.executable, "-m", "tests.bench.run", "--gpu", "--python", sys.executable, "--providers", "cpu"]
    command += ["--models", "demo", "--quick", "--only", "serve,memory", "--seconds", "0.1", "--minutes", "0.01"]
    command += ["--out", str(tmp_path / "results.json"), "--page", str(page)]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "BENCH_WORK": str(tmp_path)}, capture_output=True, text=True, check=False
    )
    assert 0 == done.returncode, done.stderr
    found = json.loads((tmp_path / "results.json").read_text())
    assert {} == found["skipped"]
    [name] = found["subjects"]
    [(target, runs)] = found["suites"]["serve"]["targets"].items()
    assert name == target
    assert {"1", "8", "32"} == set(runs["closed"])
    for clients, [run, *_] in [*runs["closed"].items(), *runs["open"].items()]:
        assert (clients, {}, 0) == (clients, run["failed"], run["unanswered"]), run
        assert run["memory_bytes"] > 0
    assert f"| {name} | 32 | " in page.read_text()
    assert (page.parent / "images/bench-capacity.png").read_bytes().startswith(b"\x89PNG")
    assert found["gpu"]


def test_a_quick_run_of_lanes_and_overhead(tmp_path: Path) -> None:
    """Single requests are also answered during a batch, and the parts of a request's processor time add up."""
    command = [sys.executable, "-m", "tests.bench.run", "--providers", "cpu", "--models", "demo", "--peers", "none"]
    command += ["--quick", "--only", "lanes,overhead", "--seconds", "0.3", "--out", str(tmp_path / "results.json")]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "BENCH_WORK": str(tmp_path)}, capture_output=True, text=True, check=False
    )
    assert 0 == done.returncode, done.stderr
    found = json.loads((tmp_path / "results.json").read_text())
    assert {} == found["skipped"]
    [lanes] = found["suites"]["lanes"].values()
    [run] = lanes["runs"]
    assert run["alone"]["answered"] > 0
    assert run["beside"]["answered"] > 0
    assert run["beside"]["batch_images_per_s"] > 0
    assert 0 == run["beside"]["errors"]
    assert {"picture as the body", "JSON", "form"} == set(found["suites"]["overhead"])
    for form in found["suites"]["overhead"].values():
        [cpu, decode, encode, rest] = (form[part][0] for part in ("cpu_s", "decode_s", "encode_s", "rest_s"))
        assert pytest.approx(cpu) == decode + encode + rest
        assert cpu > rest > 0
    for title in ("Single requests beside a batch request", "to a model that computes next to nothing"):
        assert title in done.stdout
