"""Tests of the benchmark of trainers: its arithmetic, its data, and that both trainers are asked for the same."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

from model_export.training.recipe import read_recipe
from tests.bench.train import Turn, cpu_ms, rate, ratios, row, sentence
from tests.bench.trainers import OURS, THEIRS, Case, arguments_of, recipe_of, tree
from tests.bench.training_data import captions
from tests.support.waiting import wait_until

CASE = Case("ViT-B-32", batch=32, processes=2, threads=4)


def test_figures_are_medians_of_the_turns() -> None:
    """Ratios are taken round by round: a disturbance concerns both trainers of a round."""
    ours = [Turn(4, 2.0, 3.0), Turn(4, 8.0, 3.2), Turn(3, 1.0, 2.4)]
    theirs = [Turn(2, 2.0, 3.0), Turn(2, 8.0, 3.0), Turn(1, 1.0, 1.4)]

    assert rate(ours, 32) == 64
    assert cpu_ms(ours, 32) == pytest.approx(25.0)
    assert ratios(ours, theirs) == [2, 2, 3]
    cells = row(CASE, {OURS: ours, THEIRS: theirs})
    assert cells[3:7] == ["64.0", "32.0", "2.00x", "2.00-3.00"]
    assert cells[-1] == ">= 1.2x: yes"
    assert row(CASE, {OURS: theirs, THEIRS: ours})[-1] == ">= 1.2x: no"
    assert sentence(CASE, {OURS: ours, THEIRS: theirs}) == "ViT-B-32-2: anyclass 64.0, open_clip 32.0 pairs/s, 2.00x"


def test_both_trainers_are_asked_for_the_same(tmp_path: Path) -> None:
    """A batch of open_clip's is one process's part; threads and loading processes are shared out."""
    data = tmp_path / "data"
    data.mkdir()
    for number in range(3):
        (data / f"{number:03}.tar").touch()
    path = tmp_path / "recipe.toml"
    path.write_text(recipe_of(CASE, data))
    recipe = read_recipe(path)
    given = arguments_of(CASE, data)
    options = dict(zip(given[::2], given[1::2], strict=False))

    assert options["--train-data"] == f"{data}/{{000..002}}.tar"
    assert int(options["--batch-size"]) * CASE.processes == recipe.optim.batch_size == 32
    assert int(options["--workers"]) == recipe.data.workers == 2
    assert options["--precision"] == f"amp_{recipe.optim.precision}"
    assert float(options["--lr"]) == recipe.optim.lr
    assert float(options["--wd"]) == recipe.optim.weight_decay
    assert (float(options["--beta1"]), float(options["--beta2"])) == recipe.optim.betas
    assert float(options["--eps"]) == recipe.optim.eps
    assert int(options["--warmup"]) == recipe.optim.warmup_steps
    assert CASE.environment == {"OMP_NUM_THREADS": "2"}
    assert tomllib.loads(path.read_text())["augment"]["crop_area"] == [0.9, 1.0]  # open_clip's default


def test_captions_are_as_long_as_those_of_web_pages() -> None:
    """Ten words in the middle, a tail up to the context; the same ones each time."""
    lengths = [len(caption.split()) for caption in captions(1_000)]

    assert np.median(lengths) == 10
    assert 30 <= np.percentile(lengths, 99) <= 50
    assert captions(1_000) == captions(1_000)


def test_the_descendants_of_a_process_are_found() -> None:
    """Those of another process group too."""
    program = (
        "import subprocess, sys, time\n"
        "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'], start_new_session=True)\n"
        "time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", program])
    try:
        wait_until(lambda: len(tree(process.pid)) == 2)
        assert tree(process.pid)[0] == process.pid
    finally:
        for pid in tree(process.pid)[::-1]:
            subprocess.run(["kill", "-9", str(pid)], check=True)
        process.wait()
