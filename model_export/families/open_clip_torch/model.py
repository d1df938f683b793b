"""The towers that open_clip's ``CustomTextCLIP`` builds, behind the interface of every model."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from model_export.architectures.towers import TwoTowers
from model_export.errors import SourceError, first_line
from model_export.families.open_clip_torch.config import OpenClipTorchConfig
from model_export.families.open_clip_torch.package import open_clip_models
from model_export.families.open_clip_torch.text_towers import TEXT_TOWERS


class OpenClipTorchModel(TwoTowers):
    """Both towers as open_clip has them; parameters have the names of its ``CustomTextCLIP``."""

    def __init__(self, config: OpenClipTorchConfig) -> None:
        super().__init__()
        self.config = config
        built = _built(config)
        self.visual = built.visual
        self.text = built.text
        self.logit_scale = nn.Parameter(torch.zeros(()))

    def encode_text(self, ids: Tensor) -> Tensor:
        """Encode token ids, int64 ``[batch, length]``, to ``[batch, dim]``, as open_clip's ``TextTransformer`` does.

        A tower that reads at the end of a text takes texts of any length here, in open_clip of full length only.
        """
        end_of_text_id = self.config.text.end_of_text_id
        if end_of_text_id is None or not self.config.reads_at_end_of_text:
            return super().encode_text(ids)
        tower: Any = self.text
        length = ids.shape[1]
        x = tower.token_embedding(ids) + tower.positional_embedding[:length]  # [b, l, width]
        x = tower.ln_final(tower.transformer(x, attn_mask=tower.attn_mask[:length, :length]))
        # int32: several ONNX providers refuse ArgMax over int64 or booleans.
        end = ids.eq(end_of_text_id).to(torch.int32).argmax(dim=1)
        picked: Tensor = x[torch.arange(x.shape[0], device=x.device), end]  # [b, width]
        projection = tower.text_projection
        if projection is None:
            return picked
        out: Tensor = projection(picked) if isinstance(projection, nn.Module) else picked @ projection
        return out


def _built(config: OpenClipTorchConfig) -> Any:  # noqa: ANN401 - open_clip's module
    settings = json.loads(json.dumps(config.settings))  # open_clip may change what it gets
    models = open_clip_models()
    with tempfile.TemporaryDirectory(prefix="anyclass-") as folder:
        if config.hf_text_tower is not None:
            # In place of the hub id, so that transformers reads it from here.
            (Path(folder) / "config.json").write_text(json.dumps(dict(TEXT_TOWERS[config.hf_text_tower].config)))
            settings["text_cfg"]["hf_model_name"] = folder
        try:
            # timm and transformers compute values of their modules, which the device "meta" does not have.
            with torch.device("cpu"):
                built = models.CustomTextCLIP(**settings)
        except (RuntimeError, ValueError, TypeError, AssertionError, KeyError) as exc:
            raise SourceError(f"open_clip cannot build {config.tower}: {first_line(exc)}") from exc
    _check_size(config, built.visual)
    tower = built.text
    if config.text.end_of_text_id is not None and getattr(tower, "pool_type", None) == "argmax":
        # The same place, by an operator that ONNX providers have.
        tower.pool_type, tower.eos_id = "eos", config.text.end_of_text_id
    return built


def _check_size(config: OpenClipTorchConfig, visual: Any) -> None:  # noqa: ANN401 - open_clip's module
    """Refuse a tower of timm's that is made for another size of pictures: its name decides, not ``image_size``."""
    patches = getattr(getattr(visual, "trunk", None), "patch_embed", None)
    size = getattr(patches, "img_size", None)
    wanted = (config.image.image_size, config.image.image_size)
    if size is not None and tuple(size) != wanted:
        raise SourceError(f"image_size is {wanted[0]}, timm's {config.tower} takes pictures of {size[0]} pixels")
