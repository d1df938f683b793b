"""Texts → int64 ids for the text encoder, with the least padding.

A causal text encoder reads its feature at the end-of-text token and ignores everything to the right of it. So a batch
is padded to its own longest text only, which is exact and several times faster than padding to the context.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Final, Self

import numpy as np
import tokenizers

from service.errors import BundleError, PromptTooLong
from service.model.arrays import Ids
from service.model.loading import Bundle
from service.model.manifest import TOKENIZER, TextSection
from service.model.text_cleaning import CLEANERS

_IN_NO_VOCABULARY: Final = "\U000f1234"
_MOST_FOR_UNKNOWN: Final = 2
"""Tokens of that character with an unknown token: that, after the one for the start of a word. Bytes are four."""
_CHARS_AT_ONCE: Final = 2**14
_CHARS_OF_A_TEXT: Final = 2**6
"""Counted for each text, so that short ones are limited too."""


class Tokenizer:
    """A bundle's tokenizer. Immutable, so thread-safe.

    Attributes:
        unknown_id: the token that stands for any unknown character; None if the tokenizer encodes bytes.
        byte_ids: of tokens that stand for a byte of a character without a token of its own (SentencePiece).
    """

    def __init__(self, backend: tokenizers.Tokenizer, section: TextSection) -> None:
        backend.no_padding()
        backend.no_truncation()
        # A label that spells a special token must not become one, or it would end the prompt in its middle.
        backend.encode_special_tokens = True
        self._backend = backend
        self._section = section
        self._clean = CLEANERS[section.cleaning]
        # A character of the private use planes is in no vocabulary: tokenizers without bytes have one token for it.
        probe = backend.encode(_IN_NO_VOCABULARY, add_special_tokens=False).ids
        self.unknown_id = probe[-1] if 0 < len(probe) <= _MOST_FOR_UNKNOWN else None
        if not probe:  # dropped before the model, as BERT's tokenizer does with such characters
            unknown = getattr(backend.model, "unk_token", None)
            self.unknown_id = None if unknown is None else backend.token_to_id(unknown)
        falls_back = getattr(backend.model, "byte_fallback", False)
        found = (backend.token_to_id(f"<0x{byte:02X}>") for byte in range(256)) if falls_back else ()
        self.byte_ids = frozenset(token for token in found if token is not None)

    @classmethod
    def from_bundle(cls, bundle: Bundle) -> Self:
        """Read the bundle's tokenizer.

        Raises:
            BundleError: it cannot be read, or does not match the manifest's text section.
        """
        path = bundle.path / TOKENIZER
        section = bundle.manifest.text
        try:
            # from_file uses the same parser, but does not distinguish an unreadable file from an invalid one
            backend = tokenizers.Tokenizer.from_str(path.read_text("utf-8"))
        except OSError as exc:
            raise BundleError(f"{path}: cannot be read ({exc.strerror})") from exc
        except Exception as exc:  # the library raises bare Exception
            raise BundleError(f"{path}: is not a tokenizer that this service can read") from exc
        tokenizer = cls(backend, section)
        if backend.id_to_token(section.pad_id) is None:
            raise BundleError(f"{path}: has no token {section.pad_id}, the manifest's pad_id")
        if section.end_of_text_id not in backend.encode("a").ids:
            raise BundleError(
                f"{path}: does not end a text with token {section.end_of_text_id}, the manifest's end_of_text_id"
            )
        return tokenizer

    def encode(self, texts: Sequence[str]) -> Ids:
        """Tokenise and pad: int64 `[texts, length]`.

        Raises:
            PromptTooLong: a text has more tokens than the encoder's context; texts are never cut.
        """
        return self.pad(self.tokenize(texts))

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each text with its start and end tokens, unpadded, so that callers can sort by length.

        Raises:
            PromptTooLong: a text has more tokens than the encoder's context; `index` is its position.
        """
        rows = []
        limit = self._section.max_length
        for index, row in enumerate(self._rows(texts, special=True)):
            if len(row) > limit:
                raise PromptTooLong(
                    f"Text {index} has {len(row)} tokens with its template; this model reads {limit}. Shorten it.",
                    index=index,
                )
            rows.append(row)
        return rows

    def pieces(self, texts: Iterable[str]) -> Iterator[list[int]]:
        """Yield the ids of each text, however many, without start and end tokens."""
        return self._rows(texts, special=False)

    def pad(self, rows: Sequence[Sequence[int]]) -> Ids:
        """Pad rows from `tokenize` to one array: int64 `[texts, length]`.

        `length` is the context with padding `fixed`, else that of the longest text and at least `min_length`.
        """
        section = self._section
        length = section.max_length
        if section.padding == "longest":
            length = max(section.min_length, max(map(len, rows), default=0))
        ids = np.full((len(rows), length), section.pad_id, dtype=np.int64)
        for index, row in enumerate(rows):
            ids[index, : len(row)] = row
        return ids

    def _rows(self, texts: Iterable[str], *, special: bool) -> Iterator[list[int]]:
        """Yield the ids of each text. One call for all would hold the interpreter's lock while it frees its results."""
        batch, size = list[str](), 0
        for text in texts:
            batch.append(text if self._clean is None else self._clean(text))
            size += len(text) + _CHARS_OF_A_TEXT
            if size >= _CHARS_AT_ONCE:
                yield from self._ids(batch, special=special)
                batch, size = [], 0
        yield from self._ids(batch, special=special)

    def _ids(self, texts: list[str], *, special: bool) -> list[list[int]]:
        return [each.ids for each in self._backend.encode_batch_fast(texts, add_special_tokens=special)]
