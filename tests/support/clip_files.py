"""Write one CLIP in all published file formats."""

import copy
import json
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from model_export.families.clip.config import ClipConfig
from tests.support.reference_clip import ReferenceClip

Weights = dict[str, Tensor]


def write_archive(path: Path, model: ReferenceClip, config: ClipConfig, *, notes: bool = True) -> Path:
    """Write a TorchScript archive in half precision, as OpenAI does; ``notes`` are the other entries of its files."""
    model = copy.deepcopy(model).half()
    size = config.image.image_size
    if notes:
        for name, number in (
            ("input_resolution", size),
            ("context_length", config.text.context_length),
            ("vocab_size", config.text.vocab_size),
        ):
            model.register_buffer(name, torch.tensor(number))
    example = torch.zeros(2, 3, size, size, dtype=torch.half), torch.zeros(2, 4, dtype=torch.long)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated, and tracing warns about constants
        traced = torch.jit.trace(model, example, check_trace=False)  # type: ignore[no-untyped-call]
        torch.jit.save(traced, path)
    return path


def open_clip_config(config: ClipConfig) -> dict[str, Any]:
    """Return a model as the content of an ``open_clip_config.json``."""
    image, text = config.image, config.text
    tower: dict[str, Any] = {"image_size": image.image_size, "width": getattr(image, "width", None)}
    if image.kind == "vit":
        tower |= {"layers": image.layers, "patch_size": image.patch_size, "head_width": image.width // image.heads}
    elif image.kind == "modified_resnet":
        tower |= {"layers": list(image.layers), "patch_size": None}
    return {
        "model_cfg": {
            "embed_dim": config.embed_dim,
            "quick_gelu": text.activation == "quick_gelu",
            "vision_cfg": tower,
            "text_cfg": {
                "context_length": text.context_length,
                "vocab_size": text.vocab_size,
                "width": text.width,
                "heads": text.heads,
                "layers": text.layers,
            },
        },
        "preprocess_cfg": {
            "mean": [0.48145466, 0.4578275, 0.40821073],
            "std": [0.26862954, 0.26130258, 0.27577711],
            "interpolation": "bicubic",
            "resize_mode": "shortest",
        },
    }


def write_open_clip(folder: Path, weights: Weights, config: dict[str, Any], name: str) -> Path:
    """Write a folder as open_clip has on the hub; a ``.pt`` or ``.bin`` is in its trainer's format."""
    folder.mkdir(parents=True)
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    if name.endswith(".safetensors"):
        save_file({key: value.contiguous() for key, value in weights.items()}, folder / name)
    else:
        wrapped = {f"module.{key}": value for key, value in weights.items()}
        torch.save({"epoch": 3, "name": "a run", "state_dict": wrapped}, folder / name)
    return folder


def with_own_text_tower(weights: Weights) -> Weights:
    """Rename the weights as open_clip does with ``custom_text``."""
    return {key if key.startswith(("visual.", "logit_")) else f"text.{key}": value for key, value in weights.items()}
