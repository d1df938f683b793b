"""Tools that read a source's tokenizer: ``tokenizer.json``, and the settings beside it. Needs no torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tokenizers import Tokenizer, normalizers

from model_export.errors import SourceError, first_line
from model_export.files import decoded, read, read_object
from service.model.manifest import Cleaning

TOKENIZER: Final = "tokenizer.json"
VOCABULARY: Final = "vocab.json"
MERGES: Final = "merges.txt"
REFERENCE: Final = "bpe_simple_vocab_16e6.txt.gz"
TOKENIZER_FILES: Final = (TOKENIZER, VOCABULARY, REFERENCE)
"""A folder with one of these carries a tokenizer; the first counts."""

TOKENIZER_CONFIG: Final = "tokenizer_config.json"
SPECIAL_TOKENS: Final = "special_tokens_map.json"

SAMPLE_TEXT: Final = "a photo of a cat"


@dataclass(frozen=True)
class TextTokens:
    """A tokenizer that fits its text tower, and the ids that a bundle states of it.

    Attributes:
        content: the bytes of a ``tokenizer.json`` that neither pads nor truncates and adds the special tokens.
        end_of_text_id: of the token behind every text.
        pad_id: of the token that fills a text up.
        cleaning: of texts before the tokenizer, as the program of the weights' layout does it.
        note: how texts or pictures are prepared otherwise than the source's files say, and why; for people.
    """

    content: bytes
    end_of_text_id: int
    pad_id: int
    cleaning: Cleaning = "none"
    note: str | None = None


@dataclass(frozen=True)
class OpenTokenizer:
    """A tokenizer and the file it was read from.

    Attributes:
        path: for messages.
        backend: neither pads nor truncates.
    """

    path: Path
    backend: Tokenizer

    def token_id(self, token: str, name: str) -> int:
        """Return the id of a token.

        Raises:
            SourceError: the vocabulary lacks the token; ``name`` names its purpose.
        """
        found: int | None = self.backend.token_to_id(token)
        if found is None:
            raise SourceError(f"{self.path}: has no token {token!r}, the {name}")
        return found

    def normalise_first(self, *steps: normalizers.Normalizer) -> None:
        """Have texts go through these steps before the tokenizer's own."""
        own = self.backend.normalizer
        self.backend.normalizer = normalizers.Sequence([*steps, *([] if own is None else [own])])

    def to_json(self, *, vocab_size: int, end_of_text_id: int) -> bytes:
        """Return the bytes of a ``tokenizer.json``; the same tokenizer gives the same bytes.

        Raises:
            SourceError: the tokenizer does not fit the text tower, see `check_tokenizer`.
        """
        content = self.backend.to_str(pretty=True).encode()
        check_tokenizer(content, self.path, vocab_size=vocab_size, end_of_text_id=end_of_text_id)
        return content


@dataclass(frozen=True)
class TokenizerSettings:
    """The fields of ``tokenizer_config.json`` and ``special_tokens_map.json``, as far as these files exist."""

    path: Path
    fields: dict[str, Any]

    @classmethod
    def read(cls, folder: Path) -> "TokenizerSettings":
        """Read both files; where both state a field, ``tokenizer_config.json`` counts.

        Raises:
            SourceError: one of them is not a JSON object.
        """
        fields: dict[str, Any] = {}
        for name in (SPECIAL_TOKENS, TOKENIZER_CONFIG):
            if (folder / name).exists():
                fields |= read_object(folder / name, hint="")
        return cls(folder / TOKENIZER_CONFIG, fields)

    def token(self, name: str, default: str) -> str:
        """Return a special token, such as ``eos_token``, or ``default`` where the files state none.

        Raises:
            SourceError: the value is not a text.
        """
        value = self.fields.get(name)
        if isinstance(value, dict):  # with rules for matching it
            value = value.get("content")
        if value is None:
            return default
        if not isinstance(value, str):
            raise SourceError(f"{self.path}: {name} is not a token")
        return value

    def flag(self, name: str, *, default: bool) -> bool:
        """Return a setting that is true or false.

        Raises:
            SourceError: the value is neither.
        """
        value = self.fields.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise SourceError(f"{self.path}: {name} must be true or false")
        return value


def has_tokenizer(folder: Path) -> bool:
    """Return whether a folder carries a tokenizer."""
    return any((folder / name).exists() for name in TOKENIZER_FILES)


def open_tokenizer_json(path: Path) -> OpenTokenizer:
    """Read a ``tokenizer.json`` without its padding and truncation.

    Raises:
        SourceError: the file is missing or cannot be read.
    """
    text = decoded(read(path, hint="name a tokenizer with --tokenizer"), path)
    try:
        backend = Tokenizer.from_str(text)
    except Exception as exc:  # the library raises bare Exception
        raise SourceError(f"{path}: is not a tokenizer ({first_line(exc)})") from exc
    backend.no_padding()
    backend.no_truncation()
    return OpenTokenizer(path, backend)


def check_tokenizer(content: bytes, path: Path, *, vocab_size: int, end_of_text_id: int) -> None:
    """Check that a tokenizer and a text tower belong together.

    Raises:
        SourceError: the tokenizer cannot be read, pads or truncates, has more tokens than the tower, or does not end
            a text with the id at which the tower reads its feature.
    """
    try:
        tokenizer = Tokenizer.from_str(decoded(content, path))
    except SourceError:
        raise
    except Exception as exc:  # the library raises bare Exception
        raise SourceError(f"{path}: is not a tokenizer ({exc})") from exc
    if tokenizer.truncation is not None or tokenizer.padding is not None:
        raise SourceError(f"{path}: truncates or pads; a served text is never cut, so remove both sections")
    vocabulary = tokenizer.get_vocab_size()
    if vocabulary > vocab_size:
        raise SourceError(f"{path}: has {vocabulary} tokens, the model's text tower knows {vocab_size}")
    # The feature is read at the first end-of-text token, so a text must hold one, and only at its end.
    ids = tokenizer.encode(SAMPLE_TEXT).ids
    if [i for i, token in enumerate(ids) if token == end_of_text_id] != [len(ids) - 1]:
        raise SourceError(f"{path}: does not end a text with the model's end-of-text id {end_of_text_id}")
