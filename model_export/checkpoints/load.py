"""A source as the user names it → the model in it: which layout it has, and which reader knows it."""

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
class Layout:
    """One way in which weights are published: how it is recognised, and its reader."""

    recognises: Callable[[Path], bool]
    load: Callable[[Path, SourceOptions], ModelSource]


LAYOUTS: Final = (
    Layout(is_training_run, training_run.load),
    Layout(is_hugging_face, hugging_face.load),
    Layout(open_clip.recognises, open_clip.load),
    Layout(openai.recognises, openai.load),
)
"""Tried in this order: the first that recognises a path reads it."""


def load_model(path: Path, options: SourceOptions) -> ModelSource:
    """Read the weights at a path, whatever their layout.

    Raises:
        SourceError: nothing is there, no reader knows it, it is no sound weights file, or its reader refuses it.
    """
    if not path.exists():
        raise SourceError(f"{path}: {NOTHING_THERE}")
    for layout in LAYOUTS:
        if layout.recognises(path):
            return layout.load(path, options)
    if path.is_file() and path.suffix in SUFFIXES:
        read_tensors(path)  # a file that is cut short, damaged or wants to run code has no names to know it by
    raise unknown_layout(path)
