"""Reads ``modules.json`` of sentence-transformers, which names the folder of a Hugging Face CLIP."""

import json
from pathlib import Path, PurePosixPath
from typing import Final

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from model_export.errors import SourceError, problems
from model_export.files import decoded, read

MODULES: Final = "modules.json"

_MODELS: Final = ("CLIPModel", "Transformer")
"""Modules that hold a model of transformers; the second name is also that of text models."""

_WITHOUT_EFFECT: Final = "Normalize"
"""A bundle's vectors have unit length in any case."""


class _Module(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    path: str
    type: str

    @property
    def kind(self) -> str:
        """The class without its package."""
        return self.type.rpartition(".")[2]


_ADAPTER: Final = TypeAdapter(list[_Module])


def model_folder(path: Path) -> str:
    """Return the folder of the CLIP that a ``modules.json`` names, relative to the file's; empty for the same folder.

    Raises:
        SourceError: the file is not readable, or its modules are more or others than one CLIP.
    """
    text = decoded(read(path, hint="it names the modules of sentence-transformers"), path)
    try:
        modules = _ADAPTER.validate_python(json.loads(text))
    except ValidationError as exc:
        raise SourceError(f"{path}: {problems(exc)}") from exc
    except (ValueError, RecursionError) as exc:
        raise SourceError(f"{path}: is not JSON ({exc})") from exc
    kinds = [module.kind for module in modules]
    if not kinds or kinds[0] not in _MODELS or any(kind != _WITHOUT_EFFECT for kind in kinds[1:]):
        raise SourceError(
            f"{path}: is a model of sentence-transformers with the modules {', '.join(kinds) or 'none'}, which is not "
            "read here; its CLIPs are, a CLIPModel alone, such as sentence-transformers/clip-ViT-B-32"
        )
    folder = PurePosixPath(modules[0].path)
    if folder.is_absolute() or len(folder.parts) > 1 or ".." in folder.parts:
        raise SourceError(f"{path}: names {modules[0].path!r}, which is not a folder beside it")
    return "" if modules[0].path in {"", "."} else str(folder)
