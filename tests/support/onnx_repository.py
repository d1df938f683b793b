"""Write small repositories of ONNX encoders as optimum and transformers.js do, with tiny random towers."""

import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import ModelProto, TensorProto, helper, numpy_helper
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor, nn

from tests.support.tiny_run import CORPUS, END, START

SIZE, PATCH, WIDTH, DIM, CONTEXT = 32, 8, 32, 24, 16
SIGLIP_CONTEXT = 64
SCALE, BIAS = 3.0, -4.5
"""Logarithm of the trained model's scale, and SigLIP's bias; no configuration has them as initial values."""

_TOWER = {"hidden_size": WIDTH, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
_VISION = {**_TOWER, "image_size": SIZE, "patch_size": PATCH}
_AXES = {
    "pixel_values": {0: "batch_size", 1: "num_channels", 2: "height", 3: "width"},
    "input_ids": {0: "text_batch_size", 1: "sequence_length"},
    "attention_mask": {0: "text_batch_size", 1: "sequence_length"},
}


@dataclass(frozen=True)
class Repository:
    """A published folder, and its original model."""

    folder: Path
    model: Any


def clip_repository(folder: Path) -> Repository:
    """Write a `CLIPModel` as fp32 graphs. Its configuration states the old, wrong ``eos_token_id`` 2."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # messages of transformers and torch
        from transformers import CLIPConfig, CLIPModel

        tokenizer = clip_tokenizer()
        text = {**_TOWER, "vocab_size": tokenizer.get_vocab_size(), "max_position_embeddings": CONTEXT}
        text |= {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}
        config = CLIPConfig(text_config=text, vision_config=_VISION, projection_dim=DIM)
        config._attn_implementation = "eager"
        model = _random(CLIPModel(config), std=0.2)
    model.logit_scale.data.fill_(SCALE)
    _graphs(folder, model, _ClipImages(model), _ClipTexts(model), ("image_embeds", "text_embeds"))
    tokenizer.save(str(folder / "tokenizer.json"))
    _write(folder / "config.json", {"model_type": "clip", "projection_dim": DIM, "logit_scale_init_value": 2.6592})
    _write(folder / "config.json", {"text_config": text, "vision_config": _VISION}, add=True)
    preprocessor = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": SIZE}, "resample": 3}
    preprocessor |= {"do_center_crop": True, "crop_size": {"height": SIZE, "width": SIZE}}
    preprocessor |= {"image_mean": [0.48, 0.46, 0.41], "image_std": [0.27, 0.26, 0.28]}
    _write(folder / "preprocessor_config.json", preprocessor)
    return Repository(folder, model)


def siglip_repository(folder: Path) -> Repository:
    """Write a `SiglipModel` as fp32 graphs, whose towers end in ``pooler_output``."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers import SiglipConfig, SiglipModel

        tokenizer = siglip_tokenizer()
        text = {**_TOWER, "vocab_size": tokenizer.get_vocab_size(), "max_position_embeddings": SIGLIP_CONTEXT}
        config = SiglipConfig(text_config=text, vision_config=_VISION)
        config._attn_implementation = "eager"
        model = _random(SiglipModel(config), std=0.2)
    model.logit_scale.data.fill_(SCALE)
    model.logit_bias.data.fill_(BIAS)
    _graphs(folder, model, _Pooled(model.vision_model), _SiglipTexts(model.text_model), ("pooler_output",) * 2)
    tokenizer.save(str(folder / "tokenizer.json"))
    _write(folder / "tokenizer_config.json", {"tokenizer_class": "SiglipTokenizer"})
    _write(folder / "config.json", {"model_type": "siglip", "text_config": text, "vision_config": _VISION})
    preprocessor: dict[str, Any] = {
        "image_processor_type": "SiglipImageProcessor",
        "size": {"height": SIZE, "width": SIZE},
    }
    preprocessor |= {"resample": 3, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    _write(folder / "preprocessor_config.json", preprocessor)
    return Repository(folder, model)


def add_fp16(folder: Path, *, keep_io_types: bool) -> None:
    """Add ``_fp16`` graphs; without ``keep_io_types`` inputs and outputs are fp16."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    for name in ("vision_model", "text_model"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the mask's lowest number
            half = convert_float_to_float16(onnx.load(folder / f"onnx/{name}.onnx"), keep_io_types=keep_io_types)
        onnx.save_model(half, folder / f"onnx/{name}_fp16.onnx")


def add_quantized(folder: Path) -> None:
    """Add ``_quantized`` graphs: dynamic, including the convolution, as published."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    for name in ("vision_model", "text_model"):
        graph = folder / f"onnx/{name}.onnx"
        quantize_dynamic(graph, graph.with_stem(f"{name}_quantized"), weight_type=QuantType.QUInt8)


def add_q4(folder: Path) -> None:
    """Add ``_q4`` graphs: weights of 4 bits, in blocks."""
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    for name in ("vision_model", "text_model"):
        quantizer = MatMulNBitsQuantizer(onnx.load(folder / f"onnx/{name}.onnx"), block_size=16, is_symmetric=True)
        quantizer.process()
        quantizer.model.save_model_to_file(str(folder / f"onnx/{name}_q4.onnx"))


def clip_tokenizer() -> Tokenizer:
    """Train a byte-level BPE whose special tokens have the highest ids, as CLIP's have."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=280, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return _with_specials(tokenizer, [START, END], f"{START} $A {END}")


def siglip_tokenizer() -> Tokenizer:
    """Train a byte-level BPE that ends texts with ``</s>``, which is also its padding, and has no start token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=280,
        special_tokens=["<pad>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return _with_specials(tokenizer, ["</s>"], "$A </s>")


def bag_of_words(*, vocabulary: int, context: int = CONTEXT, batch: int | str = "batch") -> ModelProto:
    """Return a text graph whose vectors are sums over all positions, so padding changes them.

    Its ids are int32, it requires a float mask and positions, and names values ``ids`` and ``vectors``.
    """
    shape = [batch, "length"]
    inputs = [
        helper.make_tensor_value_info("input_ids", TensorProto.INT32, shape),
        helper.make_tensor_value_info("attention_mask", TensorProto.FLOAT, shape),
        helper.make_tensor_value_info("position_ids", TensorProto.INT64, shape),
    ]
    generator = torch.Generator().manual_seed(0)
    weights = {
        "words": torch.randn(vocabulary, DIM, generator=generator),
        "places": torch.randn(context, DIM, generator=generator),
    }
    nodes = [
        helper.make_node("Gather", ["words", "input_ids"], ["ids"]),
        helper.make_node("Gather", ["places", "position_ids"], ["placed"]),
        helper.make_node("Mul", ["ids", "placed"], ["vectors"]),
        helper.make_node("Unsqueeze", ["attention_mask", "last"], ["mask"]),
        helper.make_node("Mul", ["vectors", "mask"], ["masked"]),
        helper.make_node("ReduceSum", ["masked", "middle"], ["text_embeds"], keepdims=0),
        helper.make_node("Neg", ["masked"], ["last_hidden_state"]),
    ]
    outputs = [
        helper.make_tensor_value_info("text_embeds", TensorProto.FLOAT, [batch, DIM]),
        helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, [batch, "length", DIM]),
    ]
    constants = [numpy_helper.from_array(value.numpy(), name) for name, value in weights.items()]
    constants += [helper.make_tensor("last", TensorProto.INT64, [1], [2])]
    constants += [helper.make_tensor("middle", TensorProto.INT64, [1], [1])]
    return graph(nodes, inputs, outputs, constants)


def graph(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    constants: Sequence[TensorProto] = (),
) -> ModelProto:
    """Make a model of one graph, in opset 17."""
    body = helper.make_graph(list(nodes), "graph", list(inputs), list(outputs), list(constants))
    return helper.make_model(body, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


class _Pooled(nn.Module):
    def __init__(self, tower: nn.Module) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        out = self.tower(pixel_values=pixel_values)
        return out.pooler_output, out.last_hidden_state


class _SiglipTexts(_Pooled):
    def forward(self, input_ids: Tensor) -> tuple[Tensor, Tensor]:
        out = self.tower(input_ids=input_ids)
        return out.pooler_output, out.last_hidden_state


class _Clip(nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model


class _ClipImages(_Clip):
    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        out = self.model.vision_model(pixel_values=pixel_values)
        return self.model.visual_projection(out.pooler_output), out.last_hidden_state


class _ClipTexts(_Clip):
    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        out = self.model.text_model(input_ids=input_ids, attention_mask=attention_mask)
        return self.model.text_projection(out.pooler_output), out.last_hidden_state


class _Both(_Clip):
    def forward(self, input_ids: Tensor, pixel_values: Tensor) -> tuple[Tensor, ...]:
        out = self.model(input_ids=input_ids, pixel_values=pixel_values)
        return out.logits_per_image, out.logits_per_text, out.text_embeds, out.image_embeds


def _graphs(folder: Path, model: Any, images: nn.Module, texts: nn.Module, outputs: tuple[str, ...]) -> None:
    (folder / "onnx").mkdir(parents=True)
    pixels = torch.zeros(2, 3, SIZE, SIZE)
    length = SIGLIP_CONTEXT if isinstance(images, _Pooled) else CONTEXT - 1
    ids = torch.full((2, length), 5)
    text_inputs = (
        {"input_ids": ids} if isinstance(images, _Pooled) else {"input_ids": ids, "attention_mask": ids * 0 + 1}
    )
    logits = ["logits_per_image", "logits_per_text", "text_embeds", "image_embeds"]
    _export(images, folder / "onnx/vision_model.onnx", {"pixel_values": pixels}, [outputs[0], "last_hidden_state"])
    _export(texts, folder / "onnx/text_model.onnx", text_inputs, [outputs[1], "last_hidden_state"])
    _export(_Both(model), folder / "onnx/model.onnx", {"input_ids": ids, "pixel_values": pixels}, logits)


def _export(module: nn.Module, path: Path, inputs: dict[str, Tensor], outputs: list[str]) -> None:
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the older exporter made the published graphs
        torch.onnx.export(
            module.eval(),
            tuple(inputs.values()),
            str(path),
            input_names=list(inputs),
            output_names=outputs,
            dynamic_axes={name: _AXES[name] for name in inputs},
            opset_version=14,
            dynamo=False,
        )


def _random(model: Any, *, std: float) -> Any:
    """Spread the weights so that two pictures differ: fresh weights encode all pictures alike."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=std, generator=generator)
    return model.eval().requires_grad_(requires_grad=False)


def _with_specials(tokenizer: Tokenizer, tokens: Sequence[str], single: str) -> Tokenizer:
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in tokens])
    ids = [(token, tokenizer.token_to_id(token)) for token in tokens]
    tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=ids)
    return tokenizer


def _write(path: Path, fields: dict[str, Any], *, add: bool = False) -> None:
    path.write_text(json.dumps({**(json.loads(path.read_text()) if add else {}), **fields}))
