"""Labels × templates → prompts: the only module that normalises labels and fills templates.

A label's cache key, its duplicates and its prompts all derive from `normalise_label`, so they cannot disagree.
Messages name positions, never contents, because they may end up in a log.
"""

import hashlib
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from service.errors import InvalidLabels, InvalidTemplates, TooManyLabels

PLACEHOLDER: Final = "{}"
MAX_SET_NAME_CHARS: Final = 256
"""Most characters in the name of a template set."""

# Lone surrogates cannot be encoded. Control characters (except white space, which is collapsed) mean nothing to a
# tokenizer, but control a terminal.
_NOT_TEXT: Final = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")

# Soft hyphen, zero-width space, word joiner, byte order mark and marks of direction: they cannot be seen, and a
# tokenizer makes another text of them. Joiners of scripts and emoji (U+200C, U+200D) and variation selectors carry
# meaning, so they stay.
_INVISIBLE: Final = re.compile("[\u00ad\u061c\u200b\u200e\u200f\u202a-\u202e\u2060\u2066-\u2069\ufeff]")

_CHECK_EVERY: Final = 64
_HOW_TO_MARK: Final = "Write {} in single braces, in place of {{}}, {label}, {0} or %s."


def normalise_label(label: str) -> str:
    """Return the label as the model reads it.

    That is Unicode NFC, without invisible characters, stripped, inner white space collapsed, case kept. Idempotent.
    """
    return " ".join(unicodedata.normalize("NFC", _INVISIBLE.sub("", label)).split())


def normalise_labels(
    labels: Sequence[str], *, max_labels: int, max_chars: int, check: Callable[[], None] = lambda: None
) -> tuple[str, ...]:
    """Normalise and check the labels of one request, in their order; call `check`, which may raise, now and then.

    Raises:
        TooManyLabels: more than `max_labels`.
        InvalidLabels: no label; one longer than `max_chars` characters, empty, or not text; two that are equal once
            normalised.
    """
    if not labels:
        raise InvalidLabels("No labels were given; send at least one.")
    if len(labels) > max_labels:
        raise TooManyLabels(f"{len(labels)} labels are more than the limit of {max_labels}; send fewer.")
    first_at: dict[str, int] = {}
    for index, label in enumerate(labels):
        if index % _CHECK_EVERY == 0:
            check()
        if len(label) > max_chars:
            raise InvalidLabels(f"Label {index} has {len(label)} characters; the limit is {max_chars}.")
        normalised = normalise_label(label)
        if not normalised:
            raise InvalidLabels(f"Label {index} is empty.")
        if _NOT_TEXT.search(normalised):
            raise InvalidLabels(f"Label {index} holds a control character or a lone surrogate; send plain text.")
        if normalised in first_at:
            raise InvalidLabels(f"Labels {first_at[normalised]} and {index} are the same; send each label once.")
        first_at[normalised] = index
    return tuple(first_at)


def validate_templates(templates: Sequence[str], *, max_templates: int, max_chars: int) -> tuple[str, ...]:
    """Check a request's own templates, which are used unchanged but for invisible characters, which are dropped.

    Raises:
        InvalidTemplates: none or more than `max_templates`; one longer than `max_chars` characters, not text, without
            exactly one `{}`, or with doubled braces.
    """
    if not templates:
        raise InvalidTemplates("No templates were given; send at least one, such as '{}'.")
    if len(templates) > max_templates:
        raise InvalidTemplates(f"{len(templates)} templates are more than the limit of {max_templates}; send fewer.")
    for index, template in enumerate(templates):
        if len(template) > max_chars:
            raise InvalidTemplates(f"Template {index} has {len(template)} characters; the limit is {max_chars}.")
        if _NOT_TEXT.search(template):
            raise InvalidTemplates(f"Template {index} holds a control character or a lone surrogate.")
        if "{{" in template or "}}" in template:
            raise InvalidTemplates(f"Template {index} has doubled braces, which are not unescaped here. {_HOW_TO_MARK}")
        if template.count(PLACEHOLDER) != 1:
            raise InvalidTemplates(
                f"Template {index} must hold {{}} exactly once, where the label goes. {_HOW_TO_MARK}"
            )
    return tuple(_INVISIBLE.sub("", template) for template in templates)


def is_template(text: str) -> bool:
    """Return whether a text that may name a template set is meant as a template, right or wrong."""
    return "{" in text or "%s" in text


def check_set_name(name: str) -> str:
    """Check that the name of a template set can be stored and shown, not that the set exists.

    Raises `InvalidTemplates`.
    """
    if len(name) > MAX_SET_NAME_CHARS or _NOT_TEXT.search(name):
        raise InvalidTemplates(
            f"The name of a template set must be plain text of at most {MAX_SET_NAME_CHARS} characters."
        )
    return name


def fill(template: str, label: str) -> str:
    """Replace the template's placeholder by the label, literally: other braces have no meaning."""
    return template.replace(PLACEHOLDER, label, 1)


def prompts_for(labels: Iterable[str], templates: Sequence[str]) -> list[str]:
    """Return `labels · templates` prompts, label-major: all prompts of the first label come first."""
    return [fill(template, label) for label in labels for template in templates]


def templates_digest(templates: Sequence[str]) -> str:
    """Identify a template set by content and order: sha256 in hexadecimal over length-prefixed UTF-8."""
    digest = hashlib.sha256()
    for template in templates:
        encoded = template.encode()
        digest.update(len(encoded).to_bytes(8, "little"))
        digest.update(encoded)
    return digest.hexdigest()
