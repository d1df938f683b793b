"""The kinds of models that open_clip's modules compute; they have no sizes and no other layout."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from model_export.families.clip.family import CLIP
from model_export.families.family import OpenClipKind, OpenClipLayout
from model_export.families.open_clip_torch.config import OpenClipTorchConfig, read_config
from model_export.families.open_clip_torch.tokenizer import read_tokenizer

if TYPE_CHECKING:
    from torch import Tensor

    from model_export.architectures.towers import TwoTowers

_FLAT_TEXT: Final = ("token_embedding.", "positional_embedding", "transformer.", "ln_final.", "text_projection")
"""Beginnings of the text tower's names where it has no name of its own: without ``custom_text``."""

_NOT_READ: Final = (
    "text_decoder.",
    "text.transformer.embeddings.position_ids",
    "text.transformer.embed_positions.weights",
)
"""Beginnings of names: a CoCa's decoder, which writes captions; and constants that older transformers saved."""

_COUNTER: Final = ".num_batches_tracked"
"""Counted in training, never read again, and absent from some files."""


def _build(config: OpenClipTorchConfig) -> TwoTowers:
    from model_export.families.open_clip_torch.model import OpenClipTorchModel

    return OpenClipTorchModel(config)


def _convert(weights: Mapping[str, Tensor], wanted: Mapping[str, Tensor], _path: Path) -> dict[str, Tensor]:
    import torch

    own_text = any(name.startswith("text.") for name in weights)
    converted = {
        f"text.{name}" if not own_text and name.startswith(_FLAT_TEXT) else name: tensor
        for name, tensor in weights.items()
        if not name.startswith(_NOT_READ)
    }
    counters = (name for name in wanted if name.endswith(_COUNTER) and name not in converted)
    return {**converted, **{name: torch.zeros((), dtype=torch.int64) for name in counters}}


def kind_of(fields: Mapping[str, Any], path: Path) -> tuple[OpenClipKind[OpenClipTorchConfig], OpenClipTorchConfig]:
    """Read ``model_cfg``, and return the model's kind with its configuration.

    Raises:
        SourceError: a setting is unknown or invalid, or a bundle cannot express it; the message names it.
    """
    config = read_config(fields, None, path)
    return (OPEN_CLIP_TORCH if config.reads_at_end_of_text else PADDED), config


OPEN_CLIP_TORCH: Final = OpenClipKind(
    name="open_clip",
    title="model that open_clip builds",
    config=OpenClipTorchConfig,
    build=_build,
    padding="longest",
    has_bias=False,  # where a file has one, it is taken
    images=CLIP.images,
    open_clip=OpenClipLayout(
        matches=lambda _vision, _text: True,
        read=read_config,
        read_tokenizer=read_tokenizer,
        complete=lambda config, _tokens: config,
        needs_preprocess_cfg=True,
        convert=_convert,
    ),
)
"""Texts end at their end-of-text token; open_clip's default preprocessing is CLIP's."""

PADDED: Final = replace(OPEN_CLIP_TORCH, padding="fixed")
"""Every token of a text changes its vector, padding too."""
