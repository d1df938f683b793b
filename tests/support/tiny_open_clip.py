"""Build small models with open_clip's own code, from its configurations, and write them as they are on the hub.

Towers of timm's get fewer and narrower blocks by the arguments of timm's own functions, under their own names.
"""

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from model_export.families.open_clip_torch import config as open_clip_config
from model_export.families.open_clip_torch.package import open_clip_models

_VIT: Final = {"img_size": 64, "depth": 1, "embed_dim": 64, "num_heads": 2}
_VIT_14: Final = {**_VIT, "img_size": 56}
_HYBRID: Final = {"img_size": 64, "depth": 1}
_CONVOLUTIONS: Final = {"depths": (1, 1, 1, 1), "dims": (8, 16, 32, 64)}

SMALLER: Final[Mapping[str, Mapping[str, Any]]] = {
    "convnext_base": _CONVOLUTIONS,
    "convnext_large": _CONVOLUTIONS,
    "eva02_base_patch16_clip_224": _VIT,
    "eva_giant_patch14_224": _VIT_14,
    "fastvit_mci0": {"layers": (1,) * 4, "embed_dims": (16, 32, 64, 128)},
    "vit_base_mci_224": _HYBRID,
    "vit_base_patch16_224": _VIT,
    "vit_base_patch16_siglip_384": _VIT,
    "vit_large_patch14_clip_224": _VIT_14,
    "vit_pe_core_base_patch16_224": _VIT,
    "vit_so400m_patch16_siglip_256": _VIT,
    "vitamin_small_224": _HYBRID,
}
"""Arguments by timm's name of a tower."""

PREPROCESSING: Final = {
    "mean": [0.48145466, 0.4578275, 0.40821073],
    "std": [0.26862954, 0.26130258, 0.27577711],
    "interpolation": "bicubic",
    "resize_mode": "shortest",
}


def small_towers(patch: pytest.MonkeyPatch) -> None:
    """Have timm build the towers of `SMALLER` small, for the length of a test."""
    open_clip_models()
    from timm.models import _registry

    for name, arguments in SMALLER.items():
        function = functools.partial(_registry._model_entrypoints[name], **arguments)
        patch.setitem(_registry._model_entrypoints, name, function)
    patch.setattr(open_clip_config, "size_of_tower", lambda _name: None)  # the names state the large towers' sizes


def small_config(name: str, *, vocab_size: int) -> dict[str, Any]:
    """Return a configuration of open_clip's with fewer and narrower blocks, small pictures and short texts."""
    import open_clip

    config: dict[str, Any] = open_clip.get_model_config(name)
    vision, text = config["vision_cfg"], config["text_cfg"]
    config["embed_dim"] = 32
    if tower := vision.get("timm_model_name"):
        vision["image_size"] = SMALLER[tower].get("img_size", 128)
    else:
        vision |= {"image_size": 2 * vision["patch_size"], "layers": 1, "width": 64, "head_width": 32}
    text["context_length"] = 24
    if not text.get("hf_model_name"):
        width = config["embed_dim"] if text.get("proj_type") == "none" else 64
        text |= {"layers": 1, "width": width, "heads": 2, "vocab_size": vocab_size}
    if "multimodal_cfg" in config:
        config["multimodal_cfg"] |= {
            "layers": 1,
            "width": 64,
            "heads": 2,
            "vocab_size": vocab_size,
            "context_length": 24,
        }
    return config


def built(config: Mapping[str, Any]) -> Any:
    """Return open_clip's own model, with random weights, large enough that the vectors of two pictures differ."""
    import open_clip

    settings = json.loads(json.dumps({name: value for name, value in config.items() if name != "custom_text"}))
    kind = open_clip.CustomTextCLIP if config.get("custom_text") else open_clip.CLIP
    torch.manual_seed(0)
    model = (open_clip.CoCa if "multimodal_cfg" in config else kind)(**settings).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn_like(parameter)
            if parameter.ndim == 1:
                parameter.add_(0.1 * noise)
            elif parameter.ndim and "emb" not in name:
                parameter.copy_(noise * (parameter.shape[0] / parameter.numel()) ** 0.5)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None
                assert module.running_var is not None
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
        model.logit_scale.fill_(3.0)
    return model


def write(folder: Path, config: Mapping[str, Any], model: nn.Module) -> Path:
    """Write configuration and weights; a tokenizer is still to come."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": config, "preprocess_cfg": PREPROCESSING}), "utf-8"
    )
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, folder / "open_clip_model.safetensors")
    return folder
