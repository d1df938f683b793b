from __future__ import annotations

import numpy as np
import pytest
from tokenizers import Tokenizer as Backend
from transformers import CLIPTokenizer

from model_export.checkpoints.model_source import text_section
from model_export.data.captions import CaptionEncoder, Captioner, is_usable, meaning
from model_export.families.clip.bpe import END_OF_TEXT
from service.model.tokenizer import Tokenizer
from tests.support.tiny_hugging_face import clip_vocabulary

CONTEXT = 24
PIECES = [
    "a",
    "photo of",
    "cat,",
    "Zürich!",
    "1848",
    "犬",
    "naïve",
    "it's",
    "#1 50%",
    "🚀",
    "<|endoftext|>",
    "ﬁne",
    "\n",
]


def encoder() -> tuple[CaptionEncoder, CLIPTokenizer]:
    """Open transformers' tokenizer of CLIP, and ours of the same vocabulary."""
    vocabulary, merges = clip_vocabulary()
    published = CLIPTokenizer(vocab=vocabulary, merges=merges)
    end = vocabulary[END_OF_TEXT]
    section = text_section(context_length=CONTEXT, pad_id=end, end_of_text_id=end)
    backend = Backend.from_str(published.backend_tokenizer.to_str())
    return CaptionEncoder(Tokenizer(backend, section), CONTEXT), published


def test_captions_are_cut_as_transformers_cuts_them() -> None:
    """Ten thousand sentences, most of them longer than the context: the same ids, and the same ones are cut."""
    rng = np.random.default_rng(0)
    texts = ["", *(" ".join(rng.choice(PIECES, rng.integers(1, 30))) for _ in range(10_000))]
    ours, published = encoder()
    long = [len(ids) > CONTEXT for ids in published(texts, split_special_tokens=True)["input_ids"]]
    expected = published(texts, split_special_tokens=True, truncation=True, max_length=CONTEXT, padding="longest")

    ids, truncated = ours.encode(texts)

    assert 1000 < sum(long) < 9000
    assert long == truncated.tolist()
    assert expected["input_ids"] == ids.tolist()


def test_captions_are_drawn_from_nouns_class_names_and_templates() -> None:
    """Over many draws every combination appears, the class name in its share; without a class only the noun."""
    captioner = Captioner(("{}", "a {}."), class_name_share=0.25)
    rng = np.random.default_rng(0)
    drawn = [captioner.caption("navy", "blue", rng) for _ in range(2000)]

    assert {"navy", "a navy.", "blue", "a blue."} == set(drawn)
    assert sum("blue" in caption for caption in drawn) / 2000 == pytest.approx(0.25, abs=0.03)
    assert {"navy", "a navy."} == {captioner.caption("navy", None, rng) for _ in range(100)}


@pytest.mark.parametrize(
    ("text", "usable"),
    [
        ("a cat", True),
        ("猫", True),
        (None, False),
        ("", False),
        (" \t\n\u200b", False),
        ("a\0cat", False),
        ("a \ud800cat", False),
    ],
)
def test_a_text_that_says_nothing_is_no_caption(text: str | None, usable: bool) -> None:
    """Empty once normalised, with NUL, or with a lone surrogate."""
    assert usable == is_usable(text)


def test_texts_mean_the_same_if_the_model_reads_the_same() -> None:
    """Case, white space and the form of Unicode do not count; a hundred thousand other texts have other numbers."""
    same = ["A  café\n", "a cafe\u0301", " a\u200b café"]
    others = [f"{word} number {i}" for word in ("cat", "dog") for i in range(50_000)]

    assert 1 == len(set(map(meaning, same)))
    assert 100_001 == len({*map(meaning, others), meaning(same[0])})
    assert all(-(2**63) <= meaning(text) < 2**63 for text in others[:100])
    # Ranks compare these numbers, so each is the same in every process and version.
    assert -6711169336525982361 == meaning("a cat")
