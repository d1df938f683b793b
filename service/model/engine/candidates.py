"""The ways to run a bundle on this machine's CPUs that are worth timing: provider, precision and threads."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Final

from service.model.choices import Compute, ComputeChoice
from service.model.engine.agreement import FULL_FLOATS
from service.model.engine.cpus import Cpu

_MIN_CPUS_TO_HALVE: Final = 4
"""CPUs from which on half of them are worth timing: two threads on one core often share its arithmetic units."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A provider, the precision in which it computes float32 graphs, and the CPU threads of one run."""

    provider: str
    compute: Compute
    threads: int


def described(candidate: Candidate, precision: str) -> str:
    """Return `openvino bf16, 2 threads` for a bundle of this precision."""
    threads = f"{candidate.threads} thread{'s' * (candidate.threads > 1)}"
    return f"{candidate.provider} {computed_precision(candidate, precision)}, {threads}"


def computed_precision(candidate: Candidate, precision: str) -> str:
    """Return the precision in which a candidate computes a bundle of this precision."""
    return "bf16" if candidate.compute == "bf16" else precision


def provider_candidates(precision: str, compute: ComputeChoice, cpu: Cpu, threads: int) -> list[Candidate]:
    """Return the providers and precisions to time for a bundle of this precision, each with as many threads.

    OpenVINO is left out where it is not installed, and bf16 where the CPU has no instruction for it.
    """
    computes: dict[str, Sequence[Compute]] = {"cpu": ("fp32",), "openvino": ("fp32", "bf16")}
    if find_spec("openvino") is None:
        computes["openvino"] = ()
    return [
        Candidate(provider, each, threads)
        for provider, choices in computes.items()
        for each in choices
        if (each == "fp32" or (precision in FULL_FLOATS and cpu.has_bf16)) and compute in ("auto", each)
    ]


def thread_counts(threads: int | None, cpus: int) -> list[int]:
    """Return the numbers of threads to time: `threads` alone if set, else all CPUs, and half of four or more."""
    if threads is not None:
        return [threads]
    return [cpus, cpus // 2] if cpus >= _MIN_CPUS_TO_HALVE else [cpus]
