"""Measure the serving code without the service: decoding and the engine in a loop, no HTTP, event loop or labels.

    python -m tests.bench.bare BUNDLE PROVIDER SECONDS PART…

Parts: `loop` (pictures/s with decoding in threads and full batches), `single` (seconds of one decode and one
run), `encoder` (pictures/s of the image encoder by batch), `texts` (short prompts trimmed to their longest, and padded
to the whole context as other servers do), `decode` (seconds of one decode by picture size). Needs only the
service's packages. Prints one JSON object.
"""

import json
import statistics
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from service.images.decoding import decode
from service.inference.registry import ModelRegistry
from service.model.engine.cpus import available_cpus
from service.model.tokenizer import Tokenizer
from service.monitoring.metrics import Metrics
from service.settings import Settings
from tests.bench import pictures, words

Pixels = npt.NDArray[np.uint8]

BATCHES: Final = (1, 8, 32)
_FULL: Final = 32
_AHEAD: Final = 2
"""Batches of pictures being decoded while one runs."""
_PICTURES: Final = 12
_TEXTS: Final = 64
_FEWEST: Final = 3


class Bare:
    """A bundle on a provider, opened with the service's settings for engine and decoding."""

    def __init__(self, bundle: Path, provider: str, seconds: float) -> None:
        settings = Settings.model_validate({"model": bundle, "provider": provider})
        models = ModelRegistry.load(settings, Metrics())
        models.warm()
        self.bundle, self.engine, self.seconds = models.get().bundle, models.get().engine, seconds
        self.pictures = pictures.jpegs(_PICTURES)
        self._threads = settings.decode_threads or available_cpus()
        self._preprocessing = settings.preprocessing

    def decode(self, data: bytes) -> Pixels:
        """Decode as the service does by default → uint8 `[height, width, 3]`."""
        return decode(data, self.bundle.manifest.image, preprocessing=self._preprocessing)

    def loop(self) -> dict[str, Any]:
        """Decode in the service's number of threads while full batches run: the upper limit for HTTP."""
        self._encode(self.pixels(_FULL))
        with ThreadPoolExecutor(self._threads) as pool:
            waiting: deque[Future[Pixels]] = deque()
            started = time.perf_counter()
            done = submitted = 0
            while (now := time.perf_counter() - started) < self.seconds or waiting:
                while now < self.seconds and len(waiting) < _AHEAD * _FULL:
                    waiting.append(pool.submit(self.decode, self.pictures[submitted % _PICTURES]))
                    submitted += 1
                batch = [waiting.popleft().result() for _ in range(min(_FULL, len(waiting)))]
                self._encode(np.stack(batch))
                done += len(batch)
            return {"rate_ips": done / (time.perf_counter() - started)}

    def single(self) -> dict[str, Any]:
        """One picture at a time: decode it, then run the encoder on it."""
        runs = self._timed(lambda n: self._encode(self.decode(self.pictures[n % _PICTURES])[np.newaxis]))
        return {"median_s": statistics.median(runs)}

    def encoder(self) -> dict[str, Any]:
        """Measure the image encoder alone, by batch, in pictures a second."""
        rates = {}
        for batch in BATCHES:
            pixels = self.pixels(batch)
            rates[str(batch)] = batch / statistics.median(self._timed(partial(self._encode_again, pixels)))
        return {"rate_ips": rates}

    def texts(self) -> dict[str, Any]:
        """Measure the text encoder on the same prompts, in texts a second: trimmed, and padded to the context."""
        tokenizer = Tokenizer.from_bundle(self.bundle)
        prompts = [words.TEMPLATE.format(label) for label in words.labels(_TEXTS)]
        trimmed = tokenizer.pad(tokenizer.tokenize(prompts))
        text = self.bundle.manifest.text
        padding = np.full((_TEXTS, text.max_length - trimmed.shape[1]), text.pad_id, np.int64)
        padded = np.concatenate([trimmed, padding], axis=1)
        return {
            "tokens": trimmed.shape[1],
            "context": padded.shape[1],
            "trimmed_tps": _TEXTS / statistics.median(self._timed(lambda _: self.engine.encode_texts(trimmed))),
            "padded_tps": _TEXTS / statistics.median(self._timed(lambda _: self.engine.encode_texts(padded))),
        }

    def pixels(self, count: int) -> Pixels:
        """Return a batch of decoded pictures."""
        return np.stack([self.decode(self.pictures[number % _PICTURES]) for number in range(count)])

    def _encode(self, pixels: Pixels) -> None:
        self.engine.encode_images(pixels)

    def _encode_again(self, pixels: Pixels, _: int) -> None:
        self._encode(pixels)

    def _timed(self, work: Callable[[int], object]) -> list[float]:
        """Return the seconds of each run except the first, which may compile for its shape."""
        work(0)
        until, runs = time.perf_counter() + self.seconds, list[float]()
        while time.perf_counter() < until or len(runs) < _FEWEST:
            started = time.perf_counter()
            work(len(runs))
            runs.append(time.perf_counter() - started)
        return runs


def measure(bundle: Path, provider: str, seconds: float, parts: Sequence[str]) -> dict[str, Any]:
    """Measure the named parts, each for about `seconds`."""
    bare = Bare(bundle, provider, seconds)
    measures = {"loop": bare.loop, "single": bare.single, "encoder": bare.encoder, "texts": bare.texts}
    return {
        "provider": bare.engine.provider,
        "precision": bare.engine.precision,
        **{part: measures[part]() for part in parts},
    }


def main() -> None:
    """Print the requested figures."""
    bundle, provider, seconds, *parts = sys.argv[1:]
    sys.stdout.write(json.dumps(measure(Path(bundle), provider, float(seconds), parts)) + "\n")


if __name__ == "__main__":
    main()
