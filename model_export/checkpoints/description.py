"""What a source's configurations, preprocessing and tokenizer say of its model: everything but the weights."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model_export.families.family import Convert, ModelConfig, ModelKind
from model_export.families.tokenizers import TextTokens
from service.model.manifest import ImageSection


@dataclass(frozen=True)
class Description:
    """A model but for its weights.

    Attributes:
        file: the configuration, in the folder of the weights; for messages.
        image: how a picture is prepared.
        tokens: the tokenizer, which fits the model.
        convert: renames the weights of this layout.
    """

    file: Path
    family: ModelKind[Any]
    config: ModelConfig
    image: ImageSection
    tokens: TextTokens
    convert: Convert


def disagreement(first: Description, second: Description) -> str | None:
    """Return the first value that two descriptions of the same weights state differently, or None.

    Models of two kinds, such as a CLIP and one that only open_clip builds, differ in any case, since one layout of the
    two describes modules that the weights are not of; a size that differs says more, and is named too.
    """
    if isinstance(first.config, type(second.config)):  # kinds may share modules: MetaCLIP 2 has CLIP's
        return _difference(first, second, *(each.config.model_dump(mode="json") for each in (first, second)))
    kinds = f"the model is {_kind(first)} in {first.file.name}, {_kind(second)} in {second.file.name}"
    size = _difference(first, second, _sizes(first.config), _sizes(second.config))
    return kinds if size is None else f"{kinds}; {size}"


def _difference(first: Description, second: Description, one: Mapping[str, Any], two: Mapping[str, Any]) -> str | None:
    ours, theirs = _flat(one), _flat(two)
    for name in sorted(ours.keys() | theirs.keys()):
        if ours.get(name) != theirs.get(name):
            return f"{name} is {ours.get(name)} in {first.file.name}, {theirs.get(name)} in {second.file.name}"
    return None


def _kind(said: Description) -> str:
    return f"a {said.family.title} ({said.config.architecture})"


def _sizes(config: ModelConfig) -> dict[str, Any]:
    """Return the values that configurations of all kinds have."""
    return {
        "embed_dim": config.embed_dim,
        "image": {"image_size": config.image.image_size},
        "text": {"vocab_size": config.text.vocab_size, "context_length": config.text.context_length},
    }


def _flat(fields: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in fields.items():
        flat |= _flat(value, f"{before}{name}.") if isinstance(value, dict) else {f"{before}{name}": value}
    return flat
