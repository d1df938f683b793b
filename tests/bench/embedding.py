"""Time `anyclass-export embed` and the CLIP score beside the bare loop: `make bench-curate BENCH_ARGS=embed`.

In turns, on the same pictures in one process: the engine alone on ready pixels, a loop that decodes in threads and
encodes full batches (as in `tests.bench.bare`), and the whole stage from a Parquet file to a committed shard.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console

from model_export.curation.clip_score import ClipScore
from model_export.curation.embed import Embed
from model_export.curation.encoding import BundleEncoder
from model_export.curation.progress import CurationProgress
from model_export.curation.run import Curation, curate
from model_export.curation.stage import Stage
from service.images.decoding import decode
from service.model.arrays import Pixels
from service.model.engine.cpus import available_cpus
from tests.bench import pictures

_BATCH: Final = 32
_ROUNDS: Final = 3
_PICTURES: Final = 12
_AHEAD: Final = 2


def measure_embedding(bundle: Path, provider: str, rows: int, size: tuple[int, int]) -> None:
    """Print rates, and the ratios of each round."""
    encoder = BundleEncoder(bundle, provider, batch_size=_BATCH)
    some = pictures.jpegs(_PICTURES, size)
    files = [some[row % _PICTURES] for row in range(rows)]
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data.parquet"
        pq.write_table(pa.table({"image": files, "text": [f"picture {row}" for row in range(rows)]}), data)
        stages: dict[str, Stage] = {"embed": Embed(encoder), "CLIP score": ClipScore(encoder, -1)}
        bare = _Bare(encoder, files)
        runs: dict[str, Callable[[], None]] = {"engine alone": bare.engine, "bare loop": bare.loop}
        for name, stage in stages.items():
            runs[name] = _Curate(stage, data, Path(folder))
        taken: dict[str, list[float]] = {name: [] for name in runs}
        bare.engine()
        for _ in range(_ROUNDS):
            for name, run in runs.items():
                start = time.perf_counter()
                run()
                taken[name].append(time.perf_counter() - start)
    for name, seconds in taken.items():
        _say(f"{name}: {rows / statistics.median(seconds):,.1f} pictures/s; {_ratios(taken, seconds)}")


def _ratios(taken: dict[str, list[float]], seconds: list[float]) -> str:
    """Return the medians of the ratios of each round to both bases."""
    found = []
    for base in ("engine alone", "bare loop"):
        ratio = statistics.median(other / own for other, own in zip(taken[base], seconds, strict=True))
        found.append(f"{ratio:.2f} of the {base}")
    return ", ".join(found)


class _Bare:
    """Decode and encode in a loop, with nothing around it."""

    def __init__(self, encoder: BundleEncoder, files: list[bytes]) -> None:
        self._encoder, self._files = encoder, files
        self._section = encoder.bundle.manifest.image
        self._ready = np.stack([decode(files[row % len(files)], self._section) for row in range(_BATCH)])

    def engine(self) -> None:
        """Encode as many ready pictures as there are files."""
        for _ in range(0, len(self._files), _BATCH):
            self._encoder.engine.encode_images(self._ready)

    def loop(self) -> None:
        """Decode in threads, and encode full batches."""
        todo = iter(self._files)
        waiting: deque[Future[Pixels]] = deque()
        with ThreadPoolExecutor(available_cpus()) as pool:
            while True:
                while len(waiting) < _AHEAD * _BATCH and (each := next(todo, None)) is not None:
                    waiting.append(pool.submit(decode, each, self._section))
                if not waiting:
                    return
                batch = [waiting.popleft().result() for _ in range(min(_BATCH, len(waiting)))]
                self._encoder.engine.encode_images(np.stack(batch))


class _Curate:
    """Run a stage over a file, into a folder of its own each time."""

    def __init__(self, stage: Stage, data: Path, folder: Path) -> None:
        self._stage, self._data, self._folder = stage, data, folder

    def __call__(self) -> None:
        out = Path(tempfile.mkdtemp(dir=self._folder))
        with CurationProgress(Console(quiet=True)) as progress:
            curate(Curation([str(self._data)], [self._stage], out), progress)


def _say(line: str) -> None:
    print(line, flush=True)  # noqa: T201 - the result
