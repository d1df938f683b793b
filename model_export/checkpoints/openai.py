"""Reads OpenAI's layout of CLIP: a TorchScript archive as OpenAI publishes it, or a state dict with its names.

Neither carries a configuration. It follows from the shapes, as in ``build_model`` of openai/CLIP, except for the MLPs'
activation: OpenAI's archives use QuickGELU; of any other file the user must state it.
"""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import torch
from pydantic import ValidationError
from torch import Tensor

from model_export.architectures.activations import Activation
from model_export.checkpoints.assembly import Found, assemble, named_config
from model_export.checkpoints.layouts import is_open_clip
from model_export.checkpoints.model_source import ModelSource, SourceOptions
from model_export.checkpoints.open_clip_config import tokenizer_place
from model_export.checkpoints.weight_files.tensors import is_script_archive, peek_names, read_tensors
from model_export.errors import SourceError, problems
from model_export.families.clip.config import (
    PAD_ID,
    ClipConfig,
    ModifiedResNetConfig,
    TextTransformerConfig,
    VisionTransformerConfig,
)
from model_export.families.clip.family import CLIP
from model_export.families.clip.keys import OPENAI
from model_export.families.clip.sizes import CLIP_SIZES

HEAD_WIDTH: Final = 64
"""Channels of one attention head in every model that OpenAI published."""

STRIDE: Final = 32
"""Of the ResNets, pixels."""

_NOTES: Final = ("input_resolution", "context_length", "vocab_size")
"""Entries of OpenAI's archives beside the weights; hardly any other file has them."""

_CAUSAL_MASK: Final = "attn_mask"

_STATE_DICT_NAMES: Final = frozenset({"visual.conv1.weight", "token_embedding.weight", "text_projection"})
_ARCHIVE_NAMES: Final = frozenset({"visual", "token_embedding", "text_projection"})


def recognises(path: Path) -> bool:
    """Return whether a file has OpenAI's names and no open_clip configuration beside it."""
    if not path.is_file() or is_open_clip(path.parent):
        return False
    names = _ARCHIVE_NAMES if is_script_archive(path) else _STATE_DICT_NAMES
    return names <= peek_names(path)


def load(path: Path, options: SourceOptions) -> ModelSource:
    """Read OpenAI's archive, or a state dict with its names.

    Raises:
        SourceError: the file is not readable, or not a CLIP; a weight is unknown, missing, mis-shaped or not finite;
            the activation is not known; or no tokenizer is found. The message names the file and the key.
    """
    weights = read_tensors(path)
    published = is_script_archive(path) and all(name in weights for name in _NOTES)
    weights = {name: tensor for name, tensor in weights.items() if not _is_note(name, tensor)}
    config = _config(weights, path, options, published=published)
    tokens = CLIP.open_clip.read_tokenizer(tokenizer_place(path, options), config, path)
    found = Found(
        path=path,
        file=path,
        weights=weights,
        convert=OPENAI.convert,
        image=CLIP.images.section(config.image.image_size),
        options=options,
        notes={"layout": "openai"},
    )
    return assemble(found, CLIP, config, tokens)


def _is_note(name: str, tensor: Tensor) -> bool:
    """Return whether this is no weight but a note, or the causal mask, which a module may have saved."""
    if name.rpartition(".")[2] != _CAUSAL_MASK:
        return name in _NOTES
    if tensor.ndim != 2 or tensor.shape[0] != tensor.shape[1]:
        return False
    causal = torch.full(tensor.shape, -math.inf, dtype=torch.float32).triu(1)
    return torch.equal(tensor.float(), causal)


def _config(weights: Mapping[str, Tensor], path: Path, options: SourceOptions, *, published: bool) -> ClipConfig:
    activation: Activation | None = "quick_gelu" if published else options.activation
    if published and options.activation not in {None, "quick_gelu"}:
        raise SourceError(
            f"{path}: is an archive of OpenAI's, which use quick_gelu; leave --activation {options.activation} out"
        )
    if options.arch is not None:
        family, config = named_config(options.arch, dataclasses.replace(options, activation=activation), path)
        if not isinstance(config, ClipConfig):
            raise SourceError(f"{path}: holds a CLIP, and --arch {options.arch} is a {family.title}")
        return config
    if activation is None:
        raise SourceError(
            f"{path}: does not state its activation; add --activation quick_gelu (OpenAI's weights) or "
            "--activation gelu (most of open_clip's), or --arch with a name that states it, as ViT-B-32-quickgelu does"
        )
    config = _config_of_shapes(weights, activation, path)
    _refuse_other_heads(config, path)
    return config


