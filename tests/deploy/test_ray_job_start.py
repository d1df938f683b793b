"""The program of the training's RayJob on a real cluster: two nodes of Ray in the place of two pods."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.model_export.training.test_processes import train_part
from tests.model_export.training.test_run import VIT
from tests.support.pairs import recipe_text, write_pairs
from tests.support.places import ROOT
from tests.support.ranks import on_ranks
from tests.support.ray_cluster import RayCluster, ray_cluster

START = ROOT / "k8s/training-ray/start.py"

pytestmark = [pytest.mark.long, pytest.mark.timeout(300), pytest.mark.filterwarnings(r"ignore:::ray(\.|$)")]


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    """Start nodes that say they have a GPU each; the training takes the CPU."""
    with ray_cluster(nodes=2, gpus=1) as started:
        yield started


def start(cluster: RayCluster, recipe: Path, run: Path) -> subprocess.CompletedProcess[str]:
    """Run the program as the RayJob's entry point does."""
    return subprocess.run(
        [
            *(sys.executable, str(START), "--machines=2", "--gpus=1", "--rdzv-id=anyclass-training"),
            *("-m", "model_export", "train", str(recipe), f"--out={run}", "--device=cpu", "--auto-resume"),
        ],
        env={
            **os.environ,
            "RAY_ADDRESS": cluster.address,
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
        },
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def test_two_nodes_train_one_run_and_a_failure_fails_the_job(cluster: RayCluster, tmp_path: Path) -> None:
    """Each node has one rank: the weights are those of two ranks here. A wrong recipe ends the program with a code."""
    pairs = write_pairs(tmp_path / "pairs.parquet", 134)
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(recipe_text([pairs], **VIT, batch_size="12", epochs="1"), "utf-8")

    done = start(cluster, recipe, tmp_path / "run")

    assert done.returncode == 0, done.stderr[-3000:]
    on_ranks(2, train_part, recipe, tmp_path / "here")
    weights, here = (load_file(tmp_path / run / "model.safetensors") for run in ("run", "here"))
    assert all(torch.equal(weights[name], here[name]) for name in here)

    recipe.write_text("name = ", "utf-8")
    failed = start(cluster, recipe, tmp_path / "other")

    assert failed.returncode != 0
    assert not (tmp_path / "other" / "model.safetensors").exists()
