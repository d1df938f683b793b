"""Reads DistilBERT's tokenizer: WordPiece, from ``[CLS]`` to ``[SEP]``."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from model_export.errors import SourceError
from model_export.families.tokenizers import TOKENIZER, TextTokens, TokenizerSettings, open_tokenizer_json

_END: Final = "[SEP]"
_PAD: Final = "[PAD]"


def read_tokenizer(folder: Path, tokenizer: Path | None, vocab_size: int) -> TextTokens:
    """Read the tokenizer of a folder, or the one that the user names.

    Raises:
        SourceError: it is missing, cannot be read or does not fit the text tower.
    """
    path = tokenizer or folder / TOKENIZER
    if not path.exists():
        raise SourceError(f"{path}: is missing; name it with --tokenizer")
    settings = TokenizerSettings.read(path.parent)
    opened = open_tokenizer_json(path)
    end_of_text_id = opened.token_id(settings.token("sep_token", _END), "end of text")
    pad_id = opened.token_id(settings.token("pad_token", _PAD), "padding")
    return TextTokens(opened.to_json(vocab_size=vocab_size, end_of_text_id=end_of_text_id), end_of_text_id, pad_id)
