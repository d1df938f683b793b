from __future__ import annotations

from collections import Counter
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import transformers
from pydantic import ValidationError
from torch import Tensor, nn

from model_export.architectures.encoders import ImageEncoder, TextEncoder
from model_export.families.siglip.config import SiglipConfig
from model_export.families.siglip.model import SiglipModel
from model_export.graphs.torch_export import IDS, PIXELS, export_image_encoder, export_text_encoder
from service.model.manifest import TextSection

# An export takes some seconds, on a machine that is busy many more.
pytestmark = pytest.mark.timeout(600)

CONTEXT, VOCABULARY, SIZE = 8, 40, 20
# No number is another's multiple, and the last patch does not fit whole, as in So400m/14 at 384.
CONFIG: dict[str, Any] = {
    "image": {"image_size": SIZE, "patch_size": 6, "width": 32, "layers": 2, "heads": 4, "mlp_width": 52},
    "text": {
        "vocab_size": VOCABULARY,
        "context_length": CONTEXT,
        "width": 24,
        "layers": 2,
        "heads": 3,
        "mlp_width": 40,
        "embed_dim": 32,
    },
}

# The reference's names and ours, in the order in which they are replaced.
NAMES = (
    ("vision_model.embeddings.patch_embedding", "visual.conv1"),
    ("vision_model.embeddings.position_embedding.weight", "visual.positional_embedding"),
    ("vision_model.encoder.layers", "visual.blocks"),
    ("vision_model.post_layernorm", "visual.ln_post"),
    ("vision_model.head.attention", "visual.pool.attn"),
    ("vision_model.head.layernorm", "visual.pool.ln"),
    ("vision_model.head", "visual.pool"),
    ("text_model.embeddings.token_embedding", "text.token_embedding"),
    ("text_model.embeddings.position_embedding.weight", "text.positional_embedding"),
    ("text_model.encoder.layers", "text.blocks"),
    ("text_model.final_layer_norm", "text.ln_final"),
    ("text_model.head", "text.proj"),
    ("self_attn", "attn"),
    ("layer_norm", "ln_"),
    ("mlp.fc1", "mlp.c_fc"),
    ("mlp.fc2", "mlp.c_proj"),
)


@torch.no_grad()
def randomise(model: nn.Module) -> None:
    """Move every weight, biases and gains too, so that each of them counts."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        parameter.add_(0.2 * torch.randn_like(parameter))


def small(activation: Literal["gelu", "gelu_tanh"] = "gelu_tanh") -> SiglipModel:
    """Build a small model with random weights."""
    model = SiglipModel(SiglipConfig.model_validate({**CONFIG, "activation": activation}))
    randomise(model)
    return model.eval()


def reference(hidden_act: str) -> transformers.SiglipModel:
    """Build the model of the same shape in transformers, with random weights."""
    image, text = CONFIG["image"], CONFIG["text"]

    def tower(section: dict[str, Any]) -> dict[str, Any]:
        return {
            "hidden_size": section["width"],
            "num_hidden_layers": section["layers"],
            "num_attention_heads": section["heads"],
            "intermediate_size": section["mlp_width"],
            "hidden_act": hidden_act,
        }

    config = transformers.SiglipConfig(
        vision_config=tower(image) | {"image_size": image["image_size"], "patch_size": image["patch_size"]},
        text_config=tower(text)
        | {
            "vocab_size": text["vocab_size"],
            "max_position_embeddings": text["context_length"],
            "projection_size": text["embed_dim"],
        },
    )
    model = transformers.SiglipModel(config)
    randomise(model)
    return model  # it has no dropout that would have to be turned off


def renamed(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Give the reference's weights our names, and take its joint q-k-v matrices apart."""
    ours: dict[str, Tensor] = {}
    for key, tensor in weights.items():
        name = key
        for theirs, other in NAMES:
            name = name.replace(theirs, other)
        if ".in_proj_" in name:
            for projection, part in zip("qkv", tensor.chunk(3), strict=True):
                ours[name.replace("in_proj_", f"{projection}_proj.")] = part
        else:
            ours[name] = tensor.reshape(()) if name.startswith("logit_") else tensor
    return ours


@pytest.mark.parametrize(("activation", "hidden_act"), [("gelu_tanh", "gelu_pytorch_tanh"), ("gelu", "gelu")])
def test_the_reference_computes_the_same_vectors(activation: Literal["gelu", "gelu_tanh"], hidden_act: str) -> None:
    """With the same weights, pixels and ids, both towers give what transformers gives; in float64, so to 1e-9."""
    theirs = reference(hidden_act).double()
    ours = small(activation).double()
    ours.load_state_dict(renamed(theirs.state_dict()))
    pixels = torch.randn(3, 3, SIZE, SIZE, dtype=torch.float64)
    ids = torch.randint(VOCABULARY, (3, CONTEXT))

    with torch.no_grad():
        expected = theirs(input_ids=ids, pixel_values=pixels)
        images, texts = ours.encode_image(pixels), ours.encode_text(ids)
        cosines = nn.functional.normalize(images) @ nn.functional.normalize(texts).T
        logits = ours.logit_scale.exp() * cosines + ours.logit_bias

    assert (3, 32) == images.shape == texts.shape
    torch.testing.assert_close(images, expected.vision_model_output.pooler_output, rtol=0, atol=1e-9)
    torch.testing.assert_close(texts, expected.text_model_output.pooler_output, rtol=0, atol=1e-9)
    torch.testing.assert_close(logits, expected.logits_per_image, rtol=0, atol=1e-9)


