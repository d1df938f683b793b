from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from model_export.errors import RecipeError
from model_export.families.clip.bpe import END_OF_TEXT, START_OF_TEXT
from model_export.training.tokenizer import MIN_VOCAB_SIZE, train_tokenizer

CAPTIONS = ["a photo of a cat.", "a photo of a dog.", "the dog's 2 cats"] * 3
TOKENIZER = train_tokenizer(CAPTIONS, MIN_VOCAB_SIZE + 60)


def test_common_words_become_one_token_between_the_specials() -> None:
    """Text is lower-cased and split into words, between start and end of text."""
    tokens = TOKENIZER.encode("A  photo of a CAT.").tokens

    assert [START_OF_TEXT, "a</w>", "photo</w>", "of</w>", "a</w>", "cat</w>", ".</w>", END_OF_TEXT] == tokens


@given(text=st.text(alphabet=st.characters(exclude_categories=["Z", "C"]), min_size=1, max_size=12))
def test_no_character_is_lost_in_silence(text: str) -> None:
    """Any text in any script survives encoding and decoding, however unlike the training text."""
    normalised = Tokenizer.from_str(TOKENIZER.to_str()).normalizer.normalize_str(text)

    decoded = TOKENIZER.decode(TOKENIZER.encode(text).ids[1:-1])

    assert normalised.replace(" ", "") == decoded.replace(" ", "")


def test_markup_in_a_text_is_text() -> None:
    """A label can inject neither a special token nor an end-of-word mark."""
    ids = TOKENIZER.encode("<|endoftext|> a</w>").ids

    assert 1 == ids.count(1)
    assert "<|endoftext|>a</w>" == TOKENIZER.decode(ids[1:-1]).replace(" ", "")


def test_the_vocabulary_keeps_its_bound() -> None:
    """The vocabulary has at most the requested size; the specials are the first two."""
    assert TOKENIZER.get_vocab_size() <= MIN_VOCAB_SIZE + 60
    assert (0, 1) == (TOKENIZER.token_to_id(START_OF_TEXT), TOKENIZER.token_to_id(END_OF_TEXT))
    assert TOKENIZER.get_vocab_size() == max(TOKENIZER.get_vocab().values()) + 1


def test_training_is_reproducible() -> None:
    """The same captions give the same file, byte for byte."""
    assert TOKENIZER.to_str() == train_tokenizer(CAPTIONS, MIN_VOCAB_SIZE + 60).to_str()


def test_a_vocabulary_without_room_for_the_bytes_is_refused() -> None:
    """The error states the smallest size."""
    with pytest.raises(RecipeError, match=str(MIN_VOCAB_SIZE)):
        train_tokenizer(CAPTIONS, MIN_VOCAB_SIZE - 1)
