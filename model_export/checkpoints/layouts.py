"""Recognises the layout of a path by names and first bytes: before anything is read, without torch and onnx."""

from collections.abc import Iterable
from enum import Enum, auto
from pathlib import Path
from typing import Final

from model_export.errors import SourceError

RECIPE: Final = "recipe.toml"
HF_CONFIG: Final = "config.json"
HF_WEIGHTS: Final = ("model.safetensors", "pytorch_model.bin")
"""The safest first."""
HF_INDEX: Final = ".index.json"
"""Behind the name of weights that are split into several files."""
OPEN_CLIP_CONFIG: Final = "open_clip_config.json"
"""Weights with OpenAI's names beside this file are open_clip's."""
ONNX_FOLDER: Final = "onnx"
ONNX_TOWERS: Final = ("vision_model", "text_model")

NOTHING_THERE: Final = "is neither a file or folder nor a hub id such as openai/clip-vit-base-patch32"
"""Message for a source that does not exist."""

_WEIGHT_SUFFIXES: Final = (".safetensors", ".bin", ".pt", ".pth")

_LARGEST_CONFIG: Final = 1 << 20
"""Bytes of a ``config.json`` in which ``model_type`` is looked for."""

_MAX_HEADER: Final = 100 << 20
"""Bytes of a safetensors header, as the format limits it."""

_READ_HERE: Final = (
    "a training run of this program (recipe.toml)",
    "a Hugging Face folder (config.json, model.safetensors)",
    "an open_clip folder or file (open_clip_config.json)",
    "an OpenAI archive or state dict",
    "a folder of ONNX graphs (onnx/vision_model.onnx, onnx/text_model.onnx)",
)


class WeightsFormat(Enum):
    """The format of a weights file."""

    SAFETENSORS = auto()
    ZIP = auto()
    PICKLE = auto()


def weights_format(path: Path) -> WeightsFormat | None:
    """Recognise the format of a weights file by its first bytes; None for any other file.

    Raises:
        SourceError: the file is missing or cannot be read.
    """
    try:
        with path.open("rb") as stream:
            start = stream.read(9)
    except FileNotFoundError as exc:
        raise SourceError(f"{path}: is missing") from exc
    except OSError as exc:
        raise SourceError(f"{path}: cannot be read ({exc.strerror})") from exc
    if start.startswith(b"PK\x03\x04"):
        return WeightsFormat.ZIP
    if start.startswith(b"\x80\x02"):
        return WeightsFormat.PICKLE
    if start[8:] == b"{" and int.from_bytes(start[:8], "little") <= _MAX_HEADER:
        return WeightsFormat.SAFETENSORS
    return None


def is_training_run(folder: Path) -> bool:
    """Return whether a folder is a training run: only that holds a recipe."""
    return (folder / RECIPE).is_file()


def is_hugging_face(folder: Path) -> bool:
    """Return whether a folder holds weights and a ``config.json`` with a ``model_type``."""
    try:
        with (folder / HF_CONFIG).open("rb") as stream:
            typed = b'"model_type"' in stream.read(_LARGEST_CONFIG)
    except OSError:
        return False
    return typed and any((folder / f"{name}{suffix}").exists() for name in HF_WEIGHTS for suffix in ("", HF_INDEX))


def is_open_clip(folder: Path) -> bool:
    """Return whether a folder holds open_clip's configuration."""
    return (folder / OPEN_CLIP_CONFIG).is_file()


def has_onnx_towers(folder: Path) -> bool:
    """Return whether a folder holds both encoders as ONNX graphs, in any variant."""
    return all(any((folder / ONNX_FOLDER).glob(f"{tower}*.onnx")) for tower in ONNX_TOWERS)


def holds_weights(names: Iterable[str]) -> bool:
    """Return whether the names of a folder's files, relative to it, include weights: only those need torch."""
    return any("/" not in name and name.endswith(_WEIGHT_SUFFIXES) for name in names)


def check_layout(path: Path) -> None:
    """Refuse a path that no reader knows. A file that may hold weights passes: its reader looks into it.

    Raises:
        SourceError: the path is in none of the layouts; the message lists them.
    """
    if path.is_dir():
        known = any(knows(path) for knows in (is_training_run, is_hugging_face, is_open_clip, has_onnx_towers))
    else:
        known = weights_format(path) is not None
    if not known:
        raise unknown_layout(path)


def unknown_layout(path: Path) -> SourceError:
    """Return the error for a path in a layout that no reader knows."""
    return SourceError(f"{path}: is in no layout that is read here: {'; '.join(_READ_HERE)}")
