"""Measure a model before and after fine-tuning, and the means between: what was learned, and what was forgotten."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import tokenizers
import torch
from rich.table import Table

from model_export.architectures.encoders import ImageEncoder, TextEncoder
from model_export.checkpoints.model_source import ModelSource
from model_export.errors import TrainingError
from model_export.evaluation.class_matrices import check_prompts, class_matrices
from model_export.evaluation.classes import find_classes
from model_export.evaluation.data.samples import choose_rows
from model_export.evaluation.data.sources import open_data
from model_export.evaluation.figures import figures
from model_export.evaluation.measure import Measurement
from model_export.training.averaging import mean_weights
from service.model.arrays import Ids, Pixels, Vectors
from service.model.choices import ChosenBy
from service.model.manifest import DEFAULT_TEMPLATES
from service.model.tokenizer import Tokenizer

GRID: Final = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Shares of the second model, as WiSE-FT draws its curves."""

_BATCH: Final = 64


@dataclass(frozen=True)
class Measured:
    """Zero-shot accuracy of the mean with one share of the second model: top-1 for each data set, 0 to 1."""

    share: float
    top1: tuple[float, ...]


def measure_shares(
    models: Sequence[ModelSource],
    data: Sequence[str],
    *,
    shares: Sequence[float] = GRID,
    every: int = 1,
    limit: int | None = None,
    advance: Callable[[float], None] = lambda _: None,
) -> list[Measured]:
    """Measure the means of two models on several sets of labelled images, with the second one's templates.

    Args:
        models: the start, and a run that began with it.
        data: one set each: paths as ``evaluate`` takes them.
        shares: of the second model, 0 to 1.
        every: take the last of each N rows only.
        limit: draw at most this many images of a set at random.
        advance: called with each share before it is measured.

    Raises:
        TrainingError: not two models.
        DataError: a set cannot be read.
    """
    if len(models) != 2:
        raise TrainingError(f"--data compares a model before and after fine-tuning; name two, not {len(models)}")
    last = models[1]
    sets = {DEFAULT_TEMPLATES: last.templates[DEFAULT_TEMPLATES]}
    tokenizer = Tokenizer(tokenizers.Tokenizer.from_str(last.tokenizer.decode()), last.text)
    opened = []
    for path in data:
        sources = open_data([path])
        classes = find_classes(sources)
        check_prompts(tokenizer, list(dict.fromkeys(classes.names)), sets)
        opened.append((sources, classes, choose_rows([len(each.labels) for each in sources], every=every, limit=limit)))
    # Copies: the second model's own tensors are overwritten by each mean.
    weights = [{name: tensor.clone() for name, tensor in model.weights().items()} for model in models]
    engine = _TorchEngine(last)
    measured = []
    for share in shares:
        advance(share)
        own = last.model.state_dict().keys()
        mean = mean_weights(weights, (1 - share, share))
        engine.model.load_state_dict({name: tensor for name, tensor in mean.items() if name in own})
        top1 = []
        for sources, classes, rows in opened:
            names = {name: index for index, name in enumerate(dict.fromkeys(classes.names))}
            matrices = class_matrices(engine, tokenizer, list(names), sets, batch_size=_BATCH, advance=_ignore)
            columns = [names[name] for name in classes.names]
            measurement = Measurement(engine, last.image, matrices, columns, _BATCH)
            measurement.run(sources, rows, classes.targets, _ignore)
            top1.append(figures(measurement.answers()[DEFAULT_TEMPLATES], len(classes.names)).top1)
        measured.append(Measured(share, tuple(top1)))
    return measured


def shares_table(measured: Sequence[Measured], data: Sequence[str], names: tuple[str, str]) -> Table:
    """Return the accuracies as a table: a row for each share, with the difference from the start."""
    table = Table(title="zero-shot top-1", title_justify="left")
    table.add_column(f"share of {names[1]}", justify="right")
    for each in data:
        table.add_column(each, justify="right")
    start = measured[0].top1
    for row in measured:
        cells = [f"{top1:.1%} ({top1 - first:+.1%})" for top1, first in zip(row.top1, start, strict=True)]
        note = {0.0: f" ({names[0]})", 1.0: ""}.get(row.share, "")
        table.add_row(f"{row.share:.2f}{note}", *cells)
    return table


def _ignore(_count: int) -> None:
    pass


class _TorchEngine:
    """A model in torch, as the code of evaluations calls an engine."""

    provider = "cpu"
    precision = "fp32"
    provider_reason = "weights are measured before they are exported"
    chosen_by: ChosenBy = "name"
    cpu_threads = 1

    def __init__(self, source: ModelSource) -> None:
        self.model = source.model
        self.dim = source.dim
        self._images = ImageEncoder(source.model, source.image.mean, source.image.std).eval()
        self._texts = TextEncoder(source.model).eval()

    @torch.no_grad()
    def encode_images(self, pixels: Pixels) -> Vectors:
        """Encode uint8 ``[batch, height, width, 3]``."""
        return np.asarray(self._images(torch.from_numpy(pixels)))

    @torch.no_grad()
    def encode_texts(self, ids: Ids) -> Vectors:
        """Encode int64 ``[batch, length]``."""
        return np.asarray(self._texts(torch.from_numpy(ids)))

    def close(self) -> None:
        """Do nothing: the model is its caller's."""
