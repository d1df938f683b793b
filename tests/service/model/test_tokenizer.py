from concurrent.futures import ThreadPoolExecutor
from itertools import islice, repeat
from pathlib import Path

import numpy as np
import pytest

from service.errors import BundleError, PromptTooLong
from service.model.loading import Bundle, load_bundle
from service.model.manifest import TOKENIZER
from service.model.tokenizer import Tokenizer
from tests.support.tiny_bundle import tiny_tokenizer, write_tiny_bundle


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """A tiny model's bundle."""
    return load_bundle(write_tiny_bundle(tmp_path / "tiny"))


@pytest.fixture
def tokenizer(bundle: Bundle) -> Tokenizer:
    """Its tokenizer."""
    return Tokenizer.from_bundle(bundle)


def test_texts_are_padded_to_the_longest_only(tokenizer: Tokenizer, bundle: Bundle) -> None:
    """Ids keep their start and end tokens, then come pads, then nothing."""
    ids = tokenizer.encode(["red", "a red"])
    start, end = (tiny_tokenizer().token_to_id(token) for token in ("<|start|>", "<|end|>"))
    red = tiny_tokenizer().token_to_id("red")
    assert np.int64 == ids.dtype
    assert (2, 5) == ids.shape
    assert [start, red, end, 0, 0] == ids[0].tolist()
    assert bundle.manifest.text.end_of_text_id == ids[1, -1]


def test_padding_has_a_least_length_and_may_be_fixed(tmp_path: Path) -> None:
    """As the manifest's text section says."""
    fixed = Tokenizer.from_bundle(load_bundle(write_tiny_bundle(tmp_path / "f", padding="fixed", max_length=20)))
    assert (1, 20) == fixed.encode(["red"]).shape
    longest = load_bundle(write_tiny_bundle(tmp_path / "l"))
    section = longest.manifest.text.model_copy(update={"min_length": 9})
    tokenizer = Tokenizer(tiny_tokenizer(), section)
    assert (1, 9) == tokenizer.encode(["red"]).shape
    assert (0, 9) == tokenizer.encode([]).shape


def test_a_text_over_the_context_is_refused_with_its_position(tmp_path: Path) -> None:
    """Exactly the context is fine; one more is never cut off unseen."""
    tokenizer = Tokenizer.from_bundle(load_bundle(write_tiny_bundle(tmp_path / "b", max_length=10)))
    assert (1, 10) == tokenizer.encode(["x" * 8]).shape
    with pytest.raises(PromptTooLong, match="Text 1 has 11 tokens") as caught:
        tokenizer.encode(["x", "x" * 9])
    assert 1 == caught.value.index


def test_a_label_cannot_spell_a_special_token(tokenizer: Tokenizer, bundle: Bundle) -> None:
    """Or everything behind it would not be read."""
    (row,) = tokenizer.tokenize(["cat<|end|> dog<|pad|>"])
    assert 1 == row.count(bundle.manifest.text.end_of_text_id)
    assert bundle.manifest.text.pad_id not in row


def test_tokenising_and_padding_can_be_done_apart(tokenizer: Tokenizer) -> None:
    """A caller may sort by length in between and lose nothing."""
    texts = ["a very long text", "red", "Zürich 犬"]
    rows = tokenizer.tokenize(texts)
    assert [len(row) for row in rows] == [(row != 0).sum() for row in tokenizer.encode(texts)]
    np.testing.assert_array_equal(tokenizer.encode(texts[1:2]), tokenizer.pad(rows[1:2]))


def test_many_threads_may_tokenise_at_once(tokenizer: Tokenizer) -> None:
    """One tokenizer serves all requests."""
    texts = [f"label number {i}" for i in range(50)]
    expected = tokenizer.encode(texts)
    with ThreadPoolExecutor(8) as pool:
        for ids in pool.map(lambda _: tokenizer.encode(texts), range(16)):
            np.testing.assert_array_equal(expected, ids)


@pytest.mark.parametrize("content", [None, "", "{}", "\ud83d"])
def test_an_unreadable_tokenizer_names_the_file(bundle: Bundle, content: str | None) -> None:
    """Whatever the library raises, the operator sees which file it is."""
    path = bundle.path / TOKENIZER
    path.unlink()
    if content is not None:
        path.write_bytes(content.encode("utf-8", "surrogatepass"))
    with pytest.raises(BundleError, match=r"tokenizer\.json: "):
        Tokenizer.from_bundle(bundle)


@pytest.mark.parametrize("wrong", [{"pad_id": 10_000}, {"end_of_text_id": 5}])
def test_a_tokenizer_that_contradicts_the_manifest_is_refused(bundle: Bundle, wrong: dict[str, int]) -> None:
    """A wrong end-of-text id would read the feature at the wrong place, and answer quietly wrong."""
    section = bundle.manifest.text.model_copy(update=wrong)
    manifest = bundle.manifest.model_copy(update={"text": section})
    with pytest.raises(BundleError, match=next(iter(wrong))):
        Tokenizer.from_bundle(Bundle(bundle.path, manifest, bundle.templates))


def test_texts_are_tokenised_a_few_at_a_time(tokenizer: Tokenizer) -> None:
    """One call for all would keep other threads waiting; the first rows come before the last text is known."""
    assert [tokenizer.tokenize(["red"])[0][1:-1]] * 9_000 == list(islice(tokenizer.pieces(repeat("red")), 9_000))
