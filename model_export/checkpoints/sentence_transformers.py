"""Reads ``modules.json`` of sentence-transformers: a Hugging Face CLIP, or a text model onto a CLIP's vectors."""

import json
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from model_export.errors import SourceError, problems
from model_export.files import decoded, read

MODULES: Final = "modules.json"

_MODELS: Final = ("CLIPModel", "Transformer")
"""Modules that hold a model of transformers; the second name is also that of text models."""

_TEXT_MODEL: Final = ["Transformer", "Pooling", "Dense"]

_WITHOUT_EFFECT: Final = "Normalize"
"""A bundle's vectors have unit length in any case."""


@dataclass(frozen=True)
class Modules:
    """The folders of the modules, relative to the file's; empty for the same folder.

    Attributes:
        model: a CLIP's, or a text model's.
        text: of the pooling and of the dense layer behind a text model; None for a CLIP.
    """

    model: str
    text: tuple[str, str] | None = None

    @property
    def folders(self) -> tuple[str, ...]:
        """Each of them, once."""
        return tuple(dict.fromkeys((self.model, *(self.text or ()))))


class _Module(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    path: str
    type: str

    @property
    def kind(self) -> str:
        """The class without its package."""
        return self.type.rpartition(".")[2]


_ADAPTER: Final = TypeAdapter(list[_Module])


def read_modules(path: Path) -> Modules:
    """Read a ``modules.json``.

    Raises:
        SourceError: the file is not readable, or its modules are others than one CLIP, or one text model with pooling
            and a dense layer.
    """
    text = decoded(read(path, hint="it names the modules of sentence-transformers"), path)
    try:
        modules = _ADAPTER.validate_python(json.loads(text))
    except ValidationError as exc:
        raise SourceError(f"{path}: {problems(exc)}") from exc
    except (ValueError, RecursionError) as exc:
        raise SourceError(f"{path}: is not JSON ({exc})") from exc
    kinds = [module.kind for module in modules]
    folders = [_folder(path, module) for module in modules if module.kind != _WITHOUT_EFFECT]
    counting = [kind for kind in kinds if kind != _WITHOUT_EFFECT]
    if counting == _TEXT_MODEL:
        return Modules(folders[0], (folders[1], folders[2]))
    if len(counting) != 1 or kinds[0] not in _MODELS:
        raise SourceError(
            f"{path}: is a model of sentence-transformers with the modules {', '.join(kinds) or 'none'}, which is not "
            "read here; its CLIPs are, a CLIPModel alone, such as sentence-transformers/clip-ViT-B-32, and text models "
            f"onto their vectors with {', '.join(_TEXT_MODEL)}"
        )
    return Modules(folders[0])


def _folder(path: Path, module: _Module) -> str:
    folder = PurePosixPath(module.path)
    if folder.is_absolute() or len(folder.parts) > 1 or ".." in folder.parts:
        raise SourceError(f"{path}: names {module.path!r}, which is not a folder beside it")
    return "" if module.path in {"", "."} else str(folder)
