"""SigLIP's tokenizer: its ``tokenizer.json``, whose normaliser also brings a text to its canonical form.

SigLIP was trained on texts in lower case without punctuation (`canonicalize_text` of big_vision, and of transformers'
`SiglipTokenizer`); a ``tokenizer.json`` of the hub may leave that to the calling program. SigLIP 2 reads Gemma's
tokens, of texts in lower case with their punctuation (its authors' example, and transformers' `Siglip2Tokenizer`), but
the `GemmaTokenizer` of most files keeps capitals. Both forms are idempotent, so a file that has one already is not
harmed.

The text tower attends to padding, so the pad token is part of a text. Its id is read from the tokenizer:
configurations state one id for both generations, which is wrong for the second.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tokenizers import Regex, normalizers, processors

from model_export.errors import SourceError
from model_export.families.tokenizers import (
    SAMPLE_TEXT,
    TOKENIZER,
    TOKENIZER_CONFIG,
    OpenTokenizer,
    TextTokens,
    TokenizerSettings,
    open_tokenizer_json,
)

_PUNCTUATION: Final = r"[!-/:-@\[-`{-~]"
"""Python's ``string.punctuation``."""

_WHITE_SPACE: Final = r"[\s\x1c-\x1f]+"
"""What Python's ``\\s`` matches: four separators more than Unicode calls white space."""


@dataclass(frozen=True)
class _Generation:
    """Facts of a tokenizer's class that its files may leave out."""

    keeps_punctuation: bool
    end: str
    pad: str


_FIRST: Final = _Generation(keeps_punctuation=False, end="</s>", pad="</s>")
_SECOND: Final = _Generation(keeps_punctuation=True, end="<eos>", pad="<pad>")

_GENERATIONS: Final[Mapping[str, _Generation]] = {
    "SiglipTokenizer": _FIRST,
    "Siglip2Tokenizer": _SECOND,
    "GemmaTokenizer": _SECOND,
}
"""By ``tokenizer_class``, without ``Fast``."""


_LOWER_CASE: Final = (
    "texts are put into lower case, as in the training of SigLIP 2; the files keep capitals, which --as-published takes"
)


def read_siglip_tokenizer(
    folder: Path, *, tokenizer: Path | None, vocab_size: int, as_published: bool = False
) -> TextTokens:
    """Read SigLIP's tokenizer.

    Args:
        folder: holds ``tokenizer_config.json``, and ``tokenizer.json`` unless ``tokenizer`` is given.
        tokenizer: a ``tokenizer.json`` elsewhere.
        vocab_size: tokens that the text tower knows.
        as_published: keep capitals where the files of a SigLIP 2 do.

    Raises:
        SourceError: the tokenizer is missing, cannot be read or does not fit the text tower, or its class is not known.
    """
    settings = TokenizerSettings.read(folder)
    return _read(settings, _generation(settings), folder, tokenizer, vocab_size, as_published=as_published)


def read_siglip2_tokenizer(place: Path, *, vocab_size: int) -> TextTokens:
    """Read the tokenizer of a SigLIP 2 as in training, from a ``tokenizer.json`` or its folder, of whatever class.

    Raises:
        SourceError: the tokenizer is missing, cannot be read or does not fit the text tower.
    """
    folder, tokenizer = (place, None) if place.is_dir() else (place.parent, place)
    return _read(TokenizerSettings.read(folder), _SECOND, folder, tokenizer, vocab_size)


def _read(
    settings: TokenizerSettings,
    generation: _Generation,
    folder: Path,
    tokenizer: Path | None,
    vocab_size: int,
    *,
    as_published: bool = False,
) -> TextTokens:
    if settings.fields.get("padding_side") == "left":
        raise SourceError(
            f"{settings.path}: pads texts on the left (padding_side); only padding on the right is served"
        )
    path = tokenizer or folder / TOKENIZER
    if not path.exists():
        raise SourceError(_no_tokenizer(folder, path))
    opened = open_tokenizer_json(path)
    end = settings.token("eos_token", generation.end)
    end_of_text_id = opened.token_id(end, "end of text")
    pad_id = opened.token_id(settings.token("pad_token", generation.pad), "padding")
    _place_special_tokens(opened, settings, end)
    keeps_capitals = generation is _SECOND and _keeps_capitals(opened)
    lower = not (keeps_capitals and as_published) and (
        generation is _SECOND or settings.flag("do_lower_case", default=True)
    )
    _canonicalise(opened, lower=lower, keep_punctuation=generation.keeps_punctuation)
    content = opened.to_json(vocab_size=vocab_size, end_of_text_id=end_of_text_id)
    note = _LOWER_CASE if keeps_capitals and lower else None
    return TextTokens(content, end_of_text_id, pad_id, note=note)


def _keeps_capitals(opened: OpenTokenizer) -> bool:
    own = opened.backend.normalizer
    return own is None or own.normalize_str("A") == "A"


def _generation(settings: TokenizerSettings) -> _Generation:
    if not settings.path.exists():
        raise SourceError(
            f"{settings.path}: is missing; it says how texts are canonicalised; take it from the weights' source"
        )
    name = str(settings.fields.get("tokenizer_class"))
    generation = _GENERATIONS.get(name.removesuffix("Fast"))
    if generation is None:
        raise SourceError(
            f"{settings.path}: tokenizer_class is {name}; how its texts are canonicalised is known of "
            f"{', '.join(_GENERATIONS)}"
        )
    return generation


def _no_tokenizer(folder: Path, path: Path) -> str:
    return (
        f"{path}: is missing, and spiece.model is not read; with transformers, sentencepiece and protobuf installed, "
        f"`python -c \"from transformers import T5TokenizerFast as T; T.from_pretrained('{folder}', extra_ids=0)"
        f".save_pretrained('tok')\"` makes tok/{TOKENIZER}: name it with --tokenizer"
    )


def _place_special_tokens(opened: OpenTokenizer, settings: TokenizerSettings, end: str) -> None:
    """Apply ``add_bos_token`` and ``add_eos_token`` if the tokenizer's settings state them."""
    if not {"add_bos_token", "add_eos_token"} & settings.fields.keys():
        return
    backend = opened.backend
    start = settings.token("bos_token", "<bos>")
    ids = backend.encode(SAMPLE_TEXT).ids
    parts = [
        (start, settings.flag("add_bos_token", default=ids[:1] == [backend.token_to_id(start)])),
        ("$A", True),
        (end, settings.flag("add_eos_token", default=ids[-1:] == [backend.token_to_id(end)])),
    ]
    template = [part for part, wanted in parts if wanted]
    backend.post_processor = processors.TemplateProcessing(
        single=" ".join(template),
        special_tokens=[(part, opened.token_id(part, TOKENIZER_CONFIG)) for part in template if part in {start, end}],
    )


def _canonicalise(opened: OpenTokenizer, *, lower: bool, keep_punctuation: bool) -> None:
    steps: list[normalizers.Normalizer] = [normalizers.Lowercase()] if lower else []
    if not keep_punctuation:
        steps += [
            normalizers.Replace(Regex(_PUNCTUATION), ""),
            normalizers.Replace(Regex(_WHITE_SPACE), " "),
            normalizers.Strip(),
        ]
    opened.normalise_first(*steps)
