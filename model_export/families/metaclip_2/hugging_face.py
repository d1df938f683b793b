"""`MetaClip2Model` of transformers: CLIP's ``config.json`` and names of parameters, another tokenizer.

The towers are CLIP's. Texts of all languages are tokens of XLM-V, which end at ``</s>``.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Final

from model_export.errors import SourceError
from model_export.families.clip.config import ClipConfig
from model_export.families.clip.hugging_face import HUGGING_FACE as CLIPS
from model_export.families.clip.hugging_face import HfClip, towers
from model_export.families.family import HuggingFaceLayout
from model_export.families.tokenizers import TOKENIZER, TextTokens, TokenizerSettings, open_tokenizer_json

_END_OF_TEXT: Final = "</s>"
_PADDING: Final = "<pad>"


def _configure(
    said: HfClip,
    config: Path,
    tokenizer: Path | None,
    _as_published: bool,  # noqa: FBT001 - of a row's signature
) -> tuple[ClipConfig, TextTokens]:
    """Complete the configuration; the tower reads at the configuration's ``eos_token_id``, whatever the tokenizer."""
    place = tokenizer or config.parent / TOKENIZER
    if not place.exists():
        raise SourceError(f"{place}: is missing; name it with --tokenizer")
    settings = TokenizerSettings.read(place.parent)
    opened = open_tokenizer_json(place)
    end_of_text_id = said.text_config.eos_token_id
    if opened.backend.id_to_token(end_of_text_id) != (end := settings.token("eos_token", _END_OF_TEXT)):
        raise SourceError(f"{config}: text_config.eos_token_id is {end_of_text_id}, which is not the tokenizer's {end}")
    pad_id = opened.token_id(settings.token("pad_token", _PADDING), "padding")
    content = opened.to_json(vocab_size=said.text_config.vocab_size, end_of_text_id=end_of_text_id)
    return towers(said, config, end_of_text_id, pad_id), TextTokens(content, end_of_text_id, pad_id)


HUGGING_FACE: Final[HuggingFaceLayout[HfClip, ClipConfig]] = replace(CLIPS, configure=_configure)
