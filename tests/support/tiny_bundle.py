"""Write a real, tiny bundle in milliseconds with only `onnx`: it recognises colours and their names.

An image's vector is its mean colour. A text's vector is the sum of its tokens' vectors: the words red, green, blue,
white and black have their colours, every other token has a little noise of its own. So a red picture is nearest to any
prompt about red, any two texts differ, and padding changes nothing.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import tokenizers
from onnx import TensorProto, helper, numpy_helper
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from service.model.manifest import (
    IMAGE_ENCODER,
    MANIFEST,
    TEMPLATES,
    TEXT_ENCODER,
    TOKENIZER,
    Cleaning,
    FileEntry,
    ImageSection,
    Manifest,
    Precision,
    Provenance,
    SigmoidScoring,
    SoftmaxScoring,
    TextSection,
)

DIM = 16
COLOURS = {
    "red": (1.0, 0.0, 0.0),
    "green": (0.0, 1.0, 0.0),
    "blue": (0.0, 0.0, 1.0),
    "white": (1.0, 1.0, 1.0),
    "black": (-1.0, -1.0, -1.0),
}
DEFAULT_SETS: Mapping[str, tuple[str, ...]] = {"default": ("a photo of a {}.",), "none": ("{}",)}

_START, _END = "<|start|>", "<|end|>"
_OPSET, _IR_VERSION = 17, 8  # the oldest version still served


def write_tiny_bundle(
    path: Path,
    *,
    name: str = "tiny",
    aliases: tuple[str, ...] = (),
    scoring: SoftmaxScoring | SigmoidScoring | None = None,
    size: int = 8,
    max_length: int = 64,
    padding: Literal["longest", "fixed"] = "longest",
    precision: Precision = "fp32",
    templates: Mapping[str, tuple[str, ...]] = DEFAULT_SETS,
    nan_images: bool = False,
    nan_texts: bool = False,
    cleaning: Cleaning = "none",
) -> Path:
    """Write a bundle that `load_bundle` accepts into the new folder `path`, and return `path`.

    `nan_images` and `nan_texts` make an encoder return NaN; models that differ only in `name` give equal vectors.
    """
    path.mkdir(parents=True, exist_ok=True)
    tokenizer = tiny_tokenizer()
    tokenizer.save(str(path / TOKENIZER))
    end = tokenizer.get_vocab()[_END]
    (path / IMAGE_ENCODER).write_bytes(image_graph(size=size, nan=nan_images).SerializeToString())
    text_graph_ = text_graph(tokenizer, max_length=max_length, fixed=padding == "fixed", nan=nan_texts)
    (path / TEXT_ENCODER).write_bytes(text_graph_.SerializeToString())
    (path / TEMPLATES).write_text(json.dumps(dict(templates)), "utf-8")
    manifest = Manifest.build(
        name=name,
        aliases=aliases,
        architecture="tiny-colours",
        dim=DIM,
        image=ImageSection(
            height=size,
            width=size,
            resize="shortest",
            interpolation="bicubic",
            crop="center",
            mean=(0.5, 0.5, 0.5),
            std=(0.5, 0.5, 0.5),
        ),
        text=TextSection(
            padding=padding,
            min_length=2,
            max_length=max_length,
            pad_id=0,
            end_of_text_id=end,
            canonicalization="tokenizer",
            cleaning=cleaning,
            overflow="refuse",
        ),
        scoring=scoring or SoftmaxScoring(logit_scale=20.0),
        precision=precision,
        files={file: FileEntry.of(path / file) for file in (IMAGE_ENCODER, TEXT_ENCODER, TOKENIZER, TEMPLATES)},
        provenance=Provenance(source="tests"),
    )
    (path / MANIFEST).write_text(manifest.to_json(), "utf-8")
    return path


def tiny_tokenizer() -> tokenizers.Tokenizer:
    """Return a lower-casing byte-level BPE that knows colour names and adds start and end tokens; id 0 is padding."""
    vocabulary = {token: i for i, token in enumerate(["<|pad|>", *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    merges: list[tuple[str, str]] = []
    for pieces in (["r", "e", "d"], ["g", "re", "e", "n"], ["b", "l", "u", "e"], list("white"), list("black")):
        word = pieces[0]
        for piece in pieces[1:]:
            if word + piece not in vocabulary:
                merges.append((word, piece))
                vocabulary[word + piece] = len(vocabulary)
            word += piece
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([_START, _END])
    specials = [(token, tokenizer.token_to_id(token)) for token in (_START, _END)]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{_START} $A {_END}", pair=None, special_tokens=specials
    )
    return tokenizer


def image_graph(*, size: int, nan: bool = False) -> onnx.ModelProto:
    """Return a graph from uint8 to unit vectors: mean colour in -1..1, and a constant so that grey has a direction."""
    widen = np.zeros((3, DIM), np.float32)
    widen[:3, :3] = np.eye(3)
    constant = np.zeros(DIM, np.float32)
    constant[3] = 0.1
    nodes = [
        helper.make_node("Cast", ["pixels"], ["raw"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["raw"], ["mean"], axes=[1, 2], keepdims=0),  # [batch, 3]
        helper.make_node("Div", ["mean", "half"], ["doubled"]),
        helper.make_node("Sub", ["doubled", "one"], ["colour"]),  # -1..1
        helper.make_node("MatMul", ["colour", "widen"], ["wide"]),
        helper.make_node("Add", ["wide", "constant"], ["vector"]),
        *_unit_length("vector", nan=nan),
    ]
    constants = {"half": np.float32(127.5), "one": np.float32(1), "widen": widen, "constant": constant}
    image = helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["batch", size, size, 3])
    return _model("image", nodes, image, constants)


def text_graph(
    tokenizer: tokenizers.Tokenizer, *, max_length: int, fixed: bool = False, nan: bool = False
) -> onnx.ModelProto:
    """Return a graph that sums token vectors, weighted slightly by position so that order counts; padding is id 0."""
    rows = tokenizer.get_vocab_size()
    table = np.random.default_rng(0).normal(0, 0.02, (rows, DIM)).astype(np.float32)
    table[0] = 0
    for word, colour in COLOURS.items():
        table[tokenizer.token_to_id(word)] = (*colour, *[0] * (DIM - 3))
    places = (1 + 0.01 * np.arange(max_length, dtype=np.float32)).reshape(1, max_length, 1)
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["embedded"]),  # [batch, length, DIM]
        helper.make_node("Shape", ["ids"], ["length"], start=1, end=2),
        helper.make_node("Slice", ["places", "zero", "length", "axis"], ["weights"]),  # [1, length, 1]
        helper.make_node("Mul", ["embedded", "weights"], ["weighted"]),
        helper.make_node("ReduceSum", ["weighted", "axis"], ["vector"], keepdims=0),
        *_unit_length("vector", nan=nan),
    ]
    constants = {"table": table, "places": places, "zero": np.array([0]), "axis": np.array([1])}
    length = max_length if fixed else "length"
    return _model("text", nodes, helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", length]), constants)


def _unit_length(vector: str, *, nan: bool) -> list[onnx.NodeProto]:
    nodes = [helper.make_node("ReduceL2", [vector], ["norm"], axes=[1], keepdims=1)]
    if nan:  # 0 / 0
        return [
            *nodes,
            helper.make_node("Sub", [vector, vector], ["nothing"]),
            helper.make_node("Sub", ["norm", "norm"], ["zero_norm"]),
            helper.make_node("Div", ["nothing", "zero_norm"], ["embedding"]),
        ]
    return [*nodes, helper.make_node("Div", [vector, "norm"], ["embedding"])]


def _model(
    name: str, nodes: list[onnx.NodeProto], graph_input: onnx.ValueInfoProto, constants: Mapping[str, Any]
) -> onnx.ModelProto:
    output = helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", DIM])
    initializers = [numpy_helper.from_array(np.asarray(value), key) for key, value in constants.items()]
    graph = helper.make_graph(nodes, name, [graph_input], [output], initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION)
    onnx.checker.check_model(model)
    return model
