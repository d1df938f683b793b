"""SigLIP's tokenizer as open_clip uses it: ``tokenizer.json`` behind the configuration's ``clean = canonicalize``.

open_clip canonicalises texts in Python: it replaces the underscore by a space, removes other punctuation, lower-cases,
and joins white space. Here the tokenizer does that. open_clip's first step, ftfy and HTML entities, is the manifest's
``cleaning``.
"""

from pathlib import Path
from typing import Final

from tokenizers import Regex, normalizers

from model_export.errors import SourceError
from model_export.families.tokenizers import TOKENIZER, TextTokens, TokenizerSettings, open_tokenizer_json

_PUNCTUATION: Final = r"[!-/:-@\[-^`{-~]"
"""Python's ``string.punctuation`` without the underscore."""

_WHITE_SPACE: Final = r"[\s\x1c-\x1f]+"
"""The separators of Python's ``str.split``."""


_SPECIALS: Final = {32_000: ("</s>", "</s>"), 250_000: ("</s>", "</s>"), 256_000: ("<eos>", "<pad>")}
"""End of text and padding by vocabulary: C4's and mC4's of SigLIP, Gemma's of SigLIP 2. A tokenizer's own settings take
precedence."""


def read_canonical_tokenizer(place: Path, *, vocab_size: int) -> TextTokens:
    """Read SigLIP's tokenizer, and make it canonicalise texts.

    Args:
        place: a ``tokenizer.json``, or the folder that holds one.
        vocab_size: tokens that the text tower knows.

    Raises:
        SourceError: the tokenizer cannot be read or does not fit the text tower, or its special tokens are unknown.
    """
    path = place / TOKENIZER if place.is_dir() else place
    opened = open_tokenizer_json(path)
    settings = TokenizerSettings.read(path.parent)
    known = _SPECIALS.get(vocab_size)
    if known is None and not {"eos_token", "pad_token"} <= settings.fields.keys():
        raise SourceError(
            f"{settings.path}: lacks eos_token and pad_token, and {vocab_size} tokens are none of SigLIP's "
            "vocabularies; add both tokens to it"
        )
    end, pad = known or ("", "")
    end_of_text_id = opened.token_id(settings.token("eos_token", end), "end of text")
    pad_id = opened.token_id(settings.token("pad_token", pad), "padding")
    opened.normalise_first(
        normalizers.Replace("_", " "),
        normalizers.Replace(Regex(_PUNCTUATION), ""),
        normalizers.Lowercase(),
        normalizers.Replace(Regex(_WHITE_SPACE), " "),
        normalizers.Strip(),
    )
    content = opened.to_json(vocab_size=vocab_size, end_of_text_id=end_of_text_id)
    return TextTokens(content, end_of_text_id, pad_id, cleaning="clip")