def _config_of_shapes(weights: Mapping[str, Tensor], activation: Activation, path: Path) -> ClipConfig:
    width, embed_dim = _shape(weights, "text_projection", 2, path)
    vocab_size = _shape(weights, "token_embedding.weight", 2, path)[0]
    try:
        return ClipConfig(
            embed_dim=embed_dim,
            image=_vit(weights, activation, path) if "visual.proj" in weights else _resnet(weights, path),
            text=TextTransformerConfig(
                vocab_size=vocab_size,
                context_length=_shape(weights, "positional_embedding", 2, path)[0],
                width=width,
                layers=_count(weights, "transformer.resblocks."),
                heads=_heads(width, path),
                activation=activation,
                end_of_text_id=vocab_size - 1,  # the reference reads at the highest id
                pad_id=PAD_ID,
            ),
        )
    except ValidationError as exc:
        raise SourceError(f"{path}: its shapes are not those of a CLIP ({problems(exc)})") from exc


def _vit(weights: Mapping[str, Tensor], activation: Activation, path: Path) -> VisionTransformerConfig:
    width, _, _, patch = _shape(weights, "visual.conv1.weight", 4, path)
    return VisionTransformerConfig(
        image_size=patch * _side(weights, "visual.positional_embedding", path),
        patch_size=patch,
        width=width,
        layers=_count(weights, "visual.transformer.resblocks."),
        heads=_heads(width, path),
        activation=activation,
    )


def _resnet(weights: Mapping[str, Tensor], path: Path) -> ModifiedResNetConfig:
    one, two, three, four = (_count(weights, f"visual.layer{stage}.") for stage in (1, 2, 3, 4))
    return ModifiedResNetConfig(
        image_size=STRIDE * _side(weights, "visual.attnpool.positional_embedding", path),
        layers=(one, two, three, four),
        width=_shape(weights, "visual.layer1.0.conv1.weight", 4, path)[0],
    )


def _shape(weights: Mapping[str, Tensor], name: str, dimensions: int, path: Path) -> tuple[int, ...]:
    if name not in weights:
        raise SourceError(f"{path}: lacks {name}")
    shape = tuple(weights[name].shape)
    if len(shape) != dimensions:
        raise SourceError(f"{path}: {name} has shape {list(shape)}, a CLIP's has {dimensions} dimensions")
    return shape


def _side(weights: Mapping[str, Tensor], name: str, path: Path) -> int:
    """Return the side of the square of patches; each has a position, and so has the class token before them."""
    positions = _shape(weights, name, 2, path)[0]
    side = math.isqrt(max(positions - 1, 0))
    if side**2 + 1 != positions:
        raise SourceError(f"{path}: {name} has {positions} positions, which are not a square's and one more")
    return side


def _count(weights: Mapping[str, Tensor], prefix: str) -> int:
    return len({name.removeprefix(prefix).partition(".")[0] for name in weights if name.startswith(prefix)})


def _heads(width: int, path: Path) -> int:
    if width % HEAD_WIDTH:
        raise SourceError(
            f"{path}: a width of {width} is no multiple of {HEAD_WIDTH}, so its number of heads is unknown; add --arch"
        )
    return width // HEAD_WIDTH


def _refuse_other_heads(config: ClipConfig, path: Path) -> None:
    """Refuse the shapes of a named size whose heads are not 64 wide: with other heads, vectors would be wrong."""
    for size in CLIP_SIZES:
        known = size.config
        if not isinstance(known, ClipConfig):
            continue
        for ours, theirs in ((config.image, known.image), (config.text, known.text)):
            if not isinstance(theirs, VisionTransformerConfig | TextTransformerConfig) or type(ours) is not type(
                theirs
            ):
                continue
            if (ours.width, ours.layers) == (theirs.width, theirs.layers) and ours.heads != theirs.heads:
                raise SourceError(f"{path}: has the shapes of {size.name}, which leave its heads open; add --arch")
