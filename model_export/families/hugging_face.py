"""How the parameters of `CLIPModel` and `SiglipModel` of transformers are called here: tables, as in `clip_keys`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from torch import Tensor

from model_export.families.key_tables import KeyTable, Rows

_LAYER: Final = {
    "layer_norm1.*": "ln_1.*",
    "self_attn.q_proj.*": "attn.q_proj.*",
    "self_attn.k_proj.*": "attn.k_proj.*",
    "self_attn.v_proj.*": "attn.v_proj.*",
    "self_attn.out_proj.*": "attn.out_proj.*",
    "layer_norm2.*": "ln_2.*",
    "mlp.fc1.*": "mlp.c_fc.*",
    "mlp.fc2.*": "mlp.c_proj.*",
}
"""One block of any of the four towers."""

_TEXT: Final = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm.*": "ln_final.*",
}

_VISION: Final = {
    "embeddings.position_embedding.weight": "positional_embedding",
    "post_layernorm.*": "ln_post.*",
}


def _under(theirs: str, ours: str, rows: Mapping[str, str]) -> Rows:
    return {theirs + name: (ours + renamed,) for name, renamed in rows.items()}


_TOWERS: Final[Rows] = {
    **_under("text_model.", "text.", _TEXT),
    **_under("text_model.encoder.layers.#.", "text.blocks.#.", _LAYER),
    **_under("vision_model.", "visual.", _VISION),
    **_under("vision_model.encoder.layers.#.", "visual.blocks.#.", _LAYER),
    "logit_scale": ("logit_scale",),
}
"""What both models have."""

CLIP: Final = KeyTable(
    {
        **_TOWERS,
        "vision_model.embeddings.class_embedding": ("visual.class_embedding",),
        "vision_model.embeddings.patch_embedding.weight": ("visual.conv1.weight",),
        "vision_model.pre_layrnorm.*": ("visual.ln_pre.*",),  # so spelled
        "visual_projection.weight": ("visual.proj",),
        "text_projection.weight": ("text.text_projection",),
    }
)

SIGLIP: Final = KeyTable(
    {
        **_TOWERS,
        "vision_model.embeddings.patch_embedding.*": ("visual.conv1.*",),
        "vision_model.head.probe": ("visual.pool.probe",),
        "vision_model.head.attention.in_proj_*": tuple(f"visual.pool.attn.{which}_proj.*" for which in "qkv"),
        "vision_model.head.attention.out_proj.*": ("visual.pool.attn.out_proj.*",),
        "vision_model.head.layernorm.*": ("visual.pool.ln.*",),
        "vision_model.head.mlp.fc1.*": ("visual.pool.mlp.c_fc.*",),
        "vision_model.head.mlp.fc2.*": ("visual.pool.mlp.c_proj.*",),
        "text_model.head.*": ("text.proj.*",),
        "logit_bias": ("logit_bias",),
    }
)

_POSITION_IDS: Final = ".embeddings.position_ids"
"""0, 1, 2, …: a buffer that older checkpoints carry in both towers."""

_TRANSPOSED: Final = frozenset({"visual.proj", "text.text_projection"})
"""A linear layer there, a matrix that is multiplied from the right here; by our names."""

_SCALARS: Final = frozenset({"logit_scale", "logit_bias"})
"""Of shape [] or [1], as the version of transformers has it."""


def convert(
    table: KeyTable, weights: Mapping[str, Tensor], wanted: Mapping[str, Tensor], path: Path
) -> dict[str, Tensor]:
    """Bring weights to the names and shapes that they have here.

    Args:
        table: `CLIP` or `SIGLIP`.
        weights: as the file calls them.
        wanted: the model's state dict, as it is called here; only names and shapes are looked at.
        path: the file, for what is said of it.

    Returns:
        The weights as they are called here, in their own dtype.

    Raises:
        SourceError: a weight is unknown, missing, mis-shaped or not finite; it is called as the file calls it.
    """
    given = {
        name: tensor.reshape(()) if name in _SCALARS and tensor.numel() == 1 else tensor
        for name, tensor in weights.items()
        if not name.endswith(_POSITION_IDS)
    }
    there = {name: tensor.T if name in _TRANSPOSED else tensor for name, tensor in wanted.items()}
    renamed = table.convert(given, there, path)
    return {name: tensor.T if name in _TRANSPOSED else tensor for name, tensor in renamed.items()}
