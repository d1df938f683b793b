"""Chooses a source's files by their names alone: the weights of each layout, and the files beside them.

Pure functions over names. A repository often holds the same weights four times, for as many frameworks.
"""

import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from model_export.checkpoints.layouts import HF_CONFIG, HF_INDEX, HF_WEIGHTS, OPEN_CLIP_CONFIG, holds_weights
from model_export.errors import IncompleteError

WeightsLayout: TypeAlias = Literal["hugging_face", "open_clip"]
"""The layouts that may lie side by side in one folder, and that ``--layout`` names."""

CONFIGURATIONS: Final = (
    "modules.json",
    HF_CONFIG,
    OPEN_CLIP_CONFIG,
    "preprocessor_config.json",
    "processor_config.json",
)
"""A few kilobytes, which say what the weights are."""

COMPANIONS: Final = (
    "README.md",  # its header states the licence
    "card.md",
    "recipe.toml",
    *CONFIGURATIONS,
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "bpe_simple_vocab_16e6.txt.gz",
)
"""Configurations, tokenizers, and statements about the origin of the weights."""

OPEN_CLIP_WEIGHTS: Final = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth",
)
"""open_clip's names on the hub, the safest first."""

FULL_PRECISION: Final = "fp32"
"""The variant of ONNX graphs whose file names have no suffix."""

_SAFE: Final = ".safetensors"

_OPEN_CLIP_OTHERS: Final = re.compile(r"open_clip[\w.-]*\.(safetensors|bin|pt|pth)")
_NOT_WEIGHTS: Final = re.compile(r"(optimizer|scheduler|scaler|training_args|rng_state|adapter)[\w.-]*")

_TOWERS: Final = ("vision_model", "text_model")
_FULL: Final = "model"
_VISION: Final = re.compile(r"onnx/vision_model(?:_(\w+))?\.onnx")


@dataclass(frozen=True)
class Form:
    """Weights in one layout.

    Attributes:
        files: their names, relative to the folder of the configuration.
        lacking: shards that are missing.
    """

    layout: WeightsLayout
    files: tuple[str, ...]
    lacking: tuple[str, ...] = ()


def weight_forms(names: Collection[str]) -> tuple[Form, ...]:
    """Return the weights that a folder holds beside their configuration, one form of each layout, the best first.

    safetensors come before pickles: they cannot hold code, and load without a copy.

    Args:
        names: every file, relative to the folder.
    """
    found = [] if HF_CONFIG not in names else list(_hugging_face_forms(names))
    if OPEN_CLIP_CONFIG in names and (file := open_clip_weights(names)) is not None:
        found.append(Form("open_clip", (file,)))
    ranked = sorted(found, key=lambda form: (bool(form.lacking), _SAFE not in form.files[0]))
    best = {form.layout: form for form in reversed(ranked)}
    return tuple(form for form in ranked if best[form.layout] is form)


def companions(names: Iterable[str], wanted: Iterable[str] = COMPANIONS) -> tuple[str, ...]:
    """Return those of the wanted companions that exist."""
    there = frozenset(names)
    return tuple(name for name in wanted if name in there)


def loose_weights(names: Iterable[str]) -> tuple[str, ...]:
    """Return all weights of a folder, whatever their names, without optimizers, adapters and the like."""
    return tuple(sorted(name for name in names if holds_weights((name,)) and not _NOT_WEIGHTS.fullmatch(name)))


def open_clip_weights(names: Collection[str]) -> str | None:
    """Return the weights of an open_clip folder, the safest first; under another name only if no others exist."""
    others = [name for name in names if _OPEN_CLIP_OTHERS.fullmatch(name)]
    loose = loose_weights(names)
    for name in (*OPEN_CLIP_WEIGHTS, *sorted(others, key=lambda name: (not name.endswith(_SAFE), name))):
        if name in names:
            return name
    return loose[0] if len(loose) == 1 else None


def choose_onnx(names: Collection[str], variant: str, where: str) -> tuple[str, ...]:
    """Choose the graphs of a repository with ONNX encoders, ``onnx/vision_model.onnx`` and so on.

    Args:
        names: every file of the repository, relative to its root.
        variant: ``fp32``, or the suffix of the files' names, such as ``fp16`` or ``quantized``.

    Returns:
        Both towers, and the full graph if the repository has one (it knows the logit scale), each with its external
        data.

    Raises:
        IncompleteError: a tower is missing.
    """
    suffix = "" if variant == FULL_PRECISION else f"_{variant}"
    graphs = [f"onnx/{stem}{suffix}.onnx" for stem in (*_TOWERS, _FULL)]
    missing = [graph for graph in graphs[: len(_TOWERS)] if graph not in names]
    if missing:
        others = sorted({found[1] or FULL_PRECISION for name in names if (found := _VISION.fullmatch(name))})
        hint = f"it has {', '.join(others)}" if others else "export from its weights instead"
        raise IncompleteError(f"{where}: has no {' and no '.join(missing)}; {hint}")
    data = re.compile("|".join(re.escape(graph) + r"([._]data(_\d+)?)?" for graph in graphs))
    return tuple(sorted(name for name in names if data.fullmatch(name)))


def has_onnx_encoder(names: Iterable[str]) -> bool:
    """Return whether a repository has an image encoder as an ONNX graph, in any variant."""
    return any(_VISION.fullmatch(name) for name in names)


def _hugging_face_forms(names: Collection[str]) -> Iterator[Form]:
    for name in HF_WEIGHTS:
        if name in names:
            yield Form("hugging_face", (name,))
        elif (index := f"{name}{HF_INDEX}") in names:
            shards, lacking = _shards(names, name)
            yield Form("hugging_face", (index, *shards), lacking)


def _shards(names: Iterable[str], whole: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the shards of weights that were split, and the names of missing ones."""
    stem, _, suffix = whole.rpartition(".")
    shard = re.compile(rf"{stem}-\d{{5}}-of-(\d{{5}})\.{suffix}")
    found = {name: match for name in names if (match := shard.fullmatch(name))}
    count = max((int(match[1]) for match in found.values()), default=0)
    wanted = (f"{stem}-{number:05}-of-{count:05}.{suffix}" for number in range(1, count + 1))
    return tuple(sorted(found)), tuple(name for name in wanted if name not in found)
