"""What a label set consists of: labels, the texts that describe each of them, and templates."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from service.errors import InvalidLabels, TooManyLabels
from service.model.prompts import check_set_name, normalise_label, normalise_labels, validate_templates
from service.settings import Settings

NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,99}")
DEFAULT_TEMPLATES: Final = "default"


@dataclass(frozen=True, slots=True)
class Definition:
    """A checked label set.

    Attributes:
        labels: as the client spelled them.
        descriptions: by a label's position, its normalised descriptions; a label that is not here describes itself.
        templates: the name of a template set, which each model looks up among its own, or the templates themselves.
    """

    labels: tuple[str, ...]
    descriptions: Mapping[int, tuple[str, ...]]
    templates: str | tuple[str, ...] = DEFAULT_TEMPLATES

    @property
    def text_count(self) -> int:
        """Descriptions of all labels together."""
        return len(self.labels) - len(self.descriptions) + sum(map(len, self.descriptions.values()))

    def texts(self, start: int, stop: int) -> list[tuple[str, ...]]:
        """Return the normalised texts of each label from `start` to `stop`."""
        return [
            self.descriptions.get(index) or (normalise_label(self.labels[index]),)
            for index in range(start, min(stop, len(self.labels)))
        ]

    def to_json(self) -> bytes:
        """Write it, always the same way."""
        templates = self.templates if isinstance(self.templates, str) else list(self.templates)
        content = {
            "schema": 1,
            "templates": templates,
            "labels": list(self.labels),
            "descriptions": {str(index): list(texts) for index, texts in sorted(self.descriptions.items())},
        }
        return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()

    def digest(self) -> str:
        """Identify its content: sha256 in hexadecimal."""
        return hashlib.sha256(self.to_json()).hexdigest()


def definition_from_json(content: bytes) -> Definition:
    """Read what `Definition.to_json` wrote. Raises ValueError, KeyError or TypeError for anything else."""
    fields: dict[str, Any] = json.loads(content)
    labels, templates = fields["labels"], fields["templates"]
    descriptions = {int(index): tuple(texts) for index, texts in fields["descriptions"].items()}
    texts = [text for each in descriptions.values() for text in each]
    if fields["schema"] != 1 or not labels or not all(isinstance(text, str) for text in [*labels, *texts, *templates]):
        raise ValueError("not a label set of schema 1")
    if any(not 0 <= index < len(labels) or not each for index, each in descriptions.items()):
        raise ValueError("descriptions without a label, or none for one")
    return Definition(tuple(labels), descriptions, templates if isinstance(templates, str) else tuple(templates))


def check_definition(
    labels: Sequence[str],
    descriptions: Mapping[int, Sequence[str]],
    templates: str | Sequence[str] | None,
    settings: Settings,
) -> Definition:
    """Check what a client sent; whether a model has a template set of that name is not known here.

    Args:
        labels: in the client's spelling.
        descriptions: by a label's position, for labels that have some of their own.
        templates: a set's name, the templates themselves, or None for the default set.
        settings: for the limits.

    Raises:
        TooManyLabels: more labels, descriptions of a label, or prompts than the limits.
        InvalidLabels: as `normalise_labels`, for descriptions too.
        InvalidTemplates: as `validate_templates`, and as `check_set_name`.
    """
    chars = settings.max_label_chars
    normalise_labels(labels, max_labels=settings.max_label_set_labels, max_chars=chars)
    checked = {}
    for index, texts in descriptions.items():
        try:
            checked[index] = normalise_labels(texts, max_labels=settings.max_descriptions, max_chars=chars)
        except TooManyLabels:
            raise TooManyLabels(
                f"Label {index} has {len(texts)} descriptions; the limit is {settings.max_descriptions}."
            ) from None
        except InvalidLabels as exc:
            raise InvalidLabels(f"The descriptions of label {index} cannot be used, counted as labels: {exc}") from exc
    if templates is None or isinstance(templates, str):
        chosen: str | tuple[str, ...] = check_set_name(templates or DEFAULT_TEMPLATES)
    else:
        chosen = validate_templates(templates, max_templates=settings.max_templates, max_chars=chars)
    definition = Definition(tuple(labels), checked, chosen)
    prompts = definition.text_count * (1 if isinstance(chosen, str) else len(chosen))
    if prompts > settings.max_label_set_prompts:
        raise TooManyLabels(
            f"The label set has {prompts} prompts, descriptions × templates; the limit is "
            f"{settings.max_label_set_prompts}."
        )
    return definition
