"""Writes a bundle of published ONNX encoders, once it agrees with the published graphs."""

import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Final

from onnx import ModelProto
from onnx.checker import ValidationError
from onnx.shape_inference import InferenceError

from model_export.bundles.probes import Inputs, ReferenceProbes, probe_inputs, save_probes
from model_export.bundles.verification import THRESHOLDS, Check, Comparison, Report, Thresholds, compare
from model_export.bundles.writer import staged, write_manifest, write_tokenizer
from model_export.errors import ExportError, ParityError
from model_export.graphs.graph_files import Graph, Listener, write_graph
from model_export.published_onnx.graph_files import data_files, one_line, plain_copy, read_graph, read_weights
from model_export.published_onnx.reference import TOGETHER, Reference, TextReference, image_reference, text_reference
from model_export.published_onnx.source import OnnxSource
from model_export.published_onnx.surgery import serve_images, serve_texts
from service.model.engine.engine import OnnxEngine
from service.model.engine.providers import resolve
from service.model.loading import Bundle, load_bundle
from service.model.manifest import IMAGE_ENCODER, TEXT_ENCODER, Manifest, Precision, TextSection
from service.model.probes import PROBES

REFERENCE: Final = "source graphs in onnxruntime"

SAME_GRAPH: Final[dict[Precision, Thresholds]] = {
    "fp32": Thresholds(1e-4, 0.9999),
    "fp16": Thresholds(5e-3, 0.9999),
    "int8": Thresholds(2e-2, 0.999),
    "int4": Thresholds(5e-3, 0.9999),
}
"""Allowed difference between a bundle and its source's graphs on the same batch, by precision. Both compute the same
except for the last bit of a pixel; if activations are rounded to fp16 or int8, that bit moves a value by a step."""


def write_bundle(source: OnnxSource, out: Path, *, listener: Listener, force: bool = False) -> Manifest:
    """Write the bundle of published encoders, and return its manifest.

    Args:
        out: the bundle's folder, which must not exist unless ``force`` is set.

    Raises:
        SourceError: a graph cannot be read, or ONNX Runtime refuses it.
        ExportError: ``out`` may not be replaced or cannot be written, or a graph is not sound.
        ParityError: the bundle's vectors differ from those of the source's graphs; nothing is written.
        ProviderUnavailable: ONNX Runtime is not installed.
    """
    resolve("cpu")  # a missing runtime must fail before the long work
    with staged(out, force=force) as stage, tempfile.TemporaryDirectory(prefix="anyclass-") as folder:
        image, text = (_plain(path, Path(folder) / path.stem) for path in (source.image_path, source.text_path))
        started = time.monotonic()
        model = read_weights(image)
        serve_images(model, source.image_encoder, source.image, dim=source.dim)
        listener.wrote(_write(model, stage / IMAGE_ENCODER, source.image_path, started))
        del model  # the rest needs the memory
        listener.wrote(_write_texts(source, text, stage, source.text))
        write_tokenizer(source, stage)

        bundle = _bundle(source, stage, section := source.text)
        started = time.monotonic()
        inputs = probe_inputs(bundle)
        images = image_reference(source, image, inputs.pixels)
        texts = text_reference(source, text, inputs, THRESHOLDS[source.precision])
        if texts.padding != section.padding:
            section = section.model_copy(update={"padding": "fixed", "min_length": section.max_length})
            for written in stage.glob(f"{TEXT_ENCODER}*"):
                written.unlink()
            listener.wrote(_write_texts(source, text, stage, section))
            bundle = _bundle(source, stage, section)
        probes = ReferenceProbes(inputs, images.alone, texts.alone)
        save_probes(probes, stage / PROBES)
        checks = [_padding(texts, section), *compare(bundle, probes), *_same_batch(bundle, inputs, images, texts)]
        report = Report(tuple(checks), time.monotonic() - started)
        listener.measured(report)
        if not report.passed:
            raise ParityError(f"{out}: was not written; its graphs fail: {', '.join(report.failed)}")
        return write_manifest(source, stage, precision=source.precision, text=section, parity=report.parity(REFERENCE))


def _plain(path: Path, folder: Path) -> Path:
    return plain_copy(path, data_files(read_graph(path), path), folder)


def _write_texts(source: OnnxSource, path: Path, stage: Path, section: TextSection) -> Graph:
    started = time.monotonic()
    model = read_weights(path)
    serve_texts(model, source.text_encoder, section, dim=source.dim)
    return _write(model, stage / TEXT_ENCODER, source.text_path, started)


def _write(model: ModelProto, path: Path, source: Path, started: float) -> Graph:
    try:
        return write_graph(model, path, started=started)
    except (ValidationError, InferenceError) as exc:
        raise ExportError(f"{source}: does not pass ONNX's checker ({one_line(exc)}); take another variant") from exc


def _bundle(source: OnnxSource, stage: Path, section: TextSection) -> Bundle:
    """Open the unfinished bundle, whose parity is still unknown: the engine reads bundles only."""
    write_manifest(source, stage, precision=source.precision, text=section)
    return load_bundle(stage)


def _padding(texts: TextReference, section: TextSection) -> Check:
    """Return the check that states the padding of texts, and its reason."""
    if texts.padding == "longest":
        detail = f"moves vectors by {texts.difference:.0e} at most, so texts keep their length"
    elif texts.difference is not None:
        detail = f"moves vectors by {texts.difference:.0e}, so every text is of {section.max_length} tokens"
    else:
        detail = f"every text is of {section.max_length} tokens, as in training"
    return Check("padding", passed=True, detail=detail)


def _same_batch(bundle: Bundle, inputs: Inputs, images: Reference, texts: Reference) -> list[Check]:
    """Compare bundle and source on equal batches, on which graphs whose ranges depend on the batch agree too."""
    comparison = Comparison(SAME_GRAPH[bundle.manifest.precision])
    engine = OnnxEngine.load(bundle, "cpu", force_precision=True)
    try:
        for name, encode, batch, wanted in (
            ("images", partial(engine.encode_images, inputs.pixels[:TOGETHER]), len(images.together), images.together),
            ("texts", partial(engine.encode_texts, inputs.ids[:TOGETHER]), len(texts.together), texts.together),
        ):
            comparison.add(f"{name}, same batch", encode, wanted, f"{batch} at once, as the source")
    finally:
        engine.close()
    return comparison.checks
