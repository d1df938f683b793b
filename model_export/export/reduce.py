"""Reduce an fp32 bundle to fp16 or int8, and measure the result against it. Needs no torch."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import onnx

from model_export.bundles.probes import fitting_labels, load_probes
from model_export.bundles.verification import Report, compare
from model_export.bundles.writer import staged, write_manifest
from model_export.errors import ExportError, ParityError
from model_export.graphs.graph_files import Listener, write_graph
from model_export.graphs.precision import to_fp16, to_int8
from service.model.arrays import Ids, Pixels, Vectors
from service.model.engine.engine import Engine, OnnxEngine
from service.model.loading import Bundle, load_bundle
from service.model.manifest import (
    DEFAULT_TEMPLATES,
    IMAGE_ENCODER,
    TEMPLATES,
    TEXT_ENCODER,
    TOKENIZER,
    Agreement,
    Manifest,
)
from service.model.probes import PROBES
from service.model.prompts import prompts_for
from service.model.scoring import class_vectors
from service.model.tokenizer import Tokenizer

Reduced = Literal["fp16", "int8"]
BATCH = 32


@dataclass(frozen=True)
class PictureSample:
    """Real images to calibrate with and to compare on.

    Attributes:
        name: a description for the manifest.
        pixels: preprocessed for the bundle, uint8 ``[images, height, width, 3]``.
    """

    name: str
    pixels: Pixels
    labels: tuple[str, ...]


class ReductionListener(Listener, Protocol):
    """Receives the steps of a reduction."""

    def agreed(self, agreement: Agreement) -> None:
        """Receive the agreement of the reduced model with the fp32 model."""


def reduce_bundle(
    source: Path,
    out: Path,
    *,
    precision: Reduced,
    listener: ReductionListener,
    sample: PictureSample | None = None,
    calibrate: bool = False,
    force: bool = False,
) -> Manifest:
    """Write a copy of the fp32 bundle at ``source`` in a lower precision, and return its manifest.

    Args:
        out: the new bundle's folder, which must not exist unless ``force`` is set.
        precision: ``fp16`` for GPUs, ``int8`` for CPUs.
        sample: the images to measure agreement on; by default the bundle's own probes.
        calibrate: fix the ranges of int8 activations from the sample; otherwise each run computes its own.

    Raises:
        ExportError: the source is not fp32 or has no probes, ``calibrate`` comes without a sample, or ``out`` may not
            be replaced.
        ParityError: the reduced graphs are too far from the source's; nothing is written.
        BundleError: the source is not a valid bundle.
    """
    bundle = load_bundle(source)
    if bundle.manifest.precision != "fp32":
        raise ExportError(f"{source}: is {bundle.manifest.precision}; reduce the fp32 bundle of this model instead")
    if calibrate and sample is None:
        raise ExportError("calibration needs real images; name them with --data")
    probes = load_probes(bundle)
    tokenizer = Tokenizer.from_bundle(bundle)
    if sample is None:
        sample = PictureSample("the bundle's probes", probes.inputs.pixels, fitting_labels(bundle, tokenizer))
    ids = tokenizer.encode(prompts_for(sample.labels, bundle.templates[DEFAULT_TEMPLATES]))
    with staged(out, force=force) as stage:
        # Include the probes: a sample may have two labels and one kind of image, but requests will have others.
        batches = {
            IMAGE_ENCODER: chain(_batches(sample.pixels), _batches(probes.inputs.pixels)),
            TEXT_ENCODER: chain(_batches(ids), _batches(probes.inputs.ids)),
        }
        for name in (IMAGE_ENCODER, TEXT_ENCODER):
            started = time.monotonic()
            if precision == "fp16":
                model = to_fp16(onnx.load(source / name))
            else:
                model = to_int8(source / name, batches[name] if calibrate else None)
            listener.wrote(write_graph(model, stage / name, started=started))
        for name in (TOKENIZER, TEMPLATES, PROBES):
            (stage / name).write_bytes((source / name).read_bytes())
        write_manifest(bundle.manifest, stage, precision=precision)
        started = time.monotonic()
        reduced = load_bundle(stage)
        report = Report(tuple(compare(reduced, probes)), time.monotonic() - started)
        agreement = _agreement(bundle, reduced, sample, ids)
        listener.measured(report)
        listener.agreed(agreement)
        if not report.passed:
            raise ParityError(f"{out}: was not written; its graphs are too far from fp32: {', '.join(report.failed)}")
        parity = report.parity("the fp32 model's vectors")
        return write_manifest(bundle.manifest, stage, precision=precision, parity=parity, agreement=agreement)


def _agreement(bundle: Bundle, reduced: Bundle, sample: PictureSample, ids: Ids) -> Agreement:
    templates = len(bundle.templates[DEFAULT_TEMPLATES])
    vectors = []
    for each in (bundle, reduced):
        engine = OnnxEngine.load(each, "cpu", force_precision=True)
        try:
            vectors.append(_encode(engine, sample.pixels, ids))
        finally:
            engine.close()
    (images, texts), (near_images, near_texts) = vectors
    first, second = (
        (i @ class_vectors(t, templates).T).argmax(axis=1) for i, t in ((images, texts), (near_images, near_texts))
    )
    image_cosines, text_cosines = (images * near_images).sum(axis=1), (texts * near_texts).sum(axis=1)
    return Agreement(
        data=sample.name,
        images=len(images),
        labels=len(sample.labels),
        top1=_rounded(float((first == second).mean())),
        mean_image_cosine=_rounded(float(image_cosines.mean())),
        min_image_cosine=_rounded(float(image_cosines.min())),
        mean_text_cosine=_rounded(float(text_cosines.mean())),
        min_text_cosine=_rounded(float(text_cosines.min())),
    )


def _encode(engine: Engine, pixels: Pixels, ids: Ids) -> tuple[Vectors, Vectors]:
    images = [engine.encode_images(batch) for batch in _batches(pixels)]
    texts = [engine.encode_texts(batch) for batch in _batches(ids)]
    return np.concatenate(images), np.concatenate(texts)


def _batches(array: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(array), BATCH):
        yield array[start : start + BATCH]


def _rounded(value: float) -> float:
    return float(np.floor(value * 1e6) / 1e6)
