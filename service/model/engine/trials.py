"""Times image encoders against each other, in turn, so that other work on the machine slows both alike."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

import numpy as np

from service.errors import BundleError, InferenceFailed, ProviderUnavailable
from service.model.arrays import Pixels
from service.model.engine.agreement import agreement, least_cosine
from service.model.engine.candidates import Candidate
from service.model.engine.encoder import Encoder, image_encoder
from service.model.engine.provider_table import TABLE, DeviceLimits
from service.model.engine.sessions import ResolvedProvider
from service.model.loading import Bundle
from service.model.probes import Probes, probe_pictures

Stopwatch: TypeAlias = Callable[[Candidate, int, Callable[[], object]], float]
"""Does some work of a candidate, and returns its seconds. The number is the pictures; 0 opens the encoder."""

_BATCHES: Final = (8, 4, 2)
_LEAST_ROUNDS: Final = 3
_CLEARLY: Final = 1.5
"""Ratio of two candidates at which three rounds decide; medians of fewer follow a single slow run."""


@dataclass(eq=False)
class Trial:
    """A candidate, its encoder while it is open, and its figures.

    Attributes:
        fault: the reason why it cannot be chosen.
        agreement: least cosine to the bundle's probes, None if it has none.
        seconds: of each run, by the pictures in it.
    """

    candidate: Candidate
    provider: ResolvedProvider | None = None
    encoder: Encoder | None = None
    fault: str | None = None
    agreement: float | None = None
    seconds: dict[int, list[float]] = field(default_factory=dict)

    def rate(self, batch: int) -> float | None:
        """Return the median pictures a second in batches of this size, None if none was timed."""
        return batch / statistics.median(self.seconds[batch]) if batch in self.seconds else None

    def encode(self, pixels: Pixels) -> object:
        """Run the encoder. Raises InferenceFailed if it is closed, or fails."""
        if self.encoder is None:
            raise InferenceFailed("The encoder is closed.")
        return self.encoder.run(pixels)


def timed(_candidate: Candidate, _pictures: int, work: Callable[[], object]) -> float:
    """Do some work and return its seconds."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def open_trial(
    bundle: Bundle,
    candidate: Candidate,
    provider: ResolvedProvider | str,
    *,
    probes: Probes | None,
    limits: DeviceLimits,
    stopwatch: Stopwatch,
) -> tuple[Trial, float]:
    """Open a candidate's image encoder and check it with the probes; return it and the seconds that took.

    A candidate that cannot be opened or disagrees has a `fault`. `provider` is a text if it is not available.
    """
    trial = Trial(candidate)
    if isinstance(provider, str):
        trial.fault = provider
        return trial, 0.0
    trial.provider = provider

    def work() -> None:
        try:
            encoder = image_encoder(bundle, provider, threads=candidate.threads, limits=limits)
            if probes is not None:
                trial.agreement = agreement(encoder, probes.pixels, probes.image_vectors)
            else:
                encoder.check(pictures(bundle, 1))  # the first run of a session is slow
            trial.encoder = encoder
        except (BundleError, ProviderUnavailable) as exc:
            trial.fault = exc.detail

    seconds = stopwatch(candidate, 0, work)
    least = least_cosine(bundle.manifest.precision)
    if trial.agreement is not None and not trial.agreement >= least and not TABLE[candidate.provider].trusted:
        trial.fault = f"cosine {trial.agreement:.4f} to the probes, {least} is needed"
        trial.encoder = None
    return trial, seconds


def pictures(bundle: Bundle, batch: int) -> Pixels:
    """Return uint8 `[batch, height, width, 3]`."""
    patterns = probe_pictures(bundle.manifest.image.height, bundle.manifest.image.width)
    return np.ascontiguousarray(np.resize(patterns, (batch, *patterns.shape[1:])))


def batches_for(trial: Trial, bundle: Bundle, *, largest: int, budget_s: float, stopwatch: Stopwatch) -> list[int]:
    """Return the batch sizes to time: 1, and the largest of which three rounds of a pair fit into `budget_s`."""
    one = pictures(bundle, 1)
    second = stopwatch(trial.candidate, 1, lambda: trial.encode(one))
    for batch in sorted({min(size, largest) for size in _BATCHES} - {1}, reverse=True):
        if _LEAST_ROUNDS * 2 * (1 + batch) * second <= budget_s:
            return [1, batch]
    return [1]


def time_alone(
    trial: Trial, bundle: Bundle, batches: Sequence[int], *, rounds: int, budget_s: float, stopwatch: Stopwatch
) -> None:
    """Run one candidate until it has had its rounds, or has taken `budget_s`. Raises InferenceFailed if it fails."""
    spent = 0.0
    for _ in range(rounds):
        for batch in batches:
            spent += _run(trial, pictures(bundle, batch), stopwatch)
        if spent >= budget_s:
            break


def compare(
    one: Trial,
    other: Trial,
    bundle: Bundle,
    batches: Sequence[int],
    *,
    rounds: int,
    budget_s: float,
    stopwatch: Stopwatch,
) -> tuple[float, float]:
    """Run two candidates in turn; return how many times as many pictures a second `other` does, and all seconds.

    The figure is the geometric mean over the batch sizes of the ratios of medians. A pair ends early after three
    rounds if it is clear, or as soon as it has taken `budget_s`. Raises InferenceFailed if one of them fails.
    """
    inputs = {batch: pictures(bundle, batch) for batch in batches}
    seconds: dict[tuple[Candidate, int], list[float]] = {}
    ratio = 1.0
    for turn in range(rounds):
        for batch, pixels in inputs.items():
            for trial in (one, other) if turn % 2 == 0 else (other, one):
                seconds.setdefault((trial.candidate, batch), []).append(_run(trial, pixels, stopwatch))
        medians = {key: statistics.median(each) for key, each in seconds.items()}
        ratio = statistics.geometric_mean(
            medians[one.candidate, batch] / medians[other.candidate, batch] for batch in batches
        )
        if sum(map(sum, seconds.values())) >= budget_s or (
            turn + 1 >= _LEAST_ROUNDS and not 1 / _CLEARLY < ratio < _CLEARLY
        ):
            break
    return ratio, sum(map(sum, seconds.values()))


def _run(trial: Trial, pixels: Pixels, stopwatch: Stopwatch) -> float:
    """Run a batch; return its seconds, which the trial also keeps."""
    taken = stopwatch(trial.candidate, len(pixels), lambda: trial.encode(pixels))
    trial.seconds.setdefault(len(pixels), []).append(taken)
    return taken
