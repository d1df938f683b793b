"""Reads the model at a path, whatever its layout."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from model_export.checkpoints import hugging_face, open_clip, openai, text_model_weights, training_run
from model_export.checkpoints.at_hand import at_hand
from model_export.checkpoints.choice import choose_of_folder
from model_export.checkpoints.layouts import NOTHING_THERE, is_training_run, unknown_layout
from model_export.checkpoints.model_source import ModelSource, SourceOptions
from model_export.checkpoints.weight_files.tensors import SUFFIXES, read_tensors
from model_export.errors import SourceError


@dataclass(frozen=True)
class Reader:
    """Recognises one layout of a weights file, and reads it."""

    recognises: Callable[[Path], bool]
    load: Callable[[Path, SourceOptions], ModelSource]


READERS: Final = (
    Reader(open_clip.recognises, open_clip.load),
    Reader(openai.recognises, openai.load),
)
"""Of files. The first that recognises a path reads it."""


def load_model(path: Path, options: SourceOptions) -> ModelSource:
    """Read the weights at a path, whatever their layout.

    Raises:
        SourceError: the path does not exist, no reader knows it, the weights file is damaged, or its reader refuses.
    """
    if not path.exists():
        raise SourceError(f"{path}: {NOTHING_THERE}")
    if options.weights != "last" and not is_training_run(path):
        raise SourceError(f"{path}: is no training run, so it has no moving average; leave --weights out")
    if options.keep_aspect and not path.is_dir():
        raise SourceError(
            f"{path}: is a file; --keep-aspect is for the folder of a model in the layout of transformers"
        )
    if path.is_dir():
        return _load_folder(path, options)
    for reader in READERS:
        if reader.recognises(path):
            return reader.load(path, options)
    if path.is_file() and path.suffix in SUFFIXES:
        read_tensors(path)  # says why a file has no names to recognise: truncated, damaged or wanting to run code
    raise unknown_layout(path)


def _load_folder(path: Path, options: SourceOptions) -> ModelSource:
    choice = choose_of_folder(path, options)
    if choice.layout == "hugging_face":
        return hugging_face.load(path, options, choice.description)
    if choice.layout == "open_clip":
        return open_clip.load(path, options, choice.description)
    if choice.text_model is not None:
        place, other = at_hand(choice.text_model.image_model, SourceOptions())  # in the cache by now
        return text_model_weights.load(path, options, choice.text_model, load_model(place, other))
    return training_run.load(path, options)
