"""What families share of transformers' layout: sections of ``config.json``, and names of parameters."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, PositiveInt

from model_export.errors import SourceError
from model_export.families.key_tables import KeyTable, Rows, under, with_flat_scalars
from model_export.files import checked

if TYPE_CHECKING:
    from torch import Tensor

TOWERS: Final = ("text_config", "vision_config")

_Known = TypeVar("_Known", bound=str)
_Config = TypeVar("_Config", bound="Config")


def _side(value: object) -> object:
    """Take ``[n, n]`` for ``n``."""
    return value[0] if isinstance(value, list) and len(value) == 2 and value[0] == value[1] else value


Side = Annotated[PositiveInt, BeforeValidator(_side)]


class Section(BaseModel):
    """A section of ``config.json``; what decides no vector is ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class Tower(Section):
    """Either tower's section."""

    hidden_size: PositiveInt
    intermediate_size: PositiveInt
    num_hidden_layers: PositiveInt = 12
    num_attention_heads: PositiveInt
    hidden_act: str
    layer_norm_eps: float


class VisionSection(Tower):
    """``vision_config``, with the defaults that families share."""

    hidden_size: PositiveInt = 768
    intermediate_size: PositiveInt = 3072
    num_attention_heads: PositiveInt = 12
    num_channels: Literal[3] = 3
    image_size: Side = 224


class Config(Section):
    """A ``config.json`` with a section for each tower."""

    text_config: Tower
    vision_config: Tower


def read_config(kind: type[_Config], fields: Mapping[str, Any], path: Path, *, eps: float) -> _Config:
    """Read a ``config.json`` whose towers have LayerNorms with this epsilon, as our modules do.

    Raises:
        SourceError: a value is invalid, or differs from what our modules fix; the message names it.
    """
    config = checked(kind, _sections(fields, path), path)
    for name in TOWERS:
        tower: Tower = getattr(config, name)
        if not math.isclose(tower.layer_norm_eps, eps, rel_tol=1e-6):
            raise SourceError(
                f"{path}: {name}.layer_norm_eps is {tower.layer_norm_eps:g}; only {eps:g} can be exported"
            )
    return config


def _sections(fields: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Return the fields with each tower's section as transformers reads it; null counts as absent.

    Raises:
        SourceError: a section is not a JSON object.
    """
    found: dict[str, Any] = {name: value for name, value in fields.items() if value is not None}
    for name in TOWERS:
        # Older files hold each tower twice. If the two differ, transformers takes the second, with its defaults.
        said = found.get(f"{name}_dict", found.get(name, {}))
        if not isinstance(said, dict):
            raise SourceError(f"{path}: {name} must be a JSON object")
        found[name] = {key: value for key, value in said.items() if value is not None}
    return found


def activation(name: str, tower: Tower, known: Mapping[str, _Known], path: Path) -> _Known:
    """Return our name of a tower's activation; ``name`` is the section's.

    Raises:
        SourceError: the activation is not known.
    """
    if tower.hidden_act not in known:
        raise SourceError(f"{path}: {name}.hidden_act {tower.hidden_act!r} is not known; {', '.join(known)} are")
    return known[tower.hidden_act]


_LAYER: Final[Rows] = {
    "layer_norm1.*": ("ln_1.*",),
    "self_attn.q_proj.*": ("attn.q_proj.*",),
    "self_attn.k_proj.*": ("attn.k_proj.*",),
    "self_attn.v_proj.*": ("attn.v_proj.*",),
    "self_attn.out_proj.*": ("attn.out_proj.*",),
    "layer_norm2.*": ("ln_2.*",),
    "mlp.fc1.*": ("mlp.c_fc.*",),
    "mlp.fc2.*": ("mlp.c_proj.*",),
}
"""One block of any tower."""

_TEXT: Final[Rows] = {
    "embeddings.token_embedding.weight": ("token_embedding.weight",),
    "embeddings.position_embedding.weight": ("positional_embedding",),
    "final_layer_norm.*": ("ln_final.*",),
}

_VISION: Final[Rows] = {
    "embeddings.position_embedding.weight": ("positional_embedding",),
    "post_layernorm.*": ("ln_post.*",),
}

TRANSFORMERS: Final[Rows] = {
    **under("text_model.", "text.", _TEXT),
    **under("text_model.encoder.layers.#.", "text.blocks.#.", _LAYER),
    **under("vision_model.", "visual.", _VISION),
    **under("vision_model.encoder.layers.#.", "visual.blocks.#.", _LAYER),
    "logit_scale": ("logit_scale",),
}
"""The rows of towers that are built as CLIP's are in transformers."""

_POSITION_IDS: Final = ".embeddings.position_ids"
"""0, 1, 2, …: a buffer that older checkpoints carry in both towers."""


def convert(
    table: KeyTable,
    weights: Mapping[str, Tensor],
    wanted: Mapping[str, Tensor],
    path: Path,
    *,
    transposed: frozenset[str] = frozenset(),
) -> dict[str, Tensor]:
    """Bring weights to our names and shapes; arguments, result and errors as of `KeyTable.convert`.

    Args:
        transposed: our names of matrices that are a linear layer's weight in the file.
    """
    given = {name: tensor for name, tensor in with_flat_scalars(weights).items() if not name.endswith(_POSITION_IDS)}
    theirs = {name: tensor.T if name in transposed else tensor for name, tensor in wanted.items()}
    renamed = table.convert(given, theirs, path)
    return {name: tensor.T if name in transposed else tensor for name, tensor in renamed.items()}
