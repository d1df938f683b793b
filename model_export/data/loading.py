"""Load training batches from their plans, in worker processes."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from model_export.data.augment import Augmentation, is_odd
from model_export.data.captions import CaptionEncoder, Captioner, is_usable, meaning
from model_export.data.pairs import BrokenRowError
from model_export.data.plan import TrainingPlan
from model_export.data.reader import PairReader
from model_export.data.tally import BrokenRow, Tally
from model_export.errors import DataError
from service.errors import AnyclassError
from service.images.decoding import ImageLimits, open_rgb

Encode = Callable[[list[str]], np.ndarray]

_RAISED = re.compile(r"^[\w.]+Error: ")
"""Stands before the message in the last line of a traceback."""

_MOST_ATTEMPTS = 100
"""Unusable rows at one place, one after another, from which on the data are taken for wrong altogether."""


class Batch(NamedTuple):
    """One training batch.

    Attributes:
        step: the step it belongs to.
        pixels: uint8 ``[batch, size, size, 3]``.
        ids: int64 ``[distinct captions, length]``; a caption shared by several pairs is encoded once.
        caption: int64 ``[batch]``, each pair's row of ``ids``.
        label: int64 ``[batch]``, a hash of the class; of the text if the pair has no class.
        noun: int64 ``[batch]``, a hash of the text.
        tally: of these pairs.
        broken: the broken rows in their places.
    """

    step: int
    pixels: Tensor
    ids: Tensor
    caption: Tensor
    label: Tensor
    noun: Tensor
    tally: Tally
    broken: Sequence[BrokenRow]

    def to(self, device: torch.device) -> Batch:
        """Copy the tensors to a device."""
        tensors = {name: getattr(self, name) for name in ("pixels", "ids", "caption", "label", "noun")}
        return self._replace(**{name: tensor.to(device, non_blocking=True) for name, tensor in tensors.items()})


@dataclass(frozen=True)
class BatchLoader(Dataset[Batch]):
    """Loads the batch of a step, or a rank's part of it.

    All randomness comes from the plan, with a stream for each row: a part equals the same rows of the whole batch.

    Attributes:
        start: position of the part's first row within the batch.
        stop: position after its last row; None for the batch's end.
        pass_over_broken: replace broken rows too, and report them in the batch.
    """

    reader: PairReader
    plan: TrainingPlan
    augmentation: Augmentation
    captioner: Captioner
    encode: CaptionEncoder
    start: int = 0
    stop: int | None = None
    pass_over_broken: bool = False

    def part(self, start: int, stop: int) -> BatchLoader:
        """Return a loader of the rows at the positions from ``start`` to ``stop`` of each batch."""
        return replace(self, start=start, stop=stop)

    def __getitem__(self, step: int) -> Batch:
        plan = self.plan.batch(step, start=self.start, stop=self.stop)
        captions: dict[str, int] = {}
        pixels = np.empty((len(plan.rows), plan.image_size, plan.image_size, 3), dtype=np.uint8)
        index = np.empty((3, len(plan.rows)), dtype=np.int64)
        skipped = 0
        broken: list[BrokenRow] = []
        for i, planned in enumerate(plan.rows.tolist()):
            position = plan.start + i
            rng = self.plan.stream(step, position)
            row = self._usable(step, position, planned, broken)
            skipped += row.skipped
            pixels[i] = self.augmentation.apply(
                row.image, plan.image_size, rng, odd=is_odd(row.number, plan.epoch), zoom_share=plan.zoom_share
            )
            caption = self.captioner.caption(row.text, row.label, rng)
            index[:, i] = (
                captions.setdefault(caption, len(captions)),
                meaning(row.text if row.label is None else row.label),
                meaning(row.text),
            )
        ids, truncated = self.encode.encode(list(captions))
        tally = Tally(len(plan.rows), int(truncated[index[0]].sum()), skipped, len(broken))
        caption_index, label, noun = map(torch.from_numpy, index)
        return Batch(step, torch.from_numpy(pixels), torch.from_numpy(ids), caption_index, label, noun, tally, broken)

    def _usable(self, step: int, position: int, number: int, broken: list[BrokenRow]) -> _Row:
        """Read the row of a place, or the first usable one of its replacements; note the broken ones."""
        skipped = 0
        problem = ""
        for attempt in range(_MOST_ATTEMPTS):
            try:
                pair = self.reader[number]
                if pair.text is not None and is_usable(pair.text):
                    image = open_image(self.reader, number, pair.image)
                    return _Row(number, image, pair.text, pair.label if is_usable(pair.label) else None, skipped)
            except BrokenRowError as error:
                if not self.pass_over_broken:
                    raise
                problem = str(error)
                broken.append(BrokenRow(number, problem))
            else:
                problem = f"{self.reader.where(number)}: has no text to train on"
                skipped += 1
            number = self.plan.replacement(step, position, attempt)
        raise DataError(
            f"{problem}; nor can {_MOST_ATTEMPTS - 1} other rows be used in its place. Name the right columns or keys "
            "under [data.columns]"
        )


class _Row(NamedTuple):
    """A usable row, and the number of rows without a text that it stands in for."""

    number: int
    image: Image.Image
    text: str
    label: str | None
    skipped: int


def open_image(reader: PairReader, row: int, data: bytes) -> Image.Image:
    """Decode a row's image with the service's checks.

    Raises:
        BrokenRowError: the image cannot be read; the message names file and row.
    """
    try:
        return open_rgb(data, ImageLimits())
    except AnyclassError as error:
        msg = f"{reader.where(row)}: {error}"
        raise BrokenRowError(msg) from error


def batches(loader: BatchLoader, *, first_step: int, workers: int, pin_memory: bool) -> Iterator[Batch]:
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
                sampler=range(first_step, loader.plan.total_steps),
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
        raise type(error)(_RAISED.sub("", str(error).strip().splitlines()[-1])) from None
    finally:
        if workers:
            _stop_workers(stream)


def _stop_workers(stream: Any) -> None:  # noqa: ANN401 - torch's iterator has no public type
    """Stop the loading processes now. Left to its end, the iterator would print a traceback for one that still starts.

    A process that starts while the others stop finds its queue gone, and torch reports its exit as an error.
    """
    with suppress(RuntimeError):
        stream._shutdown_workers()  # noqa: SLF001 - its destructor calls no other
