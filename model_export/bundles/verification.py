"""Verify a bundle: run by the serving code, it must produce the vectors of its model.

Nothing here needs torch. The reference is the bundle's probes, or the same inputs encoded again by torch from the
original weights.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np

from model_export.bundles.probes import Inputs, ReferenceProbes, load_probes, probe_inputs
from model_export.errors import ExportError
from service.errors import AnyclassError, BundleError, ProviderUnavailable
from service.model.arrays import Vectors
from service.model.engine.engine import Engine, OnnxEngine
from service.model.engine.providers import resolve
from service.model.loading import Bundle, load_bundle
from service.model.manifest import Manifest, Parity, Precision, TextSection

BATCH_SIZES: Final = (1, 2, 7)
UNIT_LENGTH_TOLERANCE: Final = 1e-5


@dataclass(frozen=True)
class Thresholds:
    """Limits for the distance of vectors from the reference."""

    max_abs_difference: float
    min_cosine: float


THRESHOLDS: Final[Mapping[Precision, Thresholds]] = {
    "fp32": Thresholds(1e-4, 0.9999),
    "fp16-stored": Thresholds(1e-4, 0.9999),
    "fp16": Thresholds(1e-2, 0.999),
    "int8": Thresholds(0.15, 0.95),
    "int4": Thresholds(1e-2, 0.999),
}
"""By precision. fp16-stored computes in fp32, and its reference has the same rounded weights. fp16 and int8 are
compared with the fp32 model: these limits catch a broken graph, and the agreement measures a correct one. int4 exists
only in published graphs, and is compared with those, whose weights are as coarse."""


@dataclass(frozen=True)
class Check:
    """Result of one check; the two measures are set if it compared vectors."""

    name: str
    passed: bool
    detail: str
    max_abs_difference: float | None = None
    min_cosine: float | None = None


@dataclass(frozen=True)
class Report:
    """The result of a verification."""

    checks: tuple[Check, ...]
    seconds: float

    @property
    def passed(self) -> bool:
        """Return whether every check passed."""
        return all(check.passed for check in self.checks)

    @property
    def failed(self) -> tuple[str, ...]:
        """Return the names of the failed checks."""
        return tuple(check.name for check in self.checks if not check.passed)

    def parity(self, reference: str) -> Parity:
        """Summarise all comparisons, rounded to the safe side to be the same on every machine."""
        differences = [check.max_abs_difference for check in self.checks if check.max_abs_difference is not None]
        cosines = [check.min_cosine for check in self.checks if check.min_cosine is not None]
        return Parity(
            reference=reference,
            max_abs_difference=_rounded_up(max(differences)),
            min_cosine=float(np.floor(min(cosines) * 1e9) / 1e9),
        )


def verify_bundle(
    path: Path, *, provider: str = "cpu", reference: Callable[[Bundle], ReferenceProbes] = load_probes
) -> Report:
    """Check everything about the bundle at ``path``; a problem is a failed check, not an exception.

    Args:
        reference: returns inputs and their right vectors; by default the bundle's own probes.

    Raises:
        ProviderUnavailable: the provider is missing, so the bundle cannot be checked.
        ConfigurationError: no provider has that name.
        SourceError: raised by ``reference`` if its source cannot be read.
    """
    started = time.monotonic()
    checks: list[Check] = []
    try:
        bundle = load_bundle(path)
    except AnyclassError as exc:
        checks.append(Check("files", passed=False, detail=exc.detail))
        return Report(tuple(checks), time.monotonic() - started)
    manifest = bundle.manifest
    size = sum(entry.bytes for entry in manifest.files.values())
    checks.append(
        Check("files", passed=True, detail=f"{len(manifest.files)} files, {size / 1e6:.1f} MB, digests agree")
    )
    checks.append(_recorded(manifest))
    try:
        checks.append(_tokenizer(bundle, probes := reference(bundle)))
    except BundleError as exc:
        checks.append(Check("tokenizer", passed=False, detail=exc.detail))
    except ExportError as exc:
        checks.append(Check("reference", passed=False, detail=str(exc)))
    else:
        checks.extend(compare(bundle, probes, provider=provider))
    return Report(tuple(checks), time.monotonic() - started)


def compare(bundle: Bundle, probes: ReferenceProbes, *, provider: str = "cpu") -> list[Check]:
    """Run the probes through the serving engine, in several batch sizes and text lengths.

    Raises:
        ProviderUnavailable: the provider is missing.
        ConfigurationError: no provider has that name.
    """
    resolved = resolve(provider, compute="fp32")
    manifest, inputs = bundle.manifest, probes.inputs
    limits = THRESHOLDS[manifest.precision]
    try:
        # fp16 may run on a CPU here, because its graph is checked and not served.
        engine = OnnxEngine.load(bundle, resolved, force_precision=True)
    except ProviderUnavailable:
        raise
    except AnyclassError as exc:
        return [Check("graphs", passed=False, detail=exc.detail)]
    comparison = Comparison(limits)
    longest = manifest.text.max_length
    try:
        for batch in BATCH_SIZES:
            comparison.add(
                f"images, batch {batch}",
                partial(_images, engine, inputs, batch),
                probes.image_vectors,
                f"{len(inputs.pixels)} pictures",
            )
        for batch in BATCH_SIZES:
            comparison.add(
                f"texts, batch {batch}",
                partial(_texts, engine, inputs, manifest.text, batch),
                probes.text_vectors,
                f"{len(inputs.lengths)} of {inputs.lengths.min()}–{inputs.lengths.max()} tokens",
            )
        if manifest.text.padding == "longest":
            comparison.add(
                f"texts, padded to {longest}",
                partial(engine.encode_texts, inputs.ids),
                probes.text_vectors,
                "same as trimmed",
            )
    finally:
        engine.close()
    return [*comparison.checks, comparison.unit_lengths()]


class Comparison:
    """Collects checks, and the largest deviation from unit length."""

    def __init__(self, limits: Thresholds) -> None:
        self.checks: list[Check] = []
        self._limits = limits
        self._length_error = 0.0

    def add(self, name: str, produce: Callable[[], Vectors], wanted: Vectors, detail: str) -> None:
        """Compare produced and wanted vectors, both float32 ``[n, dim]``."""
        try:
            given = produce()
        except AnyclassError as exc:
            self.checks.append(Check(name, passed=False, detail=exc.detail))
            return
        if given.shape != wanted.shape:
            detail = f"vectors are {list(given.shape)}, wanted {list(wanted.shape)}"
            self.checks.append(Check(name, passed=False, detail=detail))
            return
        # float64 avoids rounding the cosine of vectors that differ only in fp32's last bit.
        a, b = given.astype(np.float64), wanted.astype(np.float64)
        lengths = np.linalg.norm(a, axis=1)
        self._length_error = max(self._length_error, float(np.abs(lengths - 1).max()))
        difference = float(np.abs(a - b).max())
        cosine = float(((a * b).sum(axis=1) / (lengths * np.linalg.norm(b, axis=1))).min())
        passed = difference <= self._limits.max_abs_difference and cosine >= self._limits.min_cosine
        self.checks.append(Check(name, passed, detail, difference, cosine))

    def unit_lengths(self) -> Check:
        """Check that every compared vector has length one."""
        passed = self._length_error <= UNIT_LENGTH_TOLERANCE
        return Check("unit length", passed, f"within {self._length_error:.0e}")


def _images(engine: Engine, inputs: Inputs, batch: int) -> Vectors:
    parts = [engine.encode_images(inputs.pixels[i : i + batch]) for i in range(0, len(inputs.pixels), batch)]
    return np.concatenate(parts)


def _texts(engine: Engine, inputs: Inputs, text: TextSection, batch: int) -> Vectors:
    """Encode the texts in batches, each trimmed to its longest text as in the service."""
    parts = []
    for i in range(0, len(inputs.lengths), batch):
        longest = max(text.min_length, int(inputs.lengths[i : i + batch].max()))
        length = longest if text.padding == "longest" else text.max_length
        parts.append(engine.encode_texts(np.ascontiguousarray(inputs.ids[i : i + batch, :length])))
    return np.concatenate(parts)


def _tokenizer(bundle: Bundle, probes: ReferenceProbes) -> Check:
    """Check that the serving tokenizer makes the same ids as at export.

    Raises:
        BundleError: the tokenizer cannot be read.
    """
    passed = np.array_equal(probe_inputs(bundle).ids, probes.inputs.ids)
    return Check("tokenizer", passed, "same ids as at export" if passed else "different ids from those at export")


def _recorded(manifest: Manifest) -> Check:
    """Check that the manifest records the parity at export, within the limits."""
    parity, limits = manifest.parity, THRESHOLDS[manifest.precision]
    if parity is None:
        return Check("recorded parity", passed=False, detail="the manifest has none; export the model again")
    passed = parity.max_abs_difference <= limits.max_abs_difference and parity.min_cosine >= limits.min_cosine
    return Check("recorded parity", passed, parity.reference, parity.max_abs_difference, parity.min_cosine)


def _rounded_up(value: float) -> float:
    """Round up to one significant digit: 1.2e-7 → 2e-7."""
    if value == 0:
        return 0.0
    unit = 10.0 ** np.floor(np.log10(value))
    return float(f"{np.ceil(value / unit) * unit:.0e}")
