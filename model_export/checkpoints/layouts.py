"""Recognises the layout of a path by names and first bytes: before anything is read, without torch and onnx."""

from collections.abc import Collection, Iterable
from enum import Enum, auto
from pathlib import Path
from typing import Final

from model_export.errors import IncompleteError, SourceError

RECIPE: Final = "recipe.toml"
RUN_WEIGHTS: Final = {"last": "model.safetensors", "ema": "model-ema.safetensors"}
"""Of a training run: the last weights, and their moving average."""
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


def is_open_clip(folder: Path) -> bool:
    """Return whether a folder holds open_clip's configuration."""
    return (folder / OPEN_CLIP_CONFIG).is_file()


def has_onnx_towers(folder: Path) -> bool:
    """Return whether a folder holds both encoders as ONNX graphs, in any variant."""
    return all(any((folder / ONNX_FOLDER).glob(f"{tower}*.onnx")) for tower in ONNX_TOWERS)


def holds_weights(names: Iterable[str]) -> bool:
    """Return whether the names of a folder's files, relative to it, include weights: only those need torch."""
    return any("/" not in name and name.endswith(_WEIGHT_SUFFIXES) for name in names)


def unknown_layout(where: Path | str, loose: Collection[str] = ()) -> IncompleteError:
    """Return the error for a source in a layout that no reader knows, which may hold weights under other names."""
    held = ""
    if loose:
        held = (
            f"; it holds {', '.join(loose)} without a name and a configuration of these: if that is OpenAI's or "
            "open_clip's, download it and export the file itself"
        )
    return IncompleteError(f"{where}: is in no layout that is read here: {'; '.join(_READ_HERE)}{held}")
