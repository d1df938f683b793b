"""How the parameters of public CLIP checkpoints are called here: tables, and one function that applies them.

In a table's names ``#`` stands for a number, ``*`` for ``weight`` or ``bias``, and ``@`` for what a batch norm holds.
A row with several names on the right takes the tensor apart along its first dimension, in equal parts.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from model_export.errors import SourceError

Rows = Mapping[str, tuple[str, ...]]

_WILDCARDS: Final = {
    "#": r"\d+",
    "*": "weight|bias",
    "@": "weight|bias|running_mean|running_var|num_batches_tracked",
}

_UNUSED: Final = ".num_batches_tracked"
"""Counted while training, never read again, and left out by older checkpoints."""


class KeyTable:
    """Names of one public layout, and what they are called here."""

    def __init__(self, rows: Rows) -> None:
        self._to_ours = [(_pattern(theirs), ours) for theirs, ours in rows.items()]
        self._to_theirs = [(_pattern(name), theirs) for theirs, ours in rows.items() for name in ours]

    def convert(self, weights: Mapping[str, Tensor], wanted: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
        """Rename weights, and take the fused ones apart.

        Args:
            weights: as the file calls them.
            wanted: the model's state dict, as it is called here; only names and shapes are looked at.
            path: the file, for what is said of it.

        Returns:
            The weights as they are called here, in their own dtype.

        Raises:
            SourceError: a weight is unknown, missing, mis-shaped or not finite; it is called as the file calls it.
        """
        origins = {name: ours for name in weights if (ours := self._ours(name)) and set(ours) <= wanted.keys()}
        _refuse(path, "has unknown", weights.keys() - origins.keys())
        given = {name for ours in origins.values() for name in ours}
        missing = {name for name in wanted.keys() - given if not name.endswith(_UNUSED)}
        _refuse(path, "lacks", {self._theirs(name) for name in missing})
        converted = {name: torch.zeros_like(wanted[name], device="cpu") for name in wanted if name.endswith(_UNUSED)}
        for name, ours in origins.items():
            tensor = weights[name]
            shape = list(wanted[ours[0]].shape)
            if len(ours) > 1:
                shape[0] *= len(ours)
            if list(tensor.shape) != shape:
                raise SourceError(f"{path}: {name} has shape {list(tensor.shape)}, the model has {shape}")
            if not torch.isfinite(tensor).all():
                raise SourceError(f"{path}: {name} holds NaN or infinity")
            converted.update(zip(ours, tensor.chunk(len(ours)) if len(ours) > 1 else (tensor,), strict=True))
        return converted

    def _ours(self, name: str) -> tuple[str, ...]:
        for pattern, templates in self._to_ours:
            if found := pattern.fullmatch(name):
                return tuple(_filled(template, found) for template in templates)
        return ()

    def _theirs(self, name: str) -> str:
        for pattern, template in self._to_theirs:
            if found := pattern.fullmatch(name):
                return _filled(template, found)
        return name


def _pattern(template: str) -> re.Pattern[str]:
    return re.compile("".join(f"({_WILDCARDS[c]})" if c in _WILDCARDS else re.escape(c) for c in template))


def _filled(template: str, found: re.Match[str]) -> str:
    values = iter(found.groups())
    return "".join(next(values) if c in _WILDCARDS else c for c in template)


def _refuse(path: Path, what: str, names: set[str]) -> None:
    if names:
        shown = ", ".join(sorted(names)[:3])
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        raise SourceError(f"{path}: {what} {shown}{more}")


def _under(prefix_theirs: str, prefix_ours: str, rows: Rows) -> Rows:
    return {prefix_theirs + theirs: tuple(prefix_ours + name for name in ours) for theirs, ours in rows.items()}


def _same(*names: str) -> Rows:
    return {name: (name,) for name in names}


RESBLOCK: Final[Rows] = {
    **_same("ln_1.*", "attn.out_proj.*", "ln_2.*", "mlp.c_fc.*", "mlp.c_proj.*"),
    "attn.in_proj_*": ("attn.q_proj.*", "attn.k_proj.*", "attn.v_proj.*"),
}
"""One block of either transformer."""

VISION_TRANSFORMER: Final[Rows] = {
    **_same("conv1.weight", "class_embedding", "positional_embedding", "ln_pre.*", "ln_post.*", "proj"),
    **_under("transformer.resblocks.#.", "blocks.#.", RESBLOCK),
}

MODIFIED_RESNET: Final[Rows] = _same(
    "conv#.weight",
    "bn#.@",
    "layer#.#.conv#.weight",
    "layer#.#.bn#.@",
    "layer#.#.downsample.0.weight",
    "layer#.#.downsample.1.@",
    "attnpool.positional_embedding",
    *(f"attnpool.{which}_proj.*" for which in "qkvc"),
)

TEXT_TRANSFORMER: Final[Rows] = {
    **_same("token_embedding.weight", "positional_embedding", "ln_final.*", "text_projection"),
    **_under("transformer.resblocks.#.", "blocks.#.", RESBLOCK),
}

_IMAGE_AND_SCALE: Final[Rows] = {
    **_same("logit_scale"),
    **_under("visual.", "visual.", {**VISION_TRANSFORMER, **MODIFIED_RESNET}),
}

CLIP: Final = KeyTable({**_IMAGE_AND_SCALE, **_under("", "text.", TEXT_TRANSFORMER)})
"""OpenAI's layout, and open_clip's."""

CLIP_CUSTOM_TEXT: Final = KeyTable({**_IMAGE_AND_SCALE, **_under("text.", "text.", TEXT_TRANSFORMER)})
"""open_clip's with a text tower of its own, as its ``custom_text`` says."""

_TIMM_BLOCK: Final[Rows] = {
    "norm1.*": ("ln_1.*",),
    "attn.qkv.*": ("attn.q_proj.*", "attn.k_proj.*", "attn.v_proj.*"),
    "attn.proj.*": ("attn.out_proj.*",),
    "norm2.*": ("ln_2.*",),
    "mlp.fc1.*": ("mlp.c_fc.*",),
    "mlp.fc2.*": ("mlp.c_proj.*",),
}
"""One block of timm's ``VisionTransformer``."""

_TIMM_SIGLIP: Final[Rows] = {
    "patch_embed.proj.*": ("conv1.*",),
    "pos_embed": ("positional_embedding",),
    **_under("blocks.#.", "blocks.#.", _TIMM_BLOCK),
    "norm.*": ("ln_post.*",),
    "attn_pool.latent": ("pool.probe",),
    "attn_pool.q.*": ("pool.attn.q_proj.*",),
    "attn_pool.kv.*": ("pool.attn.k_proj.*", "pool.attn.v_proj.*"),
    "attn_pool.proj.*": ("pool.attn.out_proj.*",),
    "attn_pool.norm.*": ("pool.ln.*",),
    "attn_pool.mlp.fc1.*": ("pool.mlp.c_fc.*",),
    "attn_pool.mlp.fc2.*": ("pool.mlp.c_proj.*",),
}
"""timm's ``VisionTransformer`` with ``global_pool="map"`` and no class token."""

SIGLIP: Final = KeyTable(
    {
        **_same("logit_scale", "logit_bias", "text.token_embedding.weight", "text.positional_embedding"),
        **_same("text.ln_final.*"),
        "text.text_projection.*": ("text.proj.*",),
        **_under("text.transformer.resblocks.#.", "text.blocks.#.", RESBLOCK),
        **_under("visual.trunk.", "visual.", _TIMM_SIGLIP),
    }
)
"""open_clip's SigLIP: its own text tower, and an image tower of timm's."""
