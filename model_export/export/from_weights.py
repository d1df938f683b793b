"""Export a model to a bundle, and measure it on the serving code before it gets its name."""

import copy
import time
from collections.abc import Iterable
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from onnx import ModelProto
from torch import Tensor, nn

from model_export.architectures.encoders import ImageEncoder, PatchEncoder, TextEncoder, unused_tower
from model_export.bundles.probes import ReferenceProbes, probe_inputs, save_probes
from model_export.bundles.verification import Report, compare
from model_export.bundles.writer import staged, write_manifest, write_tokenizer
from model_export.checkpoints.model_source import ModelSource
from model_export.errors import ExportError, ParityError
from model_export.graphs.folding import fold_batch_norm, merge_branches, round_to_fp16
from model_export.graphs.graph_files import Listener, write_graph
from model_export.graphs.passes import store_fp16
from model_export.graphs.torch_export import export_image_encoder, export_text_encoder
from service.model.arrays import Vectors
from service.model.engine.providers import resolve
from service.model.loading import Bundle, load_bundle
from service.model.manifest import IMAGE_ENCODER, TEXT_ENCODER, Manifest, Precision
from service.model.probes import IMAGES, PROBES

REFERENCE = {
    "fp32": "torch in float64",
    "fp16-stored": "torch in float64, weights rounded to fp16",
}
"""The reference, by precision. float64 is what fp32 approximates; rounded to fp32, it is the same on every machine."""


def export_model(
    source: ModelSource, out: Path, *, listener: Listener, precision: Precision = "fp32", force: bool = False
) -> Manifest:
    """Write the bundle of a model, and return its manifest.

    Args:
        out: the bundle's folder, which must not exist unless ``force`` is set.
        precision: ``fp32``, or ``fp16-stored``: large weights are fp16 in the files, and computed in fp32.

    Raises:
        ExportError: ``out`` may not be replaced or cannot be written, or a weight is beyond fp16's range.
        ParityError: the graphs do not agree with the model; nothing is written.
        ProviderUnavailable: ONNX Runtime is not installed.
    """
    resolve("cpu")  # fails before the long work if the runtime is missing
    with staged(out, force=force) as stage:
        image, text = served_encoders(source, precision)
        section = source.image
        # A named graph would stay in memory while the next one is made.
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
        write_tokenizer(source, stage)

        # The engine reads bundles, so measure a bundle whose manifest still lacks the measures.
        write_manifest(source, stage, precision=precision)
        bundle = load_bundle(stage)
        started = time.monotonic()
        probes = reference_probes(source, bundle)
        save_probes(probes, stage / PROBES)
        report = Report(tuple(compare(bundle, probes)), time.monotonic() - started)
        listener.measured(report)
        if not report.passed:
            raise ParityError(f"{out}: was not written; its graphs differ from the model: {', '.join(report.failed)}")
        return write_manifest(source, stage, precision=precision, parity=report.parity(REFERENCE[precision]))


def served_encoders(source: ModelSource, precision: Precision) -> tuple[nn.Module, nn.Module]:
    """Return the image and text encoders for the export.

    Branches are merged, batch norms folded, and weights rounded for ``fp16-stored``.
    """
    image, text = _encoders(source)
    image = fold_batch_norm(merge_branches(image))
    if precision == "fp16-stored":
        image, text = round_to_fp16(image), round_to_fp16(text)
    return image, text


def reference_probes(source: ModelSource, bundle: Bundle) -> ReferenceProbes:
    """Encode a bundle's probe inputs with torch in float64, from the bundle's original weights.

    Raises:
        ExportError: the bundle comes from different weights.
    """
    manifest = bundle.manifest
    if manifest.provenance.source_sha256 != source.provenance.source_sha256:
        raise ExportError("the bundle was exported from different weights; name its own source")
    # fp32 graphs are compared with the trained model; rounded graphs with the same rounded weights.
    image, text = _encoders(source) if manifest.precision == "fp32" else served_encoders(source, manifest.precision)
    inputs = probe_inputs(bundle)
    if source.text.padding == "fixed":
        texts = (ids[None] for ids in inputs.ids)
    else:
        # Each text has its own length, so the reference does not depend on padding.
        texts = (ids[None, :length] for ids, length in zip(inputs.ids, inputs.lengths, strict=True))
    return ReferenceProbes(inputs, _encode(image, np.split(inputs.pixels, IMAGES)), _encode(text, texts))


def _encoders(source: ModelSource) -> tuple[nn.Module, nn.Module]:
    section = source.image
    encoder = PatchEncoder if section.resize == "aspect" else ImageEncoder
    return encoder(source.model, section.mean, section.std).eval(), TextEncoder(source.model).eval()


def _encode(encoder: nn.Module, inputs: Iterable[npt.NDArray[np.generic]]) -> Vectors:
    """Encode each array separately in float64, and join the vectors."""
    # Both towers in float64 would need three times the memory of a large model's weights.
    other = unused_tower(encoder)
    exact = copy.deepcopy(encoder, {id(other): nn.Identity()} if other is not None else None).double()
    with torch.no_grad():
        vectors: list[Tensor] = [exact(torch.from_numpy(array)) for array in inputs]
    return cast("Vectors", torch.cat(vectors).float().numpy())


def _stored(graph: ModelProto, precision: Precision) -> ModelProto:
    if precision == "fp16-stored":
        store_fp16(graph)
    return graph
