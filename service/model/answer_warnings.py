"""Warnings in answers: labels that are valid, but that the model cannot use as the client probably means them.

A warning never changes an answer. Messages name positions, never contents, because they may end up in a log. The
codes are part of the interface: `docs/api.md` lists them, and none changes its meaning.
"""

import hashlib
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias, get_args

from service.model.choices import ScoringKind, ScoringMethod
from service.model.tokenizer import Tokenizer

Code: TypeAlias = Literal[
    "single_label", "comma_in_label", "labels_equal_to_model", "labels_unknown_to_model", "url_as_text"
]
CODES: Final[tuple[Code, ...]] = get_args(Code)

MAX_OF_A_CODE: Final = 10
"""Most warnings of one code in an answer."""
MAX_POSITIONS: Final = 20
"""Most labels that a warning lists."""

_CHECK_EVERY: Final = 64
_SHORT: Final = 2
"""Characters of a text of which nothing can be concluded if each is a token of its own."""


@dataclass(frozen=True, slots=True)
class AnswerWarning:
    """A warning: a stable code, a message for people, and the positions of the labels at fault, the first 20."""

    code: Code
    message: str
    labels: tuple[int, ...]


def codes_of(warnings: Sequence[AnswerWarning]) -> list[Code]:
    """Return each code once, in the order of the warnings."""
    return list(dict.fromkeys(each.code for each in warnings))


def warn_of_lone_label(
    labels: Sequence[str], method: ScoringMethod | ScoringKind | None = None
) -> tuple[AnswerWarning, ...]:
    """Warn of a list of one label: its score under `softmax` (None if nothing is scored), and a comma in it."""
    if len(labels) != 1:
        return ()
    warnings = []
    if method == "softmax":
        message = "The score of a single label is always 1 under softmax. Send more labels, or use scoring cosine."
        warnings.append(AnswerWarning("single_label", message, (0,)))
    if "," in labels[0]:
        message = "The only label has a comma in it. Commas do not separate labels: send a list of labels."
        warnings.append(AnswerWarning("comma_in_label", message, (0,)))
    return tuple(warnings)


def warn_of_urls(texts: Sequence[str]) -> tuple[AnswerWarning, ...]:
    """Warn of texts that are URLs, for a request in which an image would have been accepted."""
    urls = [index for index, text in enumerate(texts) if text[:8].lower().startswith(("http://", "https://"))]
    if not urls:
        return ()
    message = "A text is a URL: it was embedded as text, and nothing was fetched. Send an image as an object."
    return (AnswerWarning("url_as_text", message, tuple(urls[:MAX_POSITIONS])),)


def warn_of_tokens(
    tokenizer: Tokenizer, texts: Sequence[Sequence[str]], check: Callable[[], None] = lambda: None
) -> tuple[AnswerWarning, ...]:
    """Warn of labels that have the same tokens, and of labels that the tokenizer does not know.

    Takes milliseconds for a thousand labels, so callers run it in a thread, and keep the outcome.

    Args:
        texts: for each label its normalised descriptions, or the label alone.
        check: is called now and then; may raise.
    """
    tokens = tokenizer.pieces(text for each in texts for text in each)
    first_with: dict[bytes, int] = {}
    equal: dict[int, list[int]] = {}
    unknown: list[int] = []
    for index, each in enumerate(texts):
        if index % _CHECK_EVERY == 0:
            check()
        rows = [next(tokens) for _ in each]
        first = first_with.setdefault(_key(rows), index)
        if first != index:
            equal.setdefault(first, [first]).append(index)
        if any(_is_unknown(tokenizer, text, row) for text, row in zip(each, rows, strict=True)):
            unknown.append(index)
    return _equal(list(equal.values())) + _unknown(unknown)


def _key(rows: Sequence[Sequence[int]]) -> bytes:
    """Return the same for the same rows in any order: the vectors of descriptions are averaged.

    Digests are kept in place of the rows, because the garbage collector would visit each of millions of numbers.
    """
    return b"".join(sorted(hashlib.sha256(array("q", row)).digest() for row in rows))


def _equal(groups: Sequence[Sequence[int]]) -> tuple[AnswerWarning, ...]:
    return tuple(
        AnswerWarning(
            "labels_equal_to_model",
            f"{_named(indices)} are the same to this model (upper and lower case, for instance, may be), so they "
            "share one score. Send one of them.",
            tuple(indices[:MAX_POSITIONS]),
        )
        for indices in groups[:MAX_OF_A_CODE]
    )


def _unknown(unknown: Sequence[int]) -> tuple[AnswerWarning, ...]:
    if not unknown:
        return ()
    verb, pronoun = ("has", "it") if len(unknown) == 1 else ("have", "them")
    message = (
        f"{_named(unknown)} {verb} words or a script that this model's tokenizer does not know, so the model can "
        f"hardly tell {pronoun} apart from others. Send words of a language that the model was trained on."
    )
    return (AnswerWarning("labels_unknown_to_model", message, tuple(unknown[:MAX_POSITIONS])),)


def _is_unknown(tokenizer: Tokenizer, text: str, row: Sequence[int]) -> bool:
    """Return whether a text has unknown tokens, tokens of bytes, no tokens, or none longer than a character on average.

    The last says something of byte-level tokenizers only: others have words for each character that they know. A
    byte-level tokenizer takes a script that it was not trained on apart: CLIP's makes 9 tokens of 3 Chinese
    characters, and 12 of 6 Greek letters, but 3 of the 6 letters of "Zürich". ASCII is never concluded from, because
    digits and abbreviations are a token a character in any vocabulary.
    """
    if not row or tokenizer.unknown_id in row or not tokenizer.byte_ids.isdisjoint(row):
        return True
    if tokenizer.unknown_id is not None or tokenizer.byte_ids:
        return False
    if text.isascii() or not any(each.isalpha() and not each.isascii() for each in text):
        return False
    characters = len(text) - text.count(" ")
    return len(row) > characters or (len(row) == characters > _SHORT)


def _named(indices: Sequence[int]) -> str:
    if len(indices) == 1:
        return f"Label {indices[0]}"
    shown = indices[:3] if len(indices) > 3 else indices  # noqa: PLR2004
    rest = len(indices) - len(shown)
    last = f"{rest} more" if rest else str(shown[-1])
    first = ", ".join(map(str, shown if rest else shown[:-1]))
    return f"Labels {first} and {last}"
