"""Average the weights of several models into a new run.

Runs that started from the same weights (``--from``) mostly end in one basin, and the mean of their weights is often
better than each of them: Wortsman et al. 2022, "Model soups", and, of a CLIP before and after fine-tuning, "Robust
fine-tuning of zero-shot models" (WiSE-FT).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from safetensors.torch import save_file
from torch import Tensor

from model_export.checkpoints.at_hand import at_hand
from model_export.checkpoints.layouts import RECIPE, is_training_run
from model_export.checkpoints.load import load_model
from model_export.checkpoints.model_source import ModelSource, SourceOptions
from model_export.checkpoints.training_run import CARD, CONFIG, WEIGHTS
from model_export.errors import TrainingError
from model_export.families.tokenizers import TOKENIZER
from model_export.files import replacing, write_json


def average(
    sources: Sequence[str | Path],
    out: Path,
    *,
    shares: Sequence[float] = (),
    options: SourceOptions | None = None,
    console: Console | None = None,
) -> Path:
    """Write a run whose weights are the mean of several models' weights.

    Configuration, tokenizer, recipe, card and counters (integer tensors) come from the last run. The provenance names
    the averaged weights.

    Args:
        sources: two or more models with one tokenizer, started from the same weights: finished runs, or before them the
            published weights that they started from. The mean of other runs is no better than random weights. The last
            is a run.
        out: the folder to write; it must not hold a run.
        shares: weight of each model in the mean, divided by their sum; equal by default.
        options: facts that the files of published weights lack.
        console: shows what is downloaded.

    Returns:
        The folder.

    Raises:
        SourceError: a run is not finished, or a source cannot be fetched or read.
        TrainingError: the models do not fit together, the shares do not fit them, or the folder is taken.
    """
    if len(sources) < 2:
        raise TrainingError("a mean needs at least two runs")
    shares = shares or [1.0] * len(sources)
    if len(shares) != len(sources):
        raise TrainingError(f"{len(shares)} shares for {len(sources)} runs; give one for each run, in the same order")
    if any(not 0 < share < float("inf") for share in shares):
        raise TrainingError("a share must be a finite number above 0; to give a run no weight, leave it out")
    if (out / CONFIG).exists() or (out / WEIGHTS).exists():
        raise TrainingError(f"{out}: holds a run; name another folder with --out")
    last = Path(sources[-1])
    if last.is_dir() and not is_training_run(last):
        raise TrainingError(f"{last}: is no training run; name the run last, whose recipe and card the mean takes")
    models = [read_model(source, options, console=console) for source in sources]
    for source, model in zip(sources, models, strict=True):
        _check_fits(source, model, last, models[-1])
    weights = mean_weights([model.weights() for model in models], shares)
    out.mkdir(parents=True, exist_ok=True)
    for name in (TOKENIZER, RECIPE, CARD):
        if (last / name).exists():
            shutil.copyfile(last / name, out / name)
    write_json(out / CONFIG, _config(last, models, shares))
    with replacing(out / WEIGHTS) as partial:
        save_file(weights, partial)
    return out


def mean_weights(weights: Sequence[Mapping[str, Tensor]], shares: Sequence[float]) -> dict[str, Tensor]:
    """Return the mean of several models' weights by shares, of which one may be 0; integers are the last model's."""
    total = sum(shares)
    mean = {}
    for name, last in weights[-1].items():
        if last.is_floating_point():
            terms = [each[name].double() * (share / total) for each, share in zip(weights, shares, strict=True)]
            mean[name] = torch.stack(terms).sum(dim=0).to(last.dtype)
        else:
            mean[name] = last
    return mean


def read_model(
    source: str | Path, options: SourceOptions | None = None, *, console: Console | None = None
) -> ModelSource:
    """Read a run, or any weights that can be exported; only those take options.

    Raises:
        SourceError: the source cannot be fetched or read.
    """
    path, options = at_hand(str(source), options or SourceOptions(), console=console)
    return load_model(path, SourceOptions() if is_training_run(path) else options)


def _check_fits(source: str | Path, model: ModelSource, last: Path, last_model: ModelSource) -> None:
    is_run = is_training_run(Path(source))
    tokenizer, config = (str(Path(source) / name) if is_run else str(source) for name in (TOKENIZER, CONFIG))
    if model.tokenizer != last_model.tokenizer:
        raise TrainingError(f"{tokenizer}: differs from the tokenizer of {last}; average runs that share one tokenizer")
    if model.text != last_model.text:
        raise TrainingError(f"{config}: prepares texts differently from {last}; average runs of one start")
    if model.image != last_model.image:
        raise TrainingError(f"{config}: prepares images differently from {last}; average runs with one [input]")
    if model.scoring.kind != last_model.scoring.kind:
        raise TrainingError(f"{config}: was trained by another loss than {last}; average runs with one objective.loss")
    shapes, last_shapes = (
        {name: tensor.shape for name, tensor in each.weights().items()} for each in (model, last_model)
    )
    if shapes != last_shapes:
        raise TrainingError(f"{config}: is a different model from {last}; average runs of one model")


def _config(last: Path, models: Sequence[ModelSource], shares: Sequence[float]) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((last / CONFIG).read_text(encoding="utf-8"))
    parts = (
        f"{share / sum(shares):.3g} of sha256:{model.provenance.source_sha256} ({model.provenance.source})"
        for model, share in zip(models, shares, strict=True)
    )
    data = dict.fromkeys(digest for model in models for digest in model.provenance.data or ())
    config["provenance"]["data"] = list(data) or None
    config["provenance"]["source"] = "mean of weights: " + "; ".join(parts)
    return config
