"""Names a bundle after its source."""

import re
from pathlib import Path
from typing import Final

from model_export.checkpoints.model_source import SourceOptions
from model_export.errors import SourceError

_LONGEST: Final = 128


def bundle_name(path: Path, options: SourceOptions) -> str:
    """Return a slug of the user's name, or of the hub id without owner and revision, or of the path's name.

    Raises:
        SourceError: no character of it is left.
    """
    said = options.name or _model_id(options).rpartition("/")[2] or _bare(path.resolve())
    slug = re.sub(r"[^a-z0-9._-]+", "-", said.lower())[:_LONGEST].strip("-._")
    if not slug:
        raise SourceError(f"{said!r}: no name can be made of it; give one with --name")
    return slug


def bundle_aliases(options: SourceOptions) -> tuple[str, ...]:
    """Return the hub id without its revision, if the weights came from there."""
    model_id = _model_id(options)
    return (model_id,) if model_id else ()


def _model_id(options: SourceOptions) -> str:
    return (options.source_id or "").partition("@")[0]


def _bare(path: Path) -> str:
    return path.name if path.is_dir() else path.stem
