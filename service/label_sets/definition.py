"""The definition of a label set: labels, descriptions of each label, and templates."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from json.encoder import encode_basestring
from typing import Any, Final

from service.errors import InvalidLabels, TooManyLabels
from service.model.manifest import DEFAULT_TEMPLATES
from service.model.prompts import check_set_name, normalise_label, normalise_labels, validate_templates
from service.patient_json import PatientParser
from service.settings import Settings

# A comprehension lets other threads run, `dict` would not.
_DECODER: Final = json.JSONDecoder(object_pairs_hook=lambda pairs: {name: value for name, value in pairs})  # noqa: C416
NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,99}")


@dataclass(frozen=True, slots=True)
class Definition:
    """A checked label set.

    Attributes:
        labels: as the client spelled them.
        descriptions: position of a label → its normalised descriptions; other labels describe themselves.
        templates: the name of a template set, which each model resolves to its own, or the templates themselves.
    """

    labels: tuple[str, ...]
    descriptions: Mapping[int, tuple[str, ...]]
    templates: str | tuple[str, ...] = DEFAULT_TEMPLATES

    @property
    def text_count(self) -> int:
        """Return the number of descriptions of all labels."""
        return len(self.labels) - len(self.descriptions) + sum(map(len, self.descriptions.values()))

    def texts(self, start: int, stop: int) -> list[tuple[str, ...]]:
        """Return the normalised texts of each label from `start` to `stop`."""
        return [
            self.descriptions.get(index) or (normalise_label(self.labels[index]),)
            for index in range(start, min(stop, len(self.labels)))
        ]

    def to_json(self) -> bytes:
        """Serialise the definition; equal definitions give equal bytes.

        Written text by text: `json.dumps` would hold the interpreter's lock to its end.
        """
        templates = encode_basestring(self.templates) if isinstance(self.templates, str) else _listed(self.templates)
        described = [f'"{index}":{_listed(self.descriptions[index])}' for index in sorted(self.descriptions)]
        content = f'"templates":{templates},"labels":{_listed(self.labels)},"descriptions":{{{",".join(described)}}}'
        return f'{{"schema":1,{content}}}'.encode()


def definition_from_json(content: bytes) -> Definition:
    """Parse the bytes of `Definition.to_json`.

    Raises ValueError, KeyError, TypeError or RecursionError for anything else.
    """
    fields: dict[str, Any] = PatientParser(_DECODER).parse(content)
    labels, templates = fields["labels"], fields["templates"]
    descriptions = {int(index): tuple(texts) for index, texts in fields["descriptions"].items()}
    texts = [text for each in descriptions.values() for text in each]
    if fields["schema"] != 1 or not labels or not all(isinstance(text, str) for text in [*labels, *texts, *templates]):
        raise ValueError("not a label set of schema 1")
    if any(not 0 <= index < len(labels) or not each for index, each in descriptions.items()):
        raise ValueError("descriptions without a label, or none for one")
    return Definition(tuple(labels), descriptions, templates if isinstance(templates, str) else tuple(templates))


def _listed(texts: Iterable[str]) -> str:
    """Return texts as a JSON list without white space."""
    return f"[{','.join([encode_basestring(text) for text in texts])}]"


def check_definition(
    labels: Sequence[str],
    descriptions: Mapping[int, Sequence[str]],
    templates: str | Sequence[str] | None,
    settings: Settings,
) -> Definition:
    """Check a client's label set, except that the models have its named template set.

    Args:
        labels: as the client spelled them.
        descriptions: position of a label → descriptions, for labels that have them.
        templates: the name of a template set, the templates themselves, or None for the default set.

    Raises:
        TooManyLabels: more labels, descriptions of a label, or prompts than allowed.
        InvalidLabels: see `normalise_labels`; applies to descriptions too.
        InvalidTemplates: see `validate_templates` and `check_set_name`.
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
