"""The use case: a training run becomes a bundle, measured on the code that serves before it gets its name."""

import copy
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast

import numpy as np
import numpy.typing as npt
import torch
from onnx import ModelProto
from torch import Tensor, nn

from model_export import optimize
from model_export.bundle import staged
from model_export.encoders import ImageEncoder, TextEncoder
from model_export.errors import ExportError, ParityError
from model_export.folding import fold_batch_norm, round_to_fp16
from model_export.onnx_export import MIN_LENGTH, export_image_encoder, export_text_encoder
from model_export.probes import IMAGES, PROBES, Probes, Vectors, probe_inputs, save_probes
from model_export.sources import TrainingRun
from model_export.verify import Report, compare
from service.manifest import (
    IMAGE_ENCODER,
    MANIFEST,
    TEMPLATES,
    TEXT_ENCODER,
    TOKENIZER,
    Bundle,
    FileEntry,
    Manifest,
    Parity,
    Precision,
    SoftmaxScoring,
    TextSection,
    load_bundle,
)
from service.providers import resolve

REFERENCE = {
    "fp32": "torch in float64",
    "fp16-stored": "torch in float64, weights rounded to fp16",
}
"""By precision. float64 is the truth that fp32 approximates, and the same on every machine when rounded to fp32."""


@dataclass(frozen=True)
class Graph:
    """What is worth saying of one graph that was written."""

    file: str
    nodes: int
    weights: int
    bytes: int
    seconds: float


class Listener(Protocol):
    """Hears of an export as it goes."""

    def wrote(self, graph: Graph) -> None:
        """A graph was exported."""

    def measured(self, report: Report) -> None:
        """The graphs were compared with torch, well or not."""


def export_run(
    run: TrainingRun, out: Path, *, listener: Listener, precision: Precision = "fp32", force: bool = False
) -> Manifest:
    """Write the bundle of a training run.

    Args:
        run: the run, already read and checked.
        out: the bundle's folder, which must not exist unless ``force`` is set.
        listener: hears of each step.
        precision: ``fp32``, or ``fp16-stored``, which keeps large weights as fp16 in the files and computes in fp32.
        force: replace a bundle that is at ``out``.

    Returns:
        The manifest that was written.

    Raises:
        ExportError: ``out`` may not be replaced or cannot be written, or a weight is beyond fp16's range.
        ParityError: the graphs do not compute what the model computes; nothing is written.
        ProviderUnavailable: ONNX Runtime is not installed.
    """
    resolve("cpu")  # what will be measured with must be there before the long work, not after it
    with staged(out, force=force) as stage:
        image, text = served_encoders(run, precision)
        section, context = run.config.image, run.config.model.text.context_length
        started = time.monotonic()
        graph = export_image_encoder(image, height=section.height, width=section.width)
        listener.wrote(_write_graph(graph, stage / IMAGE_ENCODER, precision, started))
        started = time.monotonic()
        graph = export_text_encoder(text, context_length=context)
        listener.wrote(_write_graph(graph, stage / TEXT_ENCODER, precision, started))
        (stage / TOKENIZER).write_bytes(run.tokenizer)
        (stage / TEMPLATES).write_text(_json(run.config.templates), encoding="utf-8")

        # The engine reads bundles, so what is measured is a bundle already, only without its measures.
        _write_manifest(run, stage, precision, parity=None)
        bundle = load_bundle(stage)
        started = time.monotonic()
        probes = reference_probes(run, bundle)
        save_probes(probes, stage / PROBES)
        report = Report(tuple(compare(bundle, probes)), time.monotonic() - started)
        listener.measured(report)
        if not report.passed:
            raise ParityError(f"{out}: was not written; its graphs fail: {', '.join(report.failed)}")
        return _write_manifest(run, stage, precision, parity=report.parity(REFERENCE[precision]))


def served_encoders(run: TrainingRun, precision: Precision) -> tuple[nn.Module, nn.Module]:
    """Return the image and the text encoder as they are exported: batch norm folded, weights rounded if so asked."""
    image, text = _encoders(run)
    image = fold_batch_norm(image)
    if precision == "fp16-stored":
        image, text = round_to_fp16(image), round_to_fp16(text)
    return image, text


def reference_probes(run: TrainingRun, bundle: Bundle) -> Probes:
    """Encode a bundle's probe inputs with torch in float64, from the weights the bundle was exported from.

    Raises:
        ExportError: the bundle comes from other weights.
    """
    manifest = bundle.manifest
    if manifest.provenance.source_sha256 != run.provenance.source_sha256:
        raise ExportError("the bundle was exported from other weights than this training run's")
    # fp32 graphs are compared with the model as it was trained; rounded ones with the same rounded weights.
    image, text = _encoders(run) if manifest.precision == "fp32" else served_encoders(run, manifest.precision)
    inputs = probe_inputs(bundle)
    # Every text at its own length, so that the reference does not depend on padding.
    trimmed = (ids[None, :length] for ids, length in zip(inputs.ids, inputs.lengths, strict=True))
    return Probes(inputs, _encode(image, np.split(inputs.pixels, IMAGES)), _encode(text, trimmed))


def _encoders(run: TrainingRun) -> tuple[nn.Module, nn.Module]:
    section = run.config.image
    return ImageEncoder(run.model, section.mean, section.std).eval(), TextEncoder(run.model).eval()


def _encode(encoder: nn.Module, inputs: Iterable[npt.NDArray[np.generic]]) -> Vectors:
    """Encode each array by itself, in float64, and join the vectors."""
    exact = copy.deepcopy(encoder).double()
    with torch.no_grad():
        vectors: list[Tensor] = [exact(torch.from_numpy(array)) for array in inputs]
    return cast("Vectors", torch.cat(vectors).float().numpy())


def _write_graph(model: ModelProto, path: Path, precision: Precision, started: float) -> Graph:
    weights = sum(int(np.prod(tensor.dims)) for tensor in model.graph.initializer)
    nodes = len(model.graph.node)
    if precision == "fp16-stored":
        optimize.store_fp16(model)
    files = optimize.save(model, path)
    size = sum(file.stat().st_size for file in files)
    return Graph(path.name, nodes, weights, size, time.monotonic() - started)


def _write_manifest(run: TrainingRun, stage: Path, precision: Precision, parity: Parity | None) -> Manifest:
    config = run.config
    text = config.model.text
    manifest = Manifest.build(
        name=config.name,
        aliases=config.aliases,
        architecture=f"clip/{config.model.image.kind}",
        dim=config.model.embed_dim,
        image=config.image,
        text=TextSection(
            padding="longest",
            min_length=MIN_LENGTH,
            max_length=text.context_length,
            pad_id=text.pad_id,
            end_of_text_id=text.end_of_text_id,
            canonicalization="tokenizer",
            overflow="refuse",
        ),
        scoring=SoftmaxScoring(logit_scale=run.logit_scale),
        precision=precision,
        files={path.name: FileEntry.of(path) for path in sorted(stage.iterdir()) if path.name != MANIFEST},
        parity=parity,
        provenance=run.provenance,
    )
    (stage / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
    return manifest


def _json(content: Mapping[str, Sequence[str]]) -> str:
    return json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
