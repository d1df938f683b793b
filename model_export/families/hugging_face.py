"""What families share of transformers' layout: sections of ``config.json``, and names of parameters."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, Protocol, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, PositiveInt

from model_export.errors import SourceError
from model_export.families.key_tables import KeyTable, Rows, with_flat_scalars

if TYPE_CHECKING:
    from torch import Tensor

TOWERS: Final = ("text_config", "vision_config")

_Known = TypeVar("_Known", bound=str)


def _side(value: object) -> object:
    """Take ``[n, n]`` for ``n``."""
    return value[0] if isinstance(value, list) and len(value) == 2 and value[0] == value[1] else value


Side = Annotated[PositiveInt, BeforeValidator(_side)]


class Section(BaseModel):
    """A section of ``config.json``; what decides no vector is ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class VisionSection(Section):
    """``vision_config``, with the defaults that families share."""

    hidden_size: PositiveInt = 768
    intermediate_size: PositiveInt = 3072
    num_hidden_layers: PositiveInt = 12
    num_attention_heads: PositiveInt = 12
    num_channels: Literal[3] = 3
    image_size: Side = 224


class Tower(Protocol):
    """Either tower's section."""

    @property
    def hidden_act(self) -> str:
        """Name of the activation."""

    @property
    def layer_norm_eps(self) -> float:
        """Epsilon of LayerNorm."""


class TwoSections(Protocol):
    """A ``config.json`` with a section for each tower."""

    @property
    def text_config(self) -> Tower:
        """The text tower."""

    @property
    def vision_config(self) -> Tower:
        """The image tower."""


def sections(fields: Mapping[str, Any], path: Path) -> dict[str, Any]:
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


def check_eps(config: TwoSections, wanted: float, path: Path) -> None:
    """Refuse another epsilon of LayerNorm than our modules have.

    Raises:
        SourceError: a tower has another one.
    """
    for name, tower in _towers(config):
        if not math.isclose(tower.layer_norm_eps, wanted, rel_tol=1e-6):
            raise SourceError(
                f"{path}: {name}.layer_norm_eps is {tower.layer_norm_eps:g}; only {wanted:g} can be exported"
            )


def activation(name: str, tower: Tower, known: Mapping[str, _Known], path: Path) -> _Known:
    """Return our name of a tower's activation; ``name`` is the section's.

    Raises:
        SourceError: the activation is not known.
    """
    if tower.hidden_act not in known:
        raise SourceError(f"{path}: {name}.hidden_act {tower.hidden_act!r} is not known; {', '.join(known)} are")
    return known[tower.hidden_act]


def _towers(config: TwoSections) -> tuple[tuple[str, Tower], ...]:
    return ("text_config", config.text_config), ("vision_config", config.vision_config)


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
"""One block of any tower."""

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


TRANSFORMERS: Final[Rows] = {
    **_under("text_model.", "text.", _TEXT),
    **_under("text_model.encoder.layers.#.", "text.blocks.#.", _LAYER),
    **_under("vision_model.", "visual.", _VISION),
    **_under("vision_model.encoder.layers.#.", "visual.blocks.#.", _LAYER),
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
        table: of the family.
        weights: by the file's names.
        wanted: the model's state dict.
        path: of the file, for messages.
        transposed: our names of matrices that are a linear layer's weight in the file.
    """
    given = {name: tensor for name, tensor in with_flat_scalars(weights).items() if not name.endswith(_POSITION_IDS)}
    theirs = {name: tensor.T if name in transposed else tensor for name, tensor in wanted.items()}
    renamed = table.convert(given, theirs, path)
    return {name: tensor.T if name in transposed else tensor for name, tensor in renamed.items()}
