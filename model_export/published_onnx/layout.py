"""The split layout of published ONNX encoders: which files there are, and what their graphs take and give."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from onnx import ModelProto, TensorProto, ValueInfoProto

from model_export.checkpoints.layouts import ONNX_FOLDER, ONNX_TOWERS
from model_export.checkpoints.preprocessing import ModelType
from model_export.errors import SourceError
from service.model.manifest import Precision

IMAGE_GRAPH, TEXT_GRAPH = ONNX_TOWERS
FULL_GRAPH: Final = "model"

PIXEL_VALUES: Final = "pixel_values"
INPUT_IDS: Final = "input_ids"
ATTENTION_MASK: Final = "attention_mask"
POSITION_IDS: Final = "position_ids"

INTEGERS: Final = frozenset({TensorProto.INT64, TensorProto.INT32})
FLOATS: Final = frozenset({TensorProto.FLOAT, TensorProto.FLOAT16})
MASKS: Final = INTEGERS | FLOATS | {TensorProto.BOOL}

_Dims = list[int | str | None]


@dataclass(frozen=True)
class Variant:
    """One way in which the same graphs are published.

    Attributes:
        suffix: of the files' names, before ``.onnx``.
        precision: what a manifest calls it.
    """

    suffix: str
    precision: Precision


VARIANTS: Final[Mapping[str, Variant]] = {
    "fp32": Variant("", "fp32"),
    "fp16": Variant("_fp16", "fp16"),
    "quantized": Variant("_quantized", "int8"),
    "int8": Variant("_int8", "int8"),
    "uint8": Variant("_uint8", "int8"),
    "q4": Variant("_q4", "int4"),
    "q4f16": Variant("_q4f16", "int4"),
    "bnb4": Variant("_bnb4", "int4"),
}
"""By the names that optimum and transformers.js use. The order is that in which a full graph is looked for."""


@dataclass(frozen=True)
class Family:
    """What follows from a configuration's ``model_type``.

    Attributes:
        model_type: as the readers of tokenizers and preprocessing call it.
        architecture: for people.
        flags: of the command line, with which a user states how its cosines become scores.
        needs_bias: whether there is a bias beside the scale: scores are sigmoids.
        padding: how its texts were padded in training, as far as that is to be seen in their vectors.
        context_length: tokens of a text, where the configuration does not say.
        vocab_size: tokens that the text tower knows, where the configuration does not say.
        image_size: pixels of an edge, where the configuration does not say.
        image_outputs: outputs in the joint space, the first that a graph has is taken.
        text_outputs: the same of the text graph.
    """

    model_type: ModelType
    architecture: str
    flags: str
    needs_bias: bool
    padding: Literal["longest", "fixed"]
    context_length: int
    vocab_size: int
    image_size: int
    image_outputs: tuple[str, ...]
    text_outputs: tuple[str, ...]


FAMILIES: Final[Mapping[str, Family]] = {
    "clip": Family(
        model_type="clip",
        architecture="clip/vit",
        flags="--logit-scale",
        needs_bias=False,
        padding="longest",
        context_length=77,
        vocab_size=49408,
        image_size=224,
        image_outputs=("image_embeds",),
        text_outputs=("text_embeds",),
    ),
    # SigLIP projects inside its towers, so what they pool is in the joint space already.
    "siglip": Family(
        model_type="siglip",
        architecture="siglip/vit",
        flags="--logit-scale and --logit-bias",
        needs_bias=True,
        padding="fixed",
        context_length=64,
        vocab_size=32000,
        image_size=224,
        image_outputs=("image_embeds", "pooler_output"),
        text_outputs=("text_embeds", "pooler_output"),
    ),
}
"""By ``model_type``. The figures are those that transformers' configurations leave out where they hold."""


@dataclass(frozen=True)
class Encoder:
    """What a graph takes and gives, checked.

    Attributes:
        inputs: name → element type, as ``onnx.TensorProto`` numbers it.
        output: the name of the one in the joint space.
        output_type: its element type.
        dim: its last dimension, where the graph says it.
        length: tokens of each text, where the graph takes only one length.
    """

    inputs: Mapping[str, int]
    output: str
    output_type: int
    dim: int | None
    length: int | None = None


def variants(folder: Path) -> list[str]:
    """Name the variants of which both encoders are there."""
    return [name for name in VARIANTS if all(graph_path(folder, graph, name).exists() for graph in _SPLIT)]


