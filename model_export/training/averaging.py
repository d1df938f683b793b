"""Average the weights of several runs into a new run.

Runs that started from the same weights (``--from``) mostly end in one basin, and the mean of their weights is often
better than each of them: Wortsman et al. 2022, "Model soups", and, of a CLIP before and after fine-tuning, "Robust
fine-tuning of zero-shot models".
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from model_export.checkpoints.layouts import RECIPE
from model_export.checkpoints.model_source import ModelSource
from model_export.checkpoints.training_run import CARD, CONFIG, WEIGHTS, load_training_run
from model_export.errors import TrainingError
from model_export.families.tokenizers import TOKENIZER
from model_export.files import replacing, write_json


def average(runs: Sequence[Path], out: Path, *, shares: Sequence[float] = ()) -> Path:
    """Write a run whose weights are the mean of several runs' weights.

    Configuration, tokenizer, recipe, card and counters (integer tensors) come from the last run. The provenance names
    the averaged weights.

    Args:
        runs: two or more finished runs of one model with one tokenizer, started from the same weights. The mean of
            other runs is no better than random weights.
        out: the folder to write; it must not hold a run.
        shares: weight of each run in the mean, divided by their sum; equal by default.

    Returns:
        The folder.

    Raises:
        SourceError: a run is not finished, or a file of it is not readable.
        TrainingError: the runs do not fit together, the shares do not fit the runs, or the folder is taken.
    """
    if len(runs) < 2:
        raise TrainingError("a mean needs at least two runs")
    shares = shares or [1.0] * len(runs)
    if len(shares) != len(runs):
        raise TrainingError(f"{len(shares)} shares for {len(runs)} runs; give one for each run, in the same order")
    if any(not 0 < share < float("inf") for share in shares):
        raise TrainingError("a share must be a finite number above 0; to give a run no weight, leave it out")
    if (out / CONFIG).exists() or (out / WEIGHTS).exists():
        raise TrainingError(f"{out}: holds a run; name another folder with --out")
    sources = [load_training_run(run) for run in runs]
    for run, source in zip(runs, sources, strict=True):
        _check_fits(run, source, runs[-1], sources[-1])
    weights = _mean([source.model.state_dict() for source in sources], shares)
    out.mkdir(parents=True, exist_ok=True)
    for name in (TOKENIZER, RECIPE, CARD):
        if (runs[-1] / name).exists():
            shutil.copyfile(runs[-1] / name, out / name)
    write_json(out / CONFIG, _config(runs[-1], sources, shares))
    with replacing(out / WEIGHTS) as partial:
        save_file(weights, partial)
    return out


def _check_fits(run: Path, source: ModelSource, last: Path, last_source: ModelSource) -> None:
    if source.tokenizer != last_source.tokenizer:
        raise TrainingError(
            f"{run / TOKENIZER}: differs from the tokenizer of {last}; average runs that share one tokenizer"
        )
    if source.image != last_source.image:
        raise TrainingError(f"{run / CONFIG}: prepares images differently from {last}; average runs with one [input]")
    shapes, last_shapes = (
        {name: tensor.shape for name, tensor in each.model.state_dict().items()} for each in (source, last_source)
    )
    if shapes != last_shapes:
        raise TrainingError(f"{run / CONFIG}: is a different model from {last}; average runs of one model")


def _mean(weights: Sequence[dict[str, Tensor]], shares: Sequence[float]) -> dict[str, Tensor]:
    total = sum(shares)
    mean = {}
    for name, last in weights[-1].items():
        if last.is_floating_point():
            terms = [each[name].double() * (share / total) for each, share in zip(weights, shares, strict=True)]
            mean[name] = torch.stack(terms).sum(dim=0).to(last.dtype)
        else:
            mean[name] = last
    return mean


def _config(last: Path, sources: Sequence[ModelSource], shares: Sequence[float]) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((last / CONFIG).read_text(encoding="utf-8"))
    parts = (
        f"{share / sum(shares):.3g} of sha256:{source.provenance.source_sha256} ({source.provenance.source})"
        for source, share in zip(sources, shares, strict=True)
    )
    config["provenance"]["source"] = "mean of weights: " + "; ".join(parts)
    return config
