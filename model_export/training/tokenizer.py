"""Train a byte-level BPE tokenizer on captions, in the form of CLIP's own (paper, section 2.4)."""

from __future__ import annotations

import json
from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from model_export.errors import RecipeError
from model_export.families.clip.bpe import END_OF_TEXT, END_OF_WORD, START_OF_TEXT, WORD_PATTERN

MIN_VOCAB_SIZE = 2 + 2 * 256


def train_tokenizer(captions: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train a tokenizer.

    It brings text to Unicode NFC, collapses white space and lower-cases letters. Ids 0 and 1 are start and end of
    text, which the post-processor puts around every text. The vocabulary holds all 256 bytes, inside a word and at
    its end, so any text can be encoded.

    Args:
        captions: the training text.
        vocab_size: most entries, including the 2 specials and the 512 bytes; at least 514.

    Returns:
        A ``tokenizers`` tokenizer; ``save`` writes the bundle's ``tokenizer.json``.

    Raises:
        RecipeError: ``vocab_size`` leaves no room for the bytes.
    """
    if vocab_size < MIN_VOCAB_SIZE:
        msg = f"model.text.vocab_size {vocab_size} is too small; 2 specials and 2 x 256 bytes need {MIN_VOCAB_SIZE}"
        raise RecipeError(msg)
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix=END_OF_WORD))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORD_PATTERN), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        # The trainer adds a byte in its end-of-word form only if a caption ends so, in the order of a hash map. BPE
        # silently drops unknown tokens: a word ending in an unseen byte would lose it, and ids would differ from
        # run to run. Special tokens are always present, at fixed ids.
        special_tokens=[START_OF_TEXT, END_OF_TEXT, *(byte + END_OF_WORD for byte in alphabet)],
        initial_alphabet=alphabet,
        end_of_word_suffix=END_OF_WORD,
        show_progress=False,
    )
    tokenizer.train_from_iterator(captions, trainer)
    tokenizer = _without_special_tokens(tokenizer)
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Replace(END_OF_WORD, " ")])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{START_OF_TEXT} $A {END_OF_TEXT}",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in (START_OF_TEXT, END_OF_TEXT)],
    )
    return tokenizer


def _without_special_tokens(tokenizer: Tokenizer) -> Tokenizer:
    # They were special for the trainer only. In a text, "<|endoftext|>" and "a</w>" are ordinary characters, so a label
    # cannot end its prompt early. Only the post-processor places start and end, and it names them by id.
    content = json.loads(tokenizer.to_str())
    content["added_tokens"] = []
    return Tokenizer.from_str(json.dumps(content))
