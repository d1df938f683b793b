"""Reads the tokenizers of open_clip's models, in the forms of open_clip's ``SimpleTokenizer`` and ``HFTokenizer``.

Both clean texts before: the manifest's ``cleaning``, and white space is joined.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from tokenizers import Regex, normalizers, processors

from model_export.errors import SourceError
from model_export.families.clip.tokenizer import installed_vocabulary, tokenizer_json
from model_export.families.open_clip_torch.config import OpenClipTorchConfig
from model_export.families.siglip.open_clip_tokenizer import read_canonical_tokenizer
from model_export.families.tokenizers import (
    REFERENCE,
    TOKENIZER,
    OpenTokenizer,
    TextTokens,
    TokenizerSettings,
    open_tokenizer_json,
)

_WHITE_SPACE: Final = r"[\s\x1c-\x1f]+"
"""The separators of Python's ``str.split``."""


def read_tokenizer(place: Path | None, config: OpenClipTorchConfig, weights: Path) -> TextTokens:
    """Read the tokenizer in a folder or a file.

    Raises:
        SourceError: the source has none, or it cannot be read or does not fit the text tower.
    """
    text = config.text
    if text.tokenizer == "clip":
        return _clip(place, config, weights)
    if place is None:
        raise SourceError(f"{weights}: carries no tokenizer; name its tokenizer.json with --tokenizer")
    if text.tokenizer == "canonical":
        return read_canonical_tokenizer(place, vocab_size=text.vocab_size)
    opened = open_tokenizer_json(place / TOKENIZER if place.is_dir() else place)
    opened.normalise_first(normalizers.Replace(Regex(_WHITE_SPACE), " "), normalizers.Strip())
    return _bert(opened, text.vocab_size) if text.tokenizer == "bert" else _hugging_face(opened, text.vocab_size)


def _clip(place: Path | None, config: OpenClipTorchConfig, weights: Path) -> TextTokens:
    place = place or installed_vocabulary()
    if place is None:
        raise SourceError(
            f"{weights}: carries no tokenizer; name one with --tokenizer (a tokenizer.json, or {REFERENCE})"
        )
    text = config.text
    end = text.vocab_size - 1 if text.end_of_text_id is None else text.end_of_text_id
    content = tokenizer_json(place, vocab_size=text.vocab_size, end_of_text_id=end)
    return TextTokens(content, end, text.pad_id, cleaning="clip")


def _bert(opened: OpenTokenizer, vocab_size: int) -> TextTokens:
    """Put padding in the place of ``[SEP]``, as CLIPA was trained and ``strip_sep_token`` says."""
    start, pad = "[CLS]", "[PAD]"
    start_id, pad_id = opened.token_id(start, "start of text"), opened.token_id(pad, "padding")
    if pad_id != 0:
        raise SourceError(f"{opened.path}: {pad} is token {pad_id}; in its place open_clip writes 0")
    opened.backend.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {pad}", special_tokens=[(start, start_id), (pad, pad_id)]
    )
    content = opened.to_json(vocab_size=vocab_size, end_of_text_id=pad_id)
    return TextTokens(content, pad_id, pad_id, cleaning="clip")


def _hugging_face(opened: OpenTokenizer, vocab_size: int) -> TextTokens:
    settings = TokenizerSettings.read(opened.path.parent)
    is_bert = opened.backend.token_to_id("[SEP]") is not None
    end, pad = ("[SEP]", "[PAD]") if is_bert else ("</s>", "<pad>")
    end_of_text_id = opened.token_id(settings.token("eos_token", end), "end of text")
    pad_id = opened.token_id(settings.token("pad_token", pad), "padding")
    content = opened.to_json(vocab_size=vocab_size, end_of_text_id=end_of_text_id)
    return TextTokens(content, end_of_text_id, pad_id, cleaning="clip")
