"""Write one CLIP by hand in every layout, to compare the readers with each other."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from model_export.checkpoints import openai
from model_export.checkpoints.model_source import TEMPLATES, SourceOptions
from model_export.families.clip.config import ClipConfig
from tests.support.clip_files import open_clip_config, write_archive, write_open_clip
from tests.support.reference_clip import ReferenceClip, reference, write_vocabulary

Weights = dict[str, Tensor]

NAME = "tiny"

_TOWER = {  # as in docs of both: openai/CLIP → transformers' CLIPModel
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
}
_OTHERS = {
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "logit_scale": "logit_scale",
}
_TRANSPOSED = {"visual.proj": "visual_projection.weight", "text_projection": "text_projection.weight"}


@dataclass(frozen=True)
class Layouts:
    """The model, and its path in each layout; ``options`` complete the files."""

    config: ClipConfig
    model: ReferenceClip
    sources: dict[str, tuple[Path, SourceOptions]]


def write_layouts(folder: Path, tower: str) -> Layouts:
    """Write a tiny CLIP, with a ``vit`` or a ``modified_resnet``, in all its layouts."""
    config, model = reference(tower)
    weights = model.state_dict()
    vocabulary = write_vocabulary(folder / "bpe.txt")
    known = SourceOptions(tokenizer=vocabulary, name=NAME)
    asked = SourceOptions(tokenizer=vocabulary, name=NAME, activation="quick_gelu")
    torch.save(weights, folder / "state.pt")
    said = open_clip_config(config)
    sources = {
        "OpenAI archive": (write_archive(folder / "archive.pt", model, config), known),
        "OpenAI state dict": (folder / "state.pt", asked),
        "open_clip .pt": (write_open_clip(folder / "pt", weights, said, "epoch_3.pt"), known),
        "open_clip .bin": (write_open_clip(folder / "bin", weights, said, "open_clip_pytorch_model.bin"), known),
        "open_clip .safetensors": (
            write_open_clip(folder / "safe", weights, said, "open_clip_model.safetensors"),
            known,
        ),
        "own run": (_write_run(folder / "run", openai.load(folder / "state.pt", asked), config), SourceOptions()),
    }
    if tower == "vit":
        theirs = hugging_face_weights(weights)
        whole = _write_config(folder / "hf", config)
        save_file(theirs, whole / "model.safetensors", {"format": "pt"})
        pickled = _write_config(folder / "hf-bin", config)
        torch.save(theirs, pickled / "pytorch_model.bin")
        split = _write_config(folder / "hf-shards", config)
        _write_shards(split, theirs)
        sources |= {
            "Hugging Face .safetensors": (whole, known),
            "Hugging Face .bin": (pickled, known),
            "Hugging Face, in shards": (split, known),
        }
    return Layouts(config, model, sources)


def hugging_face_weights(weights: Weights) -> Weights:
    """Rename a ViT's weights from OpenAI's names to those of `CLIPModel` of transformers."""
    return {name: tensor.contiguous() for name, tensor in _renamed(weights)}


def _renamed(weights: Weights) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in weights.items():
        if name in _OTHERS:
            yield _OTHERS[name], tensor
        elif name in _TRANSPOSED:
            yield _TRANSPOSED[name], tensor.T
        else:
            before, _, rest = name.partition("transformer.resblocks.")
            number, _, part = rest.partition(".")
            layer = f"{'vision' if before else 'text'}_model.encoder.layers.{number}"
            if part.startswith("attn.in_proj_"):
                kind = part.removeprefix("attn.in_proj_")
                yield from zip(
                    (f"{layer}.self_attn.{which}_proj.{kind}" for which in "qkv"), tensor.chunk(3), strict=True
                )
            else:
                module, _, kind = part.rpartition(".")
                yield f"{layer}.{_TOWER[module]}.{kind}", tensor


def _write_config(folder: Path, config: ClipConfig) -> Path:
    image: Any = config.image
    text = config.text
    fields = {
        "model_type": "clip",
        "projection_dim": config.embed_dim,
        "text_config": {
            "hidden_size": text.width,
            "intermediate_size": 4 * text.width,
            "num_hidden_layers": text.layers,
            "num_attention_heads": text.heads,
            "vocab_size": text.vocab_size,
            "max_position_embeddings": text.context_length,
            "eos_token_id": text.end_of_text_id,
        },
        "vision_config": {
            "hidden_size": image.width,
            "intermediate_size": 4 * image.width,
            "num_hidden_layers": image.layers,
            "num_attention_heads": image.heads,
            "image_size": image.image_size,
            "patch_size": image.patch_size,
        },
    }
    preprocessing = {
        "image_processor_type": "CLIPImageProcessor",
        "size": image.image_size,
        "crop_size": image.image_size,
    }
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(fields))
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessing))
    return folder


def _write_shards(folder: Path, weights: Weights) -> None:
    names = sorted(weights)
    places: dict[str, str] = {}
    for number, chosen in enumerate((names[::2], names[1::2]), start=1):
        file = f"model-{number:05}-of-00002.safetensors"
        save_file({name: weights[name] for name in chosen}, folder / file, {"format": "pt"})
        places |= dict.fromkeys(chosen, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))


def _write_run(folder: Path, source: Any, config: ClipConfig) -> Path:
    """Write the files of a training run of this program."""
    folder.mkdir()
    fields = {
        "name": NAME,
        "model": config.model_dump(mode="json"),
        "image": source.image.model_dump(mode="json"),
        "templates": TEMPLATES,
        "provenance": {"source": "random weights"},
    }
    (folder / "config.json").write_text(json.dumps(fields))
    (folder / "recipe.toml").write_text('name = "tiny"\n')
    (folder / "tokenizer.json").write_bytes(source.tokenizer)
    save_file(source.model.state_dict(), folder / "model.safetensors")
    return folder
