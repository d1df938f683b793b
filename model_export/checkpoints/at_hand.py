"""Brings the files of a source that a user names onto this machine: a path, or a hub id that is fetched."""

import dataclasses
from pathlib import Path

from rich.console import Console

from model_export.checkpoints.layouts import NOTHING_THERE
from model_export.checkpoints.model_source import SourceOptions
from model_export.errors import SourceError
from model_export.families.sizes import published_hint
from model_export.hub.fetch import fetch, hub_id
from model_export.hub.file_choice import FULL_PRECISION


def at_hand(
    source: str,
    options: SourceOptions,
    *,
    console: Console | None = None,
    onnx: bool = False,
    variant: str = FULL_PRECISION,
) -> tuple[Path, SourceOptions]:
    """Return the path of a source's files, downloaded for a hub id, and its options with origin and licence.

    Args:
        source: a hub id, or a path.
        options: facts that the source's files may lack.
        console: shows what is downloaded.
        onnx: fetch ONNX encoders instead of weights.
        variant: of the ONNX encoders.

    Raises:
        SourceError: the path does not exist, or the source cannot be fetched.
    """
    hub = hub_id(source)
    if hub is None:
        path = Path(source).expanduser()
        if not path.exists():  # reported before torch is needed
            raise SourceError(f"{path}: {NOTHING_THERE}{published_hint(source)}")
        return path, options
    fetched = fetch(hub.model_id, revision=hub.revision, console=console, onnx=onnx, variant=variant)
    licence = options.licence or fetched.licence
    return fetched.folder, dataclasses.replace(options, source_id=fetched.source_id, licence=licence)
