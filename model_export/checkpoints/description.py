"""What a source's configurations, preprocessing and tokenizer say of its model: everything but the weights."""

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
    """Return the first value that two descriptions of the same weights state differently, or None."""
    if first.family is not second.family:
        ours, theirs = first.family.title, second.family.title
        return f"the model is a {ours} in {first.file.name}, a {theirs} in {second.file.name}"
    one, two = (_flat(each.config.model_dump(mode="json")) for each in (first, second))
    for name in sorted(one.keys() | two.keys()):
        if one.get(name) != two.get(name):
            return f"{name} is {one.get(name)} in {first.file.name}, {two.get(name)} in {second.file.name}"
    return None


def _flat(fields: dict[str, Any], before: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in fields.items():
        flat |= _flat(value, f"{before}{name}.") if isinstance(value, dict) else {f"{before}{name}": value}
    return flat
