"""Chooses the files of a hub repository to download: one form of its weights, and the files beside them.

Pure functions over names. A repository often holds the same weights four times, for as many frameworks.
"""

import re
from collections.abc import Collection
from typing import Final, NamedTuple

from model_export.errors import SourceError

COMPANIONS: Final = (
    "README.md",  # its header states the licence
    "card.md",
    "recipe.toml",
    "config.json",
    "open_clip_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "bpe_simple_vocab_16e6.txt.gz",
)
"""Configurations, tokenizers, and statements about the origin of the weights."""

FULL_PRECISION: Final = "fp32"
"""The variant of ONNX graphs whose file names have no suffix."""


class _Form(NamedTuple):
    config: str
    stem: str
    suffix: str


_FORMS: Final = (
    _Form("config.json", r"model", r"safetensors"),
    _Form("open_clip_config.json", r"open_clip[\w.-]*", r"safetensors"),
    _Form("config.json", r"pytorch_model", r"bin"),
    _Form("open_clip_config.json", r"open_clip[\w.-]*", r"bin|pt"),
)
"""The best first: safetensors cannot hold code, and loads without a copy."""

_UNKNOWN: Final = re.compile(r"[^/]+\.(safetensors|bin|pt|pth)")
"""Weights under a name of their own, as in ``ViT-B-32.pt``."""

_NOT_WEIGHTS: Final = re.compile(r"(optimizer|scheduler|scaler|training_args|rng_state|adapter)[\w.-]*")

_TOWERS: Final = ("vision_model", "text_model")
_FULL: Final = "model"


def choose(names: Collection[str], where: str) -> tuple[str, ...]:
    """Choose what to download for a reader of weights.

    Weights come last, so that a folder with complete weights has every other file too.

    Args:
        names: every file of the repository, relative to its root.

    Raises:
        SourceError: the repository holds no weights, or several under unknown names.
    """
    weights = _weights(names)
    if not weights:
        loose = sorted(name for name in names if _UNKNOWN.fullmatch(name) and not _NOT_WEIGHTS.fullmatch(name))
        if len(loose) > 1:
            raise SourceError(
                f"{where}: holds several weights under names of their own ({', '.join(loose)}); "
                "download the one you want and export its path"
            )
        weights = tuple(loose)
    if not weights and any(_VISION.fullmatch(name) for name in names):
        return choose_onnx(names, FULL_PRECISION, where)
    if not weights:
        raise SourceError(
            f"{where}: holds no weights that are read here (model.safetensors, open_clip_*.safetensors, "
            "pytorch_model.bin, open_clip_*.bin); choose a repository that holds one of them"
        )
    return (*_companions(names), *weights)


def choose_onnx(names: Collection[str], variant: str, where: str) -> tuple[str, ...]:
    """Choose what to download of a repository with ONNX encoders, ``onnx/vision_model.onnx`` and so on.

    Args:
        names: every file of the repository, relative to its root.
        variant: ``fp32``, or the suffix of the files' names, such as ``fp16`` or ``quantized``.

    Returns:
        Companions, both towers, and the full graph if the repository has one (it knows the logit scale), each with
        its external data.

    Raises:
        SourceError: a tower is missing.
    """
    suffix = "" if variant == FULL_PRECISION else f"_{variant}"
    graphs = [f"onnx/{stem}{suffix}.onnx" for stem in (*_TOWERS, _FULL)]
    missing = [graph for graph in graphs[: len(_TOWERS)] if graph not in names]
    if missing:
        others = sorted({found[1] or FULL_PRECISION for name in names if (found := _VISION.fullmatch(name))})
        hint = f"it has {', '.join(others)}" if others else "export from its weights instead"
        raise SourceError(f"{where}: has no {' and no '.join(missing)}; {hint}")
    data = re.compile("|".join(re.escape(graph) + r"([._]data(_\d+)?)?" for graph in graphs))
    return (*_companions(names), *sorted(name for name in names if data.fullmatch(name)))


_VISION: Final = re.compile(r"onnx/vision_model(?:_(\w+))?\.onnx")


def _companions(names: Collection[str]) -> tuple[str, ...]:
    return tuple(name for name in COMPANIONS if name in names)


def _weights(names: Collection[str]) -> tuple[str, ...]:
    # Forms whose configuration exists come first: an open_clip repository may hold another model's weights too.
    for forms in ([form for form in _FORMS if form.config in names], _FORMS):
        for form in forms:
            single = re.compile(rf"{form.stem}\.({form.suffix})")
            whole = sorted(name for name in names if single.fullmatch(name))
            if whole:
                return (whole[0],)
            shards = _shards(names, form)
            if shards:
                return shards
    return ()


def _shards(names: Collection[str], form: _Form) -> tuple[str, ...]:
    """Return the index and every shard that it can name, or nothing if one of them is missing."""
    shard = re.compile(rf"({form.stem})-\d{{5}}-of-(\d{{5}})\.({form.suffix})")
    found = sorted(name for name in names if shard.fullmatch(name))
    if not found:
        return ()
    stem, count, suffix = shard.fullmatch(found[0]).groups()  # type: ignore[union-attr]
    wanted = [f"{stem}-{number:05}-of-{count}.{suffix}" for number in range(1, int(count) + 1)]
    index = f"{stem}.{suffix}.index.json"
    return (index, *wanted) if index in names and set(wanted) <= set(found) else ()
