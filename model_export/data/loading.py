"""Load training batches from their plans, in worker processes."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from model_export.data.augment import Augmentation, is_odd
from model_export.data.captions import Captioner
from model_export.data.parquet import PairReader
from model_export.data.plan import BatchPlan, TrainingPlan
from model_export.errors import DataError
from service.errors import AnyclassError
from service.images.decoding import ImageLimits, open_rgb

Encode = Callable[[list[str]], np.ndarray]


class Batch(NamedTuple):
    """One training batch.

    Attributes:
        step: the step it belongs to.
        pixels: uint8 ``[batch, size, size, 3]``.
        ids: int64 ``[distinct captions, length]``; a caption shared by several pairs is encoded once.
        caption: int64 ``[batch]``, each pair's row of ``ids``.
        label: int64 ``[batch]``, the class.
        noun: int64 ``[batch]``, the noun.
    """

    step: int
    pixels: Tensor
    ids: Tensor
    caption: Tensor
    label: Tensor
    noun: Tensor


@dataclass(frozen=True)
class BatchLoader(Dataset[Batch]):
    """Loads the batch of a plan. All randomness comes from the plan's seed."""

    reader: PairReader
    augmentation: Augmentation
    captioner: Captioner
    encode: Encode
    label_ids: Mapping[str, int]
    noun_ids: Mapping[str, int]

    def __getitem__(self, plan: BatchPlan) -> Batch:
        rng = np.random.default_rng([*plan.seed, 1])
        captions: dict[str, int] = {}
        pixels = np.empty((len(plan.rows), plan.image_size, plan.image_size, 3), dtype=np.uint8)
        index = np.empty((3, len(plan.rows)), dtype=np.int64)
        for i, row in enumerate(plan.rows):
            pair = self.reader[int(row)]
            image = open_image(self.reader, int(row), pair.image)
            pixels[i] = self.augmentation.apply(
                image, plan.image_size, rng, odd=is_odd(int(row), plan.epoch), zoom_share=plan.zoom_share
            )
            caption = self.captioner.caption(pair.text, pair.label, rng)
            index[:, i] = (
                captions.setdefault(caption, len(captions)),
                self.label_ids[pair.label],
                self.noun_ids[pair.text],
            )
        return Batch(
            plan.step,
            torch.from_numpy(pixels),
            torch.from_numpy(self.encode(list(captions))),
            *map(torch.from_numpy, index),
        )


def open_image(reader: PairReader, row: int, data: bytes) -> Image.Image:
    """Decode a row's image with the service's checks.

    Raises:
        DataError: the image cannot be read; the message names file and row.
    """
    try:
        return open_rgb(data, ImageLimits())
    except AnyclassError as error:
        msg = f"{reader.where(row)}: {error}"
        raise DataError(msg) from error


class _Plans(Sampler[BatchPlan]):
    def __init__(self, plan: TrainingPlan, first_step: int) -> None:
        self._plan = plan
        self._first_step = first_step

    def __iter__(self) -> Iterator[BatchPlan]:
        return self._plan.batches(self._first_step)

    def __len__(self) -> int:
        return self._plan.total_steps - self._first_step


def batches(
    loader: BatchLoader, plan: TrainingPlan, *, first_step: int, workers: int, pin_memory: bool
) -> Iterator[Batch]:
    """Yield the run's batches in order from ``first_step``, prepared by ``workers`` processes (0: this process).

    Raises:
        DataError: a row cannot be read, here or in a worker.
    """
    with warnings.catch_warnings():
        # The recipe sets the number of processes, also on a machine with fewer processors.
        warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)
        stream = iter(
            DataLoader(
                loader,
                batch_size=None,
                sampler=cast("Sampler[int]", _Plans(plan, first_step)),
                num_workers=workers,
                prefetch_factor=2 if workers else None,
                pin_memory=pin_memory,
                # A fork would inherit the parent's thread pools in an undefined state.
                multiprocessing_context="spawn" if workers else None,
            )
        )
    try:
        yield from stream
    except DataError as error:
        # A worker's traceback does not help to repair a broken file; its last line names the row.
        raise DataError(str(error).strip().splitlines()[-1].removeprefix("model_export.errors.DataError: ")) from None
