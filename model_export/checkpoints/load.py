"""Reads the model at a path, whatever its layout."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from model_export.checkpoints import hugging_face, open_clip, openai, training_run
from model_export.checkpoints.layouts import NOTHING_THERE, is_hugging_face, is_training_run, unknown_layout
from model_export.checkpoints.model_source import ModelSource, SourceOptions
from model_export.checkpoints.weight_files.tensors import SUFFIXES, read_tensors
from model_export.errors import SourceError


@dataclass(frozen=True)
class Reader:
    """Recognises one layout of weights, and reads it."""

    recognises: Callable[[Path], bool]
    load: Callable[[Path, SourceOptions], ModelSource]


READERS: Final = (
    Reader(is_training_run, training_run.load),
    Reader(is_hugging_face, hugging_face.load),
    Reader(open_clip.recognises, open_clip.load),
    Reader(openai.recognises, openai.load),
)
"""The first that recognises a path reads it."""


def load_model(path: Path, options: SourceOptions) -> ModelSource:
    """Read the weights at a path, whatever their layout.

    Raises:
        SourceError: the path does not exist, no reader knows it, the weights file is damaged, or its reader refuses.
    """
    if not path.exists():
        raise SourceError(f"{path}: {NOTHING_THERE}")
    if options.weights != "last" and not is_training_run(path):
        raise SourceError(f"{path}: is no training run, so it has no moving average; leave --weights out")
    for reader in READERS:
        if reader.recognises(path):
            return reader.load(path, options)
    if path.is_file() and path.suffix in SUFFIXES:
        read_tensors(path)  # says why a file has no names to recognise: truncated, damaged or wanting to run code
    raise unknown_layout(path)
