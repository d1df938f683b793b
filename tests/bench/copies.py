"""Plant copies among pictures, and count those that are found: `make bench-curate BENCH_ARGS="dedup --pictures …"`."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from PIL import Image
from rich.console import Console

from model_export.curation.near import near_pairs
from model_export.curation.progress import CurationProgress
from model_export.curation.signatures import signature
from model_export.curation.views import Bits, Coded, Rows, contrasts
from tests.support.planted import COPIES, scene

_MADE = 2_000
_PLANTED = 500
_SIMILARITY = 0.92
_LEAST_CONTRAST = 64.0


def measure_dedup(files: Sequence[str]) -> None:
    """Print recall for each kind of copy, and the pairs found among the pictures themselves.

    Args:
        files: Parquet files with the column ``image``; random pictures if none is named.
    """
    for name in files or [""]:
        pictures = (
            [_opened(data) for data in pq.read_table(name, columns=["image"])["image"].to_pylist()]
            if name
            else [scene(seed) for seed in range(_MADE)]
        )
        start = time.process_time()
        own = _signed(pictures)
        each = (time.process_time() - start) / len(pictures)
        shown = np.flatnonzero(contrasts(own) >= _LEAST_CONTRAST)
        planted = shown[np.linspace(0, shown.size - 1, min(_PLANTED, shown.size)).astype(np.int64)]
        title = Path(name).stem if name else "random pictures"
        start = time.process_time()
        pairs = _pairs(own[shown])
        took = time.process_time() - start
        all_pairs = shown.size * (shown.size - 1) // 2
        _say(
            f"{title}: {shown.size:,} pictures; {1e3 * each:.2f} ms to sign one, without decoding; {took:.1f} s to "
            f"search; {len(pairs):,} pairs found, {1e5 * len(pairs) / all_pairs:.2f} of 100,000 pairs"
        )
        chance = np.random.default_rng(1)
        for kind, make in COPIES.items():
            copies = _signed([make(pictures[row], chance) for row in planted])
            found = _pairs(np.concatenate([own[planted], copies]))
            recall = sum(second - first == planted.size for first, second in found) / planted.size
            _say(f"  {kind}: recall {recall:.3f}")


def _opened(data: bytes) -> Image.Image:
    return Image.open(BytesIO(data)).convert("RGB")


def _signed(pictures: Sequence[Image.Image]) -> Coded:
    return np.stack([np.frombuffer(signature(picture).near, np.int8) for picture in pictures])


def _pairs(near: Coded) -> set[tuple[int, int]]:
    def never(some: Rows, _: Rows) -> Bits:
        return np.zeros(len(some), np.bool_)

    with tempfile.TemporaryDirectory() as folder:
        progress = CurationProgress(Console(quiet=True))
        found = near_pairs(near, _SIMILARITY, Path(folder) / "codes", never, progress)
        return {(int(first), int(second)) for each in found for first, second in each}


def _say(line: str) -> None:
    print(line, flush=True)  # noqa: T201 - the result