def graph_path(folder: Path, graph: str, variant: str) -> Path:
    """Say where a variant of a graph is."""
    return folder / ONNX_FOLDER / f"{graph}{VARIANTS[variant].suffix}.onnx"


def image_encoder(model: ModelProto, path: Path, family: Family, *, height: int, width: int) -> Encoder:
    """Check a graph that encodes pictures.

    Raises:
        SourceError: it has inputs, outputs or axes other than a bundle can serve.
    """
    inputs = _inputs(model, path, {PIXEL_VALUES: FLOATS})
    if PIXEL_VALUES not in inputs:
        raise SourceError(f"{path}: has the inputs {_names(inputs)}, not {PIXEL_VALUES}")
    dims = _dims(inputs[PIXEL_VALUES])
    wanted = (3, height, width)
    if dims is not None and (
        len(dims) != 4 or any(isinstance(dim, int) and dim != size for dim, size in zip(dims[1:], wanted, strict=True))
    ):
        raise SourceError(f"{path}: {PIXEL_VALUES} is {dims}, pictures are prepared as [batch, 3, {height}, {width}]")
    return _encoder(model, path, inputs, family.image_outputs)


def text_encoder(model: ModelProto, path: Path, family: Family) -> Encoder:
    """Check a graph that encodes texts.

    Raises:
        SourceError: it has inputs, outputs or axes other than a bundle can serve.
    """
    inputs = _inputs(model, path, {INPUT_IDS: INTEGERS, ATTENTION_MASK: MASKS, POSITION_IDS: INTEGERS})
    if INPUT_IDS not in inputs:
        raise SourceError(f"{path}: has the inputs {_names(inputs)}, not {INPUT_IDS}")
    dims = _dims(inputs[INPUT_IDS])
    if dims is not None and len(dims) != 2:
        raise SourceError(f"{path}: {INPUT_IDS} is {dims}, texts are [batch, length]")
    length = dims[1] if dims else None
    return _encoder(model, path, inputs, family.text_outputs, length=length if isinstance(length, int) else None)


def _inputs(model: ModelProto, path: Path, known: Mapping[str, frozenset[int]]) -> dict[str, ValueInfoProto]:
    weights = {tensor.name for tensor in model.graph.initializer}  # old graphs list them as inputs too
    inputs = {value.name: value for value in model.graph.input if value.name not in weights}
    unknown = [name for name in inputs if name not in known]
    if unknown:
        raise SourceError(f"{path}: wants the input {unknown[0]}; only {_names(known)} can be given")
    for name, value in inputs.items():
        kind = value.type.tensor_type.elem_type
        if kind not in known[name]:
            raise SourceError(f"{path}: {name} is {TensorProto.DataType.Name(kind)}, which cannot be given")
    return inputs


def _encoder(
    model: ModelProto,
    path: Path,
    inputs: Mapping[str, ValueInfoProto],
    candidates: tuple[str, ...],
    *,
    length: int | None = None,
) -> Encoder:
    for name in (PIXEL_VALUES, INPUT_IDS):
        dims = _dims(inputs[name]) if name in inputs else None
        if dims and isinstance(dims[0], int):
            raise SourceError(
                f"{path}: takes batches of {dims[0]} only ({name} is {dims}); export it again with a dynamic batch"
            )
    outputs = {value.name: value for value in model.graph.output}
    output = next((name for name in candidates if name in outputs), None)
    if output is None:
        raise SourceError(f"{path}: has the outputs {_names(outputs)}, not {' or '.join(candidates)}")
    kind = outputs[output].type.tensor_type.elem_type
    if kind not in FLOATS:
        raise SourceError(f"{path}: {output} is {TensorProto.DataType.Name(kind)}, not float")
    dims = _dims(outputs[output])
    if dims is not None and len(dims) != 2:
        raise SourceError(f"{path}: {output} is {dims}, vectors are [batch, dim]")
    dim = dims[1] if dims else None
    types = {name: value.type.tensor_type.elem_type for name, value in inputs.items()}
    return Encoder(types, output, kind, dim if isinstance(dim, int) else None, length)


def _dims(value: ValueInfoProto) -> _Dims | None:
    kind = value.type.tensor_type
    if not kind.HasField("shape"):
        return None
    return [dim.dim_value if dim.HasField("dim_value") else dim.dim_param or None for dim in kind.shape.dim]


def _names(names: Mapping[str, object]) -> str:
    return ", ".join(names)


_SPLIT: Final = (IMAGE_GRAPH, TEXT_GRAPH)
