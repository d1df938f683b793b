"""What a text model of sentence-transformers says beside its weights, and which image model it belongs to.

Its vectors are those of another model's image tower, which is another repository. Needs no torch.
"""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from model_export.checkpoints.layouts import HF_CONFIG, HF_WEIGHTS
from model_export.checkpoints.model_source import SourceOptions
from model_export.checkpoints.sentence_transformers import MODULES, Modules
from model_export.errors import IncompleteError, SourceError
from model_export.families.sentence_transformers.config import SentenceTextConfig, read_text_config
from model_export.families.sentence_transformers.tokenizer import read_tokenizer
from model_export.families.tokenizers import SPECIAL_TOKENS, TOKENIZER, TOKENIZER_CONFIG, TextTokens, has_tokenizer

IMAGE_MODELS: Final = {"clip-ViT-B-32-multilingual-v1": "sentence-transformers/clip-ViT-B-32"}
"""Names of text models on the hub → the model whose image tower they were trained for, as their cards say."""

_CONFIGURATIONS: Final = (HF_CONFIG, "sentence_bert_config.json")
_TOKENIZER: Final = (TOKENIZER, TOKENIZER_CONFIG, SPECIAL_TOKENS)


@dataclass(frozen=True)
class TextModel:
    """A text model but for its weights.

    Attributes:
        modules: its folders, relative to the source's.
        image_model: the hub id or path of the model with the image tower.
    """

    config: SentenceTextConfig
    tokens: TextTokens
    modules: Modules
    image_model: str


def image_model_of(source: str) -> str | None:
    """Return the hub id of the image model of a known text model, by its hub id or path; else None."""
    return IMAGE_MODELS.get(PurePosixPath(source.partition("@")[0]).name)


def configurations(names: Collection[str], modules: Modules) -> tuple[str, ...]:
    """Return the configurations of all modules that exist, relative to the source's folder."""
    wanted = [f"{folder}/{name}".lstrip("/") for folder in modules.folders for name in _CONFIGURATIONS]
    return (MODULES, *(name for name in wanted if name in names))


def tokenizer_files(names: Collection[str], modules: Modules) -> tuple[str, ...]:
    """Return the tokenizer's files, relative to the source's folder."""
    wanted = [f"{modules.model}/{name}".lstrip("/") for name in _TOKENIZER]
    return tuple(name for name in wanted if name in names)


def weights(names: Collection[str], modules: Modules, where: str) -> tuple[str, str]:
    """Return the weights of the text model and of the dense layer, safetensors where they exist.

    Raises:
        IncompleteError: one of them is missing.
    """
    found = []
    for folder in (modules.model, (modules.text or ("", ""))[1]):
        wanted = [f"{folder}/{name}".lstrip("/") for name in HF_WEIGHTS]
        name = next((name for name in wanted if name in names), None)
        if name is None:
            raise IncompleteError(f"{where}: holds no weights of the module {folder or '.'} ({' or '.join(wanted)})")
        found.append(name)
    return found[0], found[1]


def describe(folder: Path, modules: Modules, options: SourceOptions, where: str) -> TextModel:
    """Read everything but the weights.

    Raises:
        SourceError: a file is missing, invalid or states what is not read here, or the image model is not known.
    """
    pooling, dense = modules.text or ("", "")
    place = folder / modules.model
    config = read_text_config(place, folder / pooling, folder / dense)
    image_model = _image_model(options, where)
    if options.tokenizer is not None and has_tokenizer(place):
        raise SourceError(f"{place}: brings its own tokenizer; leave --tokenizer out")
    tokens = read_tokenizer(place, options.tokenizer, config.vocab_size)
    return TextModel(config.model_copy(update={"pad_id": tokens.pad_id}), tokens, modules, image_model)


def _image_model(options: SourceOptions, where: str) -> str:
    found = options.image_model or image_model_of(options.source_id or where)
    if found is None:
        raise SourceError(
            f"{where}: is a text model alone; name the model whose image tower it was trained for, such as "
            "--image-model sentence-transformers/clip-ViT-B-32"
        )
    return found
