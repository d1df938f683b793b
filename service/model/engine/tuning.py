"""Chooses how `auto` runs a bundle on this machine's CPUs: as at an earlier start, or by timing the candidates."""

import logging
from dataclasses import replace
from typing import Final

from service.errors import ProviderUnavailable
from service.model.choices import ComputeChoice
from service.model.engine.agreement import FULL_FLOATS
from service.model.engine.candidates import Candidate, provider_candidates, thread_counts
from service.model.engine.choice_store import Choice, ChoiceKey, ChoiceStore, choice_key
from service.model.engine.cpus import Cpu, available_cpus, this_cpu
from service.model.engine.engine import OnnxEngine
from service.model.engine.measurement import AT_START, Effort, Measurement, measure
from service.model.engine.provider_table import TABLE, DeviceLimits
from service.model.engine.providers import resolve, try_provider
from service.model.engine.sessions import ResolvedProvider
from service.model.engine.trials import Stopwatch, Trial, timed
from service.model.loading import Bundle
from service.model.probes import PROBES

_LARGEST_BATCH: Final = 8

_log = logging.getLogger(__name__)


class Tuner:
    """Measures and remembers, for bundles on this machine's CPUs.

    Attributes:
        store: the choices so far.
        largest_batch: pictures in the larger of the two batches that are timed.
    """

    def __init__(
        self,
        by_rule: ResolvedProvider,
        store: ChoiceStore,
        *,
        compute: ComputeChoice = "auto",
        threads: int | None = None,
        limits: DeviceLimits,
        alone: bool = True,
        stopwatch: Stopwatch = timed,
        cpu: Cpu | None = None,
        cpus: int | None = None,
    ) -> None:
        """Prepare.

        Args:
            by_rule: the choice by the CPU's flags: `cpu` or `openvino`.
            threads: the only number of threads to use, if set.
            alone: whether no other process of this service chooses at the same time; all of them must choose alike.
        """
        self._by_rule = by_rule
        self.store = store
        self._compute = compute
        self._threads = threads
        self._limits = limits
        self._alone = alone
        self._stopwatch = stopwatch
        self._cpu = cpu or this_cpu()
        self._counts = thread_counts(threads, cpus or available_cpus())
        self.largest_batch = min(_LARGEST_BATCH, limits.max_batch)

    def key(self, bundle: Bundle) -> ChoiceKey:
        """Return all that the choice for a bundle depends on."""
        return choice_key(
            self._cpu,
            self._counts,
            revision=bundle.manifest.revision,
            compute=self._compute,
            batch=self.largest_batch,
        )

    def load(self, bundle: Bundle) -> OnnxEngine:
        """Load a bundle as chosen at an earlier start, or measure, if more than one way can be timed.

        Raises: as `OnnxEngine.load`.
        """
        if bundle.manifest.precision == "fp16" or len(self.candidates(bundle, every=True)) == 1:
            return self._load_by_rule(bundle)
        known = self._load_known(bundle)
        if known is not None:
            return known
        with self.store.locked() as locked:
            if not locked and not self._alone:
                _log.warning("the workers cannot share a measured choice, so the CPU's flags decide")
                return self._load_by_rule(bundle)
            return self._load_known(bundle) or self._measure_and_load(bundle)

    def measure(self, bundle: Bundle, effort: Effort) -> Measurement:
        """Time the candidates for a bundle. Raises as `measurement.measure`."""
        return measure(
            bundle,
            self.candidates(bundle, every=effort.every),
            [] if effort.every else self._counts[1:],
            effort,
            largest_batch=self.largest_batch,
            limits=self._limits,
            stopwatch=self._stopwatch,
        )

    def candidates(self, bundle: Bundle, *, every: bool) -> list[Candidate]:
        """Return the candidates, the choice by the CPU's flags first; those of one thread count unless `every`."""
        floats, has_probes = bundle.manifest.precision in FULL_FLOATS, PROBES in bundle.manifest.files
        rule = self._by_rule if floats or self._by_rule.second is None else self._by_rule.second
        first = (rule.name, rule.compute if floats else "fp32")
        found = [
            candidate
            for threads in (self._counts if every else self._counts[:1])
            for candidate in provider_candidates(bundle.manifest.precision, self._compute, self._cpu, threads)
            # Without probes nothing can show that a provider computes wrongly, so no other one is tried.
            if has_probes or TABLE[candidate.provider].trusted or candidate.provider == rule.name
        ]
        return sorted(found, key=lambda each: (each.provider, each.compute) != first)

    def _measure_and_load(self, bundle: Bundle) -> OnnxEngine:
        _log.info("model %s: providers are timed, once on this machine", bundle.manifest.name)
        try:
            measurement = self.measure(bundle, AT_START)
        except ProviderUnavailable as exc:
            _log.warning("%s", exc.detail)
            return self._load_by_rule(bundle)
        choice = measurement.choice()
        self.store.write(self.key(bundle), choice)
        return self._load(bundle, choice, trial=measurement.chosen)

    def _load_known(self, bundle: Bundle) -> OnnxEngine | None:
        choice = self.store.read(self.key(bundle))
        if choice is None:
            return None
        if choice.candidate not in self.candidates(bundle, every=True):
            _log.warning("the measured choice for model %s is not possible here", bundle.manifest.name)
            return None
        return self._load(bundle, choice)

    def _load(self, bundle: Bundle, choice: Choice, *, trial: Trial | None = None) -> OnnxEngine:
        """Load a bundle as chosen: just now with the encoder of `trial`, else at an earlier start."""
        provider = try_provider(choice.provider, "", choice.compute) if trial is None else trial.provider
        if provider is None or isinstance(provider, str):
            _log.warning("the measured choice for model %s is not available: %s", bundle.manifest.name, provider)
            return self._load_by_rule(bundle)
        second = None if TABLE[choice.provider].trusted else replace(resolve("cpu"), chosen_by="rule")
        provider = replace(
            provider,
            reason=choice.reason + (" (known from an earlier start)" if trial is None else ""),
            second=second,
            chosen_by="measurement",
        )
        images = None if trial is None else trial.encoder
        engine = OnnxEngine.load(bundle, provider, threads=choice.threads, limits=self._limits, images=images)
        if engine.provider != choice.provider:  # its text encoder disagrees with the probes
            instead = Choice(
                provider=engine.provider, compute="fp32", threads=engine.cpu_threads, reason=engine.provider_reason
            )
            self.store.write(self.key(bundle), instead)
        return engine

    def _load_by_rule(self, bundle: Bundle) -> OnnxEngine:
        return OnnxEngine.load(bundle, self._by_rule, threads=self._threads, limits=self._limits)
