"""The use case: a model becomes a bundle, measured on the code that serves before it gets its name."""

import copy
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from onnx import ModelProto
from torch import Tensor, nn

from model_export.architectures.encoders import ImageEncoder, TextEncoder, unused_tower
from model_export.bundles.probes import ReferenceProbes, probe_inputs, save_probes
from model_export.bundles.verification import Report, compare
from model_export.bundles.writer import staged, write_manifest
from model_export.checkpoints.model_source import ModelSource
from model_export.errors import ExportError, ParityError
from model_export.graphs.folding import fold_batch_norm, round_to_fp16
from model_export.graphs.graph_files import Listener, write_graph
from model_export.graphs.passes import store_fp16
from model_export.graphs.torch_export import export_image_encoder, export_text_encoder
from service.model.arrays import Vectors
from service.model.engine.providers import resolve
from service.model.loading import Bundle, load_bundle
from service.model.manifest import IMAGE_ENCODER, TEMPLATES, TEXT_ENCODER, TOKENIZER, Manifest, Precision
from service.model.probes import IMAGES, PROBES

REFERENCE = {
    "fp32": "torch in float64",
    "fp16-stored": "torch in float64, weights rounded to fp16",
}
"""By precision. float64 is the truth that fp32 approximates, and the same on every machine when rounded to fp32."""


def export_model(
    source: ModelSource, out: Path, *, listener: Listener, precision: Precision = "fp32", force: bool = False
) -> Manifest:
    """Write the bundle of a model.

    Args:
        source: the model, already read and checked.
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
        image, text = served_encoders(source, precision)
        section = source.image
        # No name is given to a graph: it would be in memory while the next one is made.
        started = time.monotonic()
        listener.wrote(
            write_graph(
                _stored(export_image_encoder(image, height=section.height, width=section.width), precision),
                stage / IMAGE_ENCODER,
                started=started,
            )
        )
        started = time.monotonic()
        listener.wrote(
            write_graph(
                _stored(export_text_encoder(text, source.text), precision), stage / TEXT_ENCODER, started=started
            )
        )
        del image, text
        (stage / TOKENIZER).write_bytes(source.tokenizer)
        (stage / TEMPLATES).write_text(_json(source.templates), encoding="utf-8")

        # The engine reads bundles, so what is measured is a bundle already, only without its measures.
        write_manifest(source, stage, precision=precision)
        bundle = load_bundle(stage)
        started = time.monotonic()
        probes = reference_probes(source, bundle)
        save_probes(probes, stage / PROBES)
        report = Report(tuple(compare(bundle, probes)), time.monotonic() - started)
        listener.measured(report)
        if not report.passed:
            raise ParityError(f"{out}: was not written; its graphs fail: {', '.join(report.failed)}")
        return write_manifest(source, stage, precision=precision, parity=report.parity(REFERENCE[precision]))


def served_encoders(source: ModelSource, precision: Precision) -> tuple[nn.Module, nn.Module]:
    """Return the image and the text encoder as they are exported: batch norm folded, weights rounded if so asked."""
    image, text = _encoders(source)
    image = fold_batch_norm(image)
    if precision == "fp16-stored":
        image, text = round_to_fp16(image), round_to_fp16(text)
    return image, text


def reference_probes(source: ModelSource, bundle: Bundle) -> ReferenceProbes:
    """Encode a bundle's probe inputs with torch in float64, from the weights the bundle was exported from.

    Raises:
        ExportError: the bundle comes from other weights.
    """
    manifest = bundle.manifest
    if manifest.provenance.source_sha256 != source.provenance.source_sha256:
        raise ExportError("the bundle was exported from other weights than this source's")
    # fp32 graphs are compared with the model as it was trained; rounded ones with the same rounded weights.
    image, text = _encoders(source) if manifest.precision == "fp32" else served_encoders(source, manifest.precision)
    inputs = probe_inputs(bundle)
    if source.text.padding == "fixed":
        texts = (ids[None] for ids in inputs.ids)
    else:
        # Every text at its own length, so that the reference does not depend on padding.
        texts = (ids[None, :length] for ids, length in zip(inputs.ids, inputs.lengths, strict=True))
    return ReferenceProbes(inputs, _encode(image, np.split(inputs.pixels, IMAGES)), _encode(text, texts))


def _encoders(source: ModelSource) -> tuple[nn.Module, nn.Module]:
    section = source.image
    return ImageEncoder(source.model, section.mean, section.std).eval(), TextEncoder(source.model).eval()


def _encode(encoder: nn.Module, inputs: Iterable[npt.NDArray[np.generic]]) -> Vectors:
    """Encode each array by itself, in float64, and join the vectors."""
    # Of both towers in float64, a large model would need three times the memory of its weights.
    other = unused_tower(encoder)
    exact = copy.deepcopy(encoder, {id(other): nn.Identity()} if other is not None else None).double()
    with torch.no_grad():
        vectors: list[Tensor] = [exact(torch.from_numpy(array)) for array in inputs]
    return cast("Vectors", torch.cat(vectors).float().numpy())


def _stored(graph: ModelProto, precision: Precision) -> ModelProto:
    if precision == "fp16-stored":
        store_fp16(graph)
    return graph


def _json(content: Mapping[str, Sequence[str]]) -> str:
    return json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
