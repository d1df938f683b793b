"""Finds the fastest of the ways to run a bundle on CPUs, by timing its image encoder.

The first candidate is kept unless another is clearly faster. At most two image encoders are in memory at a time, and in
the end one, which an engine can take over.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from service.errors import InferenceFailed, ProviderUnavailable
from service.model.engine.candidates import Candidate, described
from service.model.engine.choice_store import Choice
from service.model.engine.provider_table import DeviceLimits
from service.model.engine.providers import try_provider
from service.model.engine.trials import Stopwatch, Trial, batches_for, compare, open_trial, time_alone
from service.model.loading import Bundle
from service.model.probes import quick_probes

_MIN_GAIN: Final = 1.1
"""Ratio at which a candidate replaces the choice so far; a smaller one may be noise."""


@dataclass(frozen=True, slots=True)
class Effort:
    """Bounds on the measurement of one bundle.

    Attributes:
        every: whether all thread counts are timed with every provider; else with the fastest alone.
        rounds: turns of a pair.
        runs_s: seconds of all runs together.
        limit_s: seconds of runs and of opening, after which no further candidate is opened.
    """

    every: bool
    rounds: int
    runs_s: float
    limit_s: float


AT_START: Final = Effort(every=False, rounds=5, runs_s=2.0, limit_s=10.0)
THOROUGH: Final = Effort(every=True, rounds=9, runs_s=60.0, limit_s=600.0)


@dataclass
class Measurement:
    """All that was tried, in order, and the one chosen, whose encoder is still open.

    Attributes:
        batches: sizes that were timed; none if only one candidate could be opened.
        not_tried: candidates that would have made the start too slow.
    """

    bundle: Bundle
    chosen: Trial
    trials: list[Trial] = field(default_factory=list)
    batches: list[int] = field(default_factory=list)
    not_tried: list[Candidate] = field(default_factory=list)

    def choice(self) -> Choice:
        """Return the chosen candidate, with the figures of all as the reason, its own first."""
        chosen, precision = self.chosen.candidate, self.bundle.manifest.precision
        rates = self._rates(self.chosen) if self.batches else "the only one that can be used"
        first = f"{described(chosen, precision)}: {rates}"
        others = [
            f"{described(trial.candidate, precision)}: {trial.fault or self._rates(trial)}"
            for trial in self.trials
            if trial is not self.chosen
        ]
        late = [f"{described(each, precision)}: not timed, to start in time" for each in self.not_tried]
        reason = f"auto, by measurement: {'; '.join([first, *others, *late])}"
        return Choice(provider=chosen.provider, compute=chosen.compute, threads=chosen.threads, reason=reason)

    def _rates(self, trial: Trial) -> str:
        rates = " and ".join(f"{trial.rate(batch) or 0:.1f}" for batch in self.batches)
        return f"{rates} pictures/s at batch {' and '.join(map(str, self.batches))}"


def measure(
    bundle: Bundle,
    candidates: Sequence[Candidate],
    other_threads: Sequence[int],
    effort: Effort,
    *,
    largest_batch: int,
    limits: DeviceLimits,
    stopwatch: Stopwatch,
) -> Measurement:
    """Time candidates, and then the fastest with other numbers of threads.

    Raises:
        ProviderUnavailable: none can be opened and agrees with the probes; says why for each.
        BundleError: the probes cannot be read.
    """
    run = _Run(bundle, effort, largest_batch, limits, stopwatch)
    run.share_s = effort.runs_s / max(1, len(candidates) + len(other_threads) - 1)
    result = run.result = Measurement(bundle, Trial(candidates[0]))
    run.challenge(candidates)
    run.challenge([replace(result.chosen.candidate, threads=threads) for threads in other_threads])
    if effort.every and not result.batches and result.chosen.encoder is not None:
        run.time_alone(result.chosen)
    if result.chosen.encoder is None:
        faults = [f"{described(each.candidate, bundle.manifest.precision)}: {each.fault}" for each in result.trials]
        raise ProviderUnavailable(f"No provider computes model {bundle.manifest.name}: {'; '.join(faults)}")
    return result


class _Run:
    """One measurement under way.

    Attributes:
        spent_s: seconds of runs and of opening so far.
        longest_s: seconds of the slowest opening so far, which the next may take too.
        share_s: seconds of runs for each pair.
    """

    result: Measurement
    share_s: float

    def __init__(
        self, bundle: Bundle, effort: Effort, largest_batch: int, limits: DeviceLimits, stopwatch: Stopwatch
    ) -> None:
        self._bundle = bundle
        self._probes = quick_probes(bundle)
        self._effort = effort
        self._largest_batch = largest_batch
        self._limits = limits
        self._stopwatch = stopwatch
        self.spent_s = self.longest_s = 0.0

    def challenge(self, candidates: Iterable[Candidate]) -> None:
        """Open candidates one by one; each that is clearly faster than the chosen one replaces it."""
        result = self.result
        for candidate in candidates:
            if result.chosen.encoder is not None and self.spent_s + self.longest_s > self._effort.limit_s:
                result.not_tried.append(candidate)
                continue
            trial = self._opened(candidate)
            if trial.encoder is None:
                continue
            if result.chosen.encoder is None:
                result.chosen = trial
                continue
            if self._is_faster(trial):
                result.chosen, trial = trial, result.chosen
            trial.encoder = None  # frees its memory

    def time_alone(self, trial: Trial) -> None:
        """Time a candidate that has no other to compare it with."""
        self.result.batches = self._batches(trial)
        time_alone(
            trial,
            self._bundle,
            self.result.batches,
            rounds=self._effort.rounds,
            budget_s=self.share_s,
            stopwatch=self._stopwatch,
        )

    def _opened(self, candidate: Candidate) -> Trial:
        provider = try_provider(candidate.provider, "auto", candidate.compute)
        trial, seconds = open_trial(
            self._bundle, candidate, provider, probes=self._probes, limits=self._limits, stopwatch=self._stopwatch
        )
        self.spent_s += seconds
        self.longest_s = max(self.longest_s, seconds)
        self.result.trials.append(trial)
        return trial

    def _is_faster(self, trial: Trial) -> bool:
        result = self.result
        try:
            if not result.batches:
                result.batches = self._batches(result.chosen)
            ratio, seconds = compare(
                result.chosen,
                trial,
                self._bundle,
                result.batches,
                rounds=self._effort.rounds,
                budget_s=self.share_s,
                stopwatch=self._stopwatch,
            )
        except InferenceFailed as exc:
            trial.fault = exc.detail
            return False
        self.spent_s += seconds
        return ratio >= _MIN_GAIN

    def _batches(self, trial: Trial) -> list[int]:
        return batches_for(
            trial, self._bundle, largest=self._largest_batch, budget_s=self.share_s, stopwatch=self._stopwatch
        )