def agreement(graph: onnx.ModelProto, name: str, encoder: nn.Module, inputs: Tensor) -> float:
    """Return the largest difference between torch and ONNX Runtime, over batches of 1, 2 and all."""
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    differences = []
    for batch in (inputs[:1], inputs[:2], inputs):
        (vectors,) = session.run(None, {name: batch.numpy()})
        with torch.no_grad():
            differences.append(np.abs(vectors - encoder(batch).numpy()).max())
    return float(max(differences))


def operators(graph: onnx.ModelProto) -> Counter[str]:
    """Count the nodes of each kind."""
    return Counter(node.op_type for node in graph.graph.node)


def test_the_image_tower_exports() -> None:
    """Attention pool and all, the graph computes what torch computes, and computes no shape on the way."""
    encoder = ImageEncoder(small(), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)).eval()
    graph = export_image_encoder(encoder, height=SIZE, width=SIZE)
    torch.manual_seed(1)
    pixels = torch.randint(256, (5, SIZE, SIZE, 3), dtype=torch.uint8)

    assert agreement(graph, PIXELS, encoder, pixels) <= 1e-5
    found = operators(graph)
    assert not {"Shape", "Expand", "Concat", "Slice"} & found.keys()
    # Two blocks and the pool, whose query is a constant: 4 + 2 projections each, 2 products; 2 + 2, 2 in the pool.
    assert 3 == found["Softmax"] == found["Gelu"]
    assert 2 * (6 + 2) + (3 + 2) + 2 == found["MatMul"] + found["Gemm"]


def test_the_text_tower_exports_at_its_fixed_length() -> None:
    """Only the batch is dynamic, the graph computes what torch computes, and computes no shape on the way."""
    encoder = TextEncoder(small()).eval()
    section = TextSection(
        padding="fixed",
        min_length=1,
        max_length=CONTEXT,
        pad_id=1,
        end_of_text_id=1,
        canonicalization="tokenizer",
        overflow="refuse",
    )
    graph = export_text_encoder(encoder, section)
    torch.manual_seed(1)
    ids = torch.randint(VOCABULARY, (5, CONTEXT))

    assert agreement(graph, IDS, encoder, ids) <= 1e-5
    assert not {"Shape", "Expand", "Concat", "Slice"} & operators(graph).keys()
    batch, length = graph.graph.input[0].type.tensor_type.shape.dim
    assert batch.dim_param
    assert CONTEXT == length.dim_value


def test_every_position_of_a_text_is_seen_and_the_last_is_read() -> None:
    """Nothing is causal and padding counts: a token anywhere, padding too, changes the vector."""
    model = small()
    ids = torch.tensor([[5, 6, 7, 1, 1, 1, 1, 1]])
    vector = model.encode_text(ids)
    for position in range(CONTEXT):
        other = ids.clone()
        other[0, position] = 9
        assert not torch.allclose(vector, model.encode_text(other), atol=1e-3)


def test_a_trimmed_text_is_refused() -> None:
    """A text that is not padded to the context would get a wrong vector, so it gets none."""
    with pytest.raises(ValueError, match="texts have 5 tokens; SigLIP takes texts padded to its context of 8"):
        small().encode_text(torch.zeros(2, 5, dtype=torch.int64))


def test_a_new_model_starts_as_the_paper_says() -> None:
    """The scale starts at 10 and the bias at -10."""
    model = SiglipModel(SiglipConfig.model_validate(CONFIG))

    assert pytest.approx(10) == model.logit_scale.exp().item()
    assert -10 == model.logit_bias.item()


@pytest.mark.parametrize(
    ("section", "change", "message"),
    [
        ("image", {"width": 40}, "image.width 40 and text.embed_dim 32 must be the same"),
        ("image", {"heads": 5}, "width 32 is not a multiple of 5 heads"),
        ("text", {"heads": 5}, "width 24 is not a multiple of 5 heads"),
        ("image", {"image_size": 5}, "image_size 5 is less than one patch of 6"),
        ("text", {"pad_id": VOCABULARY}, "pad_id must be below vocab_size 40"),
        ("text", {"causal": True}, "Extra inputs are not permitted"),
    ],
)
def test_towers_that_do_not_fit_together_are_refused(section: str, change: dict[str, Any], message: str) -> None:
    """A configuration is checked before a model is built from it."""
    with pytest.raises(ValidationError, match=message):
        SiglipConfig.model_validate({**CONFIG, section: CONFIG[section] | change})
