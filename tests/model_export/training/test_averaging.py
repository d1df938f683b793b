"""Tests of averaging runs' weights into a run."""

from __future__ import annotations

import json
import shutil
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from model_export.checkpoints.training_run import load_training_run
from model_export.errors import SourceError, TrainingError
from model_export.training.averaging import average
from tests.support.tiny_run import write_tiny_run


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """Write two runs of one model with different weights."""
    return [write_tiny_run(tmp_path / str(seed), "whitening", seed=seed) for seed in (1, 2)]


@pytest.mark.parametrize(("shares", "first"), [((), 0.5), ((3, 1), 0.75)], ids=["alike", "three to one"])
def test_every_weight_is_the_mean_of_the_runs_weights(
    runs: list[Path], tmp_path: Path, shares: tuple[float, ...], first: float
) -> None:
    """Weights and batch norms' statistics are averaged by the shares; counters are not."""
    out = average(runs, tmp_path / "mean", shares=shares)

    one, two, mean = (load_file(run / "model.safetensors") for run in (*runs, out))
    for name, tensor in mean.items():
        wanted = first * one[name] + (1 - first) * two[name] if tensor.is_floating_point() else two[name]
        torch.testing.assert_close(tensor, wanted)
    assert set(one) == set(mean)


def test_the_mean_is_a_run_and_says_what_it_is_made_of(runs: list[Path], tmp_path: Path) -> None:
    """The mean loads like any run, with the last run's card, recipe and tokenizer, and the digests of all parts."""
    out = average(runs, tmp_path / "mean")

    source = load_training_run(out)
    digests = [sha256((run / "model.safetensors").read_bytes()).hexdigest() for run in runs]
    assert (
        f"mean of weights: 0.5 of sha256:{digests[0]} (random weights); 0.5 of sha256:{digests[1]} (random weights)"
        == source.provenance.source
    )
    for name in ("tokenizer.json", "recipe.toml", "card.md"):
        assert (runs[1] / name).read_bytes() == (out / name).read_bytes()


def test_runs_that_do_not_fit_together_are_refused(runs: list[Path], tmp_path: Path) -> None:
    """A different model, tokenizer or preprocessing is refused; the error names the run."""
    vit = write_tiny_run(tmp_path / "vit", "vit")
    with pytest.raises(TrainingError, match=r"vit/config.json: is a different model"):
        average([vit, runs[1]], tmp_path / "mean")

    path = runs[0] / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")), indent=1), encoding="utf-8")
    with pytest.raises(TrainingError, match=r"1/tokenizer.json: differs from the tokenizer of"):
        average(runs, tmp_path / "mean")

    shutil.copyfile(runs[1] / "tokenizer.json", path)
    config = json.loads((runs[0] / "config.json").read_text(encoding="utf-8"))
    config["image"]["mean"] = [0.1, 0.1, 0.1]
    (runs[0] / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(TrainingError, match=r"1/config.json: prepares images differently from"):
        average(runs, tmp_path / "mean")

    (runs[0] / "model.safetensors").unlink()
    with pytest.raises(SourceError, match=r"1/model.safetensors: is missing"):
        average(runs, tmp_path / "mean")
    assert not (tmp_path / "mean").exists()


def test_a_mean_of_one_run_wrong_shares_or_a_taken_folder_is_refused(runs: list[Path], tmp_path: Path) -> None:
    """Wrong arguments are refused before anything is read or written."""
    with pytest.raises(TrainingError, match="two runs"):
        average(runs[:1], tmp_path / "mean")
    with pytest.raises(TrainingError, match="1 shares for 2 runs"):
        average(runs, tmp_path / "mean", shares=[1])
    for share in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(TrainingError, match="above 0"):
            average(runs, tmp_path / "mean", shares=[1, share])
    with pytest.raises(TrainingError, match="holds a run"):
        average(runs, runs[0])
