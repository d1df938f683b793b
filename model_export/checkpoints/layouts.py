"""Whether a path is in a layout that is read here, told by names and first bytes: needs neither torch nor onnx.

So it can be asked before either is installed, and before anything is read.
"""

from enum import Enum, auto
from pathlib import Path
from typing import Final

from model_export.errors import SourceError

RECIPE: Final = "recipe.toml"
HF_CONFIG: Final = "config.json"
HF_WEIGHTS: Final = ("model.safetensors", "pytorch_model.bin")
"""The safest first."""
HF_INDEX: Final = ".index.json"
"""Behind the name of weights that are split over several files."""
OPEN_CLIP_CONFIG: Final = "open_clip_config.json"
"""Where this stands beside weights with OpenAI's names, they are open_clip's."""
ONNX_FOLDER: Final = "onnx"
ONNX_TOWERS: Final = ("vision_model", "text_model")

NOTHING_THERE: Final = "is neither a file or folder nor a hub id such as openai/clip-vit-base-patch32"
"""What is wrong with a source that does not exist."""

_LARGEST_CONFIG: Final = 1 << 20
"""Bytes of a ``config.json`` in which the model's type is looked for."""

_MAX_HEADER: Final = 100 << 20
"""Bytes of a safetensors header, as the format limits it."""

_LAYOUTS: Final = (
    "a training run of this program (recipe.toml)",
    "a Hugging Face folder (config.json, model.safetensors)",
    "an open_clip folder or file (open_clip_config.json)",
    "an OpenAI archive or state dict",
    "a folder of ONNX graphs (onnx/vision_model.onnx, onnx/text_model.onnx)",
)


class Kind(Enum):
    """What a weights file is, by its first bytes."""

    SAFETENSORS = auto()
    ZIP = auto()
    PICKLE = auto()


def kind_of(path: Path) -> Kind | None:
    """Tell what a weights file is, or None for any other file.

    Raises:
        SourceError: the file is not there or cannot be read.
    """
    try:
        with path.open("rb") as stream:
            start = stream.read(9)
    except FileNotFoundError as exc:
        raise SourceError(f"{path}: is not there") from exc
    except OSError as exc:
        raise SourceError(f"{path}: cannot be read ({exc.strerror})") from exc
    if start.startswith(b"PK\x03\x04"):
        return Kind.ZIP
    if start.startswith(b"\x80\x02"):
        return Kind.PICKLE
    if start[8:] == b"{" and int.from_bytes(start[:8], "little") <= _MAX_HEADER:
        return Kind.SAFETENSORS
    return None


def is_training_run(folder: Path) -> bool:
    """Tell a training run from other folders: only it holds its recipe."""
    return (folder / RECIPE).is_file()


def is_hugging_face(folder: Path) -> bool:
    """Whether this is a folder with weights and a ``config.json`` that names a ``model_type``."""
    try:
        with (folder / HF_CONFIG).open("rb") as stream:
            told = b'"model_type"' in stream.read(_LARGEST_CONFIG)
    except OSError:
        return False
    return told and any((folder / f"{name}{suffix}").exists() for name in HF_WEIGHTS for suffix in ("", HF_INDEX))


def is_open_clip(folder: Path) -> bool:
    """Whether open_clip's configuration is in a folder."""
    return (folder / OPEN_CLIP_CONFIG).is_file()


def has_onnx_towers(folder: Path) -> bool:
    """Whether a folder holds both encoders as ONNX graphs, in whatever variant."""
    return all(any((folder / ONNX_FOLDER).glob(f"{tower}*.onnx")) for tower in ONNX_TOWERS)


def check_layout(path: Path) -> None:
    """Refuse a path that no reader will know. A file that may hold weights passes: its reader looks at it.

    Raises:
        SourceError: it is in none of the layouts, which are named.
    """
    if path.is_dir():
        known = any(knows(path) for knows in (is_training_run, is_hugging_face, is_open_clip, has_onnx_towers))
    else:
        known = kind_of(path) is not None
    if not known:
        raise unknown_layout(path)


def unknown_layout(path: Path) -> SourceError:
    """The error for a path in a layout that no reader knows."""
    return SourceError(f"{path}: is in no layout that is read here: {'; '.join(_LAYOUTS)}")
